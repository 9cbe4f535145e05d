"""Two ways to mix a batch, by the same formulas.

Each has a function ``mix(images, labels, draws, partner, arguments)``: the nodes of a batch, what `draw` and
`draw_partner` of :mod:`dali_msda.draws` made, and checked arguments. It returns mixed images, targets and, if
``arguments.return_params``, :class:`dali_msda.arguments.MixParams` (else None).

Masks are computed in float64 and applied in float32; uint8 is rounded to the nearest. Arguments are checked
before; what only the content of a batch shows (a label out of range, sizes that differ) is checked here, with
:mod:`dali_msda.checks`.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any


def choose(backend: str, device: str) -> Callable[..., tuple[Any, ...]]:
    """The ``mix`` of "kernel", "graph" or "auto" for images on "cpu" or "gpu".

    Raises
    ------
    ImportError
        "kernel" was asked for and Numba, or DALI's plugin for it, does not work here.
    """
    kernels = None
    if backend == "kernel":
        kernels = importlib.import_module(f"{__name__}.numba.mix")
    elif backend == "auto" and device == "cpu":
        kernels = compiled_module("mix")
    chosen = kernels or importlib.import_module(f"{__name__}.graph")
    mix: Callable[..., tuple[Any, ...]] = chosen.mix
    return mix


def compiled_module(name: str) -> ModuleType | None:
    """A module of the compiled backend, with which Numba is imported; None where that does not work."""
    try:
        return importlib.import_module(f"{__name__}.numba.{name}")
    except (ImportError, AttributeError) as error:
        # Of Numba, of DALI's plugin for it, or of a hook that the plugin no longer has.
        _warn(str(error))
        return None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"dali_msda works without its compiled operators, slower on the CPU: {reason}; python -m"
        " dali_msda.doctor says more",
        RuntimeWarning,
        stacklevel=2,
    )
