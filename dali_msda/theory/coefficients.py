"""The coefficients of every method of the table, as sums over all its masks.

By Theorem 1, mixing adds penalties on products of the model's derivatives at two pixels j and k. Methods
differ only in the weights of these penalties, a_jk = E[(1 - M_j)(1 - M_k)] (equation 9). Here the expectation
is over everything that a method draws besides lam, with the same formula that the operators run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from scipy import stats

from ..masks import Dense
from ..methods import TABLE, Argument, Beta, Method, Uniform, check_method
from ..mixing import Convention, check_argument, check_random, method_arguments
from ..validation import check_choice, check_fraction, check_integer
from .moments import Coefficients, Floats, Kronecker, OverMasks, Term, Weighted, check_size, shorten
from .tracing import COLUMN, FUNCTIONS, ROW, Nodes, find_nodes, run_formula


@dataclass(frozen=True, init=False)
class MaskDistribution:
    """All masks of a method for one lam: its formula with everything but the uniform draws given.

    Parameters
    ----------
    method : str
        One of ``dali_msda.METHODS``.
    size : (int, int)
        Height and width in pixels.
    lam : float
        The weight of the own image, in [0, 1]. As in :func:`dali_msda.mix`, it replaces every Beta draw.
    convention : str
        "reference" or "paper", see :func:`dali_msda.mix`.
    arguments : mapping
        Arguments of the method by name; the table's defaults for the others. A :class:`dali_msda.Beta` makes
        one random.

    Raises
    ------
    TypeError, ValueError
        One of them is not valid.
    """

    entry: Method
    size: tuple[int, int]
    paper: bool
    fixed: Mapping[str, float]
    """The Beta draws and the arguments that are numbers, by name."""
    random: Mapping[str, float]
    """The random arguments: a of Beta(a, a), by name."""

    def __init__(
        self,
        method: str,
        size: tuple[int, int],
        lam: float,
        convention: str = "reference",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        check_method(method)
        check_fraction("lam", lam)
        check_choice("convention", convention, get_args(Convention))
        entry = TABLE[method]
        values = method_arguments(entry, arguments or {}, _check_argument)
        random = {name: float(value.alpha) for name, value in values.items() if isinstance(value, Beta)}
        numbers = {name: value for name, value in values.items() if name not in random}
        object.__setattr__(self, "entry", entry)
        object.__setattr__(self, "size", check_size(size))
        object.__setattr__(self, "paper", convention == "paper")
        object.__setattr__(self, "fixed", {**dict.fromkeys(entry.draws, float(lam)), **numbers})
        object.__setattr__(self, "random", random)

    def quantiles(self, name: str, uniform: Any) -> Any:
        """Values of a random argument, from uniform numbers."""
        return stats.beta.ppf(uniform, self.random[name], self.random[name])

    @property
    def uniforms(self) -> tuple[str, ...]:
        """The uniform draws of the method, without those for the centre."""
        return tuple(name for name, kind in self.entry.draws.items() if isinstance(kind, Uniform))

    def mask(self, draws: Mapping[str, Any]) -> Any:
        """The formula's mask for the uniform draws, numbers or arrays that broadcast with [H, W]."""
        values = {**self.fixed, **draws}
        return run_formula(self.entry.mask, FUNCTIONS, self.size, self.paper, values, self.entry.values)

    def nodes(self, draws: Mapping[str, float], unknown: tuple[str, ...], count: int) -> dict[str, Nodes]:
        """Nodes of the uniform draws in `unknown`, if the others are `draws`."""
        fixed = {**self.fixed, **draws}
        return find_nodes(self.entry.mask, self.size, self.paper, fixed, unknown, self.entry.values, count)

    def cases(self, count: int) -> Iterator[tuple[float, dict[str, float]]]:
        """Probability and values of every combination of random arguments and the method's uniform draws."""

        def choose(probability: float, draws: dict[str, float]) -> Iterator[tuple[float, dict[str, float]]]:
            for name in self.random.keys() - draws.keys():
                for uniform in (np.arange(count) + 0.5) / count:
                    value = float(self.quantiles(name, uniform))
                    yield from choose(probability / count, {**draws, name: value})
                return
            left = tuple(name for name in self.uniforms if name not in draws)
            if not left:
                yield probability, draws
                return
            found = self.nodes(draws, (*left, ROW, COLUMN), count)[left[0]]
            for value, weight in zip(*found, strict=True):
                yield from choose(probability * float(weight), {**draws, left[0]: float(value)})

        return choose(1.0, {})


