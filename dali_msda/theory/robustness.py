"""Theorem 3: the approximate loss of mixing is at least an adversarial loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..validation import ArgumentValueError
from .losses import LOGISTIC, Expansion, Loss, Words, approximate_loss
from .prescribed import mask_covariance_root

Floats = npt.NDArray[np.float64]


def adversarial_loss(targets: Floats, expansion: Expansion, loss: Loss, radius: Floats | float) -> float:
    """The mean of the largest loss within an l2 distance of every input, to the second order in the distance.

    Parameters
    ----------
    targets : [m]
    expansion : Expansion
        The model at the inputs; without a Hessian, locally linear.
    loss : Loss
    radius : float or [m]
        Size of the attack, epsilon sqrt(d) in the paper.

    Notes
    -----
    ``l + radius |h'(f) - y| |grad f| + radius^2 h''(f) |grad f|^2 / 2``: the exact maximum of the
    expansion of a convex loss, reached along the gradient.
    """
    if expansion.hessian is not None:
        raise ArgumentValueError(
            "expansion", "without a Hessian, as of a ReLU network", Words("one with a Hessian")
        )
    step = radius * np.linalg.norm(expansion.gradient, axis=1)
    slope = np.abs(loss.slope(expansion.value) - targets)
    added = step * slope + step**2 * loss.curvature(expansion.value) / 2
    return float(np.mean(loss(expansion.value, targets) + added))


class Robustness(NamedTuple):
    """Both sides of Theorem 3."""

    approximate: float
    """The approximate loss of mixing. Not smaller than:"""
    adversarial: float
    """The adversarial loss with an attack of its own size for every input."""
    adversarial_common: float
    """The same with one size for all inputs, the smallest guaranteed by the paper's constants."""
    radii: Floats
    """Size of the attack on every input, [m]: ``E[1 - lam] |f| / |grad f|``. That is a fixed share of the
    distance to the decision boundary, a third for Beta(1, 1)."""
    radius: float
    """``epsilon sqrt(d) = E[1 - lam] min |cos(grad f, x)| min |x|``"""


def compare_with_adversarial(
    inputs: Floats, targets: Floats, expansion: Expansion, mean_ratio: float, coefficients: Floats
) -> Robustness:
    """Both sides of Theorem 3, for the logistic loss and a ReLU network without biases.

    Parameters
    ----------
    inputs, targets : [m, d], [m]
        The training set: centred inputs, targets 0 and 1.
    expansion : Expansion
        The network at `inputs`: ``f(x) = grad f(x) . x``, all inputs classified correctly.
    mean_ratio, coefficients
        See :func:`.losses.regularizers`. They may be those of any masks.

    Returns
    -------
    Robustness

    Raises
    ------
    ValueError
        A condition of the theorem does not hold.

    Notes
    -----
    The paper states the theorem informally. The conditions and constants here are those of Zhang et al. [77]
    for Mixup. They hold for any mask: R1 is the linear term of the attack, as f = grad f . x, and R2 is at
    least its quadratic term, as E[v^2] >= E[v]^2.

    Four points, f = x_1 + x_2, Mixup with Beta(1, 1), so E[1 - lam] = 1/3 and a_jk = 1/6:

    >>> x = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> model = Expansion(x.sum(axis=1), np.ones((4, 2)))
    >>> found = compare_with_adversarial(x, np.array([1.0, 0, 1, 0]), model, 2 / 3, np.full((2, 2), 1 / 6))
    >>> [round(number, 4) for number in found[:3]]
    [0.3618, 0.3218, 0.2932]
    >>> found.radii.round(4)
    array([0.4714, 0.4714, 0.2357, 0.2357])
    >>> round(found.radius, 4)
    0.2357
    """
    value, gradient, _ = expansion
    norms, lengths = np.linalg.norm(inputs, axis=1), np.linalg.norm(gradient, axis=1)
    scale = float(norms.max(initial=0.0))
    if np.abs(inputs.mean(axis=0)).max() > 1e-6 * scale:
        raise ArgumentValueError("inputs", "centred", Words(f"the mean {inputs.mean(axis=0).tolist()}"))
    if not np.isin(targets, (0, 1)).all():
        raise ArgumentValueError("targets", "0 and 1", targets.tolist())
    through_zero = (gradient * inputs).sum(axis=1)
    if not np.allclose(through_zero, value, rtol=1e-5, atol=1e-8 * scale):
        raise ArgumentValueError(
            "expansion",
            "of a ReLU network without biases, f(x) = grad f(x) . x",
            Words(f"a difference of {np.abs(through_zero - value).max():.3g}"),
        )
    wrong = int((value * (2 * targets - 1) < 0).sum())
    if wrong:
        raise ArgumentValueError(
            "expansion", "of a network that classifies all inputs", Words(f"{wrong} errors")
        )
    if (lengths == 0).any() or (norms == 0).any():
        raise ArgumentValueError("expansion", "with no gradient and no input of zero", Words("one of zero"))
    mask_covariance_root(coefficients, mean_ratio)  # E[v^2] >= E[v]^2
    radii = (1 - mean_ratio) * np.abs(value) / lengths
    radius = float((1 - mean_ratio) * (np.abs(value) / (lengths * norms)).min() * norms.min())
    return Robustness(
        approximate_loss(inputs, targets, expansion, LOGISTIC, mean_ratio, coefficients),
        adversarial_loss(targets, expansion, LOGISTIC, radii),
        adversarial_loss(targets, expansion, LOGISTIC, radius),
        radii,
        radius,
    )
