"""The trainer end to end on small generated JPEGs, its schedule, its files and its errors."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train_imagenet
from dali_msda.methods import METHODS
from pipelines.demo_data import CLASSES, make_demo_dataset
from pipelines.imagenet import val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Output
from tests import training_runs
from tests.devices import on_each_device, trainer_options
from tests.trainer_process import Trainer
from tests.training_runs import assert_same_run
from training.model import build_model, build_schedule

SMALL = [*training_runs.SMALL, "--log-every", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, 40 training and 20 validation images."""
    return make_demo_dataset(tmp_path_factory.mktemp("data") / "set", train_per_class=4, val_per_class=2)


def train(data: Path, output: Path, *extra: str) -> list[dict[str, Any]]:
    """Run the trainer; return the lines of metrics.jsonl."""
    return training_runs.train(data, output, "--log-every", "2", *extra)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    output = tmp_path_factory.mktemp("out") / "run"
    return output, train(data, output)


def test_from_config(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """A run's config.json repeats it bit for bit; its --output and --resume do not carry over."""
    first, second = tmp_path / "first", tmp_path / "second"
    given = ["--data", photos, *SMALL, "--output", first, "--resume", "auto"]
    given += ["--mix", "stochastic", "--mix-cutmix-alpha", 0.3, "--ema-decay", 0.5, "--seed", 3]
    given += ["--mix-ramp-epochs", 1, "--mix-probability-start", 0.5, "--crop-area", 0.3, 0.9]
    outcome = trainer.run(*given, model="restless")
    assert outcome.statuses == [0], outcome.said
    outcome = trainer.run("--from-config", first / "config.json", "--output", second, model="restless")
    assert outcome.statuses == [0], outcome.said
    assert_same_run(second, first)
    assert json.loads((second / "config.json").read_text())["settings"]["from_config"] == str(
        first / "config.json"
    )


def test_metrics(run: tuple[Path, list[dict[str, Any]]]) -> None:
    """Five steps per epoch: lines at steps 2, 4, 6, 8 and the last, and an evaluation after each epoch."""
    lines = run[1]
    assert [(line["event"], line["step"]) for line in lines] == [
        ("train", 2), ("train", 4), ("eval", 5), ("train", 6), ("train", 8), ("train", 10), ("eval", 10),
    ]  # fmt: skip
    for line in lines:
        keys = {
            "train": ["epoch", "step", "lr", "loss", "dominant_top1", "images_per_s", "data_wait"],
            "eval": ["epoch", "step", "top1", "top5", "loss"],
        }[line["event"]]
        assert list(line) == ["event", *keys]
        assert math.isfinite(line["loss"])
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1, 1]
    for line in (lines[2], lines[6]):
        assert 0 <= line["top1"] <= line["top5"] <= 100
        assert line["top1"] * 20 / 100 == pytest.approx(round(line["top1"] * 20 / 100))  # of 20 images
    for line in lines:
        if line["event"] == "train":
            assert line["images_per_s"] > 0
            assert 0 <= line["data_wait"] <= 1


