"""The coefficients that have a closed form: equations 10 and 11, their neighbours, and Stochastic as a
mixture.

Where the paper is inconsistent, this is what is computed, and why:

- Equation 10 divides by (n - s)^2 and takes h(t) = min(t, n - s), but a box of side s has n - s + 1 places in
  n pixels. Here every place counts: h(t) = min(t, n - s + 1) for pixels counted from 1, over (n - s + 1)^2.
- Equation 11 lacks the minus signs before the squared distances (as printed, the weights grow with the
  distance), the factor 1/N^2 before its integral, and the integral's variable is p, not x. Its last line is
  right.
- That last line belongs to a point anywhere in the plane. In the image, the border cuts the blob: a corner
  has about a quarter of it. ``border="image"`` takes the integral over the image, which has a closed form as
  well.
- The Gaussian of the paper, exp(-pi d^2 / (2 (1 - lam) N^2)), integrates to 2 (1 - lam) N^2, so far from the
  border E[M] is 1 - 2 (1 - lam), where section 2 asks for lam. The authors' code has no factor 2. Both are
  here, by `convention`.
- Stochastic is Mixup with probability q and CutMix otherwise, so its coefficient is q a(Mixup) + (1 - q)
  a(CutMix); the paper's sentence swaps q and 1 - q. It also writes M = 1 - lam for the Mixup part, which must
  be lam for E[M] = lam.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy.special import erf

from ..methods import Beta
from ..validation import ArgumentValueError, check_choice
from .coefficients import MaskDistribution
from .moments import Floats, Kronecker, Term

Border = Literal["image", "plane"]

CLOSED = {
    "none": "both",
    "mixup": "both",
    "cutmix": "both",
    "stochastic": "both",
    "hmix": "paper",
    "gmix": "both",
}
"""The methods with a closed form, and the conventions that have it."""


class _Profile(NamedTuple):
    """The moments of a random profile g along one axis of n pixels."""

    mean: Floats
    """E[g_j], [n]"""
    product: Floats
    """E[g_j g_k], [n, n]"""


def closed_form(
    method: str,
    size: tuple[int, int],
    lam: float,
    *,
    convention: str = "reference",
    border: Border = "image",
    **arguments: float | Beta,
) -> Kronecker:
    """The coefficients a_jk (equation 9) by formula; see the top of the module for equations 10 and 11.

    A box gives products of the numbers of places, in rows and in columns, at which it covers both pixels. In
    "paper" the n - s + 1 places lie inside the image; in "reference" the centre is one of n pixels, the
    border cuts the box, and its side is even. These are exact. HMix has a closed form only in "paper": in
    "reference" its level depends on what the border cuts off. GMix replaces the sum over pixels p by an
    integral: with the border "image" over the image, within 1 / (n sqrt(A)) of the sum, where A = w H W, n is
    the shorter side, and w = 2 (1 - lam) in "paper", min(lam, 1 - lam) in "reference".

    Parameters
    ----------
    method : str
        "none", "mixup", "cutmix", "stochastic", "gmix", or "hmix" in the convention "paper".
    size, lam, convention
        See :func:`.coefficients.coefficients`.
    border : str
        For GMix: "image", or "plane" for a blob that no border cuts, as in the last line of equation 11. That
        is a good approximation for narrow blobs and pixels far from the border only.
    **arguments : float
        Arguments of the method.

    Returns
    -------
    Kronecker

    Raises
    ------
    TypeError, ValueError
        An argument is not valid, or the method has no closed form.
    """
    masks = MaskDistribution(method, size, lam, convention, arguments)
    check_choice("border", border, get_args(Border))
    if CLOSED.get(method) not in ("both", convention):
        known = ", ".join(
            name if where == "both" else f"{name} (only {where!r})" for name, where in CLOSED.items()
        )
        raise ArgumentValueError("method", f"one with a closed form: {known}", f"{method} ({convention!r})")
    if border == "plane" and method != "gmix":
        raise ArgumentValueError("border", f"'image' for {method}", border)
    if masks.random:
        raise ArgumentValueError(next(iter(masks.random)), "a number for a closed form", arguments)
    lam = float(lam)
    if method in ("none", "mixup"):
        return _affine(1.0 - lam if method == "mixup" else 0.0, 0.0, *(_box(n, 0, True) for n in masks.size))
    if method == "cutmix":
        return _boxes(masks, math.sqrt(1.0 - lam), 0.0)
    if method == "stochastic":
        q = masks.fixed["switch_probability"]
        first, second = (
            closed_form(name, masks.size, lam, convention=convention) for name in ("mixup", "cutmix")
        )
        terms = [
            Term(weight * term.rows, term.columns)
            for weight, part in ((q, first), (1.0 - q, second))
            for term in part.terms
        ]
        return Kronecker(q * first.mean() + (1.0 - q) * second.mean(), terms)
    if method == "hmix":
        ratio = masks.fixed["ratio"]
        outside = 1.0 - (1.0 - lam) * ratio
        level = min(lam / outside, 1.0) if outside > 0.0 else 0.0
        return _boxes(masks, math.sqrt(1.0 - lam) * math.sqrt(ratio), 1.0 - level)
    own = convention == "reference" and lam < 0.5
    width = lam if own else (1.0 - lam) * (2.0 if convention == "paper" else 1.0)
    blobs = (_blob(n, width * math.prod(masks.size), border) for n in masks.size)
    return _affine(1.0, -1.0, *blobs) if own else _affine(0.0, 1.0, *blobs)


def _boxes(masks: MaskDistribution, scale: float, outside: float) -> Kronecker:
    """1 - M is 1 in a box with sides `scale` of the image's, and `outside` elsewhere."""
    profiles = (_box(n, math.floor(n * scale), masks.paper) for n in masks.size)
    return _affine(outside, 1.0 - outside, *profiles)


