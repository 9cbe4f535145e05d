"""Where the training pipeline spends its time: times its first operator, its first two, and so on.

    python -m benchmarks.bench_operators --data DIR [--mix hmix]

Processor and wall time per batch on the CPU; the difference between two lines is the cost of an operator.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from benchmarks.common import save, spread
from benchmarks.photos import prepare_images
from benchmarks.tables import show
from dali_msda.backends.numba.resize import resize_mirrored
from dali_msda.processors import usable_processors
from pipelines.constants import MEAN, STD
from pipelines.crops import decoder_arguments
from pipelines.folders import ImageFolder, list_images
from pipelines.imagenet import normalize
from pipelines.records import Output
from pipelines.sources import Order

STAGES = ("read", "decode", "resize", "normalise", "mix_normalise", "dali_resize_normalise")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure."""

    data: Path
    """Folder of class folders with JPEGs."""

    source_size: str = "500"
    """Size of the JPEGs, see benchmarks.bench_loader."""

    mix: str = "hmix"
    """Mixing method."""

    batch_size: int = 64
    """Images per batch."""

    workers: int = dataclasses.field(default_factory=usable_processors)
    """Threads of DALI."""

    batches: int = 16
    """Batches per turn."""

    rounds: int = 9
    """Turns of every stage, after one for warm-up."""


def build(folder: ImageFolder, stage: str, settings: Settings) -> Pipeline:
    """The training pipeline up to a stage, on the CPU."""
    pipeline = Pipeline(settings.batch_size, settings.workers, None, seed=0)
    with pipeline:
        order = Order(size=len(folder), batch_size=settings.batch_size, shuffle=True)
        encoded, labels = folder.read(order, report_stand_ins=False)
        outputs: list[Any] = [encoded]
        if stage != "read":
            images = fn.decoders.image_random_crop(encoded, **decoder_arguments("cpu", 0.0), num_attempts=10)
            if stage == "dali_resize_normalise":
                images = normalize(fn.resize(images, size=[224, 224], antialias=True), Output())
            elif stage != "decode":
                mirrored = fn.random.coin_flip(shape=[1], dtype=types.INT32)
                images = resize_mirrored(images, mirrored, 224)
            outputs = [images]
            if stage == "normalise":
                outputs = [normalize(images, Output())]
            elif stage == "mix_normalise":
                outputs = list(
                    msda.mix(
                        images,
                        labels,
                        method=settings.mix,
                        num_classes=len(folder.classes),
                        mean=MEAN,
                        std=STD,
                        output_layout="CHW",
                    )
                )
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return pipeline


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    seconds: dict[str, dict[str, list[float]]] = {stage: {"wall": [], "cpu": []} for stage in STAGES}
    with tempfile.TemporaryDirectory() as temporary:
        images = prepare_images(
            settings.data,
            Path(temporary),
            batch_size=settings.batch_size,
            source_size=settings.source_size,
        )
        folder = list_images(images)
        pipelines = {stage: build(folder, stage, settings) for stage in STAGES}
        for number in range(settings.rounds + 1):
            for stage, pipeline in pipelines.items():
                for _ in range(3):  # batches made ahead
                    pipeline.run()
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(settings.batches):
                    pipeline.run()
                if number:
                    seconds[stage]["wall"].append((time.perf_counter() - wall) / settings.batches)
                    seconds[stage]["cpu"].append((time.process_time() - cpu) / settings.batches)
                time.sleep(0.2)
    records = [
        {
            "stage": stage,
            "mix": settings.mix if stage == "mix_normalise" else "none",
            "batch_size": settings.batch_size,
            "workers": settings.workers,
            "device": "cpu",
            "wall_s": spread(both["wall"]),
            "cpu_s": spread(both["cpu"]),
        }
        for stage, both in seconds.items()
    ]
    path = save("bench_operators", vars(settings), records)
    print(f"{show('operators', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
