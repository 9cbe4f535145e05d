"""Short runs of the trainer in this process, and their logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

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
    """The lines of metrics.jsonl without measured times."""
    clock = ("images_per_s", "data_wait")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines(output)]


def status(data: Path, output: Path, *extra: object) -> int:
    """Run the trainer; return its exit status."""
    return train_imagenet.main(["--data", str(data), "--output", str(output), *SMALL, *map(str, extra)])


def train(data: Path, output: Path, *extra: object) -> list[dict[str, Any]]:
    """Run the trainer to its end; return the lines of metrics.jsonl."""
    assert status(data, output, *extra) == 0
    return lines(output)


def losses(found: list[dict[str, Any]]) -> list[float]:
    """The training losses."""
    return [line["loss"] for line in found if line["event"] == "train"]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in items for path, leaf in flat(part, f"{name}/{key}").items()}
    return {name: value}


def assert_same_run(output: Path, expected: Path) -> None:
    """Same metrics, same files, and same content of every checkpoint, except paths and times."""
    assert without_clock(output) == without_clock(expected)
    for name in ("last.pt", "best.pt", *sorted(f"checkpoints/{p.name}" for p in expected.glob("*/*.pt"))):
        found, wanted = (flat(torch.load(folder / name, weights_only=True)) for folder in (output, expected))
        assert found.keys() == wanted.keys()
        differing = [
            path
            for path in wanted
            if (
                not torch.equal(found[path], wanted[path])
                if isinstance(wanted[path], torch.Tensor)
                else found[path] != wanted[path]
            )
        ]
        free = [
            f"/run/settings/{name}"
            for name in ("data", "output", "resume", "from_config", "checkpoint_every", "storage_patience")
        ]
        free.append("/output/metrics_bytes")
        assert [path for path in differing if path not in free] == [], name
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {name for name in names if "tmp" in name or "damaged" in name} == set()
    assert {name for name in names if ".pt" in name} == {
        str(path.relative_to(expected)) for path in expected.rglob("*.pt")
    }
