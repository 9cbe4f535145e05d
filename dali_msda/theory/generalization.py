"""Theorem 4: what mixing bounds, and how much the loss on new data can exceed the training loss then.

For generalised linear models: the loss is ``A(theta . x) - y theta . x``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..validation import ArgumentValueError, check_integer, is_number
from .losses import check_positive, check_shape

Floats = npt.NDArray[np.float64]


def constraint(theta: Floats, mean_curvature: float, second_moment: Floats, coefficients: Floats) -> float:
    """``E[A''(theta . x)] theta^T S theta`` with S = coefficients * E[x x^T], which defines the class below.

    On a centred training set 2 R2 is at least this, so training with mixing keeps it small.
    """
    width = len(theta)
    check_shape("second_moment", second_moment, width, width)
    check_shape("coefficients", coefficients, width, width)
    return float(mean_curvature * (theta @ (coefficients * second_moment) @ theta))


class Bound(NamedTuple):
    """The terms of Theorem 4: L <= L_m + complexity + confidence for all theta of the class."""

    norm: float
    """Largest ``sqrt(theta^T S theta)`` of the class."""
    rademacher: float
    """Bound of the class's Rademacher complexity on `count` samples."""
    complexity: float
    """``2 lipschitz rademacher``"""
    confidence: float
    """``loss_range sqrt(log(1 / delta) / (2 count))``"""

    @property
    def slack(self) -> float:
        """complexity + confidence."""
        return self.complexity + self.confidence


def generalization_bound(
    second_moment: Floats,
    coefficients: Floats,
    *,
    gamma: float,
    rho: float,
    count: int,
    delta: float,
    lipschitz: float,
    loss_range: float,
) -> Bound:
    """How much the expected loss can exceed the training loss, for all models that mixing allows.

    Parameters
    ----------
    second_moment : [d, d]
        E[x x^T] of the data.
    coefficients : [d, d]
        E[a_jk] under D~_lambda, :meth:`.losses.RatioDistribution.mean_coefficients`.
    gamma : float
        The class has all theta with :func:`constraint` <= gamma.
    rho : float
        The data are rho-retentive: for all theta of the class, E[A''(theta . x)] is at least
        rho min(1, theta^T S theta). If |theta . x| <= b there, A''(b) is such a number for the logistic loss.
    count : int
        Training samples, m.
    delta : float
        The bound holds with probability 1 - delta.
    lipschitz : float
        Lipschitz constant of the loss in theta . x: 1 for the logistic loss.
    loss_range : float
        Largest minus smallest loss: b for the logistic loss if |theta . x| <= b.

    Returns
    -------
    Bound
        With probability 1 - delta, ``L(theta) <= L_m(theta) + slack`` for all theta of the class.
        L_m is the approximate loss minus R1 + R2, so the approximate loss plus `slack` is a bound too where
        R1 + R2 >= 0, as for all theta that classify the training set correctly.

    Notes
    -----
    The paper states the theorem informally, as the square root of O(log(1 / delta)) / n. The steps are those
    of Zhang et al. [77], with S in place of a multiple of E[x x^T]:

    - ``gamma >= rho min(1, u^2) u^2`` for u^2 = theta^T S theta, so with g = gamma / rho,
      ``u <= max(g^(1/2), g^(1/4))``;
    - the Rademacher complexity of {theta . x: theta^T S theta <= u^2} is at most
      ``u sqrt(trace(S^+ E[x x^T]) / m)``. For Mixup S = c E[x x^T], and the trace is rank / c.

    Logistic regression on x uniform in {-1, 1}^2 with |theta . x| <= 2, Mixup with Beta(1, 1):

    >>> rho = float(1 / (2 + 2 * math.cosh(2)))  # A''(2)
    >>> bound = generalization_bound(np.eye(2), np.full((2, 2), 1 / 6), gamma=0.04, rho=rho, count=10_000,
    ...                              delta=0.05, lipschitz=1.0, loss_range=2.0)
    >>> [round(term, 4) for term in bound]
    [0.7856, 0.0272, 0.0544, 0.0245]
    """
    width = len(second_moment)
    check_shape("second_moment", second_moment, width, width)
    check_shape("coefficients", coefficients, width, width)
    for name, value in (("gamma", gamma), ("rho", rho), ("lipschitz", lipschitz), ("loss_range", loss_range)):
        check_positive(name, value)
    check_integer("count", count, 1)
    if not (is_number(delta) and 0 < delta < 1):
        raise ArgumentValueError("delta", "between 0 and 1", delta)
    weighted = coefficients * second_moment
    inverse = np.linalg.pinv(weighted, hermitian=True)
    if not np.allclose(weighted @ inverse @ second_moment, second_moment, rtol=0, atol=1e-8):
        raise ArgumentValueError(
            "coefficients",
            "so that coefficients * second_moment has no null space that second_moment has not",
            coefficients.tolist(),
        )
    ratio = gamma / rho
    norm = max(ratio**0.5, ratio**0.25)
    rademacher = norm * math.sqrt(float(np.trace(inverse @ second_moment)) / count)
    return Bound(
        norm,
        rademacher,
        2 * lipschitz * rademacher,
        loss_range * math.sqrt(math.log(1 / delta) / (2 * count)),
    )
