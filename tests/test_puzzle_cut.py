"""PuzzleMix's optimisations have the optimum that enumeration finds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from training.puzzle_cut import Floats, cut, prior_costs, transport


def cost_of(labels: Floats, unary: Floats, down: Floats, across: Floats) -> float:
    """The cost of one image, block by block and pair by pair."""
    rows, columns, levels = unary.shape
    total = 0.0
    for y, x in np.ndindex(rows, columns):
        total += unary[y, x, labels[y, x]]
        if y + 1 < rows:
            total += down[y, x] * ((labels[y, x] - labels[y + 1, x]) / (levels - 1)) ** 2
        if x + 1 < columns:
            total += across[y, x] * ((labels[y, x] - labels[y, x + 1]) / (levels - 1)) ** 2
    return total


def random_costs(
    size: tuple[int, int], levels: int, smooth: float, seed: int
) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    rows, columns = size
    return (
        rng.normal(size=(rows, columns, levels)),
        smooth * rng.random((rows - 1, columns)),
        smooth * rng.random((rows, columns - 1)),
    )


@pytest.mark.parametrize("smooth", [0.0, 0.7, 3.0])
@pytest.mark.parametrize(
    ("size", "levels"), [((2, 2), 2), ((3, 3), 2), ((2, 2), 3), ((2, 3), 3), ((2, 2), 4), ((1, 3), 5)]
)
def test_masks_are_optimal(size: tuple[int, int], levels: int, smooth: float) -> None:
    """Images with random costs, all in one call: more than one graph has, and of all of them."""
    images = [random_costs(size, levels, smooth, seed) for seed in range(6)]
    unary, down, across = (np.stack(each) for each in zip(*images, strict=True))
    found = cut(unary, down, across)
    assert found.shape == (6, *size)
    every = [np.reshape(each, size) for each in itertools.product(range(levels), repeat=math.prod(size))]
    for number, image in enumerate(images):
        best = min(every, key=lambda labels: cost_of(labels, *image))
        assert cost_of(found[number], *image) == pytest.approx(cost_of(best, *image), abs=1e-6), number
        assert found[number].tolist() == best.tolist(), number


def test_masks_are_those_of_single_images() -> None:
    """Blocks are cut in graphs of a few images each; 20 images of 16 x 16 need several."""
    images = [random_costs((16, 16), 3, 2.0, seed) for seed in range(20)]
    together = cut(*(np.stack(each) for each in zip(*images, strict=True)))
    for found, image in zip(together, images, strict=True):
        assert found.tolist() == cut(*(each[None] for each in image))[0].tolist()


def test_smoothness_joins_blocks() -> None:
    """A block that prefers 1 a little, among blocks that prefer 0: alone it follows its own cost."""
    unary = np.zeros((1, 3, 3, 3))
    unary[..., 1:] = [0.5, 1.0]
    unary[0, 1, 1] = [0.6, 0.3, 0.0]
    for weight, middle in ((0.0, 2), (0.2, 1), (1.0, 0)):
        pair = np.full((1, 2, 3), weight)
        found = cut(unary, pair, pair.swapaxes(1, 2))[0]
        assert found[1, 1] == middle
        assert found.sum() == middle


def test_without_costs_there_is_a_result() -> None:
    found = cut(np.zeros((2, 2, 2, 3)), np.zeros((2, 1, 2)), np.zeros((2, 2, 1)))
    assert found.shape == (2, 2, 2)
    assert cut(np.zeros((0, 2, 2, 3)), np.zeros((0, 1, 2)), np.zeros((0, 2, 1))).shape == (0, 2, 2)


def test_prior_is_the_binomial() -> None:
    """By hand: 0.25 has weights 9, 6, 1 of 16 for 0, 1/2, 1; the mean of the level is lam."""
    assert np.exp(-prior_costs(np.array([0.25]), 3)) == pytest.approx(np.array([[9, 6, 1]]) / 16, abs=1e-7)
    lam = np.linspace(0.0, 1.0, 5)
    for levels in (2, 3, 5):
        weights = np.exp(-prior_costs(lam, levels))
        assert weights.sum(1) == pytest.approx(1.0, abs=1e-6)
        assert weights @ np.linspace(0.0, 1.0, levels) == pytest.approx(lam, abs=1e-6)


def moved_value(places: tuple[int, ...], saliency: Floats, seen: np.ndarray, cost: float) -> float:
    side = len(seen)
    total = 0.0
    for now, before in enumerate(places):
        (y, x), (to_y, to_x) = divmod(before, side), divmod(now, side)
        total += saliency[y, x] * seen[to_y, to_x]
        total -= cost * ((y - to_y) ** 2 + (x - to_x) ** 2) / (side - 1) ** 2
    return total


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_transport_is_optimal(seed: int, cost: float) -> None:
    rng = np.random.default_rng(seed)
    saliency, seen = rng.random((2, 2)), rng.random((2, 2)) < 0.5
    found = transport(saliency, seen, cost)
    assert sorted(found) == list(range(4))
    best = max(moved_value(each, saliency, seen, cost) for each in itertools.permutations(range(4)))
    assert moved_value(tuple(found), saliency, seen, cost) == pytest.approx(best)


def test_transport_by_hand() -> None:
    """Only the right half is seen. The salient patch at its border moves there, the one far away does not."""
    saliency = np.array([[0.0, 9.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    seen = np.array([[False, False, True]] * 3)
    assert transport(saliency, seen, 8.0).tolist() == [0, 2, 1, 3, 4, 5, 6, 7, 8]
    assert transport(saliency, seen, 1.0).tolist()[2] == 1
    assert 3 in transport(saliency, seen, 1.0).tolist()[5:9:3]
    for all_or_none in (True, False):
        assert transport(saliency, np.full((3, 3), all_or_none), 0.0).tolist() == list(range(9))
