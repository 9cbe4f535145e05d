"""Promises of the operators besides the masks: any batch size, identity, labels, the caller's draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types

import dali_msda as msda
from dali_msda.methods import MIXING
from tests import reference
from tests.devices import array, device_id, in_every_form, on_each_device, placed
from tests.running import build, image_source, mix_nodes, outputs, random_images, results, run_mix, source


def test_methods_are_listed_and_each_has_a_function() -> None:
    assert msda.METHODS == ("none", "mixup", "cutmix", "stochastic", "hmix", "gmix")
    assert all(callable(getattr(msda, name)) for name in MIXING)


@in_every_form
@pytest.mark.parametrize("method", MIXING)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_batch_size(count: int, method: str, backend: Any, device: str) -> None:
    images = random_images(count, (9, 14))
    result = run_mix(method, images, backend=backend, device=device)
    assert sorted(result.partner) == list(range(count))
    for i in range(count):
        exact = reference.blend(images[i], images[result.partner[i]], result.mask[i, :, :, 0])
        assert np.abs(result.images[i] - exact).max() <= 0.5 + 1e-4
        targets = reference.targets(i, int(result.partner[i]), float(result.lam[i]), 10)
        np.testing.assert_allclose(result.targets[i], targets, rtol=0, atol=1e-6)


@in_every_form
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("method", MIXING)
def test_a_batch_of_one_comes_back_as_it_is(method: str, dtype: type, backend: Any, device: str) -> None:
    images = random_images(1, (20, 20), dtype=dtype)
    result = run_mix(method, images, [3], backend=backend, device=device)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_allclose(result.targets[0], np.eye(10)[3], rtol=0, atol=1e-7)


@in_every_form
@pytest.mark.parametrize("method", MIXING)
def test_short_last_batch(method: str, backend: Any, device: str) -> None:
    """DALI takes batches below the maximum; the permutation is then one of the short batch."""
    sizes = iter([5, 2, 1])
    images = random_images(5, (8, 8))

    def batches() -> Any:
        for count in sizes:
            yield list(images[:count]), [np.array([i], np.int32) for i in range(count)]

    def define() -> Any:
        data, labels = fn.external_source(source=batches(), num_outputs=2, dtype=[types.UINT8, types.INT32])
        mixed, targets, params = msda.mix(
            placed(fn.reshape(data, layout="HWC"), device),
            labels,
            method=method,
            num_classes=5,
            backend=backend,
            return_params=True,
        )
        return mixed, targets, params.partner, params.mask

    pipeline = build(define, 5, device=device)
    for count in (5, 2, 1):
        mixed, targets, partner, mask = (array(tensors) for tensors in pipeline.run())
        assert sorted(partner) == list(range(count))
        for i in range(count):
            exact = reference.blend(images[i], images[partner[i]], mask[i, :, :, 0])
            assert np.abs(mixed[i] - exact).max() <= 0.5 + 1e-4
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=0, atol=1e-6)


@in_every_form
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("method", MIXING)
def test_probability_zero_is_the_identity(method: str, dtype: type, backend: Any, device: str) -> None:
    images = random_images(6, (16, 11), dtype=dtype)
    result = run_mix(method, images, backend=backend, device=device, probability=0.0, lam=0.3)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.targets, np.eye(10, dtype=np.float32)[:6])
    np.testing.assert_array_equal(result.mask, 1)
    np.testing.assert_array_equal(result.lam, 1)


@in_every_form
def test_probability_is_the_share_of_mixed_samples(backend: Any, device: str) -> None:
    images = random_images(2000, (2, 2), 1)
    result = run_mix("mixup", images, backend=backend, device=device, probability=0.3, lam=0.5)
    mixed = result.lam == 0.5
    assert set(np.unique(result.lam)) == {np.float32(0.5), np.float32(1.0)}
    assert abs(mixed.sum() - 600) < 4 * np.sqrt(2000 * 0.3 * 0.7)


@in_every_form
@pytest.mark.parametrize("method", MIXING)
def test_lam_one_is_own_and_lam_zero_is_partner(method: str, backend: Any, device: str) -> None:
    images = random_images(6, (16, 16))
    # With an even size and the centre in the middle, the box of lam = 0 covers the whole image.
    ratio = 1.0 if method == "hmix" else None

    def define() -> Any:
        common: dict[str, Any] = {"backend": backend, "device": device}
        nothing: dict[str, Any] = {"lam": 0.0, "center": (8, 8), "ratio": ratio}
        return *mix_nodes(method, images, lam=1, **common), *mix_nodes(method, images, **nothing, **common)

    own, partner = results(build(define, 6, device=device))
    np.testing.assert_array_equal(own.images, images)
    np.testing.assert_array_equal(own.lam, 1)
    np.testing.assert_array_equal(partner.images, images[partner.partner])
    np.testing.assert_array_equal(partner.lam, 0)


@in_every_form
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("method", MIXING)
def test_targets_with_equal_labels(method: str, smoothing: float, backend: Any, device: str) -> None:
    """Equal labels add up (they would overwrite each other in a scatter), and rows sum to 1."""
    result = run_mix(
        method,
        random_images(8, (8, 8)),
        [2] * 8,
        backend=backend,
        device=device,
        label_smoothing=smoothing,
    )
    expected = np.full(10, smoothing / 10)
    expected[2] += 1 - smoothing
    np.testing.assert_allclose(result.targets, np.tile(expected, (8, 1)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.targets.sum(axis=1), 1, rtol=0, atol=1e-6)


@in_every_form
@pytest.mark.parametrize("method", MIXING)
def test_batch_granularity_shares_every_draw(method: str, backend: Any, device: str) -> None:
    images = random_images(12, (20, 24))
    arguments: dict[str, Any] = {"granularity": "batch", "probability": 0.9, "seed": 3}

    def define() -> Any:
        return mix_nodes(method, images, backend=backend, device=device, **arguments)

    pipeline = build(define, 12, device=device)
    shared = [results(pipeline)[0] for _ in range(12)]
    for result in shared:
        assert (result.mask == result.mask[0]).all()
        assert (result.lam == result.lam[0]).all()
        assert sorted(result.partner) == list(range(12))
    assert len({float(result.lam[0]) for result in shared}) > 6
    single = run_mix(method, images, backend=backend, device=device)
    assert len(np.unique(single.lam)) > 6


@in_every_form
def test_none_leaves_images_and_makes_one_hot_targets(backend: Any, device: str) -> None:
    images = random_images(5, (6, 7))
    result = run_mix("none", images, [4, 0, 1, 9, 4], backend=backend, device=device, label_smoothing=0.2)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.mask, 1)
    np.testing.assert_array_equal(result.lam, 1)
    np.testing.assert_allclose(result.targets, 0.8 * np.eye(10)[[4, 0, 1, 9, 4]] + 0.02, rtol=0, atol=1e-6)
    plain = outputs(
        lambda: msda.mix(
            image_source(images, "HWC", device=device),
            source([np.int64(label) for label in (4, 0, 1, 9, 4)]),
            method="none",
            num_classes=10,
            label_smoothing=0.2,
        ),
        5,
        device=device,
    )[0]
    np.testing.assert_array_equal(plain[0], images)
    np.testing.assert_array_equal(plain[1], result.targets)


@in_every_form
@pytest.mark.parametrize("method", MIXING)
def test_functions_and_mix_are_the_same(method: str, backend: Any, device: str) -> None:
    """``msda.hmix(...)`` and ``msda.mix(..., method="hmix")``: same defaults, same draws, two results."""
    images = random_images(6, (12, 12))

    def define() -> Any:
        data = image_source(images, "HWC", device=device)
        labels = source([np.array([i], np.int32) for i in range(6)])
        arguments: dict[str, Any] = {"num_classes": 6, "seed": 8, "backend": backend}
        return (
            *getattr(msda, method)(data, labels, **arguments),
            *msda.mix(data, labels, method=method, **arguments),
        )

    images_a, targets_a, images_b, targets_b = outputs(define, 6, device=device)[0]
    np.testing.assert_array_equal(images_a, images_b)
    np.testing.assert_array_equal(targets_a, targets_b)
    assert (images_a != images).any()


@on_each_device
def test_numbers_and_nodes_give_the_same(device: str) -> None:
    images = random_images(4, (30, 30))
    numbers = run_mix("hmix", images, lam=0.36, ratio=0.7, center=(11, 20), partner=2, device=device)
    nodes = run_mix(
        "hmix",
        images,
        lam=np.full(4, 0.36),
        ratio=np.full((4, 1), 0.7),
        center=np.tile([11, 20], (4, 1)),
        partner=np.full(4, 2, np.int64),
        device=device,
    )
    for a, b in zip(numbers[:5], nodes[:5], strict=True):
        np.testing.assert_array_equal(a, b)
    assert (numbers.partner == 2).all()


def test_alpha_can_be_a_node() -> None:
    """Different alphas: small values give lam near 0 or 1, large ones near a half."""
    alpha = np.repeat([0.01, 500.0], 200).astype(np.float32)
    result = run_mix("mixup", random_images(400, (1, 1), 1), alpha=alpha)
    assert np.abs(result.lam[:200] - 0.5).mean() > 0.45
    assert np.abs(result.lam[200:] - 0.5).max() < 0.1


def test_lam_of_a_node_is_clipped() -> None:
    result = run_mix("cutmix", random_images(3, (8, 8)), lam=np.array([-0.5, 1.5, 7.0]), center=(4, 4))
    np.testing.assert_array_equal(result.lam, [0, 1, 1])


@in_every_form
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_labels_of_every_integer_type(dtype: type, shape: tuple[int, ...], backend: Any, device: str) -> None:
    images = random_images(3, (4, 4))
    labels: list[np.ndarray] = [np.full(shape, i, dtype) for i in range(3)]
    targets = outputs(
        lambda: msda.mixup(
            image_source(images, "HWC", device=device),
            source(labels),
            num_classes=3,
            lam=0.75,
            partner=1,
            backend=backend,
        ),
        3,
        device=device,
    )[0][1]
    expected = 0.75 * np.eye(3) + 0.25 * np.eye(3)[1]
    np.testing.assert_allclose(targets, expected, rtol=0, atol=1e-7)


def test_one_class() -> None:
    result = run_mix("hmix", random_images(4, (8, 8)), [0] * 4, num_classes=1, label_smoothing=0.3)
    np.testing.assert_allclose(result.targets, 1, rtol=0, atol=1e-7)


@in_every_form
def test_inside_a_pipeline_with_conditionals(backend: Any, device: str) -> None:
    """DALI's ``if`` rewrites the pipeline's functions, ours included; same seed, same result."""
    images = random_images(8, (12, 12))

    def define(branch: bool) -> Any:
        data = image_source(images, "HWC", device=device)
        labels = source([np.array([i], np.int32) for i in range(8)])
        if branch:
            flip = fn.random.coin_flip(dtype=types.BOOL)
            if flip:  # noqa: SIM108 (DALI's if, not Python's)
                data = fn.flip(data)
            else:
                data = fn.copy(data)
        return msda.hmix(data, labels, num_classes=8, seed=3, backend=backend)

    plain = outputs(lambda: define(False), 8, device=device)[0]
    conditional = pipeline_def(
        define, batch_size=8, num_threads=2, device_id=device_id(device), enable_conditionals=True
    )
    with_branch = conditional(True)
    with_branch.build()
    mixed, targets = (array(tensors) for tensors in with_branch.run())
    np.testing.assert_array_equal(targets, plain[1])
    assert (mixed != plain[0]).any()
    without = conditional(False)
    without.build()
    np.testing.assert_array_equal(array(without.run()[0]), plain[0])
