"""Means over seeds, paired comparisons, and the correction for making many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Of all intervals."""


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error and interval by Student's t.

    Returns
    -------
    dict
        ``mean``, ``count``, and ``se``, ``low``, ``high``, which are None for a single value.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "count": len(values), "se": None, "low": None, "high": None}
    se = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * se
    return {"mean": mean, "count": len(values), "se": se, "low": mean - half, "high": mean + half}


def compare_pairs(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The mean of one[i] - other[i], and whether it could be 0.

    Returns
    -------
    dict
        :func:`mean_interval` of the differences, and ``p`` of the paired t test, two-sided; None for a single
        pair, or if all differences are equal.
    """
    differences = np.subtract(one, other)
    found = mean_interval(differences.tolist())
    found["p"] = None
    # Differences that only rounding tells apart would look certain.
    if not np.allclose(differences, differences[0], rtol=0, atol=1e-9):
        found["p"] = float(2 * stats.t.sf(abs(found["mean"]) / found["se"], len(differences) - 1))
    return found


def adjust_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction (1979): the chance of any false finding among all comparisons stays below the level.

    The k-th smallest of n is multiplied by n - k + 1; none may end up below a smaller one, nor above 1.
    None stays None, and does not count.
    """
    known = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[position] = largest
    return adjusted
