"""Masks for images that DALI's operators mix: made by the kernels, shaped to broadcast over the images.

The images themselves may lie on the GPU, where no kernel sees them. What comes here in their place is an
array of their shape with no element in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from ...arguments import MixArguments
from ...checks import LAYOUT_DIFFERS, SIZES_DIFFER
from ...draws import Draws
from .compat import CompiledOperator, address_as_void_pointer
from .compiled import RUN, RUN_BATCH, SETUP, compiled, data_of, integers, shape4
from .drawn import numbers_of, parts_of
from .formulas import fingerprint
from .kernels import mask_writer

# Sides of JPEG files end at 65535 pixels.
_LONGEST = 65536

_LETTER_C, _LETTER_H = ord("C"), ord("H")

# What `compiled` puts in: the kernel that writes the masks of a method.
_write: Any = None


class Profiles(NamedTuple):
    """The parts of the masks of a batch, on the CPU; what a method has no use for is None."""

    lam: DataNode
    """The mean of the mask, the label weight, float32 [1]."""
    base: DataNode | None = None
    """float32 1x1x1."""
    rows: DataNode | None = None
    """Hx1x1 or 1xHx1, with the scale in it: float32, or for a box uint8, 1 inside."""
    columns: DataNode | None = None
    """1xWx1 or 1x1xW, like `rows`."""
    dense: DataNode | None = None
    """float32 HxWx1 or 1xHxW, clipped to [0, 1]."""


def shape_of(images: DataNode) -> DataNode:
    """An array on the CPU as high, wide and deep as an image, with a fourth side of 0: uint8, no element."""
    nothing = types.Constant(np.zeros((_LONGEST, _LONGEST, _LONGEST, 0), np.uint8), device="cpu")
    shape = images.shape(dtype=types.INT32)
    return fn.slice(nothing, start=[0, 0, 0], shape=shape, axes=[0, 1, 2])  # images must be three-dimensional


@numba.njit
def _mean_clipped(weights: Any) -> Any:
    """Clip to [0, 1] in place; the mean, float64."""
    total = 0.0
    for y in range(weights.shape[0]):
        for x in range(weights.shape[1]):
            weights[y, x] = min(max(weights[y, x], np.float32(0.0)), np.float32(1.0))
            total += np.float64(weights[y, x])
    return total / weights.size


def _build_profiles(
    version: int, height_axis: int, kind: str, cut: bool, width: tuple[int, ...], total: int
) -> Callable[..., None]:
    dense, constant = kind == "dense", kind == "constant"
    element = np.uint8 if cut else np.float32

    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        sides = shape4(shapes, 0)
        height, across = sides[height_axis], sides[height_axis + 1]
        numbers = numbers_of(data, shapes, ins, width, total)
        lam = carray(data_of(out, 0), 1, np.float32)
        if dense:
            mask = carray(data_of(out, 1), (height, across), np.float32)
            _write(mask, lam, numbers, height, across)
            lam[0] = _mean_clipped(mask)
        else:
            weights = np.empty(2 + height + across, np.float32)
            _write(weights, lam, numbers, height, across)
            if constant:
                carray(data_of(out, 1), 1, np.float32)[0] = weights[0]
            else:
                rows = carray(data_of(out, 1), height, element)
                columns = carray(data_of(out, 2), across, element)
                for y in range(height):
                    rows[y] = element(-weights[2 + y]) if cut else element(weights[2 + y])
                for x in range(across):
                    columns[x] = element(weights[2 + height + x])
                if not cut:
                    carray(data_of(out, 3), 1, np.float32)[0] = weights[0]

    return run


def _build_profiles_shapes(version: int, height_axis: int, kind: str, cut: bool) -> Callable[..., None]:
    dense, constant = kind == "dense", kind == "constant"

    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            own = integers(integers(shapes, samples)[sample], 4)
            integers(integers(out_shapes, samples)[sample], 1)[0] = 1
            for place in range(1, outs):
                sides = integers(integers(out_shapes, (place + 1) * samples)[place * samples + sample], 3)
                sides[:] = 1
                if dense or (not constant and place == 1):
                    sides[height_axis] = own[height_axis]
                if dense or (not constant and place == 2):
                    sides[height_axis + 1] = own[height_axis + 1]

    return setup


def mask_profiles(shape: DataNode, draws: Draws, arguments: MixArguments, *, cut: bool) -> Profiles:
    """The masks of a batch from what was drawn.

    Parameters
    ----------
    shape : DataNode
        What :func:`shape_of` returns.
    cut : bool
        The mask is 1, and 0 inside a box: rows and columns as uint8, no base.
    """
    method, height_axis = arguments.entry, arguments.layout.index("H")
    parts = parts_of(draws)
    slots = tuple(draws.slots.items())
    names = {"dense": ["dense"], "constant": ["base"], "separable": ["rows", "columns", "base"]}[method.kind]
    names = names[:2] if cut else names
    element = types.UINT8 if cut else types.FLOAT
    operator = CompiledOperator(
        run_fn=compiled(
            _build_profiles,
            RUN,
            height_axis,
            method.kind,
            cut,
            (1, *(part.width for part in parts)),
            1 + max(draws.slots.values()),
            called=("_write", mask_writer(method, slots), fingerprint(method.mask, slots)),
        ),
        setup_fn=compiled(_build_profiles_shapes, SETUP, height_axis, method.kind, cut),
        out_types=[types.FLOAT, *[element] * len(names)],
        outs_ndim=[1, *[3] * len(names)],
        in_types=[types.UINT8, *(part.dtype for part in parts)],
        ins_ndim=[4, *[1] * len(parts)],
    )
    lam, *nodes = operator(shape, *(part.node for part in parts))
    return Profiles(lam, **dict(zip(names, nodes, strict=True)))


def _build_faults(version: int, channels_first: bool) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        partners, image_shapes = integers(data, 2 * samples), integers(shapes, 3 * samples)
        for sample in range(samples):
            partner = carray(address_as_void_pointer(partners[samples + sample]), 1, np.int32)[0]
            indices = carray(address_as_void_pointer(integers(out, samples)[sample]), 1, np.int32)
            fault = carray(address_as_void_pointer(integers(out, 2 * samples)[samples + sample]), 1, np.int32)
            indices[0], fault[0] = partner, 0
            if 0 <= partner < samples:  # else the permutation stops the pipeline
                own, other = integers(image_shapes[sample], 3), integers(image_shapes[partner], 3)
                if own[0] != other[0] or own[1] != other[1] or own[2] != other[2]:
                    fault[0] = SIZES_DIFFER
            letters = integers(image_shapes[2 * samples + sample], 1)[0]
            if fault[0] == 0 and letters > 0:
                address = integers(data, 3 * samples)[2 * samples + sample]
                first = carray(address_as_void_pointer(address), 1, np.uint8)[0]
                if first != (_LETTER_C if channels_first else _LETTER_H):
                    fault[0] = LAYOUT_DIFFERS

    return run


def _build_faults_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            integers(integers(out_shapes, samples)[sample], 1)[0] = 1
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1

    return setup


def find_faults(
    shape: DataNode, partner: DataNode, letters: DataNode, channels_first: bool
) -> tuple[DataNode, DataNode]:
    """Why an image and its partner cannot be mixed.

    Parameters
    ----------
    shape : DataNode
        What :func:`shape_of` returns.
    partner : DataNode
        Index within the batch, int32 scalar, CPU.
    letters : DataNode
        The layout that DALI has for the images, uint8 [n], CPU; may be empty.

    Returns
    -------
    indices, fault : DataNode
        int32 [1]: `partner`, and 0 or one of the faults of :mod:`dali_msda.checks`.
    """
    operator = CompiledOperator(
        run_fn=compiled(_build_faults, RUN_BATCH, channels_first),
        setup_fn=compiled(_build_faults_shapes, SETUP),
        batch_processing=True,
        out_types=[types.INT32, types.INT32],
        outs_ndim=[1, 1],
        in_types=[types.UINT8, types.INT32, types.UINT8],
        ins_ndim=[4, 0, 1],
    )
    indices, fault = operator(shape, partner, letters)
    return indices, fault
