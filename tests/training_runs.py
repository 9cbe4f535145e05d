"""Short runs of the trainer in this process, and what they logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import train_imagenet

SMALL = [
    "--arch",
    "shufflenet_v2_x0_5",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--log-every",
    "1",
]
SMALL += ["--warmup-epochs", "1", "--amp", "none", "--device", "cpu", "--workers", "1", "--lr", "0.01"]


def lines(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def without_clock(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock measured."""
    clock = ("images_per_s", "data_wait")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines(output)]


def status(data: Path, output: Path, *extra: object) -> int:
    """Run the trainer; its exit status."""
    return train_imagenet.main(["--data", str(data), "--output", str(output), *SMALL, *map(str, extra)])


def train(data: Path, output: Path, *extra: object) -> list[dict[str, Any]]:
    """Run the trainer to its end; the lines of metrics.jsonl."""
    assert status(data, output, *extra) == 0
    return lines(output)


def losses(found: list[dict[str, Any]]) -> list[float]:
    """The losses of the training."""
    return [line["loss"] for line in found if line["event"] == "train"]
