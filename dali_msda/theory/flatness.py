"""Section 3: R2 as a regulariser of the first layer, ``f(x) = g(theta_1 x)``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .losses import check_shape

Floats = npt.NDArray[np.float64]


class FlatnessSides(NamedTuple):
    """Two numbers for every input and mask, [m, k], that are equal."""

    inputs: Floats
    """``((1 - M) * grad_x f)^T x``"""
    weights: Floats
    """``trace((grad_theta_1 f)^T theta_1 diag(1 - M))``"""

    @property
    def regularized(self) -> Floats:
        """Mean square over the masks, [m]: ``sum_jk a_jk d_j f d_k f x_j x_k``, a part of G (equation 8)."""
        return np.asarray((self.weights**2).mean(axis=1))


def flatness_sides(
    inputs: Floats, masks: Floats, weights: Floats, input_gradients: Floats, weight_gradients: Floats
) -> FlatnessSides:
    """Both sides of the flatness identity of section 3.

    Parameters
    ----------
    inputs : [m, d]
    masks : [k, d]
    weights : [h, d]
        theta_1, of the first layer.
    input_gradients : [m, d]
        Gradient of f with respect to every input.
    weight_gradients : [m, h, d]
        Gradient of f at every input with respect to theta_1.

    Returns
    -------
    FlatnessSides

    >>> x, theta = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])  # f = (theta x)^2 / 2 = 1/2
    >>> sides = flatness_sides(x, np.array([[0.5, 0.0]]), theta, theta * 1.0, x[:, None] * 1.0)
    >>> sides.inputs, sides.weights  # 0.5 * 3 - 2
    (array([[-0.5]]), array([[-0.5]]))
    """
    (count, width), hidden = np.shape(inputs), len(weights)
    check_shape("masks", masks, len(masks), width)
    check_shape("weights", weights, hidden, width)
    check_shape("input_gradients", input_gradients, count, width)
    check_shape("weight_gradients", weight_gradients, count, hidden, width)
    partner = 1.0 - np.asarray(masks)
    # Only the diagonal of (grad_theta_1 f)^T theta_1 is in the trace.
    diagonal = (weight_gradients * weights).sum(axis=1)
    return FlatnessSides((input_gradients * inputs) @ partner.T, diagonal @ partner.T)
