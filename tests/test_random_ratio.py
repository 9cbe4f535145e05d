"""HMix with a random ratio, r ~ Beta(gamma, gamma): on every backend, and in the theory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import types
from scipy import stats

import dali_msda as msda
from dali_msda.mixing import Mixing
from dali_msda.theory import closed_form, coefficients, formula_sampler, monte_carlo, operator_sampler
from tests.graph_check import problems
from tests.running import random_images, run_mix
from tests.test_gpu_graph import trace, values

BACKENDS = ["kernel", "hybrid", "graph"]
LAM = 0.4


def run(ratio: Any, backend: str, count: int = 600, size: tuple[int, int] = (12, 10), **given: Any) -> Any:
    return run_mix(
        "hmix", random_images(count, size, 1), lam=LAM, ratio=ratio, backend=backend, seed=3, **given
    )


def box_shares(masks: np.ndarray) -> np.ndarray:
    """The share of the box, the pixels of weight 0, in each mask."""
    return np.asarray((masks == 0).mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_small_gamma_is_stochastic(backend: str) -> None:
    """By the formulas of the paper: every sample is Mixup or CutMix, each with probability 1/2."""
    found = run(msda.Beta(1e-5), backend, convention="paper")
    flat = found.mask.reshape(len(found.mask), -1)
    is_mixup = (np.abs(flat - LAM) < 1e-6).all(axis=1)
    is_cutmix = np.isin(flat, (0.0, 1.0)).all(axis=1)
    assert (is_mixup | is_cutmix).mean() > 0.995  # a ratio strictly between 0 and 1 is rare
    assert stats.binomtest(int(is_mixup.sum()), len(flat), 0.5).pvalue > 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ratio_has_its_distribution(backend: str) -> None:
    """In a large image, nearly: the share of the box is (1 - lam) r."""
    found = run(msda.Beta(0.7), backend, 400, (48, 48), convention="paper")
    ratios = box_shares(found.mask) / (1 - LAM)
    assert stats.kstest(ratios, stats.beta(0.7, 0.7).cdf).pvalue > 1e-4


def test_all_backends_draw_the_same_ratios() -> None:
    masks = [run(msda.Beta(0.7), backend, 50).mask for backend in BACKENDS]
    for other in masks[1:]:
        np.testing.assert_allclose(other, masks[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [3, None])
def test_a_random_ratio_does_not_change_the_other_draws(seed: int | None) -> None:
    """With the seed of the pipeline (None), DALI seeds the partners' draw by its place in the graph."""
    images = random_images(64, (40, 40), 1)
    fixed, random = (
        run_mix("hmix", images, alpha=1.0, ratio=ratio, seed=seed) for ratio in (0.5, msda.Beta(0.5))
    )
    if seed is not None:
        np.testing.assert_array_equal(random.partner, fixed.partner)
    # In this convention the mean of the mask is lam, whatever the ratio.
    np.testing.assert_allclose(random.lam, fixed.lam, rtol=0, atol=1e-5)
    assert not np.array_equal(random.mask, fixed.mask)


@pytest.mark.parametrize("seed", [3, None])
def test_the_ratio_is_independent_of_lam(seed: int | None) -> None:
    found = run_mix(
        "hmix",
        random_images(600, (48, 48), 1),
        alpha=1.0,
        ratio=msda.Beta(1.0),
        convention="paper",
        seed=seed,
        backend="graph",
    )
    shares = box_shares(found.mask)
    ratios = shares / (1 - found.lam.ravel())
    # The share of a nearly empty box says little about r.
    wide = found.lam.ravel() < 0.8
    assert stats.spearmanr(found.lam.ravel()[wide], ratios[wide]).pvalue > 1e-3


def test_one_ratio_for_a_batch() -> None:
    given: dict[str, Any] = {"granularity": "batch", "center": (6, 5), "convention": "paper"}
    assert len(np.unique(box_shares(run(msda.Beta(0.7), "graph", 20, **given).mask))) == 1


@pytest.mark.parametrize("backend", ["hybrid", "graph"])
def test_the_graph_fits_a_gpu(backend: Any) -> None:
    """The ratio is drawn on the CPU, like everything else."""

    def define() -> Any:
        images = values("gpu", layout="HWC", dtype=types.UINT8, ndim=3)
        return msda.hmix(
            images,
            values(),
            num_classes=4,
            ratio=msda.Beta(0.5),
            granularity="batch",
            return_params=True,
            backend=backend,
        )

    mixed, targets, params = trace(define)
    assert problems([mixed, targets, params.mask]) == []
    assert problems([params.lam, params.partner], "cpu") == []


@pytest.mark.parametrize("sampler", [formula_sampler, operator_sampler])
@pytest.mark.parametrize("convention", ["reference", "paper"])
def test_the_coefficients_of_a_random_ratio(convention: str, sampler: Callable[..., Any]) -> None:
    own: dict[str, Any] = {"ratio": msda.Beta(0.5), "convention": convention}
    form = {"backend": "graph"} if sampler is operator_sampler else {}
    exact = coefficients("hmix", (10, 7), LAM, nodes=512, **own)
    drawn = monte_carlo(sampler("hmix", (10, 7), LAM, **own, **form), 4096, seed=2)
    for j in ((0, 0), (5, 3)):
        error = np.abs(drawn.row(j) - exact.row(j)) - 1e-3
        assert (error <= 5 * drawn.standard_error(j)).all()


def test_coefficients_go_to_those_of_stochastic() -> None:
    goal = closed_form("stochastic", (24, 24), LAM, convention="paper").by_offset()
    away = []
    for gamma in (1.0, 0.1, 0.01, 1e-4):
        found = coefficients("hmix", (24, 24), LAM, convention="paper", ratio=msda.Beta(gamma))
        away.append(np.abs(found.by_offset() - goal).max())
    assert away == sorted(away, reverse=True)
    assert away[-1] < 1e-6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: run(msda.Beta(0.0), "graph"),
            ValueError,
            r"ratio must be Beta\(a\) with a number a above 0",
        ),
        (lambda: run(msda.Beta("alpha"), "graph"), ValueError, r"ratio must be Beta\(a\) with a number a"),
        (
            lambda: run_mix("hmix", random_images(2, (4, 4)), alpha=msda.Beta(1.0)),
            TypeError,
            r"alpha must be a number of at least 0; got Beta\(alpha=1.0\)",
        ),
        (lambda: coefficients("hmix", (4, 4), LAM, ratio=msda.Beta(-1)), ValueError, "ratio must be Beta"),
        (lambda: Mixing("hmix", ratio=msda.Beta(0.5)), TypeError, r"ratio must be a number in \[0, 1\]"),  # type: ignore[arg-type]
        (
            lambda: closed_form("hmix", (4, 4), LAM, convention="paper", ratio=msda.Beta(1.0)),
            ValueError,
            "ratio must be a number for a closed form; got",
        ),
    ],
)
def test_bad_distributions_get_one_clear_error(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
