"""Batches of dynamic mode for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd

Arrays = np.ndarray[Any, Any]
COUNT, SIDES = 3, {"F": 2, "D": 4, "H": 8, "W": 11, "C": 3}


def data(layout: str, dtype: str = "uint8", seed: int = 0) -> Arrays:
    shape = [SIDES[letter] for letter in layout]
    return np.random.default_rng(seed).integers(0, 256, (COUNT, *shape)).astype(dtype)


def batch(values: Arrays, layout: str = "HWC", device: str = "cpu") -> Any:
    made = ndd.as_batch(values, layout=layout)
    return made.gpu() if device == "gpu" else made


def numpy_of(found: Any) -> Arrays:
    return np.array(ndd.as_tensor(found.cpu()))


def flat(result: Any) -> list[Arrays]:
    """All batches of a result, as arrays."""
    parts = result if isinstance(result, tuple | list) else [result]
    return [
        array
        for part in parts
        for array in (flat(part) if isinstance(part, tuple | list) else [numpy_of(part)])
    ]
