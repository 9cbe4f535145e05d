"""The kernels as DALI operators.

DALI's Numba plugin compiles the functions it is given anew for every operator of every pipeline, which
takes seconds. Here each C-callable entry point is compiled once, kept on disk by Numba between runs, and
handed to the plugin's operator as it is.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numba.core import types as numba_types
from nvidia.dali import types
from nvidia.dali.pipeline import DataNode
from nvidia.dali.plugin.numba import NumbaFunction, address_as_void_pointer

from ._checks import IMAGES_MOVED
from ._kernel import mix_image, write_mask, write_targets

_POINTER, _INT = numba_types.uint64, numba_types.int32
# DALI's calls: outputs' data, shapes and numbers of dimensions, their count, the same of the inputs; and
# shapes and dimensions of outputs, count, of inputs, count, number of samples. Run per batch has that
# number too; its tables of pointers hold all samples of the first array, then of the next.
_RUN = numba_types.void(_POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT)
_RUN_BATCH = numba_types.void(_POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT, _INT)
_SETUP = numba_types.void(_POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT, _INT)


def _source_version() -> int:
    """A number that changes with the source of the kernels, and with NUMBA_BOUNDSCHECK.

    Numba's cache notices changes of the file of the entry point only, not of what it calls, and would hand
    out code without the checks when they are asked for.
    """
    digest = hashlib.sha256(b"bounds checked" if numba.config.BOUNDSCHECK else b"")
    for name in ("_arguments", "_checks", "_draws", "_entry_points", "_formulas", "_kernel"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return int.from_bytes(digest.digest()[:4], "little")


@numba.njit
def _integers(address: int, count: int) -> Any:
    return carray(address_as_void_pointer(address), count, np.int64)


@numba.njit
def _shape1(shapes: int, index: int) -> Any:
    return (_integers(_integers(shapes, index + 1)[index], 1)[0],)


@numba.njit
def _shape3(shapes: int, index: int) -> Any:
    sides = _integers(_integers(shapes, index + 1)[index], 3)
    return sides[0], sides[1], sides[2]


@numba.njit
def _data(data: int, index: int) -> Any:
    return address_as_void_pointer(_integers(data, index + 1)[index])


# What :func:`_build_views` writes for each sample: addresses of its own image and of its partner, and the
# partner's shape.
_OWN_ADDRESS, _PARTNER_ADDRESS, _PARTNER_SHAPE, _VIEW = 0, 1, 2, 5


# Every builder below makes a function that closes over numbers and types alone: what a function closes over
# is part of its key in Numba's cache, and the version has to be.
def _build_mix(version: int, element: type) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        fault = carray(_data(out, 2), _shape1(out_shapes, 2), np.int32)
        own = carray(_data(data, 0), _shape3(shapes, 0), element)
        view = _integers(_integers(data, 3)[2], _VIEW)
        # The images lie where the views were taken, so the partner is still there too. Should DALI ever
        # move them in between, this stops the pipeline instead of reading what is no longer an image.
        moved = view[_OWN_ADDRESS] != _integers(data, 1)[0]
        address = view[_OWN_ADDRESS] if moved else view[_PARTNER_ADDRESS]
        shape = view[_PARTNER_SHAPE], view[_PARTNER_SHAPE + 1], view[_PARTNER_SHAPE + 2]
        mix_image(
            carray(_data(out, 0), _shape3(out_shapes, 0), element),
            carray(_data(out, 1), _shape1(out_shapes, 1), np.float32),
            fault,
            own,
            carray(_data(data, 1), _shape1(shapes, 1), np.float64),
            own if moved else carray(address_as_void_pointer(address), shape, element),
            carray(_data(data, 3), _shape1(shapes, 3), np.uint8),
        )
        if moved:
            fault[0] = IMAGES_MOVED

    return run


def _build_views(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        images, image_shapes = _integers(data, 2 * samples), _integers(shapes, 2 * samples)
        for sample in range(samples):
            partner = carray(address_as_void_pointer(images[samples + sample]), 1, np.int32)[0]
            if not 0 <= partner < samples:  # the labels' permutation stops the pipeline
                partner = sample
            view = _integers(_integers(out, samples)[sample], _VIEW)
            view[_OWN_ADDRESS], view[_PARTNER_ADDRESS] = images[sample], images[partner]
            view[_PARTNER_SHAPE:] = _integers(image_shapes[partner], 3)

    return run


def _build_views_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            _integers(_integers(out_shapes, samples)[sample], 1)[0] = _VIEW

    return setup


def _build_mix_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            _integers(_integers(out_shapes, samples)[sample], 3)[:] = _integers(
                _integers(shapes, samples)[sample], 3
            )
            _integers(_integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 2
            _integers(_integers(out_shapes, 3 * samples)[2 * samples + sample], 1)[0] = 1

    return setup


def _build_targets(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        write_targets(
            carray(_data(out, 0), _shape1(out_shapes, 0), np.float32),
            carray(_data(data, 3), _shape1(shapes, 3), np.float32),
            carray(_data(data, 1), _shape1(shapes, 1), np.int32),
            carray(_data(data, 2), _shape1(shapes, 2), np.int32),
        )

    return run


def _build_targets_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            classes = _integers(_integers(shapes, samples)[sample], 1)[0]
            _integers(_integers(out_shapes, samples)[sample], 1)[0] = classes

    return setup


def _build_mask(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        write_mask(
            carray(_data(out, 0), _shape3(out_shapes, 0), np.float32),
            carray(_data(data, 1), _shape1(shapes, 1), np.float64),
        )

    return run


def _build_mask_shapes(version: int, channel_axis: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            sides = _integers(_integers(out_shapes, samples)[sample], 3)
            sides[:] = _integers(_integers(shapes, samples)[sample], 3)
            sides[channel_axis] = 1

    return setup


@functools.cache
def _compiled(build: Callable[..., Callable[..., None]], *closed_over: Any) -> Any:
    """The function of `build`, compiled or read from Numba's cache; once per process."""
    is_setup = build.__name__.endswith("_shapes")
    signature = _SETUP if is_setup else _RUN_BATCH if build is _build_views else _RUN
    function = build(_source_version(), *closed_over)
    try:
        return numba.cfunc(signature, cache=True)(function)
    except RuntimeError as error:
        # Numba found no folder to write to: neither beside this file nor in the user's cache.
        warnings.warn(
            f"dali_msda is compiled anew in every process ({error}); set NUMBA_CACHE_DIR to a folder that"
            " can be written to",
            RuntimeWarning,
            stacklevel=2,
        )
        return numba.cfunc(signature)(function)


