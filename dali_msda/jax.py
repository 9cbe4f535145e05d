"""Mixing batches of JAX arrays, in a training step.

    from dali_msda import jax as msda

    images, targets = msda.mix(key, images, labels, method="hmix", num_classes=1000)

A pure function of its key: under ``jax.jit`` and ``jax.vmap`` it gives what it gives without them, up to
rounding. Masks come from the formulas of :mod:`dali_msda.methods`. Needs JAX; neither DALI nor PyTorch.

JAX computes in float32 unless ``jax_enable_x64`` is set. A weight is then within 4e-6 of the same formula's
in float64 at every pixel, except that a box's side may be a pixel longer or shorter (with "reference": two,
because sides are even) where ``side * sqrt(1 - lam)`` is within ``side * 2**-21`` of an integer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from .masks import Axis, Dense, Grid, chosen
from .methods import TABLE, Argument, Beta, Method, Uniform, check_method
from .mixing import Convention, Granularity, check_argument, check_random, method_arguments
from .validation import (
    ArgumentTypeError,
    ArgumentValueError,
    check_choice,
    check_flag,
    check_fraction,
    check_integer,
)

__all__ = ["MixParams", "mix"]


class MixParams(NamedTuple):
    """What was drawn for a batch."""

    lam: Array
    """Label weight of the own image, the mean of its mask: [N]."""
    partner: Array
    """Index of every sample's partner: int32 [N]."""
    mask: Array
    """Weight of the own image: [N, H, W]."""


class _Functions:
    """What formulas call; see :class:`dali_msda.masks.Functions`."""

    pi = math.pi
    constant = staticmethod(jnp.asarray)
    sqrt, exp, log, sin, cos = map(staticmethod, (jnp.sqrt, jnp.exp, jnp.log, jnp.sin, jnp.cos))
    floor, ceil, absolute = map(staticmethod, (jnp.floor, jnp.ceil, jnp.abs))
    minimum, maximum = map(staticmethod, (jnp.minimum, jnp.maximum))


def mix(
    key: Array,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    method: str = "hmix",
    num_classes: int | None = None,
    layout: str = "NHWC",
    probability: float = 1.0,
    label_smoothing: float = 0.0,
    convention: Convention = "reference",
    granularity: Granularity = "sample",
    allow_self: bool = True,
    lam: ArrayLike | None = None,
    center: ArrayLike | Sequence[float] | None = None,
    partner: ArrayLike | None = None,
    return_params: bool = False,
    **own: float | Beta,
) -> Any:
    """Mix every sample of a batch with another of it; :func:`dali_msda.mix` describes the methods.

    Under ``jax.jit`` bind everything but arrays with ``functools.partial``. Ranges of arrays are not checked.

    Parameters
    ----------
    key : Array
        A key of ``jax.random``.
    images : array
        [N, H, W, C] or [N, C, H, W], of any real type: computed in float32, integers are rounded to nearest.
    labels : array, optional
        Class ids, [N] or [N, 1]; or vectors of floats, [N, K].
    method : str, optional
    num_classes : int, optional
        K; needed with class ids.
    layout : {"NHWC", "NCHW"}, optional
    probability, label_smoothing, convention, granularity, allow_self
        As in pipelines; the numbers cannot be arrays.
    lam : array, optional
        [] or [N]: replaces what is drawn from Beta distributions.
    center : array, optional
        (row, column) in pixels, [2] or [N, 2]: replaces the drawn centres.
    partner : array, optional
        int [N]: replaces the random permutation.
    return_params : bool, optional
        Whether :class:`MixParams` is the last result.
    **own : float or Beta
        The method's own arguments, such as ``alpha`` and ``ratio``.

    Returns
    -------
    Array or tuple
        The images, of the type that they had; with labels a tuple, and the targets, float32 [N, K].

    Raises
    ------
    ValueError, TypeError
        An argument is not valid; the message has its name, what it must be and what came.
    """
    check_method(method)
    entry = TABLE[method]
    arguments = method_arguments(entry, own, _check_own)
    for name, number in (("probability", probability), ("label_smoothing", label_smoothing)):
        check_fraction(name, number)
    check_choice("convention", convention, get_args(Convention))
    check_choice("granularity", granularity, get_args(Granularity))
    check_choice("layout", layout, ("NHWC", "NCHW"))
    check_flag("allow_self", allow_self)
    pixels = jnp.asarray(images)
    if pixels.ndim != 4:
        raise ArgumentValueError("images", f"of shape [{', '.join(layout)}]", list(pixels.shape))
    count, height, width = (pixels.shape[layout.index(side)] for side in "NHW")
    ids = None if labels is None else _as_vectors(jnp.asarray(labels), count, num_classes)
    if lam is None and len(entry.alphas) == 1 and arguments[entry.alphas[0]] == 0:
        probability = 0.0  # a lam of 1 would not do: GMix has a blob of one pixel then

    keys = (jax.random.fold_in(key, number) for number in itertools.count())
    partners = _draw_partners(next(keys), count, allow_self) if partner is None else jnp.asarray(partner)
    shape = (count if granularity == "sample" else 1,)
    kinds = {"_row": Uniform(), "_column": Uniform(), "_coin": Uniform(), **entry.draws}
    drawn = {name: _draw(kind, arguments, next(keys), shape, lam) for name, kind in kinds.items()}
    # Random arguments come last, so that the other draws are the same as without them.
    for name, value in arguments.items():
        drawn[name] = _draw(value, arguments, next(keys), shape) if isinstance(value, Beta) else value
    if center is not None:
        drawn["_row"], drawn["_column"] = jnp.asarray(center, float).reshape(-1, 2).T
    needed = ("_row", "_column", "_coin", *entry.values)
    numbers = {name: jnp.broadcast_to(jnp.asarray(drawn[name], float), (count,)) for name in needed}

    def make(values: Mapping[str, Array]) -> tuple[Array, Array]:
        return _make_mask(entry, values, (height, width), convention, probability, center is not None)

    mask, weight = jax.vmap(make)(numbers)
    mixed = _blend(pixels, pixels[partners], jnp.expand_dims(mask, layout.index("C")))
    results = [mixed]
    if ids is not None:
        targets = weight[:, None] * ids + (1.0 - weight[:, None]) * ids[partners]
        results.append((1.0 - label_smoothing) * targets + label_smoothing / ids.shape[1])
    if return_params:
        results.append(MixParams(weight, partners, mask))  # type: ignore[arg-type]
    return mixed if len(results) == 1 else tuple(results)


