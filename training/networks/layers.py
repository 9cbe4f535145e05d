"""What the networks for small images are made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import nn


def convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias; with stride 1 it keeps the resolution.

    The weights are drawn as in He et al., Delving deep into rectifiers, 2015: normal, with variance
    2 / (`size`² `after`).
    """
    layer = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def stage(block: Callable[[int, int, int], nn.Module], channels: list[int], stride: int) -> nn.Sequential:
    """Blocks one after the other, the first with `stride`.

    Parameters
    ----------
    block : callable
        Makes a block from the numbers of input and output channels and a stride.
    channels : list of int
        Of the input, and of each block's output.
    stride : int
    """
    pairs = itertools.pairwise(channels)
    return nn.Sequential(
        *(block(before, after, 1 if number else stride) for number, (before, after) in enumerate(pairs))
    )
