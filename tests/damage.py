"""Kinds of damaged, odd and mislabelled image files, and what DALI 2.4 makes of each on the CPU.

The verdicts were found by running; tests/test_check.py holds them against the DALI that is installed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.image_sets import photo

_HEIGHT, _WIDTH = 90, 120
_START_OF_SCAN, _HUFFMAN_TABLE, _QUANTISATION_TABLE, _START_OF_FRAME = 0xDA, 0xC4, 0xDB, 0xC0


def encode(form: str, mode: str = "RGB", size: tuple[int, int] = (_WIDTH, _HEIGHT), **options: Any) -> bytes:
    """A whole image file in a format of Pillow's."""
    buffer = io.BytesIO()
    image = Image.fromarray(photo(max(size[1], 2), max(size[0], 2), 3)).resize(size)
    image.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def segment(jpeg: bytes, marker: int) -> tuple[int, int]:
    """Start (of the 0xFF) and end of the first segment of a JPEG file with `marker`."""
    at = 2
    while jpeg[at + 1] != marker:
        at += 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
    return at, at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]


def scan(jpeg: bytes) -> int:
    """Where the compressed pixels begin."""
    return segment(jpeg, _START_OF_SCAN)[1]


def cut(data: bytes, share: float) -> bytes:
    """The first part of a file."""
    return data[: int(len(data) * share)]


def zero_tail(data: bytes, share: float) -> bytes:
    """A download into space that had been set aside: zeros from `share` on."""
    kept = cut(data, share)
    return kept + bytes(len(data) - len(kept))


def overwrite(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with other bytes in the same place."""
    return data[:at] + new + data[at + len(new) :]


def noise(size: int, seed: int = 0) -> bytes:
    """Random bytes."""
    return np.random.default_rng(seed).bytes(size)
