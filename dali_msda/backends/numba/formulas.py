"""Mask formulas, compiled."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

import numba

from ... import masks


@functools.cache
def compiled_formula(formula: Callable[..., Any]) -> Any:
    """Compile a formula with Numba, together with the plain functions that it calls."""
    function = _require_function(formula)
    called = {
        name: compiled_formula(value)
        for name, value in _globals(function)
        if isinstance(value, FunctionType) and value is not function
    }
    cells = tuple(
        CellType(compiled_formula(cell.cell_contents))
        if isinstance(cell.cell_contents, FunctionType)
        else cell
        for cell in function.__closure__ or ()
    )
    known = {**function.__globals__, **called}
    copy = FunctionType(function.__code__, known, function.__name__, function.__defaults__, cells)
    copy.__qualname__ = f"{function.__qualname__}_{fingerprint(formula)}"  # see `compiled`
    return numba.njit(copy)


def fingerprint(formula: Callable[..., Any], *more: object) -> int:
    """A number that changes with `more` and with what a formula, or a function that it calls, computes."""
    digest = hashlib.sha256("\n".join([*_describe(_require_function(formula), ()), repr(more)]).encode())
    return int.from_bytes(digest.digest()[:4], "little")


def _require_function(formula: Callable[..., Any]) -> FunctionType:
    if not isinstance(formula, FunctionType):
        raise TypeError(f"a mask formula must be a plain function; got {formula!r}")
    return formula


def _globals(function: FunctionType) -> list[tuple[str, Any]]:
    """The global names that a function uses, and their values."""
    known = function.__globals__
    return [(name, known[name]) for name in function.__code__.co_names if name in known]


def _describe(function: FunctionType, within: tuple[FunctionType, ...]) -> Iterator[str]:
    if function in within:
        return
    yield from _describe_code(function.__code__)
    cells = [(f"cell {i}", cell.cell_contents) for i, cell in enumerate(function.__closure__ or ())]
    for name, value in [*_globals(function), *cells, ("defaults", function.__defaults__)]:
        if isinstance(value, FunctionType):
            yield name
            yield from _describe(value, (*within, function))
        else:
            yield f"{name} {value!r}" if isinstance(value, int | float | tuple | str | None) else name


def _describe_code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _describe_code(constant)
        else:
            yield repr(constant)
    yield repr((code.co_names, code.co_varnames))


# Used by the kernels themselves, for every method.
chosen = compiled_formula(masks.chosen)
