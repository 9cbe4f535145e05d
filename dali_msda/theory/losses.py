"""Theorem 1: the training loss with mixing, and its approximation by three regularisers.

The loss of a sample is ``h(f(x)) - y f(x)`` with one output f (section 3), which includes logistic regression
and other generalised linear models. Shapes: m samples of d inputs (pixels), k masks.

The paper assumes centred inputs, E[r] = 0. The functions here do not: they centre the formulas instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from ..validation import ArgumentTypeError, ArgumentValueError, check_integer, is_number

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Loss:
    """A loss ``h(f) - y f``, by h and its first two derivatives, which take and return arrays."""

    h: Callable[[Floats], Floats]
    slope: Callable[[Floats], Floats]
    curvature: Callable[[Floats], Floats]

    def __call__(self, outputs: Floats, targets: Floats) -> Floats:
        """The loss of every sample."""
        return np.asarray(self.h(outputs) - targets * outputs)


def _logistic_curvature(outputs: Floats) -> Floats:
    return np.asarray(special.expit(outputs) * special.expit(-outputs))


LOGISTIC = Loss(lambda f: np.logaddexp(0.0, f), special.expit, _logistic_curvature)
"""Binary cross-entropy of the logit f, y in [0, 1]."""
SQUARED = Loss(lambda f: f**2 / 2, lambda f: f, np.ones_like)
"""``(f - y)^2 / 2`` without the term ``y^2 / 2``, which does not depend on the model."""


class Expansion(NamedTuple):
    """A model at m inputs: value [m], gradient [m, d] and Hessian [m, d, d] with respect to the input.

    Without a Hessian the model is linear around each input, as ReLU networks are almost everywhere.
    """

    value: Floats
    gradient: Floats
    hessian: Floats | None = None


class Regularizers(NamedTuple):
    """R1, R2 and R3 of equation 7."""

    r1: float
    r2: float
    r3: float

    @property
    def total(self) -> float:
        """R1 + R2 + R3."""
        return self.r1 + self.r2 + self.r3


@dataclass(frozen=True)
class RatioDistribution:
    """The distribution of lam in Theorem 1, D~_lambda, when lam is drawn from Beta(alpha, beta).

    The loss is linear in the target ``lam y_i + (1 - lam) y_j``, so it is the mean over a label drawn as y_i
    with probability lam. Given that label, lam has another distribution: Beta(alpha + 1, beta) with
    probability alpha / (alpha + beta), otherwise Beta(beta + 1, alpha) after both images changed places.

    >>> RatioDistribution(1.0, 1.0).mean()  # E[lam] = 2/3: mixing takes a third of every image
    0.6666666666666666
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            check_positive(name, value)

    @property
    def components(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Probability and parameters of both Beta distributions: the label's image came first, or second."""
        total = self.alpha + self.beta
        return (
            (self.alpha / total, self.alpha + 1.0, self.beta),
            (self.beta / total, self.beta + 1.0, self.alpha),
        )

    def density(self, lam: Floats) -> Floats:
        """The density at `lam`."""
        return np.asarray(sum(p * stats.beta.pdf(lam, a, b) for p, a, b in self.components))

    def mean(self) -> float:
        """E[lam]. R1 has the factor 1 - E[lam], for every method."""
        return sum(p * a / (a + b) for p, a, b in self.components)

    def sample(self, rng: np.random.Generator, count: int) -> Floats:
        """Draw `count` values."""
        (p, a, b), (_, c, d) = self.components
        first = rng.random(count) < p
        return np.where(first, rng.beta(a, b, count), rng.beta(c, d, count))

    def mean_coefficients(self, coefficients: Callable[[float], Floats], nodes: int = 32) -> Floats:
        """The coefficients a_jk of R2 and R3, averaged over D~_lambda.

        Parameters
        ----------
        coefficients : function
            From lam to ``E[(1 - M_j)(1 - M_k)]``, [d, d] (equation 9), of masks with the mean lam everywhere.
        nodes : int, optional
            Nodes of the Gauss-Jacobi quadrature: exact for polynomials in lam of degree 2 nodes - 1.

        Returns
        -------
        [d, d]

        Notes
        -----
        In the second component the images changed places, so the mask is ``1 - M(1 - lam)``, whose
        coefficients are ``E[M_j M_k] = 1 - 2 lam + a_jk(1 - lam)``. The paper uses a_jk(lam) there too. That
        is the same for Mixup and for independent pixels, whose masks are as likely as their complements, but
        not for CutMix, HMix and GMix: a box of area 1 - lam is not the outside of a box of area lam.
        """
        check_integer("nodes", nodes, 1)
        total: Floats = np.zeros(())
        for number, (probability, a, b) in enumerate(self.components):
            for lam, weight in zip(*beta_quadrature(a, b, nodes), strict=True):
                found = coefficients(lam) if number == 0 else 1 - 2 * lam + coefficients(1 - lam)
                total = total + probability * weight * found
        return total


class Words(str):
    """What came, in words: shown in an error without quotes."""

    def __repr__(self) -> str:
        return str(self)


def check_positive(name: str, value: object) -> None:
    """Raise unless `value` is a positive finite number."""
    if not is_number(value):
        raise ArgumentTypeError(name, "a positive number", value)
    if not 0 < value < np.inf:  # type: ignore[operator]
        raise ArgumentValueError(name, "a positive number", value)


def check_shape(name: str, array: Floats, *shape: int) -> None:
    """Raise unless `array` has that shape and only finite numbers."""
    if np.shape(array) != shape:
        raise ArgumentValueError(name, f"of shape {shape}", np.shape(array))
    if not np.isfinite(array).all():
        raise ArgumentValueError(name, "finite", array)


def beta_quadrature(a: float, b: float, nodes: int) -> tuple[Floats, Floats]:
    """Points in (0, 1) and weights whose sums are expectations over Beta(a, b) (Gauss-Jacobi)."""
    points, weights = special.roots_jacobi(nodes, b - 1.0, a - 1.0)
    return (points + 1) / 2, weights / weights.sum()


def regularizers(
    inputs: Floats,
    targets: Floats,
    expansion: Expansion,
    loss: Loss,
    mean_ratio: float | Floats,
    coefficients: Floats,
    partner_coefficients: Floats | None = None,
) -> Regularizers:
    """R1, R2 and R3 of equation 7: how mixing changes the training loss, to the second order in 1 - M.

    Parameters
    ----------
    inputs, targets : [m, d], [m]
        The training set; partners are drawn from it.
    expansion : Expansion
        The model at `inputs`.
    loss : Loss
        Such as :data:`LOGISTIC`.
    mean_ratio : float or [d]
        E[lam] under D~_lambda, :meth:`RatioDistribution.mean`; [d] if the mean of a mask is not the same
        everywhere.
    coefficients : [d, d]
        E[a_jk] under D~_lambda, :meth:`RatioDistribution.mean_coefficients`. Both also from
        :func:`mask_moments`.
    partner_coefficients : [d, d], optional
        With n > 2 images: ``sum_k E[W_k W_k^T]`` over the masks W_k of the partners, while `coefficients` are
        those of their sum 1 - W_1. Both are the same for two images.

    Returns
    -------
    Regularizers

    Notes
    -----
    ``x~ - x = sum_k W_k (r_k - x)`` has the second moment ``partner_coefficients * Cov(r) + coefficients *
    (E[r] - x)(E[r] - x)^T``, elementwise products. For two images and E[r] = 0 this is equation 8.
    """
    count, width = np.shape(inputs)
    value, gradient, hessian = expansion
    check_shape("inputs", inputs, count, width)
    check_shape("targets", targets, count)
    check_shape("expansion.value", value, count)
    check_shape("expansion.gradient", gradient, count, width)
    check_shape("coefficients", coefficients, width, width)
    if partner_coefficients is None:
        partner_coefficients = coefficients
    check_shape("partner_coefficients", partner_coefficients, width, width)
    if np.ndim(mean_ratio):
        check_shape("mean_ratio", np.asarray(mean_ratio), width)
    offset = inputs - inputs.mean(axis=0)
    spread = partner_coefficients * (offset.T @ offset / count)
    residual = targets - loss.slope(value)
    along = gradient * offset
    r1 = np.mean(residual * (along @ np.broadcast_to(1.0 - np.asarray(mean_ratio), width)))
    # G and H of equation 8, [m].
    g = _quadratic(gradient, spread) + _quadratic(along, coefficients)
    r2 = np.mean(loss.curvature(value) * g) / 2
    r3 = 0.0
    if hessian is not None:
        check_shape("expansion.hessian", hessian, count, width, width)
        moments = spread + coefficients * offset[:, :, None] * offset[:, None, :]
        r3 = np.mean(-residual * (hessian * moments).sum(axis=(1, 2))) / 2
    return Regularizers(float(r1), float(r2), float(r3))


def _quadratic(vectors: Floats, matrix: Floats) -> Floats:
    """``v^T A v`` for every row v."""
    return np.asarray(((vectors @ matrix) * vectors).sum(axis=1))


def approximate_loss(
    inputs: Floats,
    targets: Floats,
    expansion: Expansion,
    loss: Loss,
    mean_ratio: float | Floats,
    coefficients: Floats,
    partner_coefficients: Floats | None = None,
) -> float:
    """The approximate loss of section 3, ``L_m + R1 + R2 + R3``. Arguments: see :func:`regularizers`."""
    added = regularizers(
        inputs, targets, expansion, loss, mean_ratio, coefficients, partner_coefficients
    ).total
    return float(np.mean(loss(expansion.value, targets))) + added


class MaskMoments(NamedTuple):
    """What :func:`regularizers` takes, for given masks."""

    mean_ratio: Floats
    """[d]"""
    coefficients: Floats
    """[d, d]"""


def mask_moments(masks: Floats, label_weights: Floats | None = None) -> MaskMoments:
    """Moments for masks as a pipeline makes them, each as likely as the others.

    Parameters
    ----------
    masks : [k, d]
        For all lam together, such as ``params.mask`` of many samples.
    label_weights : [k], optional
        Weight of the own label, by default the mean of each mask, as in ``msda.mix``.

    Returns
    -------
    MaskMoments

    Notes
    -----
    D~_lambda is not needed: with the label weight n the loss is the mean over masks M with the own label,
    weighted by n, and over 1 - M, weighted by 1 - n. So nothing is assumed of the mean of a mask. At the
    border of an image it is not lam for CutMix, HMix and GMix.
    """
    count, width = np.shape(masks)
    check_shape("masks", masks, count, width)
    n = masks.mean(axis=1) if label_weights is None else np.asarray(label_weights, np.float64)
    check_shape("label_weights", n, count)
    partner = 1.0 - masks
    return MaskMoments(
        (n @ masks + (1 - n) @ partner) / count,
        ((partner * n[:, None]).T @ partner + (masks * (1 - n)[:, None]).T @ masks) / count,
    )


Masks = Callable[[float], tuple[Floats, Floats]]
"""From lam to all masks that are possible: probabilities [k] and masks [k, d]."""


def constant_masks(width: int) -> Masks:
    """Mixup: M = lam everywhere."""
    return lambda lam: (np.ones(1), np.full((1, width), lam))


def independent_masks(width: int) -> Masks:
    """The variant of CutMix of figure 1: every input is the own one with probability lam, all independent."""
    masks = (np.arange(2**width)[:, None] >> np.arange(width) & 1).astype(np.float64)
    own = masks.sum(axis=1)
    return lambda lam: (lam**own * (1 - lam) ** (width - own), masks)


def coefficients_of(masks: Masks) -> Callable[[float], Floats]:
    """a_jk of equation 9 as a function of lam, [d, d], by enumeration of the masks."""

    def coefficients(lam: float) -> Floats:
        probabilities, found = masks(lam)
        return np.asarray(np.einsum("k,ki,kj->ij", probabilities, 1 - found, 1 - found))

    return coefficients


class MixedSamples(NamedTuple):
    """Every mixed sample that is possible, [n, d] and [n], and its probability, [n]."""

    inputs: Floats
    targets: Floats
    weights: Floats

    def loss(self, predict: Callable[[Floats], Floats], loss: Loss) -> float:
        """The expected loss of a model, from inputs [n, d] to outputs [n]: equation 4."""
        return float(self.weights @ loss(predict(self.inputs), self.targets))


def mix_all(
    inputs: Floats, targets: Floats, masks: Masks, alpha: float, beta: float, nodes: int = 16
) -> MixedSamples:
    """Mix every pair of a small set in every way: the loss of equation 4 is a sum over the result.

    Parameters
    ----------
    inputs, targets : [m, d], [m]
        The training set.
    masks : Masks
        Such as ``constant_masks(d)``.
    alpha, beta : float
        lam is drawn from Beta(alpha, beta).
    nodes : int, optional
        Values of lam, of a Gauss-Jacobi quadrature.

    Returns
    -------
    MixedSamples
        ``m^2 nodes k`` samples.
    """
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    check_integer("nodes", nodes, 1)
    count, width = np.shape(inputs)
    check_shape("inputs", inputs, count, width)
    check_shape("targets", targets, count)
    parts = []
    for lam, weight in zip(*beta_quadrature(alpha, beta, nodes), strict=True):
        probabilities, found = masks(lam)
        own, partner = inputs[:, None, None], inputs[None, :, None]
        mixed = found * own + (1 - found) * partner
        labels = np.broadcast_to((lam * targets[:, None] + (1 - lam) * targets)[:, :, None], mixed.shape[:3])
        shares = np.broadcast_to(weight * probabilities / count**2, mixed.shape[:3])
        parts.append((mixed.reshape(-1, width), labels.ravel(), shares.ravel()))
    return MixedSamples(*(np.concatenate(part) for part in zip(*parts, strict=True)))