def coefficients(
    method: str,
    size: tuple[int, int],
    lam: float,
    *,
    convention: str = "reference",
    nodes: int = 64,
    **arguments: float | Beta,
) -> Coefficients:
    """The coefficients a_jk = E[(1 - M_j)(1 - M_k)] of a method (equation 9), for a given lam.

    The expectation is over the centre and the method's other uniform draws. Every place of a box or a point,
    and every side of a coin, is a term of a finite sum, so the result is exact up to rounding (about 1e-14)
    for all methods of the paper. Only a method of your own may use a draw smoothly; that draw has `nodes`
    Gauss-Legendre nodes. A random argument has `nodes` equally likely values, with an error of the order of
    1 / nodes.

    If the mask is base + scale * rows * columns, where the rows depend on the row of the centre only and the
    columns on its column, the matrix is a short sum of Kronecker products: up to four for most methods, about
    25 for HMix in "reference", whose level outside the box depends on how much the border cuts off.
    For other masks an answer takes a pass over all of them: H W masks of H W pixels for a mask with a centre.

    Parameters
    ----------
    method : str
        One of ``dali_msda.METHODS``, your own included.
    size : (int, int)
        Height H and width W in pixels.
    lam : float
        The weight of the own image, in [0, 1]; every Beta draw has this value.
    convention : str
        "reference": the centre of a box is any pixel, and the border cuts the box, so E[1 - M] is below
        1 - lam near the border. "paper": boxes lie inside the image (equation 10), so they cover the middle
        more often than the corners. The point of GMix is any pixel in both.
    nodes : int
        Nodes of a draw that the formula uses smoothly, and of a random argument.
    **arguments : float or Beta
        Arguments of the method, such as ``ratio``; :class:`dali_msda.Beta` makes one random.

    Returns
    -------
    Coefficients

    Raises
    ------
    TypeError, ValueError
        An argument is not valid.
    """
    check_integer("nodes", nodes, 1)
    masks = MaskDistribution(method, size, lam, convention, arguments)
    found = None if masks.entry.kind == "dense" else _separate(masks, nodes)
    return OverMasks(masks.size, lambda: _all_masks(masks, nodes)) if found is None else found


def _check_argument(argument: Argument, value: Any) -> None:
    if isinstance(value, Beta):
        check_random(argument, value)
    else:
        check_argument(argument, value)


def from_all_masks(
    method: str,
    size: tuple[int, int],
    lam: float,
    *,
    convention: str = "reference",
    nodes: int = 64,
    **arguments: float | Beta,
) -> OverMasks:
    """The same as :func:`coefficients`, always mask by mask: slow, to compare with."""
    check_integer("nodes", nodes, 1)
    masks = MaskDistribution(method, size, lam, convention, arguments)
    return OverMasks(masks.size, lambda: _all_masks(masks, nodes))


def _separate(masks: MaskDistribution, count: int) -> Kronecker | None:
    """The coefficients as a sum of Kronecker products, or None if the mask does not separate."""
    mean: Floats = np.zeros(masks.size)
    terms: list[Term] = []
    for probability, draws in masks.cases(count):
        found = _separate_case(masks, probability, draws, count)
        if found is None:
            return None
        mean += found[0]
        terms = shorten([*terms, *found[1]], longest=256)
    return Kronecker(mean, shorten(terms))


