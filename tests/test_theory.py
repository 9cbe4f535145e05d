"""The operator compared with the paper's closed forms, through real pipelines.

If the own image is 1 and the partner 0 everywhere, the mixed image is the mask M. Over many draws its mean
and its second moment a_jk = E[(1 - M_j)(1 - M_k)] (equation 9) must be those of the formulas, as finite sums
over the possible places of a box or a point (equations 10 and 11 before the integral), within 4 standard
errors.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from dali_msda.methods import MIXING
from tests.running import run_mix

SIDE, LAM, RATIO, DRAWS = 16, 0.4, 0.6, 4000
PIXELS = [(0, 0), (0, 15), (3, 7), (7, 8), (8, 8), (8, 9), (12, 5), (15, 15)]


def masks(method: str, backend: str, **arguments: Any) -> np.ndarray:
    """Make DRAWS masks, DRAWS x SIDE x SIDE, by mixing white images with the black one at index 0."""
    images = np.ones((DRAWS + 1, SIDE, SIDE, 1), np.float32)
    images[0] = 0
    result = run_mix(
        method, images, lam=LAM, partner=0, convention="paper", seed=1, backend=backend, **arguments
    )
    np.testing.assert_allclose(result.images[1:], result.mask[1:], rtol=0, atol=1e-7)
    return result.images[1:, :, :, 0].astype(np.float64)


def box_cover(ratio: float) -> np.ndarray:
    """Indicator of the box at every possible place: places x SIDE x SIDE."""
    side = int(SIDE * np.sqrt(1 - LAM) * np.sqrt(ratio))
    starts = range(SIDE - side + 1)
    pixel = np.arange(SIDE)
    axis = np.array([(start <= pixel) & (pixel < start + side) for start in starts], float)
    return np.array([np.outer(rows, columns) for rows in axis for columns in axis])


def possible_masks(method: str) -> tuple[np.ndarray, np.ndarray]:
    """Every mask that a method can make for this lam, and its probability."""
    if method == "mixup":
        possible = np.full((1, SIDE, SIDE), LAM)
    elif method == "cutmix":
        possible = 1 - box_cover(1.0)
    elif method == "hmix":
        possible = LAM / (1 - (1 - LAM) * RATIO) * (1 - box_cover(RATIO))
    elif method == "gmix":
        y, x = np.mgrid[:SIDE, :SIDE]
        possible = np.array(
            [
                1 - np.exp(-np.pi * ((y - row) ** 2 + (x - column) ** 2) / (2 * (1 - LAM) * SIDE**2))
                for row, column in itertools.product(range(SIDE), repeat=2)
            ]
        )
    else:
        parts = [possible_masks("mixup"), possible_masks("cutmix")]
        weights = [0.3 * parts[0][1], 0.7 * parts[1][1]]
        return np.concatenate([part[0] for part in parts]), np.concatenate(weights)
    return possible, np.full(len(possible), 1 / len(possible))


@pytest.mark.parametrize("backend", ["kernel", "graph"])
@pytest.mark.parametrize("method", MIXING)
def test_moments_of_the_mask(method: str, backend: str) -> None:
    extra = {"hmix": {"ratio": RATIO}, "stochastic": {"switch_probability": 0.3}}.get(method, {})
    seen = masks(method, backend, **extra)
    possible, probability = possible_masks(method)

    def assert_close(draws: np.ndarray, values: np.ndarray) -> None:
        """Compare draws of one quantity with its values over all possible masks."""
        mean = float(probability @ values)
        error = np.sqrt(max(float(probability @ (values - mean) ** 2), 0.0) / DRAWS)
        assert abs(draws.mean() - mean) <= 4 * error + 1e-6

    for j in PIXELS:
        assert_close(seen[:, *j], possible[:, *j])
    for j, k in itertools.combinations_with_replacement(PIXELS, 2):
        assert_close((1 - seen[:, *j]) * (1 - seen[:, *k]), (1 - possible[:, *j]) * (1 - possible[:, *k]))


def test_cutmix_second_moment_is_equation_10() -> None:
    """The sum over the places is the paper's product of overlaps, with n - side + 1 places per axis."""
    side = int(SIDE * np.sqrt(1 - LAM))
    cover = box_cover(1.0)

    def overlap(j: int, k: int) -> int:
        """Number of starts whose box covers both pixels: from the later first to the earlier last."""
        return max(min(j, k, SIDE - side) - max(j - side + 1, k - side + 1, 0) + 1, 0)

    for j, k in itertools.combinations_with_replacement(PIXELS, 2):
        expected = overlap(j[0], k[0]) * overlap(j[1], k[1]) / (SIDE - side + 1) ** 2
        assert (cover[:, *j] * cover[:, *k]).mean() == pytest.approx(expected, abs=1e-12)


def test_gmix_second_moment_is_equation_11_far_from_the_border() -> None:
    """Far from the border the sum is (1 - lam) exp(-pi |j - k|^2 / (4 (1 - lam) N^2))."""
    n, lam = 64, 0.95
    y, x = np.mgrid[:n, :n]

    def weight(row: int, column: int) -> np.ndarray:
        return np.asarray(np.exp(-np.pi * ((y - row) ** 2 + (x - column) ** 2) / (2 * (1 - lam) * n**2)))

    for j, k in [((32, 32), (32, 32)), ((32, 32), (32, 38)), ((30, 33), (36, 28))]:
        total = (weight(*j) * weight(*k)).sum() / n**2
        distance = (j[0] - k[0]) ** 2 + (j[1] - k[1]) ** 2
        assert total == pytest.approx(
            (1 - lam) * np.exp(-np.pi * distance / (4 * (1 - lam) * n**2)), rel=1e-6
        )
