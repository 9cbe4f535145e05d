"""The masks of all methods, written once.

Every mask has the form ``M(y, x) = base + scale * rows(y) * columns(x)``: the own image has the weight
M, its partner 1 - M. A method is only a way to choose (base, scale, rows, columns).

The functions use nothing but arithmetic, comparisons and the few functions handed to
:class:`MaskFormulas`, so that the same source serves twice: Numba compiles it for one image at a time,
and DALI traces it into graph operators. Sizes, sides, positions and distances are in pixels, all numbers
are float64, and ``paper`` selects the convention (True: the paper's formulas, False: the authors' code).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# A value is a float under Numba and a DALI node in a graph.
Value = Any

# Stands in for a zero divisor where the quotient does not matter. float32 holds it, and DALI's graph
# constants are float32.
TINY = 1e-30


class MaskFormulas:
    """The formulas over one set of elementary functions.

    Parameters
    ----------
    sqrt, floor, exp, minimum, maximum : callable
        Elementary functions on the values in use.
    compiled : callable, optional
        Applied to every formula (``numba.njit`` for the kernel).
    """

    def __init__(
        self,
        *,
        sqrt: Callable[[Value], Value],
        floor: Callable[[Value], Value],
        exp: Callable[[Value], Value],
        minimum: Callable[[Value, Value], Value],
        maximum: Callable[[Value, Value], Value],
        compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> None:
        def box_side(size: Value, lam: Value, ratio: Value) -> Value:
            """Side of the box along one axis, whole pixels (section 4: area (1 - lam) * r)."""
            return floor(size * (sqrt(1.0 - lam) * sqrt(ratio)))

        def drawn_center(uniform: Value, size: Value, side: Value, paper: bool) -> Value:
            """Centre along one axis from a uniform draw in [0, 1).

            The authors' code takes any pixel of the image; in the paper (equation 10) the box lies
            inside the image, so the centre keeps its distance from the border. A point is a box of
            side 1.
            """
            if paper:
                first = floor(side * 0.5)
                positions = size - side + 1.0
            else:
                first = side * 0.0
                positions = size + side * 0.0
            return first + minimum(floor(uniform * positions), positions - 1.0)

        def box_span(center: Value, size: Value, side: Value, paper: bool) -> tuple[Value, Value]:
            """First pixel of the box along one axis and the first one after it."""
            half = floor(side * 0.5)
            if paper:
                low = minimum(maximum(center - half, 0.0), size - side)
                high = low + side
            else:
                low = minimum(maximum(center - half, 0.0), size)
                high = minimum(maximum(center + half, 0.0), size)
            return low, high

        def hmix_level(lam: Value, ratio: Value, covered: Value, paper: bool) -> Value:
            """Own weight outside the HMix box; `covered` is the box's share of the image.

            The authors' code divides by the area that is really left, so the label keeps the drawn
            lam; the paper divides by the nominal one. A box that covers everything leaves nothing
            outside, and then (lam is 0) any level will do: 0.
            """
            outside = 1.0 - (1.0 - lam) * ratio if paper else 1.0 - covered
            return minimum(lam / maximum(outside, TINY), 1.0)

        def gmix_levels(lam: Value, paper: bool) -> tuple[Value, Value, Value]:
            """Base, scale and width of the GMix blob.

            The authors' code makes the image with the smaller weight the blob; in the paper the blob
            is always the partner's and twice as wide. A width of 0 is no blob at all.
            """
            if paper:
                width = 2.0 * (1.0 - lam)
                base = 1.0 + width * 0.0
                sign = -1.0 + width * 0.0
            else:
                own = 1.0 * (lam < 0.5)
                width = own * lam + (1.0 - own) * (1.0 - lam)
                base = 1.0 - own
                sign = 2.0 * own - 1.0
            return base, sign * (width > 0.0), maximum(width, TINY)

        def gaussian(distance: Value, width: Value, area: Value, pi: Value) -> Value:
            """One axis of the blob: exp(-pi d^2 / (w H W))."""
            return exp(-(pi * distance * distance) / (width * area))

        def chosen(first: Value, second: Value, coin: Value, probability: Value) -> Value:
            """`first` where the coin, uniform in [0, 1), falls below `probability`, else `second`."""
            heads = 1.0 * (coin < probability)
            return heads * first + (1.0 - heads) * second

        self.box_side = compiled(box_side)
        self.drawn_center = compiled(drawn_center)
        self.box_span = compiled(box_span)
        self.hmix_level = compiled(hmix_level)
        self.gmix_levels = compiled(gmix_levels)
        self.gaussian = compiled(gaussian)
        self.chosen = compiled(chosen)
