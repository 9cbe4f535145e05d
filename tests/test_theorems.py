"""The theorems of the paper, computed, against enumeration, quadrature, finite differences and PyTorch."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from nvidia.dali import types
from scipy import integrate, stats

import dali_msda as msda
from dali_msda.theory import flatness, generalization, losses, prescribed, robustness, several
from dali_msda.theory.flatness import flatness_sides
from dali_msda.theory.generalization import constraint, generalization_bound
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
    mask_moments,
    mix_all,
    regularizers,
)
from dali_msda.theory.prescribed import sample_mask
from dali_msda.theory.robustness import adversarial_loss, compare_with_adversarial
from dali_msda.theory.sampling import formula_sampler
from dali_msda.theory.several import (
    draw_weights,
    join_masks,
    mixup_moments,
    sample_masks,
    split_weights,
)
from tests.running import image_source, outputs, random_images, source

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


@pytest.mark.parametrize("method", ["cutmix", "hmix", "gmix"])
def test_theorem_1_is_exact_for_the_masks_that_are_drawn(method: str) -> None:
    """Masks of the table's methods, cut at the border, with their real label weights."""
    rng, ratios = np.random.default_rng(0), np.linspace(0.05, 0.95, 10)
    drawn = [np.asarray(formula_sampler(method, (6, 6), float(lam))(rng, 20)) for lam in ratios]
    masks = np.concatenate(drawn).reshape(-1, 36)
    assert np.ptp(masks.mean(axis=1)) > 0.4
    assert np.ptp(masks.mean(axis=0)) > 0.03  # the border
    inputs, targets = training_set(width=36)
    weights = rng.normal(size=36)
    exact = 0.0
    for mask in masks:
        mixed = mask * inputs[:, None] + (1 - mask) * inputs[None, :]
        labels = mask.mean() * targets[:, None] + (1 - mask.mean()) * targets
        exact += float(SQUARED(mixed @ weights, labels).mean()) / len(masks)
    expansion = Expansion(inputs @ weights, np.broadcast_to(weights, inputs.shape))
    approximate = approximate_loss(inputs, targets, expansion, SQUARED, *mask_moments(masks))
    assert approximate == pytest.approx(exact, rel=1e-10)


def test_moments_of_drawn_masks_are_those_of_the_distribution() -> None:
    """Masks of independent pixels, for which D~_lambda is exact."""
    ratio, rng = RatioDistribution(1.0, 1.0), np.random.default_rng(0)
    lam = rng.random(100_000)
    masks = (rng.random((len(lam), WIDTH)) < lam[:, None]).astype(np.float64)
    found = mask_moments(masks, lam)
    np.testing.assert_allclose(found.mean_ratio, ratio.mean(), rtol=0, atol=0.01)
    expected = ratio.mean_coefficients(coefficients_of(independent_masks(WIDTH)))
    np.testing.assert_allclose(found.coefficients, expected, rtol=0, atol=0.01)


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


DOCUMENTED = [flatness, generalization, losses, prescribed, robustness, several]


@pytest.mark.parametrize("module", DOCUMENTED, ids=lambda module: module.__name__)
def test_the_examples_of_the_docstrings(module: ModuleType) -> None:
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def prescribed_coefficients(lam: float, width: int = 6) -> Array:
    """A covariance that falls with the distance, as no method of the table has it, negative ones included."""
    distance = np.abs(np.subtract.outer(np.arange(width), np.arange(width)))
    return np.asarray((1 - lam) ** 2 + 0.3 * np.exp(-(distance**2) / 4) * np.cos(distance))


@pytest.mark.parametrize("lam", [-0.75, 0.0, 0.4, 1.0])
def test_theorem_2_masks_have_the_prescribed_moments(lam: float) -> None:
    coefficients, count = prescribed_coefficients(lam), 40_000
    masks = sample_mask(coefficients, lam, np.random.default_rng(0), count)
    assert masks.shape == (count, 6)
    assert (masks < 0).any()
    assert (masks > 1).any()
    error = masks.std(axis=0) / np.sqrt(count)
    assert (np.abs(masks.mean(axis=0) - lam) <= 4 * error).all()
    for j, k in itertools.combinations_with_replacement(range(6), 2):
        products = (1 - masks[:, j]) * (1 - masks[:, k])
        assert abs(products.mean() - coefficients[j, k]) <= 4.5 * products.std() / np.sqrt(count)