def _separate_case(
    masks: MaskDistribution, probability: float, draws: dict[str, float], count: int
) -> tuple[Floats, list[Term]] | None:
    """E[1 - M] and the terms of a_jk for given own draws, or None if the mask does not separate.

    1 - M = b + s r(j1) c(j2), where r depends on the row p of the centre, c on its column q, b and s on both:
    E[(1 - M_j)(1 - M_k)] = E[b^2] + E[b s (r(j1) c(j2) + r(k1) c(k2))] + E[s^2 r(j1) r(k1) c(j2) c(k2)].
    """
    (height, width), places = masks.size, masks.nodes(draws, (ROW, COLUMN), count)
    row_places, column_places = places[ROW], places[COLUMN]
    across = {ROW: row_places.values[:, None, None, None], COLUMN: column_places.values[None, :, None, None]}
    mask = masks.mask({**draws, **across})
    base, scale = (np.reshape(number, (1,) * (4 - np.ndim(number)) + np.shape(number)) for number in mask[:2])
    if base.shape[2:] != (1, 1) or scale.shape[2:] != (1, 1):
        return None
    shape = (len(row_places.values), len(column_places.values))
    chance = probability * np.outer(row_places.weights, column_places.weights)
    b = np.broadcast_to(1.0 - base[:, :, 0, 0], shape)
    s = np.broadcast_to(-scale[:, :, 0, 0], shape)
    mean = np.full(masks.size, (chance * b).sum())
    constant = (chance * b * b).sum()
    terms = [Term(np.full((height, height), constant), np.ones((width, width)))] if constant else []
    if mask.rows is None or mask.columns is None or not s.any():
        return mean, terms
    rows, columns = (np.reshape(part, (1,) * (4 - np.ndim(part)) + np.shape(part)) for part in mask[2:])
    if rows.shape[1] != 1 or rows.shape[3] != 1 or columns.shape[0] != 1 or columns.shape[2] != 1:
        return None
    r = np.broadcast_to(rows[:, 0, :, 0], (shape[0], height))
    c = np.broadcast_to(columns[0, :, 0, :], (shape[1], width))
    mean += r.T @ (chance * s) @ c
    for u, v in _products(chance * b * s):
        down, right = np.outer(r.T @ u, np.ones(height)), np.outer(c.T @ v, np.ones(width))
        terms += [Term(down, right), Term(down.T, right.T)]
    terms += [Term((r.T * u) @ r, (c.T * v) @ c) for u, v in _products(chance * s * s)]
    return mean, terms


def _products(weights: Floats) -> list[tuple[Floats, Floats]]:
    """Vectors u_t, v_t with weights[p, q] = sum over t of u_t[p] v_t[q], as few as rounding allows."""
    u, sizes, v = np.linalg.svd(weights, full_matrices=False)
    return [
        (u[:, t] * size, v[t])
        for t, size in enumerate(sizes)
        if size > sizes[0] * max(weights.shape) * np.finfo(np.float64).eps
    ]


def _all_masks(masks: MaskDistribution, count: int) -> Iterator[Weighted]:
    """Every possible mask with its probability, those of one row of the centre at a time."""
    for probability, draws in masks.cases(count):
        places = masks.nodes(draws, (ROW, COLUMN), count)
        column = places[COLUMN].values[:, None, None]
        for row, weight in zip(*places[ROW], strict=True):
            mask = masks.mask({**draws, ROW: row, COLUMN: column})
            shape = (len(column), *masks.size)
            yield Weighted(
                probability * weight * places[COLUMN].weights, 1.0 - np.broadcast_to(whole(mask), shape)
            )


def whole(mask: Any) -> Floats:
    """The own image's weight at every pixel, [..., H, W], or a shape that broadcasts to it.

    Dense masks are clipped to [0, 1], as the operators do.
    """
    if isinstance(mask, Dense):
        return np.clip(np.asarray(mask.values, np.float64), 0.0, 1.0)
    if mask.rows is None or mask.columns is None:
        return np.asarray(mask.base, np.float64)
    return np.asarray(mask.base + mask.scale * mask.rows * mask.columns, np.float64)
