"""Properties for every size, batch, type, method, convention and lam (hypothesis)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import dali_msda as msda
from dali_msda.backends.numba.kernels import mix_image, mix_normalized, write_mask
from tests import reference
from tests.devices import on_each_device
from tests.kernels import NO_LAYOUT, mask_weights
from tests.running import ONE_MASK, random_images, run_mix

CONVENTIONS = st.sampled_from(["reference", "paper"])
LAMS = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 1e-30, 1e-17, 1 - 1e-16, 0.25, 0.75, np.nextafter(0.5, 0)]),
    st.floats(0, 1),
)
GUARD = 64  # elements on either side of a buffer


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(ONE_MASK),
    convention=CONVENTIONS,
    lam=LAMS,
    ratio=LAMS,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 5),
    place=st.tuples(st.integers(-60, 60), st.integers(-60, 60)),
    dtype=st.sampled_from([np.uint8, np.float32]),
    first=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_kernel_agrees_with_the_reference_and_stays_in_its_buffers(
    method: str,
    convention: str,
    lam: float,
    ratio: float,
    height: int,
    width: int,
    channels: int,
    place: tuple[int, int],
    dtype: Any,
    first: bool,
    seed: int,
) -> None:
    """Any shape; the centre may be outside the image, as a caller's may. Guards around every buffer."""
    rng = np.random.default_rng(seed)
    shape = (channels, height, width) if first else (height, width, channels)
    size = height * width * channels

    def guarded(content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        buffer = np.full(content.size + 2 * GUARD, 77, content.dtype)
        view = buffer[GUARD:-GUARD].reshape(content.shape)
        view[...] = content
        return buffer, view

    own_buffer, own = guarded(rng.integers(0, 256, shape).astype(dtype))
    partner_buffer, partner = guarded(rng.integers(0, 256, shape).astype(dtype))
    mixed_buffer, mixed = guarded(np.zeros(shape, dtype))
    mask_buffer, mask = guarded(np.zeros((1, height, width) if first else (height, width, 1), np.float32))
    before = own_buffer.copy(), partner_buffer.copy()

    made, label_weight = mask_weights(
        method, (height, width), center=place, paper=convention == "paper", lam=lam, ratio=ratio
    )
    weights_buffer, weights = guarded(made)
    fault = np.ones(1, np.int32)
    dense_mean = np.full(1, -1, np.float32)
    mix_image(mixed, dense_mean, fault, own, weights, partner, first, NO_LAYOUT)
    write_mask(mask, weights, first)

    expected = reference.mask(method, (height, width), lam, center=place, ratio=ratio, convention=convention)
    assert fault[0] == 0
    np.testing.assert_allclose(mask.reshape(height, width), expected, rtol=0, atol=2e-7)
    assert mask.min() >= 0
    assert mask.max() <= 1
    np.testing.assert_allclose(label_weight, expected.mean(), rtol=0, atol=2e-7)
    exact = reference.blend(own, partner, expected, "CHW" if first else "HWC")
    assert np.abs(mixed - exact).max() <= (0.5 if dtype == np.uint8 else 0) + 2e-4
    buffers = [own_buffer, partner_buffer, mixed_buffer, mask_buffer, weights_buffer]
    if size <= 600:  # with a weight for every pixel, the same mask gives the same image, to the bit
        dense, again = np.ascontiguousarray(mask.reshape(height, width)), np.zeros_like(mixed)
        assert dense_mean[0] == -1
        mix_image(again, dense_mean, fault, own, dense, partner, first, NO_LAYOUT)
        np.testing.assert_array_equal(again, mixed)
        np.testing.assert_allclose(dense_mean[0], expected.mean(), rtol=0, atol=5e-7)
    if dtype == np.uint8 and not first:  # the kernel that also normalises starts from the same integers
        norm = np.stack([rng.uniform(0, 255, channels), rng.uniform(0.01, 1, channels)]).astype(np.float32)
        for channels_first in (False, True):
            buffer, out = guarded(
                np.zeros((channels, height, width) if channels_first else shape, np.float32)
            )
            mix_normalized(out, dense_mean, fault, own, weights, partner, NO_LAYOUT, norm, channels_first)
            same = (mixed.astype(np.float32) - norm[0]) * norm[1]
            np.testing.assert_array_equal(out, same.transpose(2, 0, 1) if channels_first else same)
            buffers.append(buffer)
    for buffer in buffers:
        assert (buffer[:GUARD] == 77).all()
        assert (buffer[-GUARD:] == 77).all()
    np.testing.assert_array_equal(own_buffer, before[0])
    np.testing.assert_array_equal(partner_buffer, before[1])
    assert size == own.size


@on_each_device
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(msda.METHODS),
    convention=CONVENTIONS,
    granularity=st.sampled_from(["sample", "batch"]),
    backend=st.sampled_from(["kernel", "hybrid", "graph"]),
    layout=st.sampled_from(["HWC", "CHW"]),
    dtype=st.sampled_from([np.uint8, np.float16, np.float32]),
    count=st.integers(1, 9),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    probability=st.sampled_from([0.0, 0.5, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    alpha=st.sampled_from([1e-3, 0.5, 1.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_every_combination_keeps_its_promises(
    method: str,
    convention: str,
    granularity: str,
    backend: str,
    layout: str,
    dtype: Any,
    count: int,
    size: tuple[int, int],
    probability: float,
    smoothing: float,
    alpha: float,
    seed: int,
    device: str,
) -> None:
    """Real pipelines: dtype, layout, label = mean of mask, image = blend by the mask, rows sum to 1."""
    images = random_images(count, size, dtype=dtype, seed=seed)
    if layout == "CHW":
        images = images.transpose(0, 3, 1, 2).copy()
    labels = [i % 3 for i in range(count)]
    result = run_mix(
        method,
        images,
        labels,
        num_classes=3,
        layout=layout,
        convention=convention,
        granularity=granularity,
        backend="hybrid" if device == "gpu" and backend == "kernel" else backend,
        device=device,
        probability=probability,
        label_smoothing=smoothing,
        alpha=alpha,
        seed=seed,
    )
    assert result.images.dtype == dtype
    assert result.images.shape == images.shape
    assert result.layout == layout
    assert sorted(result.partner) == list(range(count))
    bound = {"uint8": 0.5 + 2e-4, "float16": 4e-3, "float32": 2e-6}[np.dtype(dtype).name]
    for i, j in zip(range(count), result.partner, strict=True):
        mask = result.mask[i].astype(np.float64).reshape(size)
        assert mask.min() >= 0
        assert mask.max() <= 1
        np.testing.assert_allclose(result.lam[i], mask.mean(), rtol=0, atol=5e-7)
        exact = reference.blend(images[i], images[j], mask, layout)
        assert np.abs(result.images[i].astype(np.float64) - exact).max() <= bound
        expected = reference.targets(labels[i], labels[j], mask.mean(), 3, smoothing)
        np.testing.assert_allclose(result.targets[i], expected, rtol=0, atol=1e-6)
    if granularity == "batch":
        for a, b in itertools.pairwise(result.mask):
            np.testing.assert_array_equal(a, b)
