"""Mixing n images (Remark 1): weights, masks, the blends that make them, and their place in Theorem 1.

An image is ``sum_k W_k x_k``, with masks W_1 to W_n that sum to 1 at every pixel and have the means lam_1 to
lam_n. The paper treats this in its appendix B, which these functions do not follow: the definitions are ours.

A pipeline mixes n images by n - 1 calls: each takes what the one before made as ``partner_images`` and
``partner_labels``, and as ``lam`` a column of :func:`split_weights`, the last column first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..validation import ArgumentValueError, check_integer
from .losses import check_positive

Floats = npt.NDArray[np.float64]


def draw_weights(alphas: Sequence[float], rng: np.random.Generator, count: int | None = None) -> Floats:
    """Draw the weights of n images from Dirichlet(alphas), [n] or [count, n]; n = 2 is Beta(a, b)."""
    check_alphas(alphas)
    if count is not None:
        check_integer("count", count, 0)
    return rng.dirichlet(alphas, count)


def check_alphas(alphas: Sequence[float]) -> None:
    """Raise unless there are at least two positive numbers."""
    if len(alphas) < 2:
        raise ArgumentValueError("alphas", "at least two numbers, one for each image", alphas)
    for index, alpha in enumerate(alphas):
        check_positive(f"alphas[{index}]", alpha)


def split_weights(weights: Floats) -> Floats:
    """The `lam` of each of the n - 1 blends that mix n images: image k with all later ones.

    Parameters
    ----------
    weights : [..., n]
        Not negative, with the sum 1; or masks [..., n], to blend with ``msda.blend``.

    Returns
    -------
    [..., n - 1]
        ``w_k / (w_k + ... + w_n)``; 1 where nothing is left to divide.

    >>> split_weights(np.array([0.5, 0.3, 0.2]))
    array([0.5, 0.6])
    """
    weights = np.asarray(weights, np.float64)
    total = weights.sum(axis=-1)
    if not ((weights >= 0).all() and np.allclose(total, 1, rtol=0, atol=1e-6)):
        raise ArgumentValueError("weights", "not negative, with the sum 1", weights.tolist())
    left = np.cumsum(weights[..., ::-1], axis=-1)[..., ::-1][..., :-1]
    return np.divide(weights[..., :-1], left, out=np.ones_like(left), where=left > 0)


def join_masks(masks: Sequence[Floats]) -> Floats:
    """The weight of every image, [..., n], after n - 1 blends with these masks; undoes `split_weights`.

    Blend k takes image k with the weight ``masks[k]``, and with the rest what blend k + 1 made.
    """
    left = np.ones_like(np.asarray(masks[0], np.float64))
    weights = []
    for mask in masks:
        weights.append(left * mask)
        left = left * (1.0 - np.asarray(mask))
    return np.stack([*weights, left], axis=-1)


def sample_masks(weights: Floats, sampler: Callable[[float], Floats]) -> Floats:
    """Masks of n images, [..., n], by n - 1 independent masks of a method for two.

    Parameters
    ----------
    weights : [n]
        From :func:`draw_weights`.
    sampler : function
        From lam to a mask [...] with the mean lam at every pixel, drawn at random.

    Returns
    -------
    [..., n]
        With the sum 1 and the means `weights` at every pixel.
    """
    return join_masks([sampler(float(lam)) for lam in split_weights(weights)])


class SeveralMoments(NamedTuple):
    """What :func:`.losses.approximate_loss` takes for the Mixup of n images, the same at all pixels."""

    mean_ratio: float
    coefficient: float
    """E[(1 - lam_own)^2]"""
    partner_coefficient: float
    """Sum of E[lam_k^2] over the partners."""


def mixup_moments(alphas: Sequence[float]) -> SeveralMoments:
    """Moments of the weights under the n-image form of D~_lambda, for Theorem 1 with M constant.

    The label is that of image k with probability alpha_k / sum(alphas). Given that label, the weights have
    the Dirichlet distribution with alpha_k + 1 in place of alpha_k.

    >>> mixup_moments([1.0, 1.0])  # Mixup: 2/3, 1/6, 1/6
    SeveralMoments(mean_ratio=0.666..., coefficient=0.166..., partner_coefficient=0.166...)
    >>> mixup_moments([1.0, 1.0, 1.0])  # three images: stronger, and in other proportions
    SeveralMoments(mean_ratio=0.5, coefficient=0.3, partner_coefficient=0.2)
    """
    check_alphas(alphas)
    a = np.asarray(alphas, np.float64)
    total, squares = a.sum(), a * (a + 1)
    label = a / total
    rest = total - a
    both = (total + 1) * (total + 2)
    return SeveralMoments(
        float(label @ (a + 1) / (total + 1)),
        float(label @ (rest * (rest + 1)) / both),
        float(label @ (squares.sum() - squares) / both),
    )
