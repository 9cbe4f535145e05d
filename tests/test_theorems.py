"""The theorems of the paper, computed, against enumeration, quadrature, finite differences and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from dali_msda.theory.losses import (
    LOGISTIC,
    SQUARED,
    Expansion,
    Loss,
    Masks,
    RatioDistribution,
    approximate_loss,
    beta_quadrature,
    coefficients_of,
    constant_masks,
    independent_masks,
    mix_all,
    regularizers,
)

Array = np.ndarray[Any, Any]
COUNT, WIDTH = 7, 4


def training_set(seed: int = 0, count: int = COUNT, width: int = WIDTH) -> tuple[Array, Array]:
    """Inputs that are not centred, and targets between 0 and 1."""
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1.0, (count, width)), rng.random(count)


def one_pixel_masks(width: int) -> Masks:
    """Asymmetric masks, as CutMix's: 0 at one pixel with probability lam (1 - lam), otherwise constant.

    Their complements, 1 at one pixel, are other masks.
    """

    def masks(lam: float) -> tuple[Array, Array]:
        share = lam * (1 - lam)
        constant = (lam - share * (1 - 1 / width)) / (1 - share)
        found = np.concatenate([1 - np.eye(width), np.full((1, width), constant)])
        return np.append(np.full(width, share / width), 1 - share), found

    return masks


MASKS: dict[str, Callable[[int], Masks]] = {
    "mixup": constant_masks,
    "independent": independent_masks,
    "one pixel": one_pixel_masks,
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
def test_masks_have_the_mean_lam(masks: Callable[[int], Masks]) -> None:
    for lam in (0.2, 0.5, 0.9):
        probabilities, found = masks(WIDTH)(lam)
        assert probabilities.sum() == pytest.approx(1)
        np.testing.assert_allclose(probabilities @ found, lam, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.4, 0.4), (2.0, 0.7)])
def test_the_distribution_of_the_ratio(alpha: float, beta: float) -> None:
    ratio = RatioDistribution(alpha, beta)
    # lam of the sample whose label was drawn: first with probability lam, otherwise the other one's share.
    drawn = stats.beta(alpha, beta)
    expected = drawn.expect(lambda lam: lam * lam + (1 - lam) * (1 - lam))
    assert ratio.mean() == pytest.approx(expected, rel=1e-9)
    for low, high in ((0.05, 0.3), (0.3, 0.95)):
        mass = integrate.quad(lambda lam: float(ratio.density(np.array(lam))), low, high)[0]
        own = integrate.quad(lambda lam: lam * drawn.pdf(lam), low, high)[0]
        swapped = integrate.quad(lambda lam: lam * drawn.pdf(1 - lam), low, high)[0]
        assert mass == pytest.approx(own + swapped, rel=1e-7)
    sample = ratio.sample(np.random.default_rng(0), 4000)

    def distribution(lam: Array) -> Array:
        return np.asarray(sum(p * stats.beta.cdf(lam, a, b) for p, a, b in ratio.components))

    assert stats.kstest(sample, distribution).pvalue > 0.01


def exactly_quadratic() -> dict[str, tuple[Loss, Callable[[Array], Array], Callable[[Array], Expansion]]]:
    """Models and losses without a remainder: the loss is a polynomial of degree 2 in the input."""
    rng = np.random.default_rng(1)
    weights, square = rng.normal(size=WIDTH), rng.normal(size=(WIDTH, WIDTH))
    square = square + square.T
    linear_loss = Loss(lambda f: 0.3 * f, lambda f: np.full_like(f, 0.3), np.zeros_like)

    def curved(x: Array) -> Array:
        return np.asarray(0.5 + x @ weights + ((x @ square) * x).sum(axis=-1) / 2)

    return {
        "linear model, squared loss": (
            SQUARED,
            lambda x: np.asarray(0.5 + x @ weights),
            lambda x: Expansion(0.5 + x @ weights, np.broadcast_to(weights, x.shape)),
        ),
        "quadratic model, linear loss": (
            linear_loss,
            curved,
            lambda x: Expansion(
                curved(x), weights + x @ square, np.broadcast_to(square, (len(x), WIDTH, WIDTH))
            ),
        ),
    }


@pytest.mark.parametrize("model", exactly_quadratic())
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.4, 0.4), (2.0, 0.7)])
def test_theorem_1_is_exact_for_quadratic_losses(
    alpha: float, beta: float, masks: Callable[[int], Masks], model: str
) -> None:
    """Asymmetric masks ("one pixel") and alpha != beta included, data that is not centred too."""
    loss, predict, expand = exactly_quadratic()[model]
    inputs, targets = training_set()
    ratio = RatioDistribution(alpha, beta)
    coefficients = ratio.mean_coefficients(coefficients_of(masks(WIDTH)))
    approximate = approximate_loss(inputs, targets, expand(inputs), loss, ratio.mean(), coefficients)
    exact = mix_all(inputs, targets, masks(WIDTH), alpha, beta).loss(predict, loss)
    assert approximate == pytest.approx(exact, rel=1e-10)


def averaged_as_in_the_paper(masks: Masks, ratio: RatioDistribution) -> Array:
    """E[a_jk(lam)] under D~_lambda, without complements."""
    total: Array = np.zeros(())
    for probability, a, b in ratio.components:
        for lam, weight in zip(*beta_quadrature(a, b, 32), strict=True):
            total = total + probability * weight * coefficients_of(masks)(lam)
    return total


def test_asymmetric_masks_need_their_complements() -> None:
    """The paper's a_jk(lam) in both components is right for Mixup and independent pixels only."""
    ratio = RatioDistribution(1.0, 1.0)
    for masks in (constant_masks(WIDTH), independent_masks(WIDTH)):
        found = ratio.mean_coefficients(coefficients_of(masks))
        np.testing.assert_allclose(found, averaged_as_in_the_paper(masks, ratio), rtol=0, atol=1e-12)
    found = ratio.mean_coefficients(coefficients_of(one_pixel_masks(WIDTH)))
    papers = averaged_as_in_the_paper(one_pixel_masks(WIDTH), ratio)
    assert np.abs(found - papers).min() > 0.005


