"""The costs of PuzzleMix's masks, from saliency and pixels; and moves of patches. On the model's device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.constants import STD


class Costs(NamedTuple):
    """The costs of the masks of N images, on a grid of blocks.

    Attributes
    ----------
    own, other : Tensor
        [N, grid, grid]: of a block that shows the image itself, or its partner.
    down, across : Tensor
        [N, grid - 1, grid] and [N, grid, grid - 1]: of a mask that changes by 1 between two neighbours.
    """

    own: Tensor
    other: Tensor
    down: Tensor
    across: Tensor


def pool_saliency(saliency: Tensor, grid: int) -> Tensor:
    """Saliency per block, with a sum of 1 per image; even where the gradient is zero or not finite.

    Parameters
    ----------
    saliency : Tensor
        float32 [N, size, size].
    grid : int
        Blocks per side.

    Returns
    -------
    Tensor
        [N, grid, grid].
    """
    pooled = functional.avg_pool2d(saliency[:, None], saliency.shape[-1] // grid)[:, 0]
    total = pooled.sum((1, 2), keepdim=True)
    usable = torch.isfinite(total) & (total > 0)
    return torch.where(usable, pooled / total, 1.0 / grid**2)


def costs_of(
    images: Tensor,
    saliency: Tensor,
    partner: Tensor,
    grid: int,
    *,
    beta: float,
    gamma: float,
    neighbor_size: int,
) -> Costs:
    """The costs of masks on a grid.

    A block that shows one image costs the saliency of the other one there. Two neighbours cost beta times the
    squared difference of their weights, plus beta gamma times the mean difference of pixels where the shown
    images meet. The latter depends on which image each of the two shows: four numbers, divided here into
    costs of each block alone and a part for the squared difference, exact for weights of 0 and 1.

    Parameters
    ----------
    images : Tensor
        [N, 3, size, size], normalised.
    saliency : Tensor
        [N, size, size].
    partner : Tensor
        int64 [N].
    grid : int
        Blocks per side.
    beta, gamma : float
        At least 0, and in [0, 1].
    neighbor_size : int
        Side of the squares of pixels that are averaged first, where it divides that of the blocks; otherwise
        the largest common divisor.

    Returns
    -------
    Costs
    """
    salient = pool_saliency(saliency, grid)
    own, other = salient[partner], salient.clone()
    beta = beta / grid / 16  # as in the authors' code: the saliency of a block is smaller on a finer grid
    block = images.shape[-1] // grid
    square = int(np.gcd(neighbor_size, block))
    scale = torch.tensor(STD, device=images.device) / 255.0
    pixels = functional.avg_pool2d(images.float() * scale[:, None, None], square)
    run = block // square
    weights = []
    # Down, then across: the same, with rows and columns exchanged.
    for turn in (_as_it_is, _transposed):
        ends = turn(pixels)[:, :, run - 1 : -1 : run]
        begins = turn(pixels)[:, :, run::run]
        # The first index is of the upper block, the second of the lower: 1 for the image itself.
        shown = {1: (ends, begins), 0: (ends[partner], begins[partner])}
        meets = {
            (a, b): beta * gamma * _mean_difference(shown[a][0], shown[b][1], run)
            for a in (0, 1)
            for b in (0, 1)
        }
        turn(own)[:, :-1] += (meets[1, 0] + meets[1, 1]) / 2
        turn(own)[:, 1:] += (meets[0, 1] + meets[1, 1]) / 2
        turn(other)[:, :-1] += (meets[0, 1] + meets[0, 0]) / 2
        turn(other)[:, 1:] += (meets[1, 0] + meets[0, 0]) / 2
        weights.append(turn(beta + (meets[1, 0] + meets[0, 1] - meets[1, 1] - meets[0, 0]) / 2))
    # Pixels differ by at most 1 and gamma is at most 1, so only rounding makes a weight negative.
    return Costs(own, other, *(weight.clamp_min(0.0) for weight in weights))


def _as_it_is(maps: Tensor) -> Tensor:
    return maps


def _transposed(maps: Tensor) -> Tensor:
    return maps.transpose(-1, -2)


def _mean_difference(upper: Tensor, lower: Tensor, run: int) -> Tensor:
    """Mean absolute difference along the borders of blocks; from [N, 3, R, C run] to [N, R, C]."""
    return functional.avg_pool2d((upper - lower).abs().mean(1, keepdim=True), (1, run))[:, 0]


def move_patches(images: Tensor, places: Tensor, patches: int) -> Tensor:
    """Rearrange the patches of images.

    Parameters
    ----------
    images : Tensor
        [N, C, size, size].
    places : Tensor
        int64 [N, patches**2]: the former place of the patch in each place.
    patches : int
        Per side.

    Returns
    -------
    Tensor
        [N, C, size, size].
    """
    size, channels, side = images.shape[:3]
    length = side // patches
    cells = images.reshape(size, channels, patches, length, patches, length).permute(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(size, patches**2, channels, length, length)
    cells = cells[torch.arange(size, device=images.device)[:, None], places]
    cells = cells.reshape(size, patches, patches, channels, length, length).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(images.shape)
