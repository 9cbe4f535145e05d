"""The kernel as DALI calls it: tables of pointers, and no read where the partner may no longer be."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from dali_msda.backends.numba.builders import build_mix
from dali_msda.backends.numba.compiled import RUN, compiled
from dali_msda.fault_codes import IMAGES_MOVED, SIZES_DIFFER

Tables = tuple[int, int, int, int]
Image = np.ndarray[Any, Any]


def tables(arrays: list[np.ndarray], kept: list[np.ndarray]) -> Tables:
    """Pointers to data, shapes and numbers of dimensions, and the number of arrays, as DALI passes them."""
    shapes = [np.array(array.shape, np.int64) for array in arrays]
    data = np.array([array.ctypes.data for array in arrays], np.int64)
    pointers = np.array([shape.ctypes.data for shape in shapes], np.int64)
    dimensions = np.array([array.ndim for array in arrays], np.int32)
    kept += [*shapes, data, pointers, dimensions]
    return data.ctypes.data, pointers.ctypes.data, dimensions.ctypes.data, len(arrays)


def mixed(own: Image, partner: Image, own_address: int) -> tuple[Image, int]:
    """Run the compiled entry point with a mask of 0, which shows only the partner: image and fault."""
    weights = np.zeros(2 + own.shape[0] + own.shape[1], np.float32)
    weights[1] = own.shape[0]
    view = np.array([own_address, partner.ctypes.data, *partner.shape], np.int64)
    out, fault, lam = np.zeros_like(own), np.zeros(1, np.int32), np.zeros(1, np.float32)
    kept: list[np.ndarray] = []
    run = ctypes.CFUNCTYPE(None, *([ctypes.c_uint64] * 3 + [ctypes.c_int32]) * 2)(
        compiled(build_mix, RUN, np.uint8 if own.dtype == np.uint8 else np.float32, False, False).address
    )
    inputs = [own, weights, view, np.zeros(0, np.uint8), np.zeros(2, np.uint8)]  # no layout, no flags
    run(*tables([out, fault, lam], kept), *tables(inputs, kept))
    return out, int(fault[0])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_partner_is_read_where_its_view_says(dtype: str) -> None:
    own, partner = np.full((5, 4, 3), 7, np.dtype(dtype)), np.full((5, 4, 3), 200, np.dtype(dtype))
    out, fault = mixed(own, partner, own.ctypes.data)
    assert fault == 0
    np.testing.assert_array_equal(out, partner)


def test_a_partner_of_another_shape_is_a_fault() -> None:
    own, partner = np.full((5, 4, 3), 7, np.uint8), np.full((4, 5, 3), 200, np.uint8)
    assert mixed(own, partner, own.ctypes.data)[1] == SIZES_DIFFER


def test_images_that_moved_are_a_fault_and_nothing_else_is_read() -> None:
    """The views have other addresses than the images, so the partner's may be wrong too."""
    own, partner = np.full((5, 4, 3), 7, np.uint8), np.full((5, 4, 3), 200, np.uint8)
    out, fault = mixed(own, partner, own.copy().ctypes.data)
    assert fault == IMAGES_MOVED
    np.testing.assert_array_equal(out, own)