def _affine(b: float, s: float, rows: _Profile, columns: _Profile) -> Kronecker:
    """1 - M = b + s times the product of two independent profiles."""
    flat = [np.ones(len(profile.mean)) for profile in (rows, columns)]
    down, right = np.outer(rows.mean, flat[0]), np.outer(columns.mean, flat[1])
    found = [
        (b * b, np.outer(flat[0], flat[0]), np.outer(flat[1], flat[1])),
        (b * s, down, right),
        (b * s, down.T, right.T),
        (s * s, rows.product, columns.product),
    ]
    mean = b + s * np.outer(rows.mean, columns.mean)
    return Kronecker(mean, [Term(factor * first, second) for factor, first, second in found if factor])


def _box(n: int, side: int, inside: bool) -> _Profile:
    """The indicator of an interval of `side` pixels, at any place inside, or around any pixel and cut."""
    pixel = np.arange(n)
    earlier, later = np.minimum.outer(pixel, pixel), np.maximum.outer(pixel, pixel)
    if inside:  # the first pixels 0 to n - side; those that cover both lie in [later - side + 1, earlier]
        places = n - side + 1
        count = np.minimum(earlier, n - side) - np.maximum(later - side + 1, 0) + 1
    else:  # the centres 0 to n - 1; [centre - half, centre + half) covers both
        places, half = n, side // 2
        count = np.minimum(earlier + half, n - 1) - np.maximum(later - half + 1, 0) + 1
    product = np.maximum(count, 0) / places
    return _Profile(np.diag(product).copy(), product)


def _blob(n: int, area: float, border: Border) -> _Profile:
    """exp(-pi d^2 / area) around a point of [-1/2, n - 1/2]; 0 for the area 0."""
    if area == 0.0:
        return _Profile(np.zeros(n), np.zeros((n, n)))
    pixel = np.arange(n)
    middle = (pixel[:, None] + pixel) / 2.0
    # The product of two Gaussians is a Gaussian of half the area around the middle.
    apart = np.exp(-math.pi * (pixel[:, None] - pixel) ** 2 / (2.0 * area))
    mean, product = (
        _integral(n, center, part, border) / n for center, part in ((pixel, area), (middle, area / 2))
    )
    return _Profile(mean, apart * product)


def _integral(n: int, center: Any, area: float, border: Border) -> Floats:
    """The integral of exp(-pi (p - center)^2 / area) over p, in the image or in the plane."""
    if border == "plane":
        return np.full(np.shape(center), math.sqrt(area))
    slope = math.sqrt(math.pi / area)
    return np.asarray(
        math.sqrt(area) / 2.0 * (erf(slope * (n - 0.5 - center)) - erf(slope * (-0.5 - center))), np.float64
    )