class _CompiledOperator(NumbaFunction):
    """The operator of DALI's Numba plugin, given compiled functions instead of Python ones."""

    def _get_run_fn_cpu(self, run_fn: Any, *types_and_dimensions: Any) -> int:
        return int(run_fn.address)

    def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
        return int(setup_fn.address)


def partner_views(element: types.DALIDataType, own: DataNode, partner: DataNode) -> DataNode:
    """Where in memory each sample's own image and its partner lie: int64 [5].

    Handing addresses on spares the copy of a whole batch that ``fn.permute_batch`` makes. `element` is the
    type of the images, `partner` the index within the batch (int32 scalar).
    """
    operator = _CompiledOperator(
        run_fn=_compiled(_build_views),
        setup_fn=_compiled(_build_views_shapes),
        out_types=[types.INT64],
        outs_ndim=[1],
        in_types=[element, types.INT32],
        ins_ndim=[3, 0],
        batch_processing=True,
    )
    return operator(own, partner)  # images must have three dimensions


def mix_images(
    element: types.DALIDataType, own: DataNode, draws: DataNode, partner: DataNode, layout: DataNode
) -> tuple[DataNode, DataNode, DataNode]:
    """:func:`._kernel.mix_image` over a batch: mixed images, info and fault.

    `element` is the type of the images, ``types.UINT8`` or ``types.FLOAT``, `partner` the index within the
    batch.
    """
    operator = _CompiledOperator(
        run_fn=_compiled(_build_mix, np.uint8 if element == types.UINT8 else np.float32),
        setup_fn=_compiled(_build_mix_shapes),
        out_types=[element, types.FLOAT, types.INT32],
        outs_ndim=[3, 1, 1],
        in_types=[element, types.FLOAT64, types.INT64, types.UINT8],
        ins_ndim=[3, 1, 1, 1],
    )
    views = partner_views(element, own, partner)
    mixed, info, fault = operator(own, draws, views, layout)
    return mixed, info, fault


def mix_targets(
    classes: DataNode,
    labels: DataNode,
    partner_labels: DataNode,
    info: DataNode,
    *checks: DataNode,
) -> DataNode:
    """:func:`._kernel.write_targets` over a batch, float32 in the shape of `classes`.

    `checks`, two float32 [1], are not read: they are inputs so that DALI makes the checks first.
    """
    operator = _CompiledOperator(
        run_fn=_compiled(_build_targets),
        setup_fn=_compiled(_build_targets_shapes),
        out_types=[types.FLOAT],
        outs_ndim=[1],
        in_types=[types.FLOAT, types.INT32, types.INT32, types.FLOAT, types.FLOAT, types.FLOAT],
        ins_ndim=[1] * 6,
    )
    return operator(classes, labels, partner_labels, info, *checks)


def make_mask(element: types.DALIDataType, own: DataNode, draws: DataNode, layout: str) -> DataNode:
    """:func:`._kernel.write_mask` over a batch: float32, as high and wide as `own`."""
    operator = _CompiledOperator(
        run_fn=_compiled(_build_mask),
        setup_fn=_compiled(_build_mask_shapes, layout.index("C")),
        out_types=[types.FLOAT],
        outs_ndim=[3],
        in_types=[element, types.FLOAT64],
        ins_ndim=[3, 1],
    )
    return operator(own, draws)
