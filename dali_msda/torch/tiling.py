"""How images are cut into tiles for the kernel on a GPU, and how many bytes it moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A program mixes one tile of an image, in each of its planes, in 4 warps. A line of a tile has at least the
# 64 bytes that DRAM delivers at once, and few more: an image is not read where it has no weight in a whole
# tile. A thread has 16 elements of one byte or 8 larger ones, so that all accesses are 16 bytes wide.
TILE_LINES = 32
_TILE_LENGTH = 32
_TILE_LENGTH_OF_BYTES = 64
WARPS = 4
# The loop over planes is unrolled; more than these are spread over several programs.
_MOST_PLANES = 4


def _ceil(length: int, part: int) -> int:
    """How many parts cover a length."""
    return -(-length // part)


class Tiling(NamedTuple):
    """How an image is cut into planes of lines of elements, and these into tiles."""

    channels: int
    """Channels in a line: 1 if each has a plane of its own."""
    planes: int
    height: int
    length: int
    """Elements in a line."""
    tile_length: int

    @property
    def planes_at_once(self) -> int:
        """Planes that one program mixes."""
        return next(count for count in range(_MOST_PLANES, 0, -1) if self.planes % count == 0)

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return _ceil(self.length, self.tile_length)

    @property
    def tiles(self) -> int:
        """Tiles of a plane."""
        return self.across * _ceil(self.height, TILE_LINES)


def cut(shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tiling:
    """Choose the tiles for images [N, C, H, W] of a type."""
    _, channels, height, width = shape
    length = width * channels if channels_last else width
    tile_length = _TILE_LENGTH
    # The longer tile, unless more than an eighth of it would be beyond the border.
    if dtype.itemsize == 1 and 8 * length >= 7 * _ceil(length, _TILE_LENGTH_OF_BYTES) * _TILE_LENGTH_OF_BYTES:
        tile_length = _TILE_LENGTH_OF_BYTES
    return Tiling(
        channels if channels_last else 1, 1 if channels_last else channels, height, length, tile_length
    )


def bytes_moved(
    shape: Sequence[int],
    dtype: torch.dtype,
    out_dtype: torch.dtype | None = None,
    *,
    mask: str = "separable",
    channels_last: bool = False,
) -> int:
    """The bytes that the kernel reads and writes if nothing is in a cache and every tile needs both images.

    Parameters
    ----------
    shape : (N, C, H, W)
    dtype, out_dtype : torch.dtype
        Element types of images and result; by default the same.
    mask : {"constant", "separable", "dense"}, optional
    channels_last : bool, optional
        The layout of the images.
    """
    count, channels, height, width = shape
    tiling = cut(shape, dtype, channels_last)
    repeats = tiling.planes // tiling.planes_at_once  # programs that read the same weights
    weights = 4  # the base
    if mask == "separable":
        weights = tiling.tiles * 4
        weights += 4 * height * tiling.across + 4 * _ceil(height, TILE_LINES) * (width + tiling.across)
    elif mask == "dense":
        weights = 4 * height * (width + tiling.across)  # a pixel at the border of two tiles is read twice
    pixels = channels * height * width * (2 * dtype.itemsize + (out_dtype or dtype).itemsize)
    return count * (pixels + repeats * (weights + 8 * tiling.tiles))


def is_channels_last(images: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours, and the pixels of a line."""
    channels = images.shape[1]
    return channels > 1 and images.stride(1) == 1 and images.stride(3) == channels


def in_lines(images: Tensor, channels_last: bool) -> Tensor:
    """The images if their lines are in one piece, in this layout, else a copy."""
    if is_channels_last(images) if channels_last else images.stride(3) == 1:
        return images
    return images.contiguous(memory_format=memory_format(channels_last))


def memory_format(channels_last: bool) -> torch.memory_format:
    """PyTorch's name of a layout."""
    return torch.channels_last if channels_last else torch.contiguous_format


def strides(images: Tensor, channels_last: bool) -> tuple[int, int, int]:
    """From image to image, plane to plane and line to line, in elements."""
    return images.stride(0), 0 if channels_last else images.stride(1), images.stride(2)
