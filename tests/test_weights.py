"""Weights from files, as initial weights or for evaluation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import train_imagenet
from tests import training_runs
from tests.image_sets import plain, write_split
from tests.training_runs import lines

# The errors below show the names of its layers.
ARCH = ["--arch", "resnet18"]
SMALL = [*training_runs.SMALL, *ARCH]


def status(data: Path, output: Path, *extra: object) -> int:
    return training_runs.status(data, output, *ARCH, *extra)


def train(data: Path, output: Path, *extra: object) -> None:
    training_runs.train(data, output, *ARCH, *extra)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    train(photos, output, "--ema-decay", "0.5", "--val-image-size", "48")
    return output


def evaluate(photos: Path, weights: Path, *extra: object) -> None:
    """Run --eval-only, which prints its numbers."""
    arguments = [
        "--data",
        str(photos),
        *SMALL,
        "--eval-only",
        "--init-weights",
        str(weights),
        *map(str, extra),
    ]
    assert train_imagenet.main(arguments) == 0


def numbers(said: str) -> list[float]:
    found = re.search(r"top-1 ([\d.]+) %, top-5 ([\d.]+) %, loss ([\d.]+) on 17 images", said)
    assert found is not None, said
    return [float(value) for value in found.groups()]


def test_eval_only(
    photos: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a checkpoint: the averaged weights give the numbers of its run; nothing is written."""
    monkeypatch.chdir(tmp_path)
    last = lines(trained)[-1]
    val_alone = tmp_path / "val alone"
    shutil.copytree(photos / "val", val_alone / "val")
    evaluate(val_alone, trained / "last.pt", "--val-image-size", 48)
    said = capsys.readouterr().out
    assert "averaged weights of" in said
    assert numbers(said) == pytest.approx([last["ema_top1"], last["ema_top5"], last["ema_loss"]], abs=5.1e-3)
    content = torch.load(trained / "last.pt", weights_only=True)
    torch.save({f"module.{name}": value for name, value in content["model"].items()}, tmp_path / "plain.pth")
    evaluate(photos, tmp_path / "plain.pth", "--val-image-size", 48)
    found = numbers(capsys.readouterr().out)
    assert found == pytest.approx([last["top1"], last["top5"], last["loss"]], abs=5.1e-3)
    evaluate(photos, tmp_path / "plain.pth", "--val-image-size", 32)
    assert numbers(capsys.readouterr().out)[2] != pytest.approx(found[2], abs=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {"val alone", "plain.pth"}


def test_eval_only_counts_what_it_evaluated(
    photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be decoded is reported, and not counted in the numbers."""
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    bad = sorted((data / "val").rglob("*.JPEG"))[0]
    bad.write_bytes(b"no image")
    evaluate(data, trained / "last.pt", "--val-image-size", 48)
    said = capsys.readouterr().out
    assert "on 16 images" in said
    assert str(bad) in said


def test_init_weights(
    photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run starts from them; with other classes, on request, from all except the classifier."""
    extra = ["--lr", 0, "--weight-decay", 0, "--max-steps", 1, "--init-weights", trained / "best.pt"]
    train(photos, tmp_path / "same", *extra)
    wanted = torch.load(trained / "best.pt", weights_only=True)["ema"]
    found = torch.load(tmp_path / "same" / "last.pt", weights_only=True)["model"]
    parameters = [name for name in wanted if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(found[name], wanted[name]) for name in parameters)
    other = tmp_path / "two classes"
    for split in ("train", "val"):
        write_split(other / split, (12, 12), plain)
    assert status(other, tmp_path / "other", *extra) == 2
    error = capsys.readouterr().err
    assert "train/ lacks cat" in error
    assert "--new-classifier" in error
    train(other, tmp_path / "other", *extra, "--new-classifier")
    assert "except the classifier fc" in capsys.readouterr().out
    found = torch.load(tmp_path / "other" / "last.pt", weights_only=True)["model"]
    assert found["fc.weight"].shape == (2, 512)
    rest = [name for name in parameters if not name.startswith("fc.")]
    assert all(torch.equal(found[name], wanted[name]) for name in rest)


def test_bad_weights(photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(path: object, *extra: str) -> str:
        output = tmp_path / "run"
        assert status(photos, output, "--init-weights", path, *extra) == 2
        assert not output.exists()
        return capsys.readouterr().err

    assert "there is no file" in error(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no weights")
    assert "text.pt is a text file" in error(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds no named weights; it is of the type list" in error(tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    assert "holds no named weights; it is a dict of a" in error(tmp_path / "numbers.pt")
    message = error(trained / "last.pt", "--arch", "resnet34")
    assert "must be the weights of --arch resnet34;" in message
    assert "more" in message
    assert "last.pt is missing layer1.2.conv1.weight" in message
    assert "it says it is resnet18" in message
    content = torch.load(trained / "last.pt", weights_only=True)["model"]
    content["fc.weight"], content["fc.bias"] = torch.zeros(9, 512), torch.zeros(9)
    torch.save(content, tmp_path / "nine.pt")
    message = error(tmp_path / "nine.pt", "--eval-only")
    assert "has a classifier fc for 9 classes; here are 3" in message
    content["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(content, tmp_path / "grey.pt")
    assert "conv1.weight of shape [64, 1, 7, 7], not [64, 3, 7, 7]" in error(tmp_path / "grey.pt")
    assert (
        "--eval-only must be used with --init-weights"
        in (
            train_imagenet.main(["--data", str(photos), *SMALL, "--eval-only"]),
            capsys.readouterr().err,
        )[1]
    )


def test_val_image_size(trained: Path) -> None:
    settings = json.loads((trained / "config.json").read_text())["settings"]
    assert (settings["image_size"], settings["val_image_size"]) == (32, 48)
