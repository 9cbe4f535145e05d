"""Compiled functions as DALI operators.

DALI's Numba plugin recompiles its functions for every operator of every pipeline, which takes seconds. Here
each C-callable function is compiled once, cached on disk by Numba, and passed to the plugin's operator in
compiled form.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numba.core import types as numba_types

from .intrinsics import address_as_void_pointer

_LIBRARY = Path(__file__).parents[2]
_POINTER, _INT = numba_types.uint64, numba_types.int32
# How DALI calls them. RUN: data, shapes and numbers of dimensions of the outputs, their count, the same of
# the inputs. SETUP: shapes and dimensions of the outputs, count, of the inputs, count, number of samples.
# RUN_BATCH has that number too; its pointer tables list all samples of the first array, then of the next.
RUN = numba_types.void(_POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT)
RUN_BATCH = numba_types.void(_POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT, _INT)
SETUP = numba_types.void(_POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT, _INT)


@numba.njit
def integers(address: int, count: int) -> Any:
    """`count` int64 at an address."""
    return carray(address_as_void_pointer(address), count, np.int64)


@numba.njit
def shape1(shapes: int, index: int) -> Any:
    """The shape of a one-dimensional array, from a table of shape pointers."""
    return (integers(integers(shapes, index + 1)[index], 1)[0],)


@numba.njit
def shape2(shapes: int, index: int) -> Any:
    """The shape of a two-dimensional array."""
    sides = integers(integers(shapes, index + 1)[index], 2)
    return sides[0], sides[1]


@numba.njit
def shape3(shapes: int, index: int) -> Any:
    """The shape of a three-dimensional array."""
    sides = integers(integers(shapes, index + 1)[index], 3)
    return sides[0], sides[1], sides[2]


@numba.njit
def shape4(shapes: int, index: int) -> Any:
    """The shape of a four-dimensional array."""
    sides = integers(integers(shapes, index + 1)[index], 4)
    return sides[0], sides[1], sides[2], sides[3]


@numba.njit
def data_of(data: int, index: int) -> Any:
    """The data of an array, from a table of pointers."""
    return address_as_void_pointer(integers(data, index + 1)[index])


@functools.cache
def _version() -> int:
    """A number that changes with the library's source and with NUMBA_BOUNDSCHECK.

    Numba's cache only notices changes in the entry point's file, not in what it calls, and would return code
    without bounds checks when they are wanted.
    """
    checked = getattr(numba.config, "BOUNDSCHECK", None)  # from the environment, unknown to type checkers
    digest = hashlib.sha256(b"bounds checked" if checked else b"")
    for path in sorted(_LIBRARY.rglob("*.py")):
        if path.parent.name != "doctor":
            digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:4], "little")


@functools.cache
def compiled(
    build: Callable[..., Callable[..., None]],
    signature: Any,
    *closed_over: Any,
    called: tuple[str, Any, int] | None = None,
) -> Any:
    """A C-callable function, compiled or read from Numba's cache; once per process.

    Parameters
    ----------
    build : callable
        Makes the function from a version number and `closed_over`, all numbers and types: what a function
        closes over is part of its key in Numba's cache, and the version must be.
    signature
        `RUN`, `RUN_BATCH` or `SETUP`.
    called : (name, function, fingerprint), optional
        A compiled function that the new one calls by a global name, and a number that changes with it.
        If it were closed over, the key would differ in every process.
    """
    version = _version() if called is None else _version() ^ called[2]
    function: Any = build(version, *closed_over)
    if called is not None:
        known = {**function.__globals__, called[0]: called[1]}
        function = FunctionType(function.__code__, known, function.__name__, None, function.__closure__)
    # A process can load code that several others compiled, and then only the name distinguishes functions:
    # Numba adds just a counter, which starts again in every process.
    key = hashlib.sha256(repr((version, closed_over)).encode()).hexdigest()[:8]
    function.__qualname__ += f"_{key}"
    try:
        return numba.cfunc(signature, cache=True)(function)
    except RuntimeError as error:
        # Numba found no writable folder: neither beside the file nor in the user's cache.
        warnings.warn(
            f"dali_msda recompiles its kernels in every process ({error}); set NUMBA_CACHE_DIR to a writable"
            " folder",
            RuntimeWarning,
            stacklevel=2,
        )
        return numba.cfunc(signature)(function)
