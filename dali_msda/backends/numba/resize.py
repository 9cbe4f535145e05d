"""Antialiased bilinear resize with optional mirroring, compiled, for the CPU.

DALI's own resize takes almost as long as decoding the JPEG. This one first blends whole rows, many pixels at
a time, and rounds only once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .compat import CompiledOperator
from .compiled import RUN, SETUP, compiled, data_of, integers, shape1, shape3
from .intrinsics import blend_row

_CHANNELS = 3
_HALF = np.float32(0.5)
# Elements that follow a row of float32 pixels: four are read and written at a time.
SPARE = np.uint64(1)
_U = np.uint64


@numba.njit
def _taps(source: int, target: int, mirror: bool) -> Any:
    """For each target pixel: its first source pixel, how many there are, and their weights (float32, sum 1).

    A triangle around the target pixel's centre, as wide as a target pixel and at least a source pixel, as in
    torchvision and Pillow. With `mirror` the target runs backwards.
    """
    scale = source / target
    support = max(scale, 1.0)
    first, count = np.empty(target, np.uint64), np.empty(target, np.uint64)
    weights = np.empty((target, 2 * math.ceil(support) + 1), np.float32)
    triangle = np.empty(weights.shape[1], np.float64)
    for i in range(target):
        center = (i + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), source)
        total = 0.0
        for j in range(low, high):
            triangle[j - low] = max(1.0 - abs(j + 0.5 - center) / support, 0.0)
            total += triangle[j - low]
        place = target - 1 - i if mirror else i
        first[place], count[place] = low, high - low
        for j in range(high - low):
            weights[place, j] = triangle[j] / total
    return first, count, weights


# As in the mixing kernels, Numba vectorises loops over unsigned indices. Slices would cost a count of
# references in every row.
@numba.njit
def blend_rows(
    out: Any, source: Any, start: Any, stride: Any, length: Any, weights: Any, y: Any, count: Any
) -> None:
    """Blend `length` elements of each of `count` rows into `out` (float32), with the weights of row `y`.

    The first row begins at `start` in `source` (uint8), each of the others `stride` later. All numbers are
    uint64.
    """
    weight = weights[y, 0]
    for i in range(length):
        out[i] = weight * np.float32(source[start + i])
    for k in range(_U(1), count):
        start += stride
        weight = weights[y, k]
        for i in range(length):
            out[i] += weight * np.float32(source[start + i])


@numba.njit
def equal_taps(first: Any, count: Any, weights: Any, source: int) -> Any:
    """The taps of a row of `source` pixels, as many for each target pixel: weights of 0 do not change sums.

    Returns the first source pixels, the weights, one pixel's after the other's, and their number per pixel.
    """
    taps = np.int64(0)
    for x in range(first.size):
        taps = max(taps, np.int64(count[x]))
    begin, padded = np.empty(first.size, np.uint64), np.zeros(first.size * taps, np.float32)
    for x in range(first.size):
        low = min(np.int64(first[x]), source - taps)
        begin[x] = low
        for j in range(np.int64(count[x])):
            padded[x * taps + np.int64(first[x]) - low + j] = weights[x, j]
    return begin, padded, _U(taps)


@numba.njit
def round_row(out: Any, start: Any, length: Any, row: Any) -> None:
    """Round `length` elements of a row to nearest, and write them from `start` in `out` (both uint64)."""
    for i in range(length):
        out[start + i] = np.uint8(row[i] + _HALF)


@numba.njit
def resize_image(resized: Any, image: Any, mirror: bool) -> None:
    """Resize one image.

    Parameters
    ----------
    resized : uint8 [H', W', 3], output
        Rounded to nearest, halves up.
    image : uint8 [H, W, 3], C-contiguous
    mirror : bool
        Swap left and right.
    """
    height, width = resized.shape[0], resized.shape[1]
    top, rows, row_weights = _taps(image.shape[0], height, False)
    first, weights, taps = equal_taps(*_taps(image.shape[1], width, mirror), image.shape[1])
    source, target = image.reshape(-1), resized.reshape(-1)
    length, stride = _U(image.shape[1] * _CHANNELS), _U(width * _CHANNELS)
    blended, row = np.empty(length + SPARE, np.float32), np.empty(stride + SPARE, np.float32)
    for y in range(_U(height)):
        blend_rows(blended, source, top[y] * length, length, length, row_weights, y, rows[y])
        blend_row(row, blended, first, weights, taps)
        round_row(target, y * stride, stride, row)


def _build_resize(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        resize_image(
            carray(data_of(out, 0), shape3(out_shapes, 0), np.uint8),
            carray(data_of(data, 0), shape3(shapes, 0), np.uint8),
            carray(data_of(data, 1), shape1(shapes, 1), np.int32)[0] != 0,
        )

    return run


def _build_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            sides = integers(integers(out_shapes, samples)[sample], 3)
            sides[:2] = integers(integers(shapes, 3 * samples)[2 * samples + sample], 2)
            sides[2] = _CHANNELS

    return setup


def resize_mirrored(images: DataNode, mirrored: DataNode, size: int) -> DataNode:
    """Resize a batch to squares, mirroring some of the images.

    Parameters
    ----------
    images : DataNode
        uint8 HxWx3, of any sizes, CPU.
    mirrored : DataNode
        int32 [1], not 0 for images to mirror, CPU.
    size : int
        Side of the output in pixels.

    Returns
    -------
    DataNode
        uint8 [size, size, 3], layout HWC, CPU.
    """
    operator = CompiledOperator(
        run_fn=compiled(_build_resize, RUN),
        setup_fn=compiled(_build_shapes, SETUP),
        out_types=[types.UINT8],
        outs_ndim=[3],
        in_types=[types.UINT8, types.INT32, types.UINT8],
        ins_ndim=[3, 1, 2],
    )
    # Output shapes are needed before any data is known: the size is passed as the shape of an input.
    canvas = types.Constant(np.zeros((size, size), np.uint8), device="cpu")
    return fn.reshape(operator(images, mirrored, canvas), layout="HWC")
