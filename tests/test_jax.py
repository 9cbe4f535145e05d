"""Mixing of JAX arrays: masks within their bound, images and targets of the reference, jit and vmap."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dali_msda import Beta, reference
from dali_msda import jax as msda
from tests.trainer_process import ROOT

KEY = jax.random.key(3)
SIZE, COUNT, CLASSES = (12, 16), 4, 5
LABELS = np.array([0, 3, 3, 4])


def random_images(kind: Any = np.uint8) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    if np.issubdtype(kind, np.integer):
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max + 1, (COUNT, *SIZE, 3)).astype(kind)
    return rng.normal(size=(COUNT, *SIZE, 3)).astype(kind)


def near_an_integer(side: float, scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Whether float32 may give a box another side."""
    exact = side * scale
    return np.abs(exact - np.round(exact)) <= side * 2.0**-21


@pytest.mark.parametrize("convention", ["reference", "paper"])
@pytest.mark.parametrize("method", ["mixup", "cutmix", "hmix", "gmix"])
def test_masks_are_within_their_bound(method: str, convention: Any) -> None:
    """For 600 draws, and those where boxes have sides that are nearly integers."""
    rng, (height, width) = np.random.default_rng(0), SIZE
    # Float32, so that both sides start from the same numbers.
    lams = rng.uniform(size=600).astype(np.float32)
    edges = (1.0 - (rng.integers(0, 17, 100) / 16.0) ** 2).astype(np.float32)
    lams = np.concatenate([lams, edges, np.array([0.0, 1.0, 0.5, 1e-6, 1.0 - 1e-6], np.float32)])
    centers = rng.integers(0, SIZE, (len(lams), 2))
    ratio: dict[str, Any] = {"ratio": 0.75} if method == "hmix" else {}
    images = np.zeros((len(lams), *SIZE, 1), np.uint8)
    params = msda.mix(
        KEY,
        images,
        method=method,
        convention=convention,
        lam=lams,
        center=centers,
        return_params=True,
        **ratio,
    )[1]
    scale = np.sqrt(1.0 - lams.astype(np.float64)) * np.sqrt(ratio.get("ratio", 1.0))
    unsure = near_an_integer(height, scale) | near_an_integer(width, scale)
    boxes = method in ("cutmix", "hmix")
    assert unsure.any()
    found, means = np.asarray(params.mask, np.float64), np.asarray(params.lam, np.float64)
    for i, lam in enumerate(lams):
        center = tuple(centers[i])
        mask = reference.mask(
            method, SIZE, lam, center=center, convention=convention, ratio=0.75 if ratio else 1.0
        )
        if boxes and unsure[i]:
            # A pixel at most on each side of the box has the weight of the other side of it.
            changed = np.abs((found[i] == 0).astype(int) - (mask == 0))
            assert changed.sum(axis=0).max() <= 2 or changed.sum(axis=1).max() <= 2
        else:
            assert np.abs(found[i] - mask).max() <= 4e-6
            assert abs(means[i] - mask.mean()) <= 4e-6


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(np.uint8, "NHWC"), (np.int16, "NCHW"), (np.float32, "NCHW"), (jnp.bfloat16, "NHWC")],
)
def test_images_and_targets_are_the_references(kind: Any, layout: str) -> None:
    images = random_images(kind)
    given = images if layout == "NHWC" else images.transpose(0, 3, 1, 2)
    mixed, targets, params = msda.mix(
        KEY, given, LABELS, num_classes=CLASSES, layout=layout, label_smoothing=0.1, return_params=True
    )
    assert mixed.dtype == kind
    assert mixed.shape == given.shape
    found = np.asarray(mixed if layout == "NHWC" else mixed.transpose(0, 2, 3, 1), np.float64)
    # Rounding: of integers, of float32 arithmetic, and to bfloat16.
    largest = np.abs(images.astype(np.float64)).max()
    integers = np.issubdtype(kind, np.integer)
    bound = (0.5 if integers else 2.0**-8 * largest if kind == jnp.bfloat16 else 0.0) + 4 * 2.0**-24 * largest
    for i, j in enumerate(np.asarray(params.partner)):
        exact = reference.blend(images[i], images[j], np.asarray(params.mask[i], np.float64))
        assert np.abs(found[i] - exact).max() <= bound
        target = reference.targets(LABELS[i], LABELS[j], float(params.lam[i]), CLASSES, 0.1)
        np.testing.assert_allclose(targets[i], target, rtol=0, atol=1e-6)


def test_compiled_and_mapped() -> None:
    """jit and vmap over keys and batches give the same."""
    mix = functools.partial(msda.mix, method="stochastic", num_classes=CLASSES, return_params=True)
    images, keys = random_images(np.float32), jax.random.split(KEY, 2)
    batches = np.stack([images, images[::-1]])
    mapped = jax.jit(jax.vmap(mix, in_axes=(0, 0, None)))(keys, batches, LABELS)
    for i in range(2):
        expected = jax.tree.leaves(mix(keys[i], batches[i], LABELS))
        for found, one in zip(jax.tree.leaves(mapped), expected, strict=True):
            np.testing.assert_allclose(found[i], one, rtol=0, atol=1e-5)
    assert not np.array_equal(mapped[0][0], mix(keys[1], images)[0])


