"""Decodes a window of a JPEG at 1/2, 1/4 or 1/8 of its size, and resizes it to a square; for the CPU.

libjpeg-turbo computes fewer pixels from each block for these scales. It is called through a C function that
the caller gives (:mod:`pipelines.scaled_decoding`), from DALI's threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .compat import CompiledOperator
from .compiled import RUN, SETUP, compiled, data_of, integers, shape1, shape3
from .intrinsics import blend_row, call_decoder
from .jpeg import ends_properly, lowered, read_header
from .resize import SPARE, blend_rows, equal_taps, round_row
from .windows import scale_of

_CHANNELS = 3
_U = np.uint64
# A scaled image of more pixels is left to DALI, which decodes only the window.
_LARGEST = 1 << 24
# DALI's threads begin with the samples whose first output is largest. Here that output has no other use. Its
# length is the file's, in steps: if the longest decoding began last, the other threads would wait for it.
_BYTES_PER_STEP = 4096


class Window(NamedTuple):
    """A part of an axis of the scaled image, in its pixels.

    Attributes
    ----------
    start, extent : float
    low, high : int
        The pixels that may be used.
    reversed : bool
        Whether the target runs backwards.
    """

    start: float
    extent: float
    low: np.int64
    high: np.int64
    reversed: bool


@numba.njit
def _to_file(orientation: int, size: Any, window: Any, mirror: bool, scale: int, clip: bool) -> Any:
    """The rows and columns of the scaled image for a window of the upright one (y, x, height, width).

    EXIF's orientations are rows or columns in reverse, or both, and from 5 on, rows exchanged with columns.
    """
    rows_reversed = orientation == 3 or orientation == 4 or orientation == 6 or orientation == 7
    columns_reversed = orientation == 2 or orientation == 3 or orientation == 7 or orientation == 8
    top, left, height, width = window[0], window[1], window[2], window[3]
    if orientation >= 5:
        top, left, height, width = left, top, width, height
    if rows_reversed:
        top = size[0] - top - height
    if columns_reversed:
        left = size[1] - left - width
    # What is mirrored are the columns of the upright image.
    if mirror and orientation >= 5:
        rows_reversed = not rows_reversed
    elif mirror:
        columns_reversed = not columns_reversed
    return (
        _axis(top, height, size[0], scale, clip, rows_reversed),
        _axis(left, width, size[1], scale, clip, columns_reversed),
    )


@numba.njit
def _axis(start: float, extent: float, length: int, scale: int, clip: bool, backwards: bool) -> Any:
    low, high = np.int64(0), np.int64(-(-length // scale))
    if clip:
        low, high = np.int64(start // scale), min(np.int64(-(-(start + extent) // scale)), high)
    return Window(start / scale, extent / scale, low, high, backwards)


@numba.njit
def _taps(window: Any, target: int) -> Any:
    """As in :mod:`.resize`, for a window that begins and ends between pixels."""
    scale = window.extent / target
    support = max(scale, 1.0)
    first, count = np.empty(target, np.uint64), np.empty(target, np.uint64)
    weights = np.empty((target, 2 * math.ceil(support) + 1), np.float32)
    triangle = np.empty(weights.shape[1], np.float64)
    for i in range(target):
        center = window.start + (i + 0.5) * scale
        low = min(max(int(center - support + 0.5), window.low), window.high - 1)
        high = max(min(int(center + support + 0.5), window.high), low + 1)
        total = 0.0
        for j in range(low, high):
            triangle[j - low] = max(1.0 - abs(j + 0.5 - center) / support, 0.0)
            total += triangle[j - low]
        place = target - 1 - i if window.reversed else i
        first[place], count[place] = low, high - low
        for j in range(high - low):
            weights[place, j] = triangle[j] / total
    return first, count, weights


@numba.njit
def _resample(resized: Any, image: Any, rows: Any, columns: Any, transposed: bool) -> None:
    """Resize the window of a scaled image (uint8 [H, W, 3]) into `resized` (uint8 [S, S, 3])."""
    size = resized.shape[0]
    top, heights, row_weights = rows
    first, count, weights = columns
    # Columns left and right of the window are not blended.
    begin, end = first[0], first[0] + count[0]
    for i in range(size):
        begin, end = min(begin, first[i]), max(end, first[i] + count[i])
    first, weights, taps = equal_taps(first - begin, count, weights, np.int64(end - begin))
    offset, length = begin * _U(_CHANNELS), (end - begin) * _U(_CHANNELS)
    stride, width = _U(image.shape[1] * _CHANNELS), _U(size * _CHANNELS)
    source, target = image.reshape(-1), resized.reshape(-1)
    blended, row = np.empty(length + SPARE, np.float32), np.empty(width + SPARE, np.float32)
    rounded = np.empty(width, np.uint8)
    for y in range(_U(size)):
        blend_rows(blended, source, top[y] * stride + offset, stride, length, row_weights, y, heights[y])
        blend_row(row, blended, first, weights, taps)
        if transposed:
            round_row(rounded, _U(0), width, row)
            for x in range(size):
                for channel in range(_CHANNELS):
                    resized[x, y, channel] = rounded[_CHANNELS * x + channel]
        else:
            round_row(target, y * width, width, row)


@numba.njit
def decode_window(
    resized: Any, encoded: Any, shape: Any, window: Any, clip: bool, mirror: bool, decoder: int
) -> Any:
    """Decode a window of one image.

    Parameters
    ----------
    resized : uint8 [S, S, 3], output
    encoded : uint8 [N]
        The file.
    shape : int64 [3]
        Shape of the upright image.
    window : float64 [4]
        Top, left, height and width in pixels of the upright image.
    clip : bool
        Whether pixels outside of the window must not be used.
    mirror : bool
        Swap left and right.
    decoder : int
        Address of the function that decodes: the addresses of the file and of the pixels, with their sizes,
        and whether a warning is an error. It returns 1 if it filled the pixels (uint8 RGB), and 0 otherwise.

    Returns
    -------
    bool
        Whether the image was decoded. If not, it is one for DALI's decoder: nothing is known of `resized`.
    """
    scale = scale_of(window[2], window[3], resized.shape[0])
    if scale == 1:
        return False
    header = read_header(encoded)
    if header.frame == 0:
        return False
    transposed = header.orientation >= 5
    upright = (header.width, header.height) if transposed else (header.height, header.width)
    if shape[0] != upright[0] or shape[1] != upright[1]:
        return False
    rows, columns = _to_file(header.orientation, (header.height, header.width), window, mirror, scale, clip)
    row_taps, column_taps = _taps(rows, resized.shape[0]), _taps(columns, resized.shape[0])
    # Decoding stops below the last row that is used, except in a file that may have been cut off.
    height = header.height
    complete = ends_properly(encoded)
    if complete:
        used = np.int64(0)
        for i in range(resized.shape[0]):
            used = max(used, np.int64(row_taps[0][i] + row_taps[1][i]))
        height = min(height, (-(-used * scale // header.rows) + header.context) * header.rows)
    scaled_height, scaled_width = -(-height // scale), -(-header.width // scale)
    if scaled_height * scaled_width > _LARGEST:
        return False
    file = lowered(encoded, header.frame, height) if height < header.height else encoded
    image = np.empty((scaled_height, scaled_width, _CHANNELS), np.uint8)
    filled = call_decoder(
        decoder,
        np.int64(file.ctypes.data),
        np.int64(file.size),
        np.int64(image.ctypes.data),
        np.int64(scaled_height),
        np.int64(scaled_width),
        np.int64(not complete),
    )
    # Used again here, so that Numba does not free it before the call.
    if filled != 1 or file.size == 0:
        return False
    _resample(resized, image, row_taps, column_taps, transposed)
    return True


def _build_decoding(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        decoder, closed, clip = integers(integers(data, 5)[4], 3)
        taken = False
        if integers(closed, 1)[0] == 0:
            taken = decode_window(
                carray(data_of(out, 1), shape3(out_shapes, 1), np.uint8),
                carray(data_of(data, 0), shape1(shapes, 0), np.uint8),
                carray(data_of(data, 1), 3, np.int64),
                carray(data_of(data, 2), 4, np.float64),
                clip != 0,
                carray(data_of(data, 3), 1, np.int32)[0] != 0,
                decoder,
            )
        carray(data_of(out, 2), 1, np.bool_)[0] = taken

    return run


def _build_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            of_outputs, of_inputs = integers(out_shapes, 3 * samples), integers(shapes, 6 * samples)
            size = integers(of_inputs[sample], 1)[0]
            integers(of_outputs[sample], 1)[0] = size // _BYTES_PER_STEP + 1
            sides = integers(of_outputs[samples + sample], 3)
            sides[:2] = integers(of_inputs[5 * samples + sample], 2)
            sides[2] = _CHANNELS
            integers(of_outputs[2 * samples + sample], 1)[0] = 1

    return setup


def decode_windows(
    encoded: DataNode,
    shape: DataNode,
    window: DataNode,
    mirrored: DataNode,
    *,
    size: int,
    clip: bool,
    decoder: int,
    closed: int,
) -> tuple[DataNode, DataNode]:
    """Decode windows of the JPEGs of a batch at a smaller scale, where they allow it.

    Parameters
    ----------
    encoded : DataNode
        uint8 1-D, whole files, CPU.
    shape : DataNode
        int64 [3] from ``fn.peek_image_shape``, CPU.
    window : DataNode
        float64 [4]: top, left, height and width in pixels of the upright image, CPU.
    mirrored : DataNode
        int32 [1], not 0 for images to mirror, CPU.
    size : int
        Side of the output in pixels.
    clip : bool
        Whether pixels outside of the window must not be used.
    decoder, closed : int
        Addresses of the function that decodes (:func:`decode_window`), and of an int64 that is not 0 if it
        must not be called any more.

    Returns
    -------
    images : DataNode
        uint8 [size, size, 3], layout HWC, CPU; undefined where `taken` is False.
    taken : DataNode
        bool [1], CPU: whether the image was decoded. If not, it is one for DALI's decoder.
    """
    operator = CompiledOperator(
        run_fn=compiled(_build_decoding, RUN),
        setup_fn=compiled(_build_shapes, SETUP),
        out_types=[types.UINT8, types.UINT8, types.BOOL],
        outs_ndim=[1, 3, 1],
        in_types=[types.UINT8, types.INT64, types.FLOAT64, types.INT32, types.UINT8, types.UINT8],
        ins_ndim=[1, 1, 1, 1, 1, 2],
    )
    # DALI has no constants of 64 bits.
    settings = types.Constant(np.array([decoder, closed, clip], np.int64).view(np.uint8), device="cpu")
    canvas = types.Constant(np.zeros((size, size), np.uint8), device="cpu")
    _, images, taken = operator(encoded, shape, window, mirrored, settings, canvas)
    return fn.reshape(images, layout="HWC"), taken
