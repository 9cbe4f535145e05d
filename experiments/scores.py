"""Accuracy and calibration with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from experiments.statistics import LEVEL, mean_interval

Floats = npt.NDArray[np.float64]
BINS = 15


class Estimate(NamedTuple):
    """A value and its interval; without one, low and high are None."""

    value: float
    low: float | None
    high: float | None


def expected_calibration_error(probabilities: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Mean over the images of their bin's |accuracy - confidence|; 15 bins of equal width.

    Guo et al., "On calibration of modern neural networks" (ICML 2017).

    Parameters
    ----------
    probabilities : ndarray
        N x classes.
    right : ndarray
        bool [N]: whether the most probable class is the label.
    """
    confidence = probabilities.max(1)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # each includes its upper end
    gaps = np.bincount(bins, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(right))


def brier_scores(probabilities: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Squared distance of each image's probabilities from its label, 0 to 2."""
    wanted = np.eye(probabilities.shape[1])[labels]
    return np.asarray(((probabilities - wanted) ** 2).sum(1))


def estimate_over_images(values: npt.ArrayLike) -> Estimate:
    """Mean over the images of one network, 0 to 1: Wilson's interval if they are 0 or 1, else Student's."""
    found = np.asarray(values, float)
    if np.isin(found, (0, 1)).all():
        return _wilson(int(found.sum()), len(found))
    return estimate_over_networks(found.tolist(), 1.0)


def estimate_over_networks(values: Sequence[float], highest: float = math.inf) -> Estimate:
    """Mean over at least two networks, with the part of Student's interval that is in [0, `highest`]."""
    found = mean_interval(values)
    return Estimate(found["mean"], max(found["low"], 0.0), min(found["high"], highest))


def _wilson(hits: int, count: int) -> Estimate:
    low, high = stats.binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Estimate(hits / count, float(low), float(high))
