"""The compiled kernel on plain arrays: rounding to the last bit, and no read past a smaller partner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dali_msda as msda
from dali_msda import draws as slot
from dali_msda.backends.numba.kernels import _fill_mask, mix_image, write_targets
from dali_msda.checks import LAYOUT_DIFFERS, SIZES_DIFFER

NO_LAYOUT = np.zeros(0, np.uint8)


def draws(method: str, lam: float, **values: float) -> np.ndarray:
    vector = np.zeros(slot.SLOTS)
    vector[slot.LAM] = lam
    vector[slot.RATIO] = 0.5
    vector[slot.PROBABILITY] = 1.0
    vector[slot.PI] = np.pi
    vector[slot.METHOD] = msda.METHODS.index(method)
    for name, value in values.items():
        vector[getattr(slot, name)] = value
    return vector


def mixed(own: np.ndarray, partner: np.ndarray, vector: np.ndarray, layout: Any = NO_LAYOUT) -> Any:
    out, info, fault = np.zeros_like(own), np.zeros(2, np.float32), np.zeros(1, np.int32)
    mix_image(out, info, fault, own, vector, partner, layout)
    return out, float(info[0]), int(fault[0])


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 1.0])
def test_every_pair_of_uint8_is_rounded_to_the_nearest(lam: float) -> None:
    """All 65536 pairs: the nearest integer to the float32 value, halves up."""
    own, partner = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    own, partner = (np.ascontiguousarray(values[..., None]) for values in (own, partner))
    out, weight, _ = mixed(own, partner, draws("mixup", lam))
    assert weight == np.float32(lam)
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
    out, _, fault = mixed(own, np.full(partner_shape, 200, np.uint8), draws("mixup", 0.5))
    assert fault == SIZES_DIFFER
    np.testing.assert_array_equal(out, own)


@pytest.mark.parametrize(("layout", "first"), [("HWC", 0.0), ("CHW", 1.0)])
def test_layout_is_compared_where_there_is_one(layout: str, first: float) -> None:
    own = np.full((3, 3, 3), 9, np.uint8)
    vector = draws("mixup", 0.5, CHANNELS_FIRST=first)
    other = "CHW" if layout == "HWC" else "HWC"
    assert mixed(own, own, vector, np.frombuffer(layout.encode(), np.uint8))[2] == 0
    assert mixed(own, own, vector, np.frombuffer(other.encode(), np.uint8))[2] == LAYOUT_DIFFERS
    assert mixed(own, own, vector)[2] == 0


def test_equal_float_pixels_stay() -> None:
    """w * x + (1 - w) * x is not x in float32; equal pixels are kept as they are."""
    own = np.random.default_rng(0).normal(size=(64, 64, 3)).astype(np.float32)
    for lam in (0.1, 0.3, 0.7):
        weight = np.float32(lam)
        assert (weight * own + (np.float32(1) - weight) * own != own).any()
        np.testing.assert_array_equal(mixed(own, own.copy(), draws("mixup", lam))[0], own)


def test_targets_of_labels_out_of_range_are_not_written() -> None:
    """The graph stops at such a label; until then nothing is written past the end."""
    buffer = np.full(14, -1, np.float32)
    info = np.array([0.3, 0.0], np.float32)
    for own, other in ((10, 1), (1, 10), (-1, 1), (2**30, -(2**30))):
        write_targets(buffer[2:12], info, np.array([own], np.int32), np.array([other], np.int32))
        np.testing.assert_array_equal(buffer, [-1, -1] + [0] * 10 + [-1, -1])


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", msda.METHODS)
def test_every_method_writes_the_whole_mask(method: str, lam: float) -> None:
    """The buffers hold whatever lay in memory before."""
    rows, columns = np.full(6, np.nan), np.full(9, np.nan)
    base, weight = _fill_mask(draws(method, lam, SWITCH_PROBABILITY=0.5), rows, columns)
    assert np.isfinite([*rows, *columns, base, weight]).all()
