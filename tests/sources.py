"""The in-memory source from the protocol's docstring, and CIFAR's binary files."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.sources import Source


def memory_class() -> Any:
    """The class ``Memory`` from the docstring of :class:`pipelines.sources.Source`."""
    names: dict[str, Any] = {}
    for example in doctest.DocTestParser().get_examples(Source.__doc__ or ""):
        exec(example.source, names)
    return names["Memory"]


def write_cifar10(folder: Path, train: Iterable[tuple[np.ndarray, int]], val: Any, names: Any) -> Path:
    """Write images (32x32x3, uint8) and labels as CIFAR-10 publishes them: a label, then plane by plane.

    The five training files have different lengths if the number of images allows.
    """
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("".join(f"{name}\n" for name in names) + "\n")
    records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in train]
    cuts = [0, *(len(records) * part // 15 for part in (1, 3, 6, 10)), len(records)]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts), 1):
        (folder / f"data_batch_{number}.bin").write_bytes(b"".join(records[start:stop]))
    records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in val]
    (folder / "test_batch.bin").write_bytes(b"".join(records))
    return folder
