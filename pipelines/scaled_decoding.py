"""Decodes large JPEGs at 1/2, 1/4 or 1/8 of their size where the output needs no more, on the CPU.

simplejpeg (libjpeg-turbo) decodes; DALI's decoder has no such scales. Which part of an image is decoded, and
everything drawn at random, is the same with and without.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import threading
import time
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode

from dali_msda.backends import compiled_module
from dali_msda.validation import ArgumentValueError

from .records import ScaledDecoding

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Encoded file and its size, pixels with height and width, strict: all as 64-bit integers.
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 6)
_READ, _WRITE = 0x100, 0x200  # PyBUF_READ and PyBUF_WRITE
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes = (ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_int)
_view.restype = ctypes.py_object


class _Decoder:
    """simplejpeg as a C function that DALI's threads may call until Python exits.

    It releases Python's lock while it decodes.
    """

    def __init__(self) -> None:
        self._running: set[int] = set()  # the threads in a call
        self._closed = np.zeros(1, np.int64)
        self._function = _FUNCTION(self._decode)
        atexit.register(self._close)
        # At exit Python frees what modules have, and DALI's threads may still run then.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    @property
    def addresses(self) -> dict[str, int]:
        """Addresses of the function, and of a number that is not 0 once it must not be called."""
        return {
            "decoder": ctypes.cast(self._function, ctypes.c_void_p).value or 0,
            "closed": self._closed.ctypes.data,
        }

    def _decode(self, encoded: int, size: int, pixels: int, height: int, width: int, strict: int) -> int:
        self._running.add(threading.get_ident())
        try:
            image = simplejpeg.decode_jpeg(
                _view(encoded, size, _READ),
                min_height=height,
                min_width=width,
                buffer=_view(pixels, height * width * 3, _WRITE),
                strict=bool(strict),
            )
        except (ValueError, RuntimeError, MemoryError):
            return 0  # DALI's decoder says what is wrong
        finally:
            self._running.discard(threading.get_ident())
        return int(image.shape == (height, width, 3))

    def _close(self) -> None:
        """Let no thread wait for Python's lock any more: after this they would never get it."""
        self._closed[:] = 1
        idle = 0
        while idle < 2:
            time.sleep(0.002)  # threads on their way get the lock
            idle = 0 if self._running else idle + 1


@functools.cache
def _make_decoder() -> _Decoder:
    return _Decoder()


def find_obstacle() -> str | None:
    """Say what is missing for decoding at a smaller scale; None if nothing is."""
    if simplejpeg is None:
        return "the package simplejpeg, which cannot be imported"
    if compiled_module("scaled_decoding") is None:
        return "Numba and DALI's plugin for it"
    return None


def is_on(choice: ScaledDecoding, device: str) -> bool:
    """Decide whether to decode at a smaller scale.

    Parameters
    ----------
    choice : {"auto", "on", "off"}
        "auto" is on for "cpu", if nothing is missing.
    device : {"cpu", "gpu"}

    Raises
    ------
    ValueError
        "on", and something is missing.
    """
    if choice == "off" or (choice == "auto" and device != "cpu"):
        return False
    obstacle = find_obstacle()
    if obstacle is not None and choice == "on":
        raise ArgumentValueError("scaled_decoding", f"'auto' or 'off' without {obstacle}", choice)
    return obstacle is None


def decode_scaled(
    encoded: DataNode, shape: DataNode, window: DataNode, mirrored: DataNode, *, size: int, clip: bool
) -> tuple[DataNode, DataNode]:
    """Decode windows of large JPEGs to squares; see ``decode_windows`` of the compiled module.

    Returns
    -------
    images : DataNode
        uint8 [size, size, 3], layout HWC, CPU; undefined where `taken` is False.
    taken : DataNode
        bool scalar, CPU.
    """
    images, taken = _compiled("scaled_decoding").decode_windows(
        encoded, shape, window, mirrored, size=size, clip=clip, **_make_decoder().addresses
    )
    return images, fn.reshape(taken, shape=[])


def crop_window(start: DataNode, extent: DataNode, size: int) -> tuple[DataNode, DataNode]:
    """The window of a random crop that becomes a square of `size`.

    Returns
    -------
    window : DataNode
        float64 [4], CPU: top, left, height and width in pixels.
    smaller : DataNode
        bool scalar, CPU: whether it is large enough to be decoded at a smaller scale.
    """
    return _scalar(*_compiled("windows").crop_windows(start, extent, size))


def central_window(shape: DataNode, shorter: int, size: int) -> tuple[DataNode, DataNode]:
    """The part of an image that becomes the central square of `size` once the shorter side is `shorter`."""
    return _scalar(*_compiled("windows").central_windows(shape, shorter, size))


def _scalar(window: DataNode, smaller: DataNode) -> tuple[DataNode, DataNode]:
    return window, fn.reshape(smaller, shape=[])


def _compiled(name: str) -> Any:
    return compiled_module(name)
