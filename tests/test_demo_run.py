"""The size of the demo run follows the speed of the machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image

import train_imagenet
from dali_msda import Mixing
from tests.image_sets import photo, write_split
from training import demo
from training.config import DEMO, resolve
from training.demo import SIZES, fit_to_machine, measured_step
from training.distributed import Processes
from training.mix_schedule import MixSchedule

# Steps per epoch and per evaluation on the generated images: 2000 and 500 in batches of 32.
STEPS, EVALUATION = 62, 500 / 32 * 0.35


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the seconds per step at 64 pixels, other sizes in proportion; list the requested sizes."""
    asked: list[int] = []

    def be(seconds: float) -> list[int]:
        def step(_config: Any, image_size: int, _batch_size: int) -> float:
            asked.append(image_size)
            return seconds * image_size / 64

        monkeypatch.setattr(demo, "measured_step", step)
        return asked

    return be


@pytest.mark.parametrize(
    ("seconds", "position"), [(0.01, 0), (0.368, 0), (0.373, 1), (0.738, 1), (0.745, 2), (60.0, 2)]
)
def test_the_largest_that_fits(seconds: float, position: int, speed: Any) -> None:
    asked = speed(seconds)
    config, expected = fit_to_machine(resolve(DEMO), Processes(), 2000, 500)
    size = SIZES[position]
    assert (config.image_size, config.val_image_size, config.epochs) == (
        size.image_size,
        size.image_size,
        size.epochs,
    )
    assert config.mix_schedule.off_epoch == size.epochs - 1
    assert asked == ([64] if position < 2 else [64, 48])  # each image size once
    step = seconds * size.image_size / 64
    assert expected == pytest.approx(size.epochs * step * (STEPS + EVALUATION), rel=1e-3)


def test_what_was_asked_for_stays(speed: Any) -> None:
    speed(0.01)
    options: list[tuple[dict[str, Any], int | None]] = [
        ({"mixing": Mixing("none")}, None),
        ({"mix_schedule": MixSchedule(off_epoch=3)}, 3),
    ]
    for changes, off_epoch in options:
        config, _ = fit_to_machine(resolve(dataclasses.replace(DEMO, **changes)), Processes(), 2000, 500)
        assert config.mix_schedule.off_epoch == off_epoch
    config, _ = fit_to_machine(resolve(dataclasses.replace(DEMO, val_image_size=80)), Processes(), 2000, 500)
    assert (config.image_size, config.val_image_size) == (64, 80)


def test_a_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of three steps, by a fake clock; the first is a warm-up and does not count."""
    told = iter([0, 90, 100, 101, 200, 203, 300, 302])
    monkeypatch.setattr("training.demo.time.perf_counter", lambda: next(told))
    config = resolve(dataclasses.replace(DEMO, arch="resnet18", device="cpu", amp="none"))
    with mock.patch.object(torch.optim.SGD, "step", autospec=True) as step:
        assert measured_step(config, 32, 8) == 2
    assert step.call_count == 4


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images of three classes instead of the generated ones."""
    for split in ("train", "val"):
        write_split(tmp_path / "few" / split, (2, 2, 2), lambda i, _: Image.fromarray(photo(40, 50, i)))
    monkeypatch.setattr("training.demo.make_demo_dataset", lambda *_, **__: tmp_path / "few")
    return tmp_path / "few"


def settings(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "config.json").read_text())["settings"])


def test_a_resumed_run_keeps_its_size(
    few: Path, tmp_path: Path, speed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if the machine is faster now; and it says at the start how long it will take."""
    monkeypatch.setattr(demo, "SIZES", (demo.Size(40, 3), demo.Size(32, 2)))
    monkeypatch.setattr(demo, "SECONDS", 10.0)
    asked = speed(2.0)
    command = ["--arch", "resnet18", "--lr", "0.001", "--batch-size", "2", "--output", str(tmp_path / "run")]
    assert train_imagenet.main(command) == 0
    assert "Expected time, by a short measurement: about 0.1 minutes" in capsys.readouterr().out
    assert asked == [40, 32]
    assert (settings(tmp_path / "run")["image_size"], settings(tmp_path / "run")["epochs"]) == (32, 2)
    speed(0.001)
    assert train_imagenet.main([*command, "--resume", "auto"]) == 0
    assert asked == [40, 32]
    assert (settings(tmp_path / "run")["image_size"], settings(tmp_path / "run")["epochs"]) == (32, 2)
    assert "Expected time" not in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--image-size", "32"], ["--epochs=2"], ["--max-steps", "1"]])
def test_a_size_that_was_asked_for_is_not_measured(
    option: list[str], few: Path, tmp_path: Path, speed: Any
) -> None:
    asked = speed(1.0)
    command = ["--arch", "resnet18", "--lr", "0.001", "--batch-size", "6"]
    assert train_imagenet.main([*command, "--output", str(tmp_path / "run"), *option]) == 0
    assert asked == []