def test_gradients() -> None:
    """Those with respect to the images are weights."""
    images = random_images(np.float32)
    mix = functools.partial(msda.mix, KEY, method="gmix", lam=0.7, return_params=True)
    mask, partner = mix(images)[1].mask, mix(images)[1].partner
    gradient = jax.grad(lambda given: mix(given)[0].sum())(images)
    expected = mask + jnp.zeros_like(mask).at[partner].add(1.0 - mask)
    np.testing.assert_allclose(gradient, jnp.repeat(expected[..., None], 3, axis=3), atol=1e-5)


def test_draws() -> None:
    """Beta(alpha, alpha) by mean and variance, the coin, a shared draw, permutations."""
    images, number = np.zeros((4000, 1, 1, 1), np.uint8), 4000
    lam = np.asarray(msda.mix(KEY, images, method="mixup", alpha=0.4, return_params=True)[1].lam)
    variance = 1.0 / (4.0 * (2.0 * 0.4 + 1.0))
    assert abs(lam.mean() - 0.5) < 4.0 * np.sqrt(variance / number)
    assert abs(lam.var() - variance) < 0.01
    some = msda.mix(KEY, images, method="mixup", probability=0.3, return_params=True)[1]
    assert abs((some.lam == 1).mean() - 0.7) < 4.0 * np.sqrt(0.21 / number)
    assert sorted(some.partner.tolist()) == list(range(number))
    shared = msda.mix(
        KEY,
        random_images(),
        method="cutmix",
        lam=0.4,
        granularity="batch",
        allow_self=False,
        return_params=True,
    )[1]
    assert (shared.mask == shared.mask[0]).all()
    assert sorted(shared.partner.tolist()) == list(range(COUNT))
    assert not (shared.partner == np.arange(COUNT)).any()
    ratio = msda.mix(KEY, random_images(), method="hmix", ratio=Beta(0.5), lam=0.5, return_params=True)[1]
    assert len(set(np.asarray(ratio.mask.max(axis=(1, 2))).tolist())) > 1


@pytest.mark.parametrize("method", ["none", "stochastic", "gmix"])
def test_without_mixing(method: str) -> None:
    images = random_images()
    cases: tuple[dict[str, Any], ...] = ({"probability": 0.0}, {"alpha": 0.0})
    for options in cases:
        mixed, params = msda.mix(KEY, images, method=method, return_params=True, **options)
        np.testing.assert_array_equal(mixed, images)
        assert (params.lam == 1).all()


def test_halves_go_away_from_zero() -> None:
    images = np.array([2, -3, 7, 8], np.int16).reshape(2, 1, 2, 1)
    mixed = msda.mix(KEY, images, method="mixup", lam=0.5, partner=np.array([1, 0]))
    assert mixed.flatten().tolist() == [5, 3, 5, 3]
    mixed = msda.mix(KEY, -images, method="mixup", lam=0.5, partner=np.array([1, 0]))
    assert mixed.flatten().tolist() == [-5, -3, -5, -3]


def test_a_pixel_without_weight_has_no_influence() -> None:
    images = random_images(np.float32)
    images[0] = np.nan
    mixed, params = msda.mix(
        KEY,
        images,
        method="cutmix",
        lam=0.5,
        center=(6, 8),
        partner=np.array([1, 0, 3, 2]),
        return_params=True,
    )
    np.testing.assert_array_equal(np.isnan(mixed[0, ..., 0]), params.mask[0] == 1)
    np.testing.assert_array_equal(np.isnan(mixed[1, ..., 0]), params.mask[1] == 0)
    assert 0 < np.isnan(mixed).sum() < mixed.size


def test_the_page_runs(photos: Path) -> None:
    """Both programs, the second with a pipeline's batches from DALI's iterator."""
    text = (ROOT / "docs/jax.md").read_text().replace("imagenet", str(photos)).replace("=256", "=6")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert np.abs(names["gradient"]).max() > 0
    batch, weights = names["batch"], names["weights"]
    assert batch["images"].shape == (6, 224, 224, 3)
    assert isinstance(batch["images"], jax.Array)
    np.testing.assert_allclose(batch["targets"].sum(axis=1), 1.0, atol=1e-5)
    assert np.abs(weights).max() > 0
    assert np.isfinite(weights).all()


IMAGES = random_images()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "mixedup"}, ValueError, "method must be one of"),
        ({"images": IMAGES[0]}, ValueError, "images must be of shape [N, H, W, C]; got [12, 16, 3]"),
        ({"layout": "HWC"}, ValueError, "layout must be one of 'NHWC', 'NCHW'; got 'HWC'"),
        ({"alpha": -1.0}, ValueError, "alpha must be at least 0; got -1.0"),
        ({"mixup_alpha": 1.0}, TypeError, "mixup_alpha must be left out with 'hmix'"),
        ({"probability": 1.5}, ValueError, "probability must be in [0, 1]; got 1.5"),
        ({"labels": LABELS}, ValueError, "num_classes must be given with class ids"),
        ({"labels": LABELS[:3], "num_classes": 5}, ValueError, "labels must be class ids [4]; got"),
        ({"labels": np.eye(4), "num_classes": 5}, ValueError, "labels must be class ids [4] or vectors of"),
        ({"labels": LABELS == 0, "num_classes": 5}, TypeError, "labels must be class ids or vectors of"),
    ],
)  # fmt: skip
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        msda.mix(KEY, **{"images": IMAGES, **options})
    assert str(caught.value).startswith(message)
