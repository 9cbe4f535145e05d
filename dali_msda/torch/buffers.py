"""Memory for mixed images on the CPU, used again once no tensor holds it.

The system clears fresh memory page by page, which takes several times as long as mixing, and PyTorch returns
large blocks to the system at once. So each thread keeps its last blocks.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# A loop holds its last batch while it mixes the next.
_KEPT = 2

# Bytes below which fresh memory is as fast.
_LITTLE = 1 << 20

# Of processors' cache lines, as PyTorch aligns its own memory.
_ALIGNMENT = 64


class _Block(NamedTuple):
    memory: np.ndarray[Any, Any]
    """uint8 [n]"""
    user: weakref.ref[np.ndarray[Any, Any]]
    """The view of the memory that a tensor has; dead once no tensor shares its storage."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.blocks: list[_Block] = []


_kept = _Kept()


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """Make a vector of `count` elements that are not set."""
    size = count * dtype.itemsize
    if size < _LITTLE:
        return torch.empty(count, dtype=dtype)
    blocks = _kept.blocks
    free = (i for i, block in enumerate(blocks) if block.user() is None and block.memory.size == size)
    found = next(free, None)
    if found is not None:
        memory = blocks.pop(found).memory
    else:
        padded = np.empty(size + _ALIGNMENT, np.uint8)
        start = -padded.ctypes.data % _ALIGNMENT
        memory = padded[start : start + size]
    user = memory.view()
    blocks.append(_Block(memory, weakref.ref(user)))
    del blocks[:-_KEPT]  # the least recently used
    return torch.from_numpy(user).view(dtype)


def empty_like(images: Tensor, memory_format: torch.memory_format, dtype: torch.dtype) -> Tensor:
    """Make images [N, C, H, W] of the same shape that are not set."""
    flat = empty(images.numel(), dtype)
    if memory_format == torch.contiguous_format:
        return flat.view(images.shape)
    count, channels, height, width = images.shape
    return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