def test_coefficients_of_a_method_are_feasible_for_theorem_2() -> None:
    """Every method is: its own masks have a covariance. Independent pixels, as an example."""
    coefficients = coefficients_of(independent_masks(3))(0.3)
    masks = sample_mask(coefficients, 0.3, np.random.default_rng(1), 40_000)
    np.testing.assert_allclose((1 - masks).T @ (1 - masks) / len(masks), coefficients, rtol=0, atol=0.02)
    assert sample_mask(coefficients, 0.3, np.random.default_rng(1)).shape == (3,)


@pytest.mark.parametrize(
    ("coefficients", "lam", "kind", "message"),
    [
        (
            np.full((2, 2), 0.2), 0.5, ValueError,
            r"coefficients must be so that coefficients - \(1 - lam\)\^2 is nonnegative definite"
            r" for lam = 0.5 \(Theorem 2\); got a matrix with the eigenvalue -0.1$",
        ),
        (np.eye(2), 0.0, ValueError, "nonnegative definite for lam = 0 .*eigenvalue -1$"),
        (np.array([[1.0, 0.5], [0.2, 1.0]]), 0.9, ValueError, "coefficients must be symmetric; got .*0.3"),
        (np.ones((2, 3)), 0.5, ValueError, r"coefficients must be of shape \(2, 2\); got \(2, 3\)"),
        (np.full((2, 2), np.nan), 0.5, ValueError, "coefficients must be finite"),
        (np.ones((2, 2)), "half", TypeError, "lam must be a number; got 'half'"),
        (np.ones((2, 2)), np.inf, ValueError, "lam must be finite; got inf"),
    ],
)  # fmt: skip
def test_theorem_2_has_a_condition(coefficients: Array, lam: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        sample_mask(coefficients, lam, np.random.default_rng(0))


def test_weights_of_several_images() -> None:
    weights = draw_weights([0.5, 1.0, 2.0], np.random.default_rng(0), 5000)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights.mean(axis=0), np.array([0.5, 1, 2]) / 3.5, rtol=0, atol=0.02)
    ratios = split_weights(weights)
    np.testing.assert_allclose(join_masks(list(ratios.T)), weights, rtol=0, atol=1e-12)
    # An image without weight left: any quotient will do.
    np.testing.assert_array_equal(split_weights(np.array([1.0, 0.0, 0.0])), [1.0, 1.0])
    # Two images: the Beta distribution.
    two = draw_weights([0.7, 2.0], np.random.default_rng(0), 4000)[:, 0]
    assert stats.kstest(two, stats.beta(0.7, 2.0).cdf).pvalue > 0.01


