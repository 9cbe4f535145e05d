"""Detects image headers that DALI's parsers read but that crash its decoders.

nvImageCodec's parser divides by the tile width of JPEG 2000, OpenJPEG writes outside its memory after an
incomplete header, and DALI has no type for some samples, which it notices too late (see `pipelines.headers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import types
from nvidia.dali.pipeline import DataNode

from .compat import CompiledOperator
from .compiled import RUN_BATCH, SETUP, compiled, data_of, integers, shape1

# DALI's random crop squares a side in 32 bits, times the aspect ratio, and notices the overflow too late; and
# running out of memory crashes it. The number of pixels is OpenCV's limit.
_LONGEST, _LARGEST = 32767, 1 << 30
# JPEG, ISO/IEC 10918-1, annex B: frame markers, and other markers among their codes.
_START_OF_FRAME, _NOT_FRAMES, _START_OF_SCAN, _FILL = 0xFFC0, (0xFFC4, 0xFFC8, 0xFFCC), 0xFFDA, 0xFFFF
# TIFF, TIFF 6.0: tags of the first directory, and a value of the second.
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _FLOATING_POINT = 258, 339, 3
# JPEG 2000, ISO/IEC 15444-1, annex A: markers of the main header, and A.5.1, A.6.1, A.6.4.
_SIZ, _COD, _QCD, _SOT = 0xFF51, 0xFF52, 0xFF5C, 0xFF90
_FIRST_OF_HEADER, _LAST_OF_HEADER = 0xFF50, 0xFF64
_CODE_STREAM, _LARGE_BOX = 0x6A703263, 1  # "jp2c"; the length is in the next 8 bytes
_MOST_LEVELS, _MOST_TILES, _MOST_BITS = 32, 65535, 16


@numba.njit
def read_big_endian(data: Any, at: int, count: int) -> Any:
    """An unsigned integer of `count` bytes; -1 if the data ends too early."""
    if at < 0 or at + count > data.size:
        return -1
    value = np.int64(0)
    for i in range(at, at + count):
        value = value * 256 + np.int64(data[i])
    return value


@numba.njit
def read_number(data: Any, at: int, count: int, little: bool) -> Any:
    """The same in either byte order; also -1 for 8 bytes too large to be an offset in any file."""
    if not little:
        return max(read_big_endian(data, at, count), -1)
    if at < 0 or at + count > data.size:
        return -1
    value = np.int64(0)
    for i in range(at + count - 1, at - 1, -1):
        value = value * 256 + np.int64(data[i])
    return max(value, -1)


@numba.njit
def _is_safe_jpeg(data: Any) -> Any:
    """Whether DALI has a type for the samples of a JPEG: at most 16 bits."""
    at = 2
    while True:
        marker, length = read_big_endian(data, at, 2), read_big_endian(data, at + 2, 2)
        frame = _START_OF_FRAME <= marker < _START_OF_FRAME + 16 and marker not in _NOT_FRAMES
        if frame and read_big_endian(data, at + 4, 1) > _MOST_BITS:
            return False  # in any frame: if there are several, the parser uses the last
        if marker == _START_OF_SCAN or marker < 0 or length < 0:
            return True
        at += 1 if marker == _FILL else 2 + length


@numba.njit
def _is_safe_tiff(data: Any) -> Any:
    """Whether DALI has a type for the samples of a TIFF: at most 16 bits, or 32-bit floating point."""
    little, big = data[0] == ord("I"), data[2] == 43 or data[3] == 43
    place, entry = (8, 20) if big else (4, 12)
    at = read_number(data, 8 if big else 4, place, little)
    count = read_number(data, at, 8 if big else 2, little)
    if at < 0 or count < 0:
        return False
    first, bits, form = at + (8 if big else 2), 1, 1
    for i in range(min(count, (data.size - first) // entry)):
        start = first + i * entry
        tag, kind = read_number(data, start, 2, little), read_number(data, start + 2, 2, little)
        if tag != _BITS_PER_SAMPLE and tag != _SAMPLE_FORMAT:
            continue
        values = read_number(data, start + 4, place, little)
        size = 4 if kind == 4 else 2
        value = start + 4 + place
        if values * size > place:
            value = read_number(data, value, place, little)
        if tag == _BITS_PER_SAMPLE:
            bits = read_number(data, value, size, little)
        else:
            form = read_number(data, value, size, little)
    return bits == 32 if form == _FLOATING_POINT else bits <= _MOST_BITS


@numba.njit
def _find_code_stream(data: Any) -> Any:
    """Offset of the code stream in a JPEG 2000 file, -1 without one."""
    if data[0] == 0xFF:
        return 0
    at = 0
    while True:
        length, kind = read_big_endian(data, at, 4), read_big_endian(data, at + 4, 4)
        content = 8
        if length == _LARGE_BOX:
            length, content = read_big_endian(data, at + 8, 8), 16
        if kind == _CODE_STREAM:
            return at + content
        if length < content or at + length >= data.size:
            return -1
        at += length


@numba.njit
def _has_valid_sizes(data: Any, at: int, length: int) -> Any:
    """Whether the SIZ segment at `at` describes a non-empty image with non-empty tiles."""
    right, bottom = read_big_endian(data, at + 6, 4), read_big_endian(data, at + 10, 4)
    left, top = read_big_endian(data, at + 14, 4), read_big_endian(data, at + 18, 4)
    width, height = read_big_endian(data, at + 22, 4), read_big_endian(data, at + 26, 4)
    tile_left, tile_top = read_big_endian(data, at + 30, 4), read_big_endian(data, at + 34, 4)
    components = read_big_endian(data, at + 38, 2)
    if components < 1 or length != 38 + 3 * components or at + 2 + length > data.size:
        return False
    if right <= left or bottom <= top or width < 1 or height < 1:
        return False
    if tile_left > left or tile_top > top or tile_left + width <= left or tile_top + height <= top:
        return False
    across, down = -(-(right - tile_left) // width), -(-(bottom - tile_top) // height)
    if across * down > _MOST_TILES:
        return False
    for component in range(components):
        start = at + 40 + 3 * component
        if (data[start] & 127) + 1 > _MOST_BITS or data[start + 1] < 1 or data[start + 2] < 1:
            return False
    return True


@numba.njit
def _has_valid_coding(data: Any, at: int, length: int) -> Any:
    """Whether the COD segment at `at` has values that the standard allows."""
    style, order, layers = data[at + 4], data[at + 5], read_big_endian(data, at + 6, 2)
    levels, width, height = data[at + 9], data[at + 10], data[at + 11]
    precincts = levels + 1 if style & 1 else 0
    if style > 7 or order > 4 or layers < 1 or data[at + 8] > 1 or levels > _MOST_LEVELS:
        return False
    return (
        length == 12 + precincts and width <= 8 and height <= 8 and width + height <= 8 and data[at + 13] < 2
    )


@numba.njit
def _is_safe_jpeg_2000(data: Any) -> Any:
    """Whether the main header is complete and has values that the standard allows."""
    at = _find_code_stream(data)
    if at < 0 or read_big_endian(data, at + 2, 2) != _SIZ:
        return False
    at += 2
    coding = quantisation = False
    while True:
        marker, length = read_big_endian(data, at, 2), read_big_endian(data, at + 2, 2)
        if marker == _SOT:
            return coding and quantisation and length == 10 and at + 12 <= data.size
        if marker < _FIRST_OF_HEADER or marker > _LAST_OF_HEADER or length < 2 or at + 2 + length > data.size:
            return False
        if marker == _SIZ and not _has_valid_sizes(data, at, length):
            return False
        if marker == _COD:
            coding = length >= 12 and _has_valid_coding(data, at, length)
            if not coding:
                return False
        quantisation = quantisation or (marker == _QCD and length >= 4)
        at += 2 + length


@numba.njit
def is_safe(data: Any) -> Any:
    """Whether the header of a file of any kind does not crash DALI; decoding may still fail.

    Parameters
    ----------
    data : uint8 [N]
    """
    if data.size < 12:
        return True
    first, second = data[0], data[1]
    if first == 0xFF and second == 0xD8:
        return _is_safe_jpeg(data)
    if first == second and (first == ord("I") or first == ord("M")):
        return _is_safe_tiff(data)
    if (first == 0xFF and second == 0x4F) or (first == 0 and data[4] == ord("j") and data[5] == ord("P")):
        return _is_safe_jpeg_2000(data)
    return True


@numba.njit
def is_plausible(shape: Any) -> Any:
    """Whether `shape` can be that of an image.

    Parameters
    ----------
    shape : int64 [3]
        Height, width, channels from nvImageCodec's parsers; 0 channels if they do not know the number.
    """
    height, width, channels = shape[0], shape[1], shape[2]
    within = 0 < height <= _LONGEST and 0 < width <= _LONGEST and height * width <= _LARGEST
    return within and channels > 0


# For a whole batch: waking a thread for each sample takes longer than these checks.
def _build_data_check(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            encoded = carray(data_of(data, sample), shape1(shapes, sample), np.uint8)
            carray(data_of(out, sample), 1, np.int32)[0] = -1 if is_safe(encoded) else 0

    return run


def _build_shape_check(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            shape = carray(data_of(data, sample), shape1(shapes, sample), np.int64)
            carray(data_of(out, sample), 1, np.int32)[0] = -1 if is_plausible(shape) else 0

    return run


def _build_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            integers(integers(out_shapes, samples)[sample], 1)[0] = 1

    return setup


def length_if_safe(encoded: DataNode) -> DataNode:
    """-1, with which ``fn.reshape`` keeps the length; 0 for an image that must not be decoded.

    Parameters
    ----------
    encoded : DataNode
        uint8 1-D, CPU.

    Returns
    -------
    DataNode
        int32 [1], CPU.
    """
    return _make_length(_build_data_check, encoded, types.UINT8)


def length_if_plausible(shape: DataNode) -> DataNode:
    """The same, for shapes from ``fn.peek_image_shape``: int64 [3], CPU."""
    return _make_length(_build_shape_check, shape, types.INT64)


def _make_length(
    build: Callable[[int], Callable[..., None]], given: DataNode, dtype: types.DALIDataType
) -> DataNode:
    operator = CompiledOperator(
        run_fn=compiled(build, RUN_BATCH),
        setup_fn=compiled(_build_shapes, SETUP),
        out_types=[types.INT32],
        outs_ndim=[1],
        in_types=[dtype],
        ins_ndim=[1],
        batch_processing=True,
    )
    length: DataNode = operator(given)
    return length
