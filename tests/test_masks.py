"""Masks, labels and images of every method, compared with the NumPy reference through real pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dali_msda.methods import MIXING
from tests import reference
from tests.devices import in_every_form, on_each_device, with_device
from tests.running import ONE_MASK, build, mix_nodes, random_images, results, run_mix

SIZES = [(1, 1), (2, 3), (5, 5), (7, 12), (32, 32), (33, 20), (64, 64)]
LAMS = [0.0, 1e-6, 0.1, 0.25, 0.36, 0.4999999, 0.5, 0.65, 0.75, 0.9, 0.999999, 1.0]


def draws(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """lam, ratio, centre and partner for a batch: every lam of LAMS and the same number of random ones."""
    rng = np.random.default_rng(seed)
    lam = np.concatenate([LAMS, rng.uniform(size=len(LAMS))])
    ratio = rng.choice([0.0, 0.5, 0.75, 1.0, 0.3141], len(lam))
    center = np.stack([rng.integers(0, size[0], len(lam)), rng.integers(0, size[1], len(lam))], axis=1)
    return lam, ratio, center, rng.permutation(len(lam)).astype(np.int32)


def assert_rounded(image: np.ndarray, exact: np.ndarray) -> None:
    """The image has the nearest integers; if two are equally near to float32 precision, either."""
    assert np.abs(image - exact).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("convention", ["reference", "paper"])
@pytest.mark.parametrize("method", ONE_MASK)
@with_device("size", SIZES, [(1, 1), (7, 12), (33, 20)])
def test_mask_label_and_image(size: tuple[int, int], device: str, method: str, convention: str) -> None:
    """Every backend, in one pipeline."""
    lam, ratio, center, partner = draws(size, seed=7)
    images = random_images(len(lam), size)
    labels = [i % 4 for i in range(len(lam))]
    backends = ("kernel", "hybrid", "graph") if device == "cpu" else ("hybrid", "graph")
    common: dict[str, Any] = {
        "num_classes": 4,
        "lam": lam,
        "center": center,
        "partner": partner,
        "convention": convention,
        "device": device,
        "label_smoothing": 0.1,
        "ratio": ratio if method == "hmix" else None,
    }

    def define() -> list[Any]:
        return [
            node
            for backend in backends
            for node in mix_nodes(method, images, labels, backend=backend, **common)
        ]

    found = results(build(define, len(images), device=device))
    for result in found:
        assert result.layout == "HWC"
        np.testing.assert_array_equal(result.partner, partner)
    for i in range(len(lam)):
        mask = reference.mask(
            method, size, lam[i], center=tuple(center[i]), ratio=ratio[i], convention=convention
        )
        blended = reference.blend(images[i], images[partner[i]], mask)
        targets = reference.targets(labels[i], labels[partner[i]], mask.mean(), 4, 0.1)
        for backend, result in zip(backends, found, strict=True):
            own = result.mask[i].astype(np.float64)
            np.testing.assert_allclose(own[:, :, 0], mask, rtol=0, atol=2e-7, err_msg=backend)
            np.testing.assert_allclose(result.lam[i], mask.mean(), rtol=0, atol=5e-7, err_msg=backend)
            np.testing.assert_allclose(result.lam[i], own.mean(), rtol=0, atol=5e-7, err_msg=backend)
            assert_rounded(result.images[i], blended)
            np.testing.assert_allclose(result.targets[i], targets, rtol=0, atol=1e-6, err_msg=backend)


@in_every_form
def test_boxes_at_the_edge_of_rounding(backend: str, device: str) -> None:
    """Sides that are whole numbers up to rounding: the box must be that of float64, pixel for pixel.

    In float32 the side of the second case, 112.00000000000003, falls below 112, and the box loses a row.
    """
    for side, lam, ratio in [(224, 0.25, 0.75), (224, 0.5, 0.5), (64, 0.5, 0.5), (100, 0.36, 1.0)]:
        images = random_images(2, (side, side))
        center = (side // 2, side // 2)
        result = run_mix(
            "hmix", images, lam=lam, ratio=ratio, center=center, partner=1, backend=backend, device=device
        )
        expected = reference.mask("hmix", (side, side), lam, center=center, ratio=ratio)
        np.testing.assert_allclose(result.mask[0, :, :, 0], expected, rtol=0, atol=2e-7)
        assert (expected == 0).sum() == (result.mask[0] == 0).sum()


@in_every_form
@pytest.mark.parametrize("convention", ["reference", "paper"])
def test_stochastic_is_mixup_or_cutmix(convention: str, backend: str, device: str) -> None:
    size = (24, 17)
    lam, _, center, partner = draws(size, seed=3)
    images = random_images(len(lam), size)
    result = run_mix(
        "stochastic",
        images,
        lam=lam,
        center=center,
        partner=partner,
        convention=convention,
        backend=backend,
        device=device,
    )
    chosen = []
    for i in range(len(lam)):
        masks = [
            reference.mask(
                "stochastic", size, lam[i], center=tuple(center[i]), convention=convention, use_mixup=m
            )
            for m in (True, False)
        ]
        errors = [np.abs(result.mask[i, :, :, 0] - mask).max() for mask in masks]
        assert min(errors) < 2e-7
        chosen.append(int(np.argmin(errors)))
        mask = masks[chosen[-1]]
        np.testing.assert_allclose(result.lam[i], mask.mean(), rtol=0, atol=5e-7)
        assert_rounded(result.images[i], reference.blend(images[i], images[partner[i]], mask))
    assert set(chosen) == {0, 1}


@on_each_device
@pytest.mark.parametrize("convention", ["reference", "paper"])
@pytest.mark.parametrize("method", MIXING)
def test_kernel_and_graph_agree(method: str, convention: str, device: str) -> None:
    """Both forms make the same draws: weights agree to float32 rounding, and so pixels almost always."""
    images = random_images(16, (48, 37))
    common: dict[str, Any] = {"convention": convention, "seed": 11, "probability": 0.8}
    kernel = run_mix(method, images, backend="kernel", **common)
    graph = run_mix(method, images, backend="graph", device=device, **common)
    np.testing.assert_array_equal(kernel.partner, graph.partner)
    np.testing.assert_allclose(kernel.mask, graph.mask, rtol=0, atol=1.2e-7)
    np.testing.assert_allclose(kernel.lam, graph.lam, rtol=0, atol=2e-7)
    np.testing.assert_allclose(kernel.targets, graph.targets, rtol=0, atol=3e-7)
    difference = np.abs(kernel.images.astype(int) - graph.images)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4  # the weights differ in the last bit, next to a tie


@pytest.mark.parametrize("method", MIXING)
@in_every_form
def test_channels_first_equals_channels_last(method: str, backend: str, device: str) -> None:
    images = random_images(8, (19, 26))
    common: dict[str, Any] = {"seed": 4, "backend": backend, "device": device}

    def define() -> Any:
        first = images.transpose(0, 3, 1, 2).copy()
        return *mix_nodes(method, images, **common), *mix_nodes(method, first, layout="CHW", **common)

    last, first = results(build(define, 8, device=device))
    assert first.layout == "CHW"
    np.testing.assert_array_equal(first.images, last.images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(first.mask, last.mask.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(first.targets, last.targets)


@in_every_form
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("method", ["mixup", "hmix", "gmix"])
def test_dtypes(method: str, dtype: type, typed: bool, backend: str, device: str) -> None:
    """Every element type, shown by the graph or not, with one, three and four channels."""
    batches = [random_images(6, (15, 22), channels, dtype=dtype) for channels in (1, 3, 4)]

    def define() -> list[Any]:
        common: dict[str, Any] = {"seed": 2, "typed": typed, "backend": backend, "device": device}
        return [node for images in batches for node in mix_nodes(method, images, **common)]

    for images, result in zip(batches, results(build(define, 6, device=device)), strict=True):
        assert result.images.dtype == dtype
        for i in range(len(images)):
            exact = reference.blend(images[i], images[result.partner[i]], result.mask[i, :, :, 0])
            bound = {"uint8": 0.5 + 1e-4, "float16": 2e-3, "float32": 1e-6}[np.dtype(dtype).name]
            assert np.abs(result.images[i] - exact).max() <= bound
