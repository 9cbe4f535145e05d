"""Memory of the training pipeline with large JPEGs: its peak, and whether it grows over epochs.

    python -m benchmarks.bench_memory [--data DIR]

Every setting runs in a process of its own, which loads and mixes batches. Memory is what is resident, mapped
files included. After warm-up, the slope over the ends of epochs shows growth.
"""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks import loader_tables
from benchmarks.common import Record, save
from benchmarks.photos import mean_size, prepare_images
from benchmarks.tables import show
from dali_msda.processors import usable_processors

_WARM_UP_EPOCHS = 2
_EPOCH_BATCHES = 12  # when measuring growth


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    data: Path | None = None
    """Folder of class folders with images. Default: this project's generated images."""

    source_size: str = "4000x3000"
    """Size of the JPEGs, see benchmarks.bench_loader."""

    photos: int | None = 48
    """Use only so many different images of the folder."""

    image_size: int = 224
    """Side of the images in pixels."""

    mix: str = "hmix"
    """Mixing method."""

    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of threads."""

    batch_sizes: tuple[int, ...] = (16, 64)
    """Numbers of images per batch."""

    scaled_decoding: tuple[Literal["auto", "on", "off"], ...] = ("off", "on")
    """Ways to decode, see pipelines.records.Execution."""

    batches: int = 6
    """Batches for the peak."""

    epochs: int = 5
    """Epochs for the growth, after two for warm-up."""


def _resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"/proc/self/status must have {field}")


def _loader(data: Path, setting: dict[str, Any]) -> tuple[float, Any]:
    """Build the loader; also the memory before that, in MiB."""
    import torch

    from pipelines.folders import list_images
    from pipelines.imagenet import train_pipeline
    from pipelines.loader import DALILoader
    from pipelines.records import Execution, Output

    torch.set_num_threads(1)
    before = _resident("VmRSS")
    pipeline = train_pipeline(
        data,
        mix=setting["mix"],
        num_classes=len(list_images(data).classes),
        output=Output(image_size=setting["image_size"]),
        batch_size=setting["batch_size"],
        num_threads=setting["workers"],
        execution=Execution(scaled_decoding=setting["scaled_decoding"]),
        seed=0,
    )
    return before, DALILoader(pipeline, drop_last=True)


def measure_peak(data: Path, setting: dict[str, Any], batches: int) -> Record:
    """Load some batches of an epoch."""
    before, loader = _loader(data, setting)
    for _, batch in zip(range(batches), loader, strict=False):
        float(batch[0].sum())
    return {
        "peak_MiB": _resident("VmHWM"),
        "before_MiB": before,
        "epochs_MiB": [],
        "growth_MiB_per_epoch": None,
    }


def measure_growth(data: Path, setting: dict[str, Any], epochs: int) -> Record:
    """Load whole epochs."""
    before, loader = _loader(data, setting)
    ends = []
    for epoch in range(_WARM_UP_EPOCHS + epochs):
        for images, _ in loader:
            float(images.sum())
        if epoch >= _WARM_UP_EPOCHS:
            ends.append(_resident("VmRSS"))
    return {
        "peak_MiB": _resident("VmHWM"),
        "before_MiB": before,
        "epochs_MiB": ends,
        "growth_MiB_per_epoch": float(np.polyfit(range(epochs), ends, 1)[0]),
    }


def _apart(measure: Callable[..., Record], *arguments: Any) -> Record:
    """Run in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def measure_all(settings: Settings) -> list[Record]:
    """The records of all settings."""
    records: list[Record] = []
    common: Record = {
        "mix": settings.mix,
        "source_size": settings.source_size,
        "image_size": settings.image_size,
    }
    few, many = min(settings.batch_sizes), max(settings.batch_sizes)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_images(
            settings.data,
            Path(folder),
            batch_size=few,
            source_size=settings.source_size,
            photos=settings.photos,
            batches=max(_EPOCH_BATCHES, settings.batches * many // few),
        )
        common["kB_per_file"] = mean_size(data) / 1000
        for way in settings.scaled_decoding:
            for workers, batch_size in itertools.product(settings.workers, settings.batch_sizes):
                numbers = {"batch_size": batch_size, "workers": workers}
                setting = common | numbers | {"scaled_decoding": way}
                found = _apart(measure_peak, data, setting, settings.batches)
                records.append({"measure": "peak"} | setting | found)
        for way in settings.scaled_decoding:
            numbers = {"batch_size": few, "workers": usable_processors()}
            setting = common | numbers | {"scaled_decoding": way}
            found = _apart(measure_growth, data, setting, settings.epochs)
            records.append({"measure": "growth"} | setting | found)
    return records


def main() -> None:
    """Measure, print tables, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    path = save("bench_memory", vars(settings), measure_all(settings))
    for name in ("memory", "memory_growth"):
        print(show(name, path, tables=loader_tables.TABLES) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
