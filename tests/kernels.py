"""The compiled kernels on plain arrays, without DALI."""

from __future__ import annotations

from typing import Any

import numpy as np

from dali_msda.backends.numba.kernels import mask_writer
from dali_msda.methods import TABLE

NO_LAYOUT = np.zeros(0, np.uint8)


def mask_weights(
    method: str,
    size: tuple[int, int],
    *,
    center: tuple[float, float] = (0, 0),
    paper: bool = False,
    probability: float = 1.0,
    fill: float = 0.0,
    **values: Any,
) -> tuple[np.ndarray[Any, Any], float]:
    """A mask in the kernels' form, and the label weight; `values` go to the method's formula."""
    entry = TABLE[method]
    numbers = np.array([*(values[name] for name in entry.values), *center, 0.0, probability, paper, True])
    write = mask_writer(entry)
    weights = np.full(size if entry.kind == "dense" else 2 + sum(size), fill, np.float32)
    lam = np.full(1, fill, np.float32)
    write(weights, lam, numbers, *size)
    return weights, float(lam[0])
