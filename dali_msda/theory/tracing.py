"""Where a mask formula jumps: its draws, each as cells in which the mask stays the same, or as nodes.

A formula turns a uniform draw into a place, ``floor(draw * places)``, or a choice, ``draw < probability``.
Then the mask is the same for all draws between two jumps, and its moments are finite sums. To find the jumps,
the formula itself runs once with draws that note what it does with them, so your own methods work too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ..masks import Axis, Grid
from .moments import Floats

ROW, COLUMN = "_row", "_column"
"""The names of the two draws for the centre, which every formula has."""

FUNCTIONS: Any = SimpleNamespace(
    pi=math.pi,
    constant=float,
    **{
        name: getattr(np, name)
        for name in ("sqrt", "exp", "log", "sin", "cos", "floor", "ceil", "absolute", "minimum", "maximum")
    },
)
"""What a formula may call (:class:`dali_msda.masks.Functions`), on NumPy's arrays."""


class Nodes(NamedTuple):
    """Values of a uniform draw, and their weights; the sum over them is the mean over the draw."""

    values: Floats
    weights: Floats


class _UsedSmoothly(Exception):
    """The formula did something else with a draw than to step or to choose."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Draw:
    """A uniform draw, or a multiple of it, that notes where the formula jumps."""

    __array_ufunc__ = None  # NumPy leaves the operators to this class

    def __init__(self, name: str, jumps: set[float], factor: float = 1.0) -> None:
        self.name, self.jumps, self.factor = name, jumps, factor

    def __mul__(self, other: Any) -> _Draw:
        if np.ndim(other) or isinstance(other, _Draw):
            raise _UsedSmoothly(self.name)
        return _Draw(self.name, self.jumps, self.factor * float(other))

    __rmul__ = __mul__

    def floor(self) -> float:
        self.jumps.update(step / self.factor for step in range(1, math.ceil(abs(self.factor))))
        return 0.0

    def _compared(self, other: Any) -> bool:
        if np.ndim(other) or isinstance(other, _Draw):
            raise _UsedSmoothly(self.name)
        self.jumps.add(float(other) / self.factor if self.factor else 0.0)
        return False

    __lt__ = __le__ = __gt__ = __ge__ = _compared

    def _smooth(self, *_: Any) -> Any:
        raise _UsedSmoothly(self.name)

    __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _smooth
    __neg__ = __abs__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __float__ = _smooth


def _noting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; a draw must not be among its arguments."""

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, _Draw):
                raise _UsedSmoothly(argument.name)
        return function(*arguments)

    return call


def _floor(x: Any) -> Any:
    return x.floor() if isinstance(x, _Draw) else np.floor(x)


_NOTING: Any = SimpleNamespace(
    **{
        name: _noting(value) if callable(value) else value
        for name, value in vars(FUNCTIONS).items()
        if name != "floor"
    },
    floor=_floor,
)


def run_formula(
    formula: Callable[..., Any],
    f: Any,
    size: tuple[int, int],
    paper: bool,
    values: Mapping[str, Any],
    names: tuple[str, ...],
) -> Any:
    """The mask of a formula for an image, from `values` by name, the centre's draws included."""
    height, width = size
    rows = Axis(float(height), np.arange(height, dtype=np.float64)[:, None], values[ROW])
    columns = Axis(float(width), np.arange(width, dtype=np.float64)[None, :], values[COLUMN])
    return formula(f, Grid(rows, columns, paper, False), *(values[name] for name in names))


def find_nodes(
    formula: Callable[..., Any],
    size: tuple[int, int],
    paper: bool,
    fixed: Mapping[str, float],
    draws: tuple[str, ...],
    names: tuple[str, ...],
    count: int,
) -> dict[str, Nodes]:
    """Nodes of every uniform draw of a formula, by name.

    A draw that only steps and chooses has a node in the middle of each cell between two jumps; sums over them
    are exact. One that the formula does not use has one node. Any other has `count` Gauss-Legendre nodes.
    """
    smooth: dict[str, float] = {}
    while True:
        jumps: dict[str, set[float]] = {name: set() for name in draws if name not in smooth}
        noting = {name: _Draw(name, found) for name, found in jumps.items()}
        try:
            run_formula(formula, _NOTING, size, paper, {**fixed, **smooth, **noting}, names)
            break
        except _UsedSmoothly as used:
            smooth[used.name] = 0.5
    return {name: _cells(jumps[name]) if name in jumps else _gauss(count) for name in draws}


def _cells(jumps: set[float]) -> Nodes:
    edges = np.array([0.0, *sorted(jump for jump in jumps if 0.0 < jump < 1.0), 1.0])
    return Nodes((edges[:-1] + edges[1:]) / 2, np.diff(edges))


def _gauss(count: int) -> Nodes:
    points, weights = np.polynomial.legendre.leggauss(count)
    return Nodes((points + 1) / 2, weights / 2)