def _check_own(argument: Argument, value: Any) -> None:
    if isinstance(value, Beta):
        check_random(argument, value)
    else:
        check_argument(argument, value)


def _as_vectors(labels: Array, count: int, num_classes: int | None) -> Array:
    """Labels as float32 [N, K]."""
    if num_classes is not None:
        check_integer("num_classes", num_classes, 1)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.ndim != 2 or len(labels) != count or num_classes not in (None, labels.shape[1]):
            expected = f"class ids [{count}] or vectors of floats [{count}, {num_classes or 'K'}]"
            raise ArgumentValueError("labels", expected, f"floats of shape {list(labels.shape)}")
        return labels.astype(jnp.float32)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ArgumentTypeError("labels", "class ids or vectors of floats", f"an array of {labels.dtype}")
    if labels.shape not in ((count,), (count, 1)):
        raise ArgumentValueError("labels", f"class ids [{count}]", f"integers of shape {list(labels.shape)}")
    if num_classes is None:
        raise ArgumentValueError("num_classes", "given with class ids, as the targets' length", None)
    return jax.nn.one_hot(labels.reshape(count), num_classes, dtype=jnp.float32)


def _draw_partners(key: Array, count: int, allow_self: bool) -> Array:
    order = jax.random.permutation(key, count)
    # Otherwise one cycle through all samples: each has a uniform partner, and none itself.
    return order if allow_self else jnp.zeros_like(order).at[order].set(jnp.roll(order, 1))


def _draw(
    kind: Beta | Uniform,
    arguments: Mapping[str, Any],
    key: Array,
    shape: Sequence[int],
    lam: ArrayLike | None = None,
) -> Array:
    if isinstance(kind, Uniform):
        return jax.random.uniform(key, shape)
    if lam is not None:
        return jnp.clip(jnp.asarray(lam, float), 0.0, 1.0)
    alpha = arguments[kind.alpha] if isinstance(kind.alpha, str) else kind.alpha
    return jax.random.beta(key, alpha, alpha, shape) if alpha > 0 else jnp.ones(shape)


def _make_mask(
    method: Method,
    values: Mapping[str, Array],
    size: tuple[int, int],
    convention: str,
    probability: float,
    given: bool,
) -> tuple[Array, Array]:
    """The mask of one sample, [H, W], and its mean."""
    height, width = size
    rows = Axis(float(height), jnp.arange(height, dtype=float)[:, None], values["_row"])
    columns = Axis(float(width), jnp.arange(width, dtype=float)[None], values["_column"])
    grid = Grid(rows, columns, convention == "paper", given)
    mask = method.mask(_Functions, grid, *(values[name] for name in method.values))
    coin = values["_coin"]
    if isinstance(mask, Dense):
        dense = jnp.clip(chosen(mask.values, 1.0, coin, probability), 0.0, 1.0)
        return dense, dense.mean()
    base = chosen(mask.base, 1.0, coin, probability)
    if mask.rows is None or mask.columns is None:
        return jnp.full(size, base), base
    scale = chosen(mask.scale, 0.0, coin, probability)
    return base + scale * mask.rows * mask.columns, base + scale * mask.rows.mean() * mask.columns.mean()


def _blend(own: Array, partner: Array, weight: Array) -> Array:
    """Blend; a pixel with weight 0 has no influence, not even NaN, and equal pixels mix to themselves."""
    x, y = own.astype(weight.dtype), partner.astype(weight.dtype)
    mixed = weight * x + (1.0 - weight) * y
    if jnp.issubdtype(own.dtype, jnp.integer):
        whole = jnp.trunc(mixed)  # the fraction is exact; adding 0.5 first would round twice
        mixed = whole + (mixed - whole >= 0.5) - (mixed - whole <= -0.5)
        return mixed.astype(own.dtype)
    mixed = jnp.where((weight == 1.0) | (x == y), x, jnp.where(weight == 0.0, y, mixed))
    return mixed.astype(own.dtype)