def test_masks_of_several_images() -> None:
    rng, weights = np.random.default_rng(0), np.array([0.2, 0.5, 0.3])
    masks = np.array(
        [sample_masks(weights, lambda lam: np.where(rng.random(4) < lam, 1.0, 0.0)) for _ in range(4000)]
    )
    assert set(np.unique(masks)) == {0.0, 1.0}
    np.testing.assert_array_equal(masks.sum(axis=-1), 1)
    np.testing.assert_allclose(masks.mean(axis=0), np.broadcast_to(weights, (4, 3)), rtol=0, atol=0.035)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_weights([1.0], np.random.default_rng(0)), "alphas must be at least two numbers"),
        (lambda: mixup_moments([1.0, -1.0]), r"alphas\[1\] must be a positive number; got -1.0"),
        (lambda: split_weights(np.array([0.5, 0.6])), "weights must be not negative, with the sum 1; got"),
        (lambda: split_weights(np.array([1.5, -0.5])), "weights must be not negative, with the sum 1; got"),
        (lambda: RatioDistribution(0.0, 1.0), "alpha must be a positive number; got 0.0"),
        (
            lambda: regularizers(
                np.ones((2, 3)), np.ones(2), Expansion(np.ones(2), np.ones((2, 3))), SQUARED, 0.5, np.ones(3)
            ),
            r"coefficients must be of shape \(3, 3\); got \(3,\)",
        ),
        (
            lambda: regularizers(
                np.ones((2, 3)),
                np.ones(2),
                Expansion(np.ones(2), np.ones((2, 3))),
                SQUARED,
                np.ones(2),
                np.eye(3),
            ),
            r"mean_ratio must be of shape \(3,\); got \(2,\)",
        ),
        (lambda: mask_moments(np.ones((2, 3)), np.ones(3)), r"label_weights must be of shape \(2,\)"),
        (
            lambda: mix_all(np.ones((2, 3)), np.array([0, np.nan]), constant_masks(3), 1.0, 1.0),
            "targets must be finite",
        ),
    ],
)
def test_arguments_are_checked(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("alphas", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_theorem_1_for_three_images(alphas: tuple[float, float, float]) -> None:
    """Exact for a loss of degree 2, against all triples and a quadrature of both ratios."""
    loss, predict, expand = exactly_quadratic()["linear model, squared loss"]
    inputs, targets = training_set(count=4)
    exact = 0.0
    first, second = beta_quadrature(alphas[0], sum(alphas[1:]), 6), beta_quadrature(*alphas[1:], 6)
    for (lam, p), (rest, q) in itertools.product(zip(*first, strict=True), zip(*second, strict=True)):
        weights = join_masks([np.array(lam), np.array(rest)])
        for triple in itertools.product(range(4), repeat=3):
            mixed, label = weights @ inputs[list(triple)], weights @ targets[list(triple)]
            exact += p * q / 4**3 * float(loss(predict(mixed), label))
    moments = mixup_moments(alphas)
    approximate = approximate_loss(
        inputs,
        targets,
        expand(inputs),
        loss,
        moments.mean_ratio,
        np.full((WIDTH, WIDTH), moments.coefficient),
        np.full((WIDTH, WIDTH), moments.partner_coefficient),
    )
    assert approximate == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("method", ["mixup", "hmix"])
def test_three_images_in_a_pipeline(method: str) -> None:
    """Two calls with the ratios of `split_weights`; the second mixes with what the first made."""
    count, size = 5, (6, 8)
    images = random_images(count, size, dtype=np.float32)
    vectors = np.eye(4, dtype=np.float32)[np.arange(count) % 4]
    ratios = split_weights(draw_weights([1.0, 1.0, 1.0], np.random.default_rng(3), count))
    partners = np.array([[1, 2, 3, 4, 0], [3, 4, 0, 1, 2]], np.int32)

    def define() -> list[Any]:
        mix, own = getattr(msda, method), image_source(images, "HWC")
        labels = source(list(vectors), dtype=types.FLOAT)
        blends = []
        inner: dict[str, Any] = {}
        for step in (1, 0):
            mixed, targets, params = mix(
                own, labels, lam=source(list(ratios[:, step].astype(np.float32))), seed=step,
                partner=source(list(partners[step])), return_params=True, backend="graph", **inner,
            )  # fmt: skip
            inner = {"partner_images": mixed, "partner_labels": targets}
            blends += [params.mask, params.lam]
        return [mixed, targets, *blends]

    ((mixed, targets, inner_mask, inner_lam, outer_mask, outer_lam),) = outputs(define, count)
    for i in range(count):
        middle = partners[0, i]
        three = [i, middle, partners[1, middle]]
        weights = join_masks([outer_mask[i], inner_mask[middle]])
        expected = sum(weights[..., k] * images[j] for k, j in enumerate(three))
        np.testing.assert_allclose(mixed[i], expected, rtol=0, atol=1e-5)
        label = join_masks([outer_lam[i], inner_lam[middle]]) @ vectors[three]
        np.testing.assert_allclose(targets[i], label, rtol=0, atol=1e-6)
        if method == "mixup":
            np.testing.assert_allclose(weights[0, 0, 0, 0], ratios[i, 0], rtol=0, atol=1e-6)


class Network:
    """A ReLU network of one hidden layer without biases, with its gradients written out."""

    def __init__(self, width: int, hidden: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.first, self.last = rng.normal(size=(hidden, width)), rng.normal(size=hidden)

    def expand(self, x: Array) -> Expansion:
        """Value and input gradient."""
        return Expansion(np.maximum(x @ self.first.T, 0) @ self.last, self._hidden(x) @ self.first)

    def first_gradient(self, x: Array) -> Array:
        """Gradient with respect to the weights of the first layer, [m, hidden, width]."""
        return np.asarray(self._hidden(x)[:, :, None] * x[:, None, :])

    def _hidden(self, x: Array) -> Array:
        return np.asarray((x @ self.first.T > 0) * self.last)


def classified_set(network: Network, count: int = 30) -> tuple[Array, Array]:
    """Centred inputs, with the network's own decisions as labels."""
    inputs = np.random.default_rng(1).normal(size=(count, network.first.shape[1]))
    inputs -= inputs.mean(axis=0)
    return inputs, (network.expand(inputs).value > 0).astype(np.float64)


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("seed", range(5))
def test_theorem_3_the_approximate_loss_is_above_the_adversarial_loss(
    seed: int, masks: Callable[[int], Masks]
) -> None:
    network = Network(WIDTH, 8, seed)
    inputs, targets = classified_set(network)
    ratio = RatioDistribution(1.0, 1.0)
    coefficients = ratio.mean_coefficients(coefficients_of(masks(WIDTH)))
    expansion = network.expand(inputs)
    found = compare_with_adversarial(inputs, targets, expansion, ratio.mean(), coefficients)
    plain = float(LOGISTIC(expansion.value, targets).mean())
    assert found.approximate >= found.adversarial >= found.adversarial_common > plain
    assert (found.radii >= found.radius).all()
    # A fixed share of the distance to where the linearised network changes its mind.
    boundary = np.abs(expansion.value) / np.linalg.norm(expansion.gradient, axis=1)
    np.testing.assert_allclose(found.radii, boundary / 3, rtol=1e-12, atol=0)


def test_theorem_3_differs_by_the_spread_of_the_partners() -> None:
    """For lam = 0.9 fixed and the pair x, -x."""
    inputs, targets = np.array([[1.5], [-1.5]]), np.array([1.0, 0.0])
    expansion = Expansion(2 * inputs[:, 0], np.full((2, 1), 2.0))
    found = compare_with_adversarial(inputs, targets, expansion, 0.9, np.full((1, 1), 0.01))
    # R2 has E[(r - x)^2] = 2 x^2, the attack x^2.
    curvature = float(LOGISTIC.curvature(expansion.value)[0])
    assert found.approximate - found.adversarial == pytest.approx(curvature * 0.01 * 9 / 2, rel=1e-9)


def test_the_adversarial_loss_is_the_largest_within_the_radius() -> None:
    """For a linear model against its exact adversarial loss: the difference is of third order."""
    inputs, weights = training_set()[0], np.array([0.5, -1.0, 0.7, 0.2])
    targets = (np.arange(COUNT) % 2).astype(np.float64)
    expansion = Expansion(inputs @ weights, np.broadcast_to(weights, inputs.shape))
    errors = []
    for radius in (0.2, 0.1, 0.05):
        worst = expansion.value - (2 * targets - 1) * radius * np.linalg.norm(weights)
        exact = float(LOGISTIC(worst, targets).mean())
        errors.append(abs(adversarial_loss(targets, expansion, LOGISTIC, radius) - exact))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.15)


GOOD: dict[str, Any] = {
    "inputs": np.array([[1.0], [-1.0]]),
    "targets": np.array([1.0, 0.0]),
    "expansion": Expansion(np.array([1.0, -1.0]), np.ones((2, 1))),
    "mean_ratio": 0.5,
    "coefficients": np.full((1, 1), 0.25),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": np.array([[1.0], [-0.5]])}, "inputs must be centred; got the mean"),
        ({"targets": np.array([1.0, 0.5])}, "targets must be 0 and 1; got"),
        ({"targets": np.array([0.0, 0.0])}, "classifies all inputs; got 1 errors"),
        (
            {"expansion": Expansion(np.array([2.0, -1.0]), np.ones((2, 1)))},
            "without biases, f\\(x\\) = grad f\\(x\\) . x; got a difference of 1",
        ),
        ({"coefficients": np.full((1, 1), 0.2)}, "eigenvalue -0.05"),
        (
            {"expansion": Expansion(np.array([1.0, -1.0]), np.ones((2, 1)), np.zeros((2, 1, 1)))},
            "expansion must be without a Hessian",
        ),
    ],
)
def test_theorem_3_checks_its_conditions(changed: dict[str, Any], message: str) -> None:
    compare_with_adversarial(**GOOD)
    with pytest.raises(ValueError, match=message):
        compare_with_adversarial(**{**GOOD, **changed})


def test_theorem_4_bounds_the_loss_on_new_data() -> None:
    """Logistic regression on x uniform in {-1, 1}^2: the largest excess over the class, 200 times."""
    points = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    share = 1 / (1 + np.exp(-points @ np.array([0.8, -0.4])))  # P(y = 1 | x)
    coefficients = RatioDistribution(1.0, 1.0).mean_coefficients(coefficients_of(independent_masks(2)))
    gamma, rho, count = 0.04, float(LOGISTIC.curvature(np.array(2.0))), 500
    bound = generalization_bound(
        np.eye(2), coefficients, gamma=gamma, rho=rho, count=count, delta=0.05, lipschitz=1.0, loss_range=2.0
    )
    models = [
        theta
        for theta in np.stack(np.meshgrid(*[np.linspace(-2, 2, 21)] * 2), axis=-1).reshape(-1, 2)
        if np.abs(points @ theta).max() <= 2
        and constraint(theta, float(LOGISTIC.curvature(points @ theta).mean()), np.eye(2), coefficients)
        <= gamma
    ]
    outputs_ = points @ np.array(models).T  # [points, models]
    norms = [float(np.sqrt(theta @ (coefficients * np.eye(2)) @ theta)) for theta in models]
    assert 0.3 * bound.norm < max(norms) <= bound.norm
    losses_by_label = np.stack([LOGISTIC(outputs_, np.full_like(outputs_, y)) for y in (0.0, 1.0)])
    expected = ((1 - share) @ losses_by_label[0] + share @ losses_by_label[1]) / 4
    rng, excess = np.random.default_rng(0), []
    for _ in range(200):
        drawn = rng.integers(0, 4, count)
        labels = (rng.random(count) < share[drawn]).astype(int)
        excess.append((expected - losses_by_label[labels, drawn].mean(axis=0)).max())
    assert 0 < np.quantile(excess, 0.95) <= bound.slack
    assert bound.confidence == pytest.approx(2 * np.sqrt(np.log(20) / 1000))


def test_the_rademacher_complexity_is_below_its_bound_and_near() -> None:
    """The supremum over the ellipsoid is a norm, here averaged over random signs and inputs."""
    rng, count = np.random.default_rng(0), 200
    mixing = np.array([[1.0, 0.3], [0.0, 0.5]])
    second_moment = mixing @ mixing.T
    coefficients = np.array([[0.3, 0.15], [0.15, 0.2]])
    bound = generalization_bound(
        second_moment, coefficients, gamma=0.2, rho=0.1, count=count, delta=0.1, lipschitz=1.0, loss_range=1.0
    )
    assert bound.norm == pytest.approx(np.sqrt(2))
    sums = (rng.choice([-1, 1], (4000, count, 1)) * (rng.normal(size=(4000, count, 2)) @ mixing.T)).sum(
        axis=1
    )
    inverse = np.linalg.inv(coefficients * second_moment)
    supremum = bound.norm * np.sqrt(((sums @ inverse) * sums).sum(axis=1)) / count
    assert 0.85 * bound.rademacher < supremum.mean() < bound.rademacher


def test_the_flatness_identity() -> None:
    """Both sides for a small network, with gradients that were not derived from each other."""
    network, rng = Network(WIDTH, 8), np.random.default_rng(2)
    inputs, masks = rng.normal(size=(6, WIDTH)), rng.random((5, WIDTH))
    weight_gradients, h = network.first_gradient(inputs), 1e-6
    for j, k in ((0, 0), (3, 1), (7, 3)):
        network.first[j, k] += h
        up = network.expand(inputs).value
        network.first[j, k] -= 2 * h
        down = network.expand(inputs).value
        network.first[j, k] += h
        np.testing.assert_allclose(weight_gradients[:, j, k], (up - down) / (2 * h), rtol=0, atol=1e-8)
    gradients = network.expand(inputs).gradient
    sides = flatness_sides(inputs, masks, network.first, gradients, weight_gradients)
    assert sides.inputs.shape == (6, 5)
    np.testing.assert_allclose(sides.inputs, sides.weights, rtol=0, atol=1e-13)
    # The sum over pixels with the coefficients of these masks is the mean square.
    coefficients = (1 - masks).T @ (1 - masks) / len(masks)
    along = gradients * inputs
    expected = np.einsum("jk,ij,ik->i", coefficients, along, along)
    np.testing.assert_allclose(sides.regularized, expected, rtol=1e-12, atol=0)
