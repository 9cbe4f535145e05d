"""The windows of images that become squares, for a whole batch, and at which scale they can be decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import types
from nvidia.dali.pipeline import DataNode

from .compat import CompiledOperator
from .compiled import RUN_BATCH, SETUP, compiled, data_of, integers


@numba.njit
def scale_of(height: float, width: float, size: int) -> Any:
    """The largest of 8, 4 and 2 at which a window is still at least `size` x `size`; 1 if none is."""
    scale = 8
    while scale > 1 and (height < scale * size or width < scale * size):
        scale //= 2
    return scale


@numba.njit
def place_central_window(window: Any, shape: Any, shorter: int, size: int) -> None:
    """Find the part of an image that becomes the central square, as DALI's resize and crop choose it.

    Parameters
    ----------
    window : float64 [4], output
        Top, left, height and width in pixels of the image.
    shape : int64 [3]
    shorter : int
        Length of the shorter side after resizing.
    size : int
        Side of the square.
    """
    shortest = max(min(shape[0], shape[1]), 1)  # 0 in damaged headers, which are refused elsewhere
    for axis in range(2):
        resized = math.floor(shape[axis] * shorter / shortest + 0.5)
        start = math.floor((resized - size) / 2 + 0.5)
        # Where DALI rounds the longer side, it keeps the scale, and the centre.
        window[axis] = shape[axis] / 2 + (start - resized / 2) * shortest / shorter
        window[2 + axis] = size * shortest / shorter


# For a whole batch: waking a thread for each sample takes longer than this.
def _build_windows(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        size = carray(data_of(data, 2 * samples), 1, np.int32)[0]
        for sample in range(samples):
            window = carray(data_of(out, sample), 4, np.float64)
            window[:2] = carray(data_of(data, sample), 2, np.int32)
            window[2:] = carray(data_of(data, samples + sample), 2, np.int32)
            smaller = carray(data_of(out, samples + sample), 1, np.bool_)
            smaller[0] = scale_of(window[2], window[3], size) > 1

    return run


def _build_central_windows(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        sizes = carray(data_of(data, samples), 2, np.int32)
        for sample in range(samples):
            window = carray(data_of(out, sample), 4, np.float64)
            place_central_window(window, carray(data_of(data, sample), 3, np.int64), sizes[0], sizes[1])
            smaller = carray(data_of(out, samples + sample), 1, np.bool_)
            smaller[0] = scale_of(window[2], window[3], sizes[1]) > 1

    return run


def _build_window_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            integers(integers(out_shapes, samples)[sample], 1)[0] = 4
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1

    return setup


def crop_windows(start: DataNode, extent: DataNode, size: int) -> tuple[DataNode, DataNode]:
    """Make the windows of random crops that become squares of `size`.

    Parameters
    ----------
    start, extent : DataNode
        int32 [2] from ``fn.random_crop_generator``, CPU.

    Returns
    -------
    window : DataNode
        float64 [4], CPU: top, left, height and width in pixels.
    smaller : DataNode
        bool [1], CPU: whether it is large enough to be decoded at a smaller scale.
    """
    return _windows(_build_windows, [start, extent], [types.INT32] * 2, [size])


def central_windows(shape: DataNode, shorter: int, size: int) -> tuple[DataNode, DataNode]:
    """Make the windows of central squares (:func:`place_central_window`); returns the same.

    Parameters
    ----------
    shape : DataNode
        int64 [3], CPU.
    """
    return _windows(_build_central_windows, [shape], [types.INT64], [shorter, size])


def _windows(
    build: Callable[[int], Callable[..., None]],
    inputs: list[DataNode],
    kinds: list[types.DALIDataType],
    sizes: list[int],
) -> tuple[DataNode, DataNode]:
    operator = CompiledOperator(
        run_fn=compiled(build, RUN_BATCH),
        setup_fn=compiled(_build_window_shapes, SETUP),
        out_types=[types.FLOAT64, types.BOOL],
        outs_ndim=[1, 1],
        in_types=[*kinds, types.INT32],
        ins_ndim=[1] * (len(inputs) + 1),
        batch_processing=True,
    )
    window, smaller = operator(*inputs, types.Constant(np.array(sizes, np.int32), device="cpu"))
    return window, smaller
