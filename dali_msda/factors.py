"""The numbers of a normalisation, folded as DALI folds them. Imports only NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def fold_factors(
    mean: float | Sequence[float] | np.ndarray[Any, Any],
    std: float | Sequence[float] | np.ndarray[Any, Any],
    scale: float = 1.0,
    shift: float = 0.0,
) -> np.ndarray[Any, Any]:
    """a and b of ``(image - a) * b``, which is ``scale * (image - mean) / std + shift``.

    ``fn.crop_mirror_normalize`` folds scale and shift into mean and std in the same way: in float32 the
    results are equal to the bit.

    Parameters
    ----------
    mean, std : float, or sequence of n floats
        One number for all channels, or one for each.
    scale, shift : float

    Returns
    -------
    ndarray
        float32 [2, n]; n is 1 if mean and std are both single numbers.
    """
    numbers = (mean, std, scale, shift)
    a, b, c, d = (np.atleast_1d(np.asarray(one, np.float32)).astype(np.float64) for one in numbers)
    return np.stack(np.broadcast_arrays(a - d * (b / c), c / b)).astype(np.float32)
