"""Masks: what a method's formula is given, what it makes, and the pieces that formulas share.

A formula is a plain function ``mask(f, grid, ...)``. It uses arithmetic, comparisons and the functions of
`f`, and nothing else, so that one source serves every backend: Numba compiles it for one image at a time
(values are float64, pixels are arrays), and DALI traces it into operators (values and pixels are nodes).
Imports nothing heavy.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

# A float64 under Numba, a DALI node or a number in a graph.
Value = Any

# Stands in for a zero divisor where the quotient does not matter.
TINY = 1e-30


class Functions(Protocol):
    """What a formula may call, on values and on pixels, beside arithmetic and comparisons.

    A comparison is no number yet: write ``1.0 * (a < b)``. Numbers that float32 does not hold exactly, such
    as 0.1, go through `constant`, because DALI takes literals as float32.
    """

    pi: Value

    def constant(self, number: float) -> Value: ...
    def sqrt(self, x: Value) -> Value: ...
    def exp(self, x: Value) -> Value: ...
    def log(self, x: Value) -> Value: ...
    def sin(self, x: Value) -> Value: ...
    def cos(self, x: Value) -> Value: ...
    def floor(self, x: Value) -> Value: ...
    def ceil(self, x: Value) -> Value: ...
    def absolute(self, x: Value) -> Value: ...
    def minimum(self, x: Value, y: Value) -> Value: ...
    def maximum(self, x: Value, y: Value) -> Value: ...


class Axis(NamedTuple):
    """One side of the image."""

    size: Value
    """Its length in pixels."""
    pixels: Value
    """0, 1, ..., size - 1: [H, 1] for the rows, [1, W] for the columns, so that they broadcast."""
    place: Value
    """A uniform draw in [0, 1), or the caller's ``center`` in pixels; see :func:`drawn_center`."""


class Grid(NamedTuple):
    """The pixels of an image."""

    rows: Axis
    columns: Axis
    paper: Any
    """Whether the convention is "paper"; otherwise it is that of the authors' code."""
    given: Any
    """Whether the caller gave the centre."""


class Separable(NamedTuple):
    """A mask ``base + scale * rows * columns``: the weight of the own image in every pixel, in [0, 1].

    Without rows and columns it is `base` everywhere.
    """

    base: Value
    scale: Value = 0.0
    rows: Value = None
    """[H, 1]"""
    columns: Value = None
    """[1, W]"""


class Dense(NamedTuple):
    """A mask of any shape."""

    values: Value
    """The weight of the own image in every pixel, [H, W], in [0, 1]."""


def drawn_center(f: Functions, grid: Grid, axis: Axis, side: Value) -> Value:
    """The centre of a box of that side, along one axis, in pixels: the caller's or a drawn one.

    The authors' code takes any pixel of the image; in the paper (equation 10) the box lies inside the
    image, so the centre keeps its distance from the border. A point is a box of side 1.
    """
    if grid.given:
        return axis.place
    if grid.paper:
        positions = axis.size - side + 1.0
        return f.floor(side * 0.5) + f.minimum(f.floor(axis.place * positions), positions - 1.0)
    return f.minimum(f.floor(axis.place * axis.size), axis.size - 1.0)


def box_span(f: Functions, grid: Grid, axis: Axis, scale: Value) -> tuple[Value, Value]:
    """First pixel along one axis of a box whose side is `scale` of it, and the first pixel after the box."""
    side = f.floor(axis.size * scale)
    half = f.floor(side * 0.5)
    center = drawn_center(f, grid, axis, side)
    if grid.paper:
        low = f.minimum(f.maximum(center - half, 0.0), axis.size - side)
        return low, low + side
    low = f.minimum(f.maximum(center - half, 0.0), axis.size)
    return low, f.minimum(f.maximum(center + half, 0.0), axis.size)


def inside(axis: Axis, low: Value, high: Value) -> Value:
    """1 from pixel `low` to the one before `high`, 0 elsewhere."""
    return 1.0 * (axis.pixels >= low) * (axis.pixels < high)


def chosen(first: Value, second: Value, coin: Value, probability: Value) -> Value:
    """`first` where the coin, uniform in [0, 1), falls below `probability`, else `second`."""
    heads = 1.0 * (coin < probability)
    return heads * first + (1.0 - heads) * second


# The same functions on plain numbers.
_SCALARS: Any = SimpleNamespace(
    pi=math.pi,
    constant=float,
    sqrt=math.sqrt,
    exp=math.exp,
    log=math.log,
    sin=math.sin,
    cos=math.cos,
    floor=math.floor,
    ceil=math.ceil,
    absolute=abs,
    minimum=min,
    maximum=max,
)


def mask_of_one_pixel(formula: Any, values: tuple[float, ...]) -> Separable | Dense:
    """What a formula makes of an image of one pixel: shows its kind before anything is compiled.

    Raises
    ------
    TypeError
        It makes something else.
    """
    axis = Axis(1.0, 0.0, 0.0)
    mask = formula(_SCALARS, Grid(axis, axis, False, False), *values)
    if not isinstance(mask, Separable | Dense):
        raise TypeError(f"a mask formula must return Separable or Dense; got {type(mask).__name__}")
    return mask


class _Unknown:
    """A number that is not known, and whatever is computed from it."""

    def _computed(self, *_: Any) -> _Unknown:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _computed
    __pow__ = __rpow__ = __neg__ = __abs__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _computed
    __lt__ = __le__ = __gt__ = __ge__ = __and__ = __rand__ = __or__ = __ror__ = _computed
    __call__ = _computed

    def __getattr__(self, _: str) -> _Unknown:
        return self


def fixed_base_and_scale(formula: Any, count: int) -> tuple[float, float] | None:
    """Base and scale of a mask, if they are the same numbers for every image and every draw; else None.

    The formula is run on `count` numbers that are not known: what it returns as a number is its own.
    """
    unknown = _Unknown()
    axis = Axis(unknown, unknown, unknown)
    found = set()
    for paper in (False, True):
        mask = formula(unknown, Grid(axis, axis, paper, False), *[unknown] * count)
        if not isinstance(mask, Separable) or not all(isinstance(n, float | int) for n in mask[:2]):
            return None
        found.add((float(mask.base), float(mask.scale)))
    return found.pop() if len(found) == 1 else None
