"""Masks: what a method's formula takes and returns, and the functions that formulas share.

A formula is a plain function ``mask(f, grid, ...)``. It uses only arithmetic, comparisons and the functions
of `f`, so that one source serves every backend: Numba compiles it for one image at a time (values are
float64, pixels are arrays), and DALI traces it into operators (values and pixels are nodes). Imports nothing
heavy.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

# Under Numba a float64; in a graph a DALI node or a number.
Value = Any

# Replaces a zero divisor where the quotient does not matter.
TINY = 1e-30


class Functions(Protocol):
    """What a formula may call, on values and on pixels, besides arithmetic and comparisons.

    A comparison is not a number: write ``1.0 * (a < b)``. Pass numbers that float32 cannot represent, such as
    0.1, through `constant`, because DALI rounds literals to float32.
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
    """0, 1, ..., size - 1: [H, 1] for rows, [1, W] for columns, so that they broadcast."""
    place: Value
    """A uniform draw in [0, 1), or the caller's ``center`` in pixels; see :func:`drawn_center`."""


class Grid(NamedTuple):
    """The pixels of an image."""

    rows: Axis
    columns: Axis
    paper: Any
    """Whether the convention is "paper" and not "reference"."""
    given: Any
    """Whether the caller gave the centre."""


class Separable(NamedTuple):
    """A mask ``base + scale * rows * columns``: the own image's weight at every pixel, in [0, 1].

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
    """The own image's weight at every pixel, [H, W], in [0, 1]."""


def drawn_center(f: Functions, grid: Grid, axis: Axis, side: Value) -> Value:
    """The centre, along one axis, of a box with that side, in pixels: the caller's or a drawn one.

    The authors' code takes any pixel of the image. In the paper (equation 10) the box lies inside the
    image, so the centre keeps away from the border. A point is a box of side 1.
    """
    if grid.given:
        return axis.place
    if grid.paper:
        positions = axis.size - side + 1.0
        return f.floor(side * 0.5) + f.minimum(f.floor(axis.place * positions), positions - 1.0)
    return f.minimum(f.floor(axis.place * axis.size), axis.size - 1.0)


def box_span(f: Functions, grid: Grid, axis: Axis, scale: Value) -> tuple[Value, Value]:
    """First pixel of a box whose side is `scale` times the axis, and the first pixel after it."""
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
    """`first` where the coin, uniform in [0, 1), is below `probability`, else `second`."""
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
    """The formula's mask for a one-pixel image: shows its kind before anything is compiled.

    Raises
    ------
    TypeError
        The formula returns something else.
    """
    axis = Axis(1.0, 0.0, 0.0)
    mask = formula(_SCALARS, Grid(axis, axis, False, False), *values)
    if not isinstance(mask, Separable | Dense):
        raise TypeError(f"a mask formula must return Separable or Dense; got {type(mask).__name__}")
    return mask


class _Unknown:
    """An unknown number, or anything computed from one."""

    def _computed(self, *_: Any) -> _Unknown:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _computed
    __pow__ = __rpow__ = __neg__ = __abs__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _computed
    __lt__ = __le__ = __gt__ = __ge__ = __and__ = __rand__ = __or__ = __ror__ = _computed
    __call__ = _computed

    def __getattr__(self, _: str) -> _Unknown:
        return self


def fixed_base_and_scale(formula: Any, count: int) -> tuple[float, float] | None:
    """Base and scale of a mask if they are the same for every image and every draw, else None.

    The formula runs on `count` unknown numbers: whatever it returns as a number does not depend on them.
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