def test_config(run: tuple[Path, list[dict[str, Any]]], data: Path) -> None:
    config = json.loads((run[0] / "config.json").read_text())
    settings = config["settings"]
    assert settings["data"] == str(data)
    assert (settings["mix"], settings["mix_alpha"], settings["mix_ratio"]) == ("hmix", 1.0, 0.75)
    assert settings["arch"] == "shufflenet_v2_x0_5"
    assert settings["seed"] == 0
    assert config["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"nvidia-dali-cuda120", "numba", "python", "torchvision"} <= config["versions"].keys()
    root = Path(train_imagenet.__file__).parent
    if (root / ".git").exists():
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        assert config["commit"] == head.stdout.strip()


def test_files(run: tuple[Path, list[dict[str, Any]]]) -> None:
    names = {path.name for path in run[0].iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    known = {"config.json", "metrics.jsonl", "log.txt", "first_batch.png"}
    assert names - events == known | {"checkpoints", "last.pt", "best.pt"}
    numbered = {path.name for path in (run[0] / "checkpoints").iterdir()}
    assert numbered == {"step-00000005.pt", "step-00000010.pt"}


def test_checkpoints_hold_what_was_measured(run: tuple[Path, list[dict[str, Any]]], data: Path) -> None:
    """The weights in last.pt and best.pt reach the accuracies in metrics.jsonl."""
    evals = [line for line in run[1] if line["event"] == "eval"]
    best = max(evals, key=lambda line: line["top1"])
    for name, line in (("last.pt", evals[-1]), ("best.pt", best)):
        content = torch.load(run[0] / name, weights_only=True)
        assert content["progress"]["epoch"] == line["epoch"]
        model = build_model("shufflenet_v2_x0_5", 10)
        model.load_state_dict(content["model"])
        model.eval()
        loader = DALILoader(
            val_pipeline(data, batch_size=8, num_threads=1, output=Output(image_size=32, layout="HWC")),
            layout="HWC",
        )
        with torch.inference_mode():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
        assert 100 * right / 20 == pytest.approx(line["top1"])


def test_same_seed_same_losses(run: tuple[Path, list[dict[str, Any]]], data: Path, tmp_path: Path) -> None:
    def losses(lines: list[dict[str, Any]]) -> list[float]:
        return [line["loss"] for line in lines]

    assert losses(train(data, tmp_path / "again")) == losses(run[1])
    assert losses(train(data, tmp_path / "other", "--seed", "1")) != losses(run[1])


@pytest.mark.parametrize("mix", METHODS)
def test_every_method_trains(mix: str, data: Path, tmp_path: Path) -> None:
    lines = train(data, tmp_path / "run", "--mix", mix, "--max-steps", "2", "--label-smoothing", "0.1")
    assert [line["event"] for line in lines] == ["train", "eval"]
    alpha = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["mix_alpha"]
    assert alpha == {"none": None, "mixup": 0.8}.get(mix, 1.0)


@on_each_device
def test_bf16_and_other_architecture(device: str, data: Path, tmp_path: Path) -> None:
    other = ["--amp", "bf16", "--arch", "mobilenet_v3_small", "--max-steps", "2"]
    # Without --deterministic, which would stay on in this process.
    lines = train(data, tmp_path / "run", *other, *trainer_options(device)[:2])
    assert math.isfinite(lines[-1]["loss"])


def test_without_data_it_makes_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It uses the demo settings, and says what it does and how to change that."""
    asked: list[Path] = []

    def make(root: Path, **_: Any) -> Path:
        asked.append(root)
        return data

    monkeypatch.setattr("training.demo.make_demo_dataset", make)
    output = tmp_path / "run"
    arguments = ["--demo-data", str(tmp_path / "made"), "--output", str(output), "--max-steps", "1"]
    assert train_imagenet.main([*arguments, "--arch", "shufflenet_v2_x0_5"]) == 0
    assert asked == [tmp_path / "made"]
    said = capsys.readouterr().out
    assert "--data DIR" in said
    assert "train/" in said
    settings = json.loads((output / "config.json").read_text())["settings"]
    assert (settings["image_size"], settings["batch_size"]) == (64, 32)


def test_learning_rates() -> None:
    """Two steps of warm-up to 0.9, then a half cosine over six: 0.9 * (1 + cos(pi k / 6)) / 2."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.9)
    schedule = build_schedule(optimizer, 2, 8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.3, 0.6, 0.9, 0.8397114, 0.675, 0.45, 0.225, 0.0602886]
    assert rates == pytest.approx(expected, abs=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


BAD: dict[str, tuple[list[str], list[str]]] = {
    "alpha": (["--mix-alpha", "-1"], ["--mix-alpha", "at least 0", "got -1"]),
    "ratio": (["--mix-ratio", "1.2"], ["--mix-ratio", "[0, 1]", "1.2"]),
    "ratio of gmix": (["--mix", "gmix", "--mix-ratio", "0.5"], ["--mix-ratio", "hmix", "0.5"]),
    "probability": (["--mix-probability", "-0.1"], ["--mix-probability", "[0, 1]", "-0.1"]),
    "smoothing": (["--label-smoothing", "3"], ["--label-smoothing", "[0, 1]"]),
    "architecture": (["--arch", "resnet5"], ["--arch", "resnet5", "did you mean", "resnet50"]),
    "batch size": (["--batch-size", "0"], ["--batch-size", "at least 1"]),
    "too large a batch": (["--batch-size", "41"], ["--batch-size", "40", "41"]),
    "epochs": (["--epochs", "-1"], ["--epochs", "above 0", "-1"]),
    "learning rate": (["--lr", "nan"], ["--lr", "nan"]),
    "crop area": (["--crop-area", "0.5", "0.2"], ["--crop-area", "(0.5, 0.2)"]),
    "fp16 on the CPU": (["--amp", "fp16"], ["--amp", "bf16 on the CPU", "fp16"]),
    "steps": (["--max-steps", "0"], ["--max-steps", "at least 1"]),
}
if not torch.cuda.is_available():
    BAD["no GPU"] = (["--device", "cuda", "--amp", "none"], ["--device", "cpu", "no NVIDIA driver"])


@pytest.mark.parametrize("name", BAD)
def test_bad_setting(name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra, words = BAD[name]
    output = tmp_path / "run"
    assert train_imagenet.main(["--data", str(data), "--output", str(output), *SMALL, *extra]) == 2
    error = capsys.readouterr().err
    assert not [word for word in words if word not in error], error
    assert not output.exists()


@pytest.mark.parametrize("option", ["mix", "mix-convention", "amp", "device"])
def test_unknown_choice_lists_the_choices(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_imagenet.main([f"--{option}", "wrong"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert option in error
    choice = {"mix": "stochastic", "mix-convention": "paper", "amp": "bf16", "device": "cuda"}[option]
    assert choice in error


def test_bad_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(folder: Path) -> str:
        output = tmp_path / "run"
        assert train_imagenet.main(["--data", str(folder), "--output", str(output), *SMALL]) == 2
        assert not output.exists()
        return capsys.readouterr().err

    assert "no such folder" in error(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "train/" in error(tmp_path / "empty")
    for split in ("train", "val"):
        broken = tmp_path / f"no-{split}"
        shutil.copytree(data, broken)
        shutil.rmtree(broken / split)
        assert f"without {split}/" in error(broken)
    lacking = tmp_path / "lacking"
    shutil.copytree(data, lacking)
    shutil.rmtree(lacking / "val" / CLASSES[3])
    assert CLASSES[3] in error(lacking)
    hollow = tmp_path / "hollow"
    shutil.copytree(data, hollow)
    for image in (hollow / "train" / CLASSES[1]).iterdir():
        image.unlink()
    message = error(hollow)
    assert CLASSES[1] in message
    assert "must have images; got none" in message


def test_a_run_is_never_written_over(
    run: tuple[Path, list[dict[str, Any]]], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}
    assert train_imagenet.main(["--data", str(data), "--output", str(run[0]), *SMALL]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()} == before


def test_exit_status_without_traceback(tmp_path: Path) -> None:
    script = Path(train_imagenet.__file__)
    result = subprocess.run(
        [sys.executable, str(script), "--data", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("train_imagenet.py: error: --data")
    assert "Traceback" not in result.stderr
