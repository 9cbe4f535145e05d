"""Distributions and seeds of the draws, tested on the results of real pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline
from scipy import stats

import dali_msda as msda
from dali_msda import draws as _draws
from tests.devices import in_every_form
from tests.graph_check import operators
from tests.running import build, image_source, outputs, random_images, run_mix, source

BACKENDS = ["kernel", "hybrid", "graph"]
# With fixed seeds all p-values below are constants; a wrong distribution gives 1e-20 or less.
SIGNIFICANCE = 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("method", ["mixup", "hmix"])
def test_lam_is_beta_distributed(method: str, alpha: float, backend: Any) -> None:
    """Both methods keep the drawn lam as their label weight."""
    images = random_images(4000, (16, 16), 1)
    result = run_mix(method, images, alpha=alpha, seed=21, backend=backend)
    assert stats.kstest(result.lam, stats.beta(alpha, alpha).cdf).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("alphas", [(0.3, 4.0), (4.0, 0.3)])
def test_stochastic_draws_lam_for_the_chosen_method(alphas: tuple[float, float]) -> None:
    images = random_images(4000, (64, 64), 1)
    result = run_mix(
        "stochastic",
        images,
        mixup_alpha=alphas[0],
        cutmix_alpha=alphas[1],
        switch_probability=0.3,
        convention="paper",
        seed=5,
    )
    is_mixup = np.array([mask.min() > 0 and mask.max() < 1 for mask in result.mask])
    assert abs(is_mixup.sum() - 1200) < 4 * np.sqrt(4000 * 0.3 * 0.7)
    assert stats.kstest(result.lam[is_mixup], stats.beta(alphas[0], alphas[0]).cdf).pvalue > SIGNIFICANCE
    # CutMix only shows the side of the box, int(64 * sqrt(1 - lam)): lam is between two values, and a random
    # point between their quantiles is uniform.
    side = np.sqrt((result.mask[~is_mixup] == 0).sum(axis=(1, 2, 3)))
    beta = stats.beta(alphas[1], alphas[1])
    low, high = beta.cdf(1 - ((side + 1) / 64) ** 2), beta.cdf(1 - (side / 64) ** 2)
    filled = low + np.random.default_rng(0).uniform(size=len(side)) * (high - low)
    assert stats.kstest(filled, "uniform").pvalue > SIGNIFICANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("method", "convention"), [("cutmix", "reference"), ("gmix", "reference"), ("gmix", "paper")]
)
def test_centre_is_any_pixel(method: str, convention: str, backend: Any) -> None:
    """Chi-square over the 5 x 7 pixels of the image; odd sizes, so that the border counts."""
    size, count = (5, 7), 7000
    images = random_images(count, size, 1)
    lam = 0.9 if method == "gmix" else 0.8
    result = run_mix(method, images, lam=lam, convention=convention, seed=6, backend=backend)
    if method == "gmix":
        # The own weight is smallest at the centre of the partner's blob.
        flat = result.mask.reshape(count, -1).argmin(axis=1)
        rows, columns = np.divmod(flat, size[1])
    else:
        # sides int(5 * 0.447) = 2, int(7 * 0.447) = 3: rows cy - 1 and cy, columns cx - 1 and cx, so that
        # the last row and column of the box are the centre.
        hole = result.mask[..., 0] == 0
        rows = np.array([np.flatnonzero(h.any(axis=1)).max() for h in hole])
        columns = np.array([np.flatnonzero(h.any(axis=0)).max() for h in hole])
    observed = np.bincount(rows * size[1] + columns, minlength=35)
    assert stats.chisquare(observed).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_paper_box_lies_inside_and_everywhere_alike(backend: Any) -> None:
    """Equation 10: 6 x 9 image, sides 3 and 4 of lam = 0.75: 4 x 6 places, all equally likely."""
    images = random_images(6000, (6, 9), 1)
    result = run_mix("cutmix", images, lam=0.75, convention="paper", seed=9, backend=backend)
    hole = result.mask[..., 0] == 0
    assert (hole.sum(axis=(1, 2)) == 12).all()
    rows = np.array([np.flatnonzero(h.any(axis=1)).min() for h in hole])
    columns = np.array([np.flatnonzero(h.any(axis=0)).min() for h in hole])
    observed = np.bincount(rows * 6 + columns, minlength=24)
    assert len(observed) == 24
    assert stats.chisquare(observed).pvalue > SIGNIFICANCE


def test_partner_is_a_uniform_permutation() -> None:
    """All 24 permutations of a batch of 4, equally often."""
    images, labels = random_images(4, (1, 1), 1), [np.array([0], np.int32)] * 4

    def define() -> Any:
        mixed, _, params = msda.mixup(
            image_source(images, "HWC"), source(labels), num_classes=1, seed=3, return_params=True
        )
        return mixed, params.partner

    seen = [tuple(batch[1]) for batch in outputs(define, 4, batches=2400)]
    assert all(sorted(permutation) == [0, 1, 2, 3] for permutation in seen)
    counts = list({permutation: seen.count(permutation) for permutation in seen}.values())
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE


@in_every_form
@pytest.mark.parametrize("by", ["operator", "pipeline"])
def test_same_seed_same_batches(by: str, backend: Any, device: str) -> None:
    """The draws of a seed are those of the kernel in every form, so the same on every device."""
    images = random_images(8, (24, 24))

    def run(seed: int, backend: Any = backend, device: str = device) -> list[list[np.ndarray]]:
        arguments: dict[str, Any] = {"seed": seed} if by == "operator" else {}
        labels = [np.array([i], np.int32) for i in range(8)]
        return outputs(
            lambda: msda.stochastic(
                image_source(images, "HWC", device=device),
                source(labels),
                num_classes=8,
                backend=backend,
                **arguments,
            ),
            8,
            device=device,
            seed=1 if by == "operator" else seed,
            batches=3,
        )

    first, again, other = run(5), run(5), run(6)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    for a, b in zip(first, run(5, "kernel", "cpu"), strict=True):
        np.testing.assert_allclose(a[1], b[1], rtol=0, atol=3e-7)
    assert (first[0][0] != other[0][0]).any()
    assert (first[0][0] != first[1][0]).any()  # batches of one run differ, too


@pytest.mark.parametrize("seed", [None, 17])
def test_draws_are_uncorrelated(seed: int | None) -> None:
    """lam, row, column, coins and partners of one operator, and lam of two operators of one pipeline."""
    count = 4000
    images = random_images(count, (32, 32), 1)
    labels = [np.array([0], np.int32)] * count

    def define() -> Any:
        data = image_source(images, "HWC")
        results = [
            msda.gmix(
                data,
                source(labels),
                num_classes=1,
                probability=0.5,
                seed=None if seed is None else seed + i,
                return_params=True,
                alpha=1.0,
            )[2]
            for i in range(2)
        ]
        return results[0].mask, results[0].partner, results[0].lam, results[1].lam

    mask, partner, lam, other_lam = outputs(define, count)[0]
    mixed = lam < 1
    peak = np.abs(mask - mask.mean(axis=(1, 2, 3), keepdims=True)).reshape(count, -1).argmax(axis=1)
    rows, columns = np.divmod(peak, 32)
    draws = [lam[mixed], rows[mixed], columns[mixed], partner[mixed], np.arange(count)[mixed]]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert stats.spearmanr(a, b).pvalue > SIGNIFICANCE
    both = mixed & (other_lam < 1)
    assert stats.spearmanr(lam[both], other_lam[both]).pvalue > SIGNIFICANCE
    # The coin that decides whether a sample is mixed is independent of its partner.
    assert stats.mannwhitneyu(partner[mixed], partner[~mixed]).pvalue > SIGNIFICANCE


def test_every_random_operator_has_a_seed_of_its_own() -> None:
    """One seed for several DALI operators correlates them, in ways that a rank test may miss."""
    seeds = [_draws._seed(seed, stream)["seed"] for seed in range(50) for stream in range(6)]
    assert len(set(seeds)) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_operators_of_one_pipeline_draw_differently() -> None:
    """Without own seeds, two operators do not have the same draws."""
    images, labels = random_images(64, (4, 4)), [np.array([0], np.int32)] * 64

    def define() -> Any:
        data = image_source(images, "HWC")
        return tuple(
            msda.mixup(data, source(labels), num_classes=1, return_params=True)[2].lam for _ in range(2)
        )

    first, second = build(define, 64).run()
    assert (np.array(first.as_array()) != np.array(second.as_array())).mean() > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seeds_of_one_operator_differ(backend: Any) -> None:
    """Both lams of "stochastic", the uniform draws and the partners."""
    with Pipeline(4, 1, None):
        data, labels = image_source(random_images(4, (4, 4)), "HWC"), source([np.array([0], np.int32)] * 4)
        outputs = msda.stochastic(data, labels, num_classes=1, seed=3, backend=backend)
    seeds = [
        operator._op._init_args["seed"]
        for operator in operators(outputs)
        if "seed" in getattr(operator._op, "_init_args", {})
    ]
    assert len(seeds) == len(set(seeds)) == 4
