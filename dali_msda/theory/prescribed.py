"""Theorem 2: masks with any prescribed coefficients a_jk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..validation import ArgumentTypeError, ArgumentValueError, check_integer, is_number
from .losses import Words, check_shape

Floats = npt.NDArray[np.float64]


def sample_mask(
    coefficients: Floats, lam: float, rng: np.random.Generator, count: int | None = None
) -> Floats:
    """Draw masks with the mean `lam` at every pixel and ``E[(1 - M_j)(1 - M_k)] = coefficients[j, k]``.

    Parameters
    ----------
    coefficients : [d, d]
        The matrix A of Theorem 2, symmetric, for masks of d pixels. ``A - (1 - lam)^2``, the covariance of
        the pixels, must be nonnegative definite.
    lam : float
        The mean; negative values and values above 1 are allowed (figure 2).
    rng : numpy.random.Generator
    count : int, optional
        Number of masks; one without this dimension by default.

    Returns
    -------
    [count, d] or [d]
        Normally distributed, so some values are outside [0, 1] unless the covariance is 0. ``msda.blend``
        clips them, which changes the coefficients.

    Raises
    ------
    TypeError, ValueError
        Among others if no mask has these coefficients.

    Notes
    -----
    ``M = lam + (A - (1 - lam)^2)^(1/2) Z`` with Z standard normal. The paper's proof starts with 1 - lam
    instead, which has the mean 1 - lam, while E[1 - M] = 1 - lam is needed.

    >>> rng = np.random.default_rng(0)
    >>> sample_mask(np.full((3, 3), 0.25), 0.5, rng)  # A = (1 - lam)^2: Mixup
    array([0.5, 0.5, 0.5])
    >>> sample_mask(np.full((3, 3), 3.0625), -0.75, rng)  # figure 2
    array([-0.75, -0.75, -0.75])
    """
    if count is not None:
        check_integer("count", count, 0)
    root = mask_covariance_root(coefficients, lam)
    noise = rng.standard_normal((len(root),) if count is None else (count, len(root)))
    return lam + noise @ root


def mask_covariance_root(coefficients: Floats, lam: float) -> Floats:
    """The symmetric root of ``A - (1 - lam)^2``, or an error that says why Theorem 2 has no mask."""
    if not is_number(lam):
        raise ArgumentTypeError("lam", "a number", lam)
    if not np.isfinite(lam):
        raise ArgumentValueError("lam", "finite", lam)
    matrix = np.asarray(coefficients, np.float64)
    width = len(matrix) if matrix.ndim else 0
    check_shape("coefficients", matrix, width, width)
    if not np.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-12):
        difference = np.abs(matrix - matrix.T).max()
        raise ArgumentValueError("coefficients", "symmetric", Words(f"a difference of {difference:.3g}"))
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2 - (1.0 - lam) ** 2)
    # Rounding makes zero eigenvalues slightly negative, by less than this.
    tolerance = 1e-12 * width * max(1.0, float(np.abs(matrix).max(initial=0.0)), (1.0 - lam) ** 2)
    if width and values[0] < -tolerance:
        raise ArgumentValueError(
            "coefficients",
            f"so that coefficients - (1 - lam)^2 is nonnegative definite for lam = {lam:g} (Theorem 2)",
            Words(f"a matrix with the eigenvalue {values[0]:.3g}"),
        )
    # A root of zero, so that a constant mask is exactly lam.
    roots = np.sqrt(np.where(values > tolerance, values, 0.0))
    return np.asarray((vectors * roots) @ vectors.T)