def smooth_model(inputs: Array) -> Expansion:
    """A model that no polynomial equals: ``2 sin(w x) + (v x)^2 / 5``."""
    w, v = np.array([0.8, -0.5, 0.3, 0.4]), np.array([0.2, 0.7, -0.4, 0.1])
    first, second = inputs @ w, inputs @ v
    gradient = 2 * np.cos(first)[:, None] * w + 0.4 * second[:, None] * v
    hessian = -2 * np.sin(first)[:, None, None] * np.outer(w, w) + 0.4 * np.outer(v, v)
    return Expansion(2 * np.sin(first) + second**2 / 5, gradient, hessian)


def loss_towards_partners(t: float, inputs: Array, targets: Array, loss: Loss) -> float:
    """The loss with Mixup at lam = 1 - t and the own label."""
    mixed = (1 - t) * inputs[:, None] + t * inputs[None, :]
    values = smooth_model(mixed.reshape(-1, WIDTH)).value.reshape(COUNT, COUNT)
    return float(loss(values, np.broadcast_to(targets[:, None], values.shape)).mean())


@pytest.mark.parametrize("loss", [LOGISTIC, SQUARED], ids=["logistic", "squared"])
def test_the_regularizers_are_derivatives(loss: Loss) -> None:
    """R1 is the slope of the loss towards the partners, R2 + R3 half its curvature."""
    inputs, targets = training_set()
    found = regularizers(inputs, targets, smooth_model(inputs), loss, 0.0, np.ones((WIDTH, WIDTH)))
    h = 1e-3
    below, here, above = (loss_towards_partners(t, inputs, targets, loss) for t in (-h, 0.0, h))
    assert found.r1 == pytest.approx((above - below) / (2 * h), rel=1e-4)
    assert found.r2 + found.r3 == pytest.approx((above - 2 * here + below) / (2 * h**2), rel=1e-4)
    assert abs(found.r2) > 1e-2
    assert abs(found.r3) > 1e-2


def test_the_remainder_of_mixup_is_of_third_order() -> None:
    """Halving 1 - lam divides the error by eight."""
    inputs, targets = training_set()
    errors = []
    for t in (0.04, 0.02, 0.01):
        approximate = approximate_loss(
            inputs, targets, smooth_model(inputs), LOGISTIC, 1 - t, np.full((WIDTH, WIDTH), t**2)
        )
        errors.append(abs(approximate - loss_towards_partners(t, inputs, targets, LOGISTIC)))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.1)


def test_a_torch_model_is_expanded() -> None:
    import torch

    from dali_msda.theory.from_torch import expand

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    )
    model = model.double()
    inputs = torch.randn(3, 2, 2, dtype=torch.float64)
    value, gradient, hessian = expand(model, inputs)
    assert expand(model, inputs, hessian=False).hessian is None

    def predict(flat: Array) -> Array:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(flat)).numpy()[:, 0])

    flat, h = inputs.reshape(3, 4).numpy(), 1e-4
    np.testing.assert_allclose(value, predict(flat), rtol=0, atol=1e-12)
    assert hessian is not None
    for j, step in enumerate(np.eye(4) * h):
        up, down = predict(flat + step), predict(flat - step)
        np.testing.assert_allclose(gradient[:, j], (up - down) / (2 * h), rtol=0, atol=1e-7)
        np.testing.assert_allclose(hessian[:, j, j], (up - 2 * value + down) / h**2, rtol=0, atol=1e-5)
        for k, other in enumerate(np.eye(4) * h):
            if k != j:
                corners = predict(flat + step + other) - predict(flat + step - other)
                corners -= predict(flat - step + other) - predict(flat - step - other)
                np.testing.assert_allclose(hessian[:, j, k], corners / (4 * h**2), rtol=0, atol=1e-5)
