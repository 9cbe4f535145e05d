"""Reads the header of a JPEG in compiled code: size, orientation, sampling. ISO/IEC 10918-1, annex B."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from .headers import read_big_endian, read_number

# Baseline and extended sequential frames, which are decoded row by row.
_SEQUENTIAL = (0xFFC0, 0xFFC1)
_FIRST_FRAME, _LAST_FRAME, _NOT_FRAMES = 0xFFC0, 0xFFCF, (0xFFC4, 0xFFC8, 0xFFCC)
_START_OF_SCAN, _END_OF_IMAGE, _EXIF_SEGMENT, _FILL = 0xFFDA, 0xFFD9, 0xFFE1, 0xFFFF
_FIRST_SEGMENT = 0xFFC0
# EXIF 2.32: "Exif", two zeros, then a TIFF header; 4.6.4, tag 274: orientation, one SHORT.
_EXIF, _ORIENTATION, _SHORT = 0x45786966, 274, 3


class Header(NamedTuple):
    """What decoding needs to know of a JPEG; all 0 for one that is not plain.

    Attributes
    ----------
    frame : int
        Offset of the frame header's marker.
    height, width : int
        Size of the image in the file, in pixels, before its orientation is applied.
    orientation : int
        1 to 8, of EXIF.
    rows : int
        Height in pixels of a row of interleaved blocks.
    context : int
        How many such rows below a pixel its colour may depend on.
    """

    frame: np.int64
    height: np.int64
    width: np.int64
    orientation: np.int64
    rows: np.int64
    context: np.int64


@numba.njit
def _none() -> Any:
    zero = np.int64(0)
    return Header(zero, zero, zero, zero, zero, zero)


@numba.njit
def _read_orientation(data: Any, at: int, end: int) -> Any:
    """The orientation in an EXIF segment whose TIFF header is at `at`: 0 if absent, -1 if unclear."""
    order = read_big_endian(data, at, 2)
    little = order == 0x4949
    if at + 8 > end or (not little and order != 0x4D4D) or read_number(data, at + 2, 2, little) != 42:
        return -1
    directory = at + read_number(data, at + 4, 4, little)
    if directory < at + 8 or directory + 2 > end:
        return -1
    count = read_number(data, directory, 2, little)
    if directory + 2 + 12 * count > end:
        return -1
    found = 0
    for i in range(count):
        entry = directory + 2 + 12 * i
        if read_number(data, entry, 2, little) != _ORIENTATION:
            continue
        kind, values = read_number(data, entry + 2, 2, little), read_number(data, entry + 4, 4, little)
        value = read_number(data, entry + 8, 2, little)
        if found or kind != _SHORT or values != 1 or value < 1 or value > 8:
            return -1
        found = value
    return found


@numba.njit
def _read_sampling(data: Any, at: int, components: int) -> Any:
    """`Header.rows` and `Header.context`; sampling factors are every third byte from `at`."""
    if components == 1:
        return np.int64(8), np.int64(0)  # not interleaved, whatever its sampling
    across = down = np.int64(0)
    for component in range(components):
        sampling = np.int64(data[at + 3 * component])
        across, down = max(across, sampling >> 4), max(down, sampling & 15)
    context = np.int64(0)
    for component in range(components):
        sampling = np.int64(data[at + 3 * component])
        # Scaled decoding leaves colours to be interpolated between rows (as in 4:4:0), or only within them.
        if (sampling & 15) * across < (sampling >> 4) * down:
            context = np.int64(1)
    return 8 * down, context


@numba.njit
def read_header(data: Any) -> Any:
    """Read the header of a plain JPEG.

    Plain is one sequential frame of 8 bits with one scan of one component (grey) or three, in a file without
    anything that programs could understand differently: two EXIF segments, or a damaged one.

    Parameters
    ----------
    data : uint8 [N]
        The file.

    Returns
    -------
    Header
        int64. All 0 for anything else.
    """
    if data.size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return _none()
    frame = orientation = height = width = rows = context = components = np.int64(0)
    has_exif = False
    at = np.int64(2)
    while True:
        marker, length = read_big_endian(data, at, 2), read_big_endian(data, at + 2, 2)
        if marker == _FILL:
            at += 1
            continue
        if marker == _START_OF_SCAN:
            if read_big_endian(data, at + 4, 1) != components:
                return _none()  # the components follow each other
            break
        if marker < _FIRST_SEGMENT or length < 2 or at + 2 + length > data.size:
            return _none()
        if _FIRST_FRAME <= marker <= _LAST_FRAME and marker not in _NOT_FRAMES:
            components = np.int64(read_big_endian(data, at + 9, 1))
            sequential = marker in _SEQUENTIAL
            if frame or not sequential or read_big_endian(data, at + 4, 1) != 8:
                return _none()
            if (components != 1 and components != 3) or length != 8 + 3 * components:
                return _none()
            frame, height, width = at, read_big_endian(data, at + 5, 2), read_big_endian(data, at + 7, 2)
            rows, context = _read_sampling(data, at + 11, components)
        if marker == _EXIF_SEGMENT and length >= 8 and read_big_endian(data, at + 4, 4) == _EXIF:
            orientation = _read_orientation(data, at + 10, at + 2 + length)
            if orientation < 0 or has_exif or read_big_endian(data, at + 8, 2) != 0:
                return _none()
            has_exif = True
        at += 2 + length
    if not frame or not height or not width or not rows:
        return _none()
    return Header(frame, height, width, max(orientation, np.int64(1)), rows, context)


@numba.njit
def ends_properly(data: Any) -> Any:
    """Whether the last bytes are the end of an image: the file has not been cut off."""
    return read_big_endian(data, data.size - 2, 2) == _END_OF_IMAGE


@numba.njit
def lowered(data: Any, frame: int, height: int) -> Any:
    """A copy of the file with another height in its frame header, so that decoders stop there."""
    copy = data.copy()
    copy[frame + 5], copy[frame + 6] = height >> 8, height & 255
    return copy
