"""Masks for images that DALI's operators mix: made by the kernels, shaped to broadcast over the images.

The images may be on the GPU, where no kernel can read them. In their place comes an empty array that has
their shape: :func:`.faults.shape_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import types
from nvidia.dali.pipeline import DataNode

from ...arguments import DrawArguments
from ...draws import Draws
from ...masks import Dense, Separable
from .builders import numbers_of
from .compat import CompiledOperator
from .compiled import RUN, SETUP, compiled, data_of, integers, shape1, shape2, shape4
from .drawn import parts_of
from .formulas import fingerprint
from .kernels import inputs_of, join_mask, mask_writer

# `compiled` replaces this with the kernel that writes a method's masks.
_write: Any = None


class Profiles(NamedTuple):
    """The parts of the masks of a batch, on the CPU; those that a method does not need are None."""

    lam: DataNode
    """The mean of the mask, the label weight, float32 [1]."""
    base: DataNode | None = None
    """float32 1x1x1."""
    rows: DataNode | None = None
    """Hx1x1 or 1xHx1, times the scale: float32, or for a box uint8, 1 inside."""
    columns: DataNode | None = None
    """1xWx1 or 1x1xW, like `rows`."""
    dense: DataNode | None = None
    """float32 HxWx1 or 1xHxW, clipped to [0, 1]."""


@numba.njit
def _clip_and_average(weights: Any) -> Any:
    """Clip to [0, 1] in place; return the mean, float64."""
    total = 0.0
    for y in range(weights.shape[0]):
        for x in range(weights.shape[1]):
            weights[y, x] = min(max(weights[y, x], np.float32(0.0)), np.float32(1.0))
            total += np.float64(weights[y, x])
    return total / weights.size


def _build_profiles(version: int, height_axis: int, kind: str, cut: bool, count: int) -> Callable[..., None]:
    dense, constant = kind == "dense", kind == "constant"
    element = np.uint8 if cut else np.float32

    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        sides = shape4(shapes, 0)
        height, across = sides[height_axis], sides[height_axis + 1]
        numbers = numbers_of(data, shapes, ins, count)
        lam = carray(data_of(out, 0), 1, np.float32)
        if dense:
            mask = carray(data_of(out, 1), (height, across), np.float32)
            _write(mask, lam, numbers, height, across)
            lam[0] = _clip_and_average(mask)
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


def mask_profiles(
    shape: DataNode, layout: str, draws: Draws, arguments: DrawArguments, *, cut: bool
) -> Profiles:
    """The masks of a batch from what was drawn.

    Parameters
    ----------
    shape : DataNode
        From :func:`.faults.shape_of`.
    cut : bool
        The mask is 0 inside a box and 1 outside: rows and columns as uint8, no base.
    """
    method, height_axis = arguments.entry, layout.index("H")
    parts = parts_of(draws, method)
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
            len(inputs_of(method)),
            called=("_write", mask_writer(method), fingerprint(method.mask)),
        ),
        setup_fn=compiled(_build_profiles_shapes, SETUP, height_axis, method.kind, cut),
        out_types=[types.FLOAT, *[element] * len(names)],
        outs_ndim=[1, *[3] * len(names)],
        in_types=[types.UINT8, *(part.dtype for part in parts)],
        ins_ndim=[4, *[1] * len(parts)],
    )
    lam, *nodes = operator(shape, *(part.node for part in parts))
    return Profiles(lam, **dict(zip(names, nodes, strict=True)))


def _build_given(version: int, dense: bool) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        lam = carray(data_of(out, 0), 1, np.float32)
        if dense:
            mask = carray(data_of(out, 1), shape2(shapes, 0), np.float32)
            mask[:] = carray(data_of(data, 0), shape2(shapes, 0), np.float32)
            lam[0] = _clip_and_average(mask)
        else:
            height, across = shape1(shapes, 0)[0], shape1(shapes, 1)[0]
            weights = np.empty(2 + height + across, np.float32)
            join_mask(
                weights,
                lam,
                carray(data_of(data, 2), 1, np.float64)[0],
                carray(data_of(data, 3), 1, np.float64)[0],
                carray(data_of(data, 0), height, np.float32),
                carray(data_of(data, 1), across, np.float32),
            )
            carray(data_of(out, 1), height, np.float32)[:] = weights[2 : 2 + height]
            carray(data_of(out, 2), across, np.float32)[:] = weights[2 + height :]
            carray(data_of(out, 3), 1, np.float32)[0] = weights[0]

    return run


def _build_given_shapes(version: int, height_axis: int, dense: bool) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            integers(integers(out_shapes, samples)[sample], 1)[0] = 1
            for place in range(1, outs):
                integers(integers(out_shapes, (place + 1) * samples)[place * samples + sample], 3)[:] = 1
            first = integers(integers(out_shapes, 2 * samples)[samples + sample], 3)
            if dense:
                own = integers(integers(shapes, samples)[sample], 2)
                first[height_axis], first[height_axis + 1] = own[0], own[1]
            else:
                second = integers(integers(out_shapes, 3 * samples)[2 * samples + sample], 3)
                first[height_axis] = integers(integers(shapes, samples)[sample], 1)[0]
                second[height_axis + 1] = integers(integers(shapes, 2 * samples)[samples + sample], 1)[0]

    return setup


def given_profiles(mask: Separable | Dense, layout: str, check: DataNode) -> Profiles:
    """Make the masks of a batch from the caller's nodes, on the CPU.

    `mask` is what :meth:`dali_msda.backends.Backend.given_mask` takes. `check`, int32 [1], is not read: as an
    input, it makes DALI run the check first.
    """
    dense, height_axis = isinstance(mask, Dense), layout.index("H")
    if isinstance(mask, Dense):
        names, nodes, in_types, sides = ["dense"], [mask.values], [types.FLOAT], [2]
    else:
        names, nodes = ["rows", "columns", "base"], [mask.rows, mask.columns, mask.base, mask.scale]
        in_types, sides = [types.FLOAT, types.FLOAT, types.FLOAT64, types.FLOAT64], [1, 1, 1, 1]
    operator = CompiledOperator(
        run_fn=compiled(_build_given, RUN, dense),
        setup_fn=compiled(_build_given_shapes, SETUP, height_axis, dense),
        out_types=[types.FLOAT] * (1 + len(names)),
        outs_ndim=[1, *[3] * len(names)],
        in_types=[*in_types, types.INT32],
        ins_ndim=[*sides, 1],
    )
    lam, *parts = operator(*nodes, check)
    return Profiles(lam, **dict(zip(names, parts, strict=True)))
