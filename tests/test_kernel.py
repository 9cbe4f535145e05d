"""The compiled kernel on plain arrays: rounding to the last bit, and no read beyond a smaller partner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dali_msda.backends.numba.kernels import mix_image, write_targets
from dali_msda.fault_codes import LAYOUT_DIFFERS, MASK_DIFFERS, SIZES_DIFFER
from dali_msda.methods import METHODS, TABLE
from tests.kernels import NO_LAYOUT, mask_weights


def constant(own: np.ndarray, lam: float, first: bool = False) -> np.ndarray:
    """The mask of Mixup for an image."""
    size = own.shape[1:] if first else own.shape[:2]
    return mask_weights("mixup", (size[0], size[1]), lam=lam)[0]


def mixed(
    own: np.ndarray,
    partner: np.ndarray,
    weights: np.ndarray,
    layout: Any = NO_LAYOUT,
    first: bool = False,
) -> Any:
    out, fault = np.zeros_like(own), np.zeros(1, np.int32)
    mix_image(out, np.zeros(1, np.float32), fault, own, weights, partner, first, layout)
    return out, int(fault[0])


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 1.0])
def test_every_pair_of_uint8_is_rounded_to_the_nearest(lam: float) -> None:
    """All 65536 pairs: the nearest integer to the float32 value, halves up."""
    own, partner = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    own, partner = (np.ascontiguousarray(values[..., None]) for values in (own, partner))
    out, _ = mixed(own, partner, constant(own, lam))
    single = np.float32(lam) * own.astype(np.float32) + (np.float32(1) - np.float32(lam)) * partner.astype(
        np.float32
    )
    nearest = np.floor(single.astype(np.float64) + 0.5)
    np.testing.assert_array_equal(out, nearest)
    exact = np.float64(np.float32(lam)) * own + (1 - np.float64(np.float32(lam))) * partner
    assert np.abs(out - exact).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("partner_shape", [(8, 7, 3), (1, 1, 1), (2, 8, 8), (8, 8, 1), (64, 64, 3)])
def test_a_partner_of_another_size_is_not_read(partner_shape: tuple[int, int, int]) -> None:
    own = np.full((8, 8, 3), 7, np.uint8)
    out, fault = mixed(own, np.full(partner_shape, 200, np.uint8), constant(own, 0.5))
    assert fault == SIZES_DIFFER
    np.testing.assert_array_equal(out, own)


@pytest.mark.parametrize("shape", [9, 10, (4, 3)])
def test_a_mask_of_another_size_is_not_read(shape: Any) -> None:
    """A length of 10 fits the image, 2 + 3 + 5, but this mask says that the image is one pixel high."""
    own, weights = np.full((3, 5, 3), 7, np.uint8), np.ones(shape, np.float32)
    out, fault = mixed(own, np.full((3, 5, 3), 200, np.uint8), weights)
    assert fault == MASK_DIFFERS
    np.testing.assert_array_equal(out, own)


@pytest.mark.parametrize(("layout", "first"), [("HWC", False), ("CHW", True)])
def test_a_known_layout_is_compared(layout: str, first: bool) -> None:
    own = np.full((3, 3, 3), 9, np.uint8)
    weights = constant(own, 0.5)
    other = "CHW" if layout == "HWC" else "HWC"
    assert mixed(own, own, weights, np.frombuffer(layout.encode(), np.uint8), first)[1] == 0
    assert mixed(own, own, weights, np.frombuffer(other.encode(), np.uint8), first)[1] == LAYOUT_DIFFERS
    assert mixed(own, own, weights, first=first)[1] == 0


def test_equal_float_pixels_stay() -> None:
    """w * x + (1 - w) * x is not x in float32; equal pixels stay unchanged."""
    own = np.random.default_rng(0).normal(size=(64, 64, 3)).astype(np.float32)
    for lam in (0.1, 0.3, 0.7):
        weight = np.float32(lam)
        assert (weight * own + (np.float32(1) - weight) * own != own).any()
        np.testing.assert_array_equal(mixed(own, own.copy(), constant(own, lam))[0], own)


def test_targets_of_labels_out_of_range_are_not_written() -> None:
    """The graph stops at such a label; until then nothing is written beyond the end."""
    buffer = np.full(14, -1, np.float32)
    lam = np.array([0.3], np.float32)
    for own, other in ((10, 1), (1, 10), (-1, 1), (2**30, -(2**30))):
        labels = np.array([own], np.int32), np.array([other], np.int32)
        write_targets(buffer[2:12], lam, *labels, np.float32(0.0))
        np.testing.assert_array_equal(buffer, [-1, -1] + [0] * 10 + [-1, -1])


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_the_whole_mask(method: str, lam: float) -> None:
    """The buffers hold arbitrary memory before."""
    values: dict[str, Any] = {**dict.fromkeys(TABLE[method].values, 0.5), "lam": lam}
    weights, label_weight = mask_weights(method, (6, 9), fill=np.nan, **values)
    assert np.isfinite([*weights, label_weight]).all()


@pytest.mark.parametrize("method", METHODS)
def test_unmixed_samples_have_weight_one(method: str) -> None:
    values: dict[str, Any] = dict.fromkeys(TABLE[method].values, 0.25)
    weights, label_weight = mask_weights(method, (6, 9), probability=0.0, **values)
    assert weights[0] == label_weight == 1
    np.testing.assert_array_equal(weights[2:8], 0)
