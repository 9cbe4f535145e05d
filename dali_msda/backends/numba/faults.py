"""Finds why the images of a batch cannot be mixed, in compiled code, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from ...checks import LONGEST_SIDE, with_layout
from ...fault_codes import LAYOUT_DIFFERS, MASK_DIFFERS, SIZES_DIFFER
from ...layouts import is_sequence
from .compat import CompiledOperator
from .compiled import RUN_BATCH, SETUP, compiled, integers
from .intrinsics import address_as_void_pointer

_LETTER_C, _LETTER_H = ord("C"), ord("H")


def shape_of(images: DataNode, layout: str) -> DataNode:
    """An empty array on the CPU with the shape of an image, or a frame, and a fourth side of 0: uint8."""
    if is_sequence(layout):
        shape = with_layout(images, layout).shape(dtype=types.INT32)
        return _empty(fn.slice(shape, start=[1], shape=[3], axes=[0]), 3)
    shape = images.shape(dtype=types.INT32)
    return _empty(shape, 3)  # layout must have a letter for each dimension of the images


def _empty(shape: DataNode, sides: int) -> DataNode:
    nothing = types.Constant(np.zeros([*[LONGEST_SIDE] * sides, 0], np.uint8), device="cpu")
    return fn.slice(nothing, start=[0] * sides, shape=shape, axes=list(range(sides)))


def _build_faults(version: int, height_axis: int, sources: int, mask_parts: int) -> Callable[..., None]:
    letter = _LETTER_C if height_axis == 1 else _LETTER_H
    of_mask = 3 + sources
    inputs = of_mask + mask_parts
    of_partner = 3 * sources  # without a second source the partner's shape is one of the first input

    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        partners, image_shapes = integers(data, 2 * samples), integers(shapes, inputs * samples)
        for sample in range(samples):
            partner = carray(address_as_void_pointer(partners[samples + sample]), 1, np.int32)[0]
            indices = carray(address_as_void_pointer(integers(out, samples)[sample]), 1, np.int32)
            fault = carray(address_as_void_pointer(integers(out, 2 * samples)[samples + sample]), 1, np.int32)
            indices[0], fault[0] = partner, 0
            own = integers(image_shapes[sample], 3)
            if 0 <= partner < samples:  # else the permutation stops the pipeline
                other = integers(image_shapes[of_partner * samples + partner], 3)
                if own[0] != other[0] or own[1] != other[1] or own[2] != other[2]:
                    fault[0] = SIZES_DIFFER
            letters = integers(image_shapes[2 * samples + sample], 1)[0]
            if fault[0] == 0 and letters > 0:
                address = integers(data, 3 * samples)[2 * samples + sample]
                if carray(address_as_void_pointer(address), 1, np.uint8)[0] != letter:
                    fault[0] = LAYOUT_DIFFERS
            if fault[0] == 0 and mask_parts > 0:
                # Height and width of a dense mask, or the lengths of its rows and of its columns.
                first, last = (
                    image_shapes[of_mask * samples + sample],
                    image_shapes[(inputs - 1) * samples + sample],
                )
                height, width = integers(first, 1)[0], integers(last, 3 - mask_parts)[2 - mask_parts]
                if height != own[height_axis] or width != own[height_axis + 1]:
                    fault[0] = MASK_DIFFERS

    return run


def _build_faults_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            integers(integers(out_shapes, samples)[sample], 1)[0] = 1
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1

    return setup


def find_faults(
    shape: DataNode,
    partner: DataNode,
    layout: str,
    letters: DataNode,
    *,
    source: DataNode | None = None,
    mask: Sequence[DataNode] = (),
) -> tuple[DataNode, DataNode]:
    """Find why an image and its partner cannot be mixed.

    Parameters
    ----------
    shape : DataNode
        From :func:`shape_of`.
    partner : DataNode
        Index within the batch, int32 scalar, CPU.
    layout : {"HWC", "CHW"}
    letters : DataNode
        The layout that DALI has for the images, uint8 [n], CPU; may be empty.
    source : DataNode, optional
        :func:`shape_of` the images that partners come from, where those are others.
    mask : sequence of DataNode, optional
        A caller's mask, whose size must be that of the images: rows [H] and columns [W], float32 on the CPU;
        or [H, W] on any device.

    Returns
    -------
    indices, fault : DataNode
        int32 [1]: `partner`, and 0 or one of the faults of :mod:`dali_msda.fault_codes`.
    """
    sources = [] if source is None else [source]
    on_gpu = any(node.device == "gpu" for node in mask)
    parts = [_empty(node.shape(dtype=types.INT32), 2) for node in mask] if on_gpu else mask
    operator = CompiledOperator(
        run_fn=compiled(_build_faults, RUN_BATCH, layout.index("H"), len(sources), len(mask)),
        setup_fn=compiled(_build_faults_shapes, SETUP),
        batch_processing=True,
        out_types=[types.INT32, types.INT32],
        outs_ndim=[1, 1],
        in_types=[
            types.UINT8,
            types.INT32,
            types.UINT8,
            *[types.UINT8] * len(sources),
            *[types.UINT8 if on_gpu else types.FLOAT] * len(mask),
        ],
        ins_ndim=[4, 0, 1, *[4] * len(sources), *[3 if on_gpu else 3 - len(mask)] * len(mask)],
    )
    indices, fault = operator(shape, partner, letters, *sources, *parts)
    return indices, fault
