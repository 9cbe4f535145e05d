"""Your own masks: the cost of mixing with a weight for every pixel, compared with rows and columns.

    python -m benchmarks.bench_blend

Runs ``msda.blend`` and, for comparison, GMix in pipelines over the same batch in memory, on the CPU, with and
without normalisation in the same pass. Both forms have the same masks: products of random rows and columns.
All take turns, round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from benchmarks.common import Record, save, spread
from benchmarks.tables import show
from dali_msda.processors import usable_processors
from pipelines.constants import MEAN, STD


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    batch_size: int = 64
    """Images per batch."""

    image_size: int = 224
    """Side of the images in pixels."""

    batches: int = 15
    """Batches per turn."""

    rounds: int = 15
    """Turns of every pipeline, after two for warm-up."""


def _repeat(batch: np.ndarray[Any, Any]) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: batch


def build(mask: str, normalise: bool, settings: Settings) -> Pipeline:
    """A pipeline that mixes by "rows and columns", by "every pixel", or with "gmix"."""
    rng, side, count = np.random.default_rng(0), settings.image_size, settings.batch_size
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    rows, columns = rng.uniform(size=(2, count, side)).astype(np.float32)
    dense: np.ndarray[Any, Any] = rows[:, :, None] * columns[:, None]
    labels = np.zeros((count, 1), np.int32)
    more: dict[str, Any] = {"mean": MEAN, "std": STD, "output_layout": "CHW"} if normalise else {}
    pipeline = Pipeline(count, usable_processors(), None, seed=0, prefetch_queue_depth=1)
    with pipeline:
        own = fn.external_source(source=lambda: images, layout="HWC", dtype=types.UINT8, no_copy=True)
        classes = fn.external_source(source=lambda: labels, dtype=types.INT32, no_copy=True)
        if mask == "gmix":
            outputs = msda.gmix(own, classes, num_classes=1000, **more)
        else:
            parts = (rows, columns) if mask == "rows and columns" else (dense,)
            given = [
                fn.external_source(source=_repeat(part), dtype=types.FLOAT, no_copy=True) for part in parts
            ]
            outputs = msda.blend(
                own, classes, mask=given if len(given) == 2 else given[0], num_classes=1000, **more
            )
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return pipeline


def main() -> None:
    """Measure, write the results, print a table."""
    settings = tyro.cli(Settings, description=__doc__)
    masks = ("gmix", "rows and columns", "every pixel")
    pipelines = {(mask, on): build(mask, on, settings) for on in (False, True) for mask in masks}
    seconds: dict[tuple[str, bool], dict[str, list[float]]] = {
        key: {"wall": [], "cpu": []} for key in pipelines
    }
    for number in range(settings.rounds + 2):
        for key, pipeline in pipelines.items():
            pipeline.run()  # a batch made ahead
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(settings.batches):
                pipeline.run()
            if number >= 2:
                seconds[key]["wall"].append((time.perf_counter() - wall) / settings.batches)
                seconds[key]["cpu"].append((time.process_time() - cpu) / settings.batches)
    records: list[Record] = []
    for (mask, normalise), found in seconds.items():
        records.append({"mask": mask, "normalise": normalise, "batch_size": settings.batch_size})
        records[-1] |= {f"{kind}_s": spread(values) for kind, values in found.items()}
    path = save("bench_blend", vars(settings), records)
    print(f"{show('blend', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
