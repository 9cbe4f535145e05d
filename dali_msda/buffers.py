"""Memory for mixed images on the CPU, used again once nothing holds it any more. Needs NumPy only.

The system clears fresh memory page by page, which takes several times as long as mixing, and allocators
return large blocks to the system at once. So each thread keeps its last blocks.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]

# A loop holds its last batch, or a few, while it mixes the next.
_KEPT = 3

# Bytes below which fresh memory is as fast.
_LITTLE = 1 << 20

# Of processors' cache lines, as PyTorch aligns its own memory.
_ALIGNMENT = 64


class _Kept(threading.local):
    def __init__(self) -> None:
        self.blocks: list[Array] = []


_kept = _Kept()


def _references(blocks: list[Array]) -> list[int]:
    """How many references each block has. What shares a block's memory refers to it."""
    return [sys.getrefcount(block) for block in blocks]


# Those of a block that is only kept, as this Python counts them.
_UNUSED = _references([np.empty(0, np.uint8)])[0]


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Make an array that is not set: of an earlier one's memory, if that has the size and is not in use."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size < _LITTLE:
        return np.empty(shape, kind)
    blocks = _kept.blocks
    unused = (i for i, count in enumerate(_references(blocks)) if count == _UNUSED)
    found = next((i for i in unused if blocks[i].size == size + _ALIGNMENT), None)
    blocks.append(np.empty(size + _ALIGNMENT, np.uint8) if found is None else blocks.pop(found))
    del blocks[:-_KEPT]  # the least recently used
    start = -blocks[-1].ctypes.data % _ALIGNMENT
    return blocks[-1][start : start + size].view(kind).reshape(shape)
