"""The kernels as DALI operators: how each is called, and the shapes of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from ...arguments import DrawArguments, ImageArguments
from ...checks import check_label_range
from ...common_arguments import LabelArguments
from ...draws import Draws
from ...fault_codes import IMAGES_MOVED
from ...masks import Separable
from ...normalization import linear_factors
from .compat import CompiledOperator
from .compiled import RUN, RUN_BATCH, SETUP, compiled, data_of, integers, shape1, shape2, shape3
from .drawn import numbers_of, parts_of
from .formulas import fingerprint
from .intrinsics import address_as_void_pointer
from .kernels import (
    join_mask,
    mask_writer,
    mix_image,
    mix_normalized,
    write_mask,
    write_targets,
)

# The types of images that the kernels take.
ELEMENTS: dict[types.DALIDataType, type] = {
    types.UINT8: np.uint8,
    types.INT16: np.int16,
    types.UINT16: np.uint16,
    types.FLOAT: np.float32,
}

# The view of each sample, from :func:`_build_views`: addresses of its own image and of its partner, and the
# partner's shape.
_OWN_ADDRESS, _PARTNER_ADDRESS, _PARTNER_SHAPE, _VIEW = 0, 1, 2, 5


# Every builder below makes a function that closes over numbers and types only: what a function closes over
# is part of its key in Numba's cache, and the version must be.
@numba.njit
def _find_partner(own: Any, view: Any, own_address: int) -> Any:
    """The partner's image, or `own` where the view is no longer valid."""
    # If the own image is still at its address in the view, so is the partner. Should DALI ever move images in
    # between, this stops the pipeline instead of reading memory that holds no image.
    moved = view[_OWN_ADDRESS] != own_address
    shape = view[_PARTNER_SHAPE], view[_PARTNER_SHAPE + 1], view[_PARTNER_SHAPE + 2]
    address = own_address if moved else view[_PARTNER_ADDRESS]
    return moved, carray(address_as_void_pointer(address), own.shape if moved else shape, own.dtype)


# `compiled` replaces this with the kernel that writes a method's masks.
_write: Any = None


def _build_weights(
    version: int, height_axis: int, dense: bool, width: tuple[int, ...], total: int
) -> Callable[..., None]:
    # `width` has each input's elements per number: 8 if it holds bytes.
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        sides = shape3(shapes, 0)
        numbers = numbers_of(data, shapes, ins, width, total)
        _write(
            carray(data_of(out, 0), shape2(out_shapes, 0) if dense else shape1(out_shapes, 0), np.float32),
            carray(data_of(out, 1), shape1(out_shapes, 1), np.float32),
            numbers,
            sides[height_axis],
            sides[height_axis + 1],
        )

    return run


def _build_weights_shapes(version: int, height_axis: int, dense: bool) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            own = integers(integers(shapes, samples)[sample], 3)
            if dense:
                sides = integers(integers(out_shapes, samples)[sample], 2)
                sides[:] = own[height_axis : height_axis + 2]
            else:
                length = integers(integers(out_shapes, samples)[sample], 1)
                length[0] = 2 + own[height_axis] + own[height_axis + 1]
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1

    return setup


def _build_joined(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        join_mask(
            carray(data_of(out, 0), shape1(out_shapes, 0), np.float32),
            carray(data_of(out, 1), shape1(out_shapes, 1), np.float32),
            carray(data_of(data, 0), shape1(shapes, 0), np.float64)[0],
            carray(data_of(data, 1), shape1(shapes, 1), np.float64)[0],
            carray(data_of(data, 2), shape1(shapes, 2), np.float32),
            carray(data_of(data, 3), shape1(shapes, 3), np.float32),
        )

    return run


def _build_joined_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            height = integers(integers(shapes, 3 * samples)[2 * samples + sample], 1)[0]
            width = integers(integers(shapes, 4 * samples)[3 * samples + sample], 1)[0]
            integers(integers(out_shapes, samples)[sample], 1)[0] = 2 + height + width
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1

    return setup


def _build_mix(version: int, element: type, dense: bool, second: bool) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        own = carray(data_of(data, 0), shape3(shapes, 0), element)
        if second:
            moved, partner = False, carray(data_of(data, 2), shape3(shapes, 2), own.dtype)
        else:
            moved, partner = _find_partner(own, integers(integers(data, 3)[2], _VIEW), integers(data, 1)[0])
        fault = carray(data_of(out, 1), shape1(out_shapes, 1), np.int32)
        mix_image(
            carray(data_of(out, 0), shape3(out_shapes, 0), element),
            carray(data_of(out, 2), shape1(out_shapes, 2), np.float32),
            fault,
            own,
            carray(data_of(data, 1), shape2(shapes, 1) if dense else shape1(shapes, 1), np.float32),
            partner,
            carray(data_of(data, 4), shape1(shapes, 4), np.uint8)[0] != 0,
            carray(data_of(data, 3), shape1(shapes, 3), np.uint8),
            carray(data_of(data, 4), shape1(shapes, 4), np.uint8)[1] != 0,
        )
        if moved:
            fault[0] = IMAGES_MOVED

    return run


def _build_mix_normalized(
    version: int, channels_first: bool, dense: bool, second: bool
) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        own = carray(data_of(data, 0), shape3(shapes, 0), np.uint8)
        if second:
            moved, partner = False, carray(data_of(data, 2), shape3(shapes, 2), own.dtype)
        else:
            moved, partner = _find_partner(own, integers(integers(data, 3)[2], _VIEW), integers(data, 1)[0])
        fault = carray(data_of(out, 1), shape1(out_shapes, 1), np.int32)
        mix_normalized(
            carray(data_of(out, 0), shape3(out_shapes, 0), np.float32),
            carray(data_of(out, 2), shape1(out_shapes, 2), np.float32),
            fault,
            own,
            carray(data_of(data, 1), shape2(shapes, 1) if dense else shape1(shapes, 1), np.float32),
            partner,
            carray(data_of(data, 3), shape1(shapes, 3), np.uint8),
            carray(data_of(data, 5), (2, shape1(shapes, 5)[0] // 2), np.float32),
            channels_first,
        )
        if moved:
            fault[0] = IMAGES_MOVED

    return run


def _build_mix_shapes(version: int, channels_first: bool) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            mixed = integers(integers(out_shapes, samples)[sample], 3)
            own = integers(integers(shapes, samples)[sample], 3)
            if channels_first:  # from HWC
                mixed[0], mixed[1], mixed[2] = own[2], own[0], own[1]
            else:
                mixed[:] = own
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1
            integers(integers(out_shapes, 3 * samples)[2 * samples + sample], 1)[0] = 1

    return setup


def _build_views(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        images, image_shapes = integers(data, 2 * samples), integers(shapes, 2 * samples)
        for sample in range(samples):
            partner = carray(address_as_void_pointer(images[samples + sample]), 1, np.int32)[0]
            if not 0 <= partner < samples:  # permuting the labels then stops the pipeline
                partner = sample
            view = integers(integers(out, samples)[sample], _VIEW)
            view[_OWN_ADDRESS], view[_PARTNER_ADDRESS] = images[sample], images[partner]
            view[_PARTNER_SHAPE:] = integers(image_shapes[partner], 3)

    return run


def _build_views_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            integers(integers(out_shapes, samples)[sample], 1)[0] = _VIEW

    return setup


def _build_targets(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        write_targets(
            carray(data_of(out, 0), shape1(out_shapes, 0), np.float32),
            carray(data_of(data, 3), shape1(shapes, 3), np.float32),
            carray(data_of(data, 1), shape1(shapes, 1), np.int32),
            carray(data_of(data, 2), shape1(shapes, 2), np.int32),
            carray(data_of(data, 0), shape1(shapes, 0), np.float32)[-1],
        )

    return run


def _build_targets_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            classes = integers(integers(shapes, samples)[sample], 1)[0]
            integers(integers(out_shapes, samples)[sample], 1)[0] = classes - 1

    return setup


def _build_mask(version: int, channels_first: bool, dense: bool) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        write_mask(
            carray(data_of(out, 0), shape3(out_shapes, 0), np.float32),
            carray(data_of(data, 1), shape2(shapes, 1) if dense else shape1(shapes, 1), np.float32),
            channels_first,
        )

    return run


def _build_mask_shapes(version: int, channel_axis: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            sides = integers(integers(out_shapes, samples)[sample], 3)
            sides[:] = integers(integers(shapes, samples)[sample], 3)
            sides[channel_axis] = 1

    return setup


def partner_views(element: types.DALIDataType, own: DataNode, partner: DataNode) -> DataNode:
    """The addresses of each sample's own image and its partner, and the partner's shape: int64 [5].

    Passing addresses saves the copy of the batch that ``fn.permute_batch`` makes. `element` is the type of
    the images, `partner` the index within the batch (int32 scalar).
    """
    operator = CompiledOperator(
        run_fn=compiled(_build_views, RUN_BATCH),
        setup_fn=compiled(_build_views_shapes, SETUP),
        out_types=[types.INT64],
        outs_ndim=[1],
        in_types=[element, types.INT32],
        ins_ndim=[3, 0],
        batch_processing=True,
    )
    return operator(own, partner)  # layout must have a letter for each dimension of the images


def mask_weights(
    element: types.DALIDataType, own: DataNode, layout: str, draws: Draws, arguments: DrawArguments
) -> tuple[DataNode, DataNode]:
    """Make the masks of a batch from its draws, in the kernels' form, and their means.

    Returns
    -------
    weights : DataNode
        float32 [2 + H + W], or [H, W] for a dense mask.
    lam : DataNode
        float32 [1].
    """
    method, height_axis = arguments.entry, layout.index("H")
    dense = method.kind == "dense"
    slots = tuple(draws.slots.items())
    parts = parts_of(draws)
    run = compiled(
        _build_weights,
        RUN,
        height_axis,
        dense,
        (1, *(part.width for part in parts)),
        1 + max(draws.slots.values()),
        called=("_write", mask_writer(method, slots), fingerprint(method.mask, slots)),
    )
    operator = CompiledOperator(
        run_fn=run,
        setup_fn=compiled(_build_weights_shapes, SETUP, height_axis, dense),
        out_types=[types.FLOAT, types.FLOAT],
        outs_ndim=[2 if dense else 1, 1],
        in_types=[element, *(part.dtype for part in parts)],
        ins_ndim=[3] + [1] * len(parts),
    )
    nodes = [part.node for part in parts]
    weights, lam = operator(own, *nodes)  # layout must have a letter for each dimension of the images
    return weights, lam


def join_masks(mask: Separable) -> tuple[DataNode, DataNode]:
    """:func:`.kernels.join_mask` over a batch: like :func:`mask_weights`, from a caller's nodes."""
    operator = CompiledOperator(
        run_fn=compiled(_build_joined, RUN),
        setup_fn=compiled(_build_joined_shapes, SETUP),
        out_types=[types.FLOAT, types.FLOAT],
        outs_ndim=[1, 1],
        in_types=[types.FLOAT64, types.FLOAT64, types.FLOAT, types.FLOAT],
        ins_ndim=[1, 1, 1, 1],
    )
    weights, lam = operator(*mask)
    return weights, lam


def mix_pixels(
    element: types.DALIDataType,
    own: DataNode,
    source: DataNode | None,
    weights: DataNode,
    partner: DataNode,
    layout: DataNode,
    channels_first: bool,
    normalization: ImageArguments | None,
    *,
    dense: bool,
    clips: bool,
) -> tuple[DataNode, DataNode, DataNode]:
    """:func:`.kernels.mix_image` over a batch: mixed images, fault and, for a dense mask, the label weight.

    `element` is the type of the images, one of `ELEMENTS`, `partner` the index within the
    batch, or within `source`, the partners' images where those are others. With a `normalization` it is
    :func:`.kernels.mix_normalized`, for uint8 HWC images only, and for what
    :func:`dali_msda.normalization.fits_kernel` allows.
    """
    second = source is not None
    if source is None:
        others = partner_views(element, own, partner)
    else:
        others = fn.permute_batch(source, indices=partner)
    first = types.Constant(np.array([channels_first, clips], np.uint8), device="cpu")
    inputs, mixed_type, to_first = [own, weights, others, layout, first], element, False
    if normalization is None:
        run = compiled(_build_mix, RUN, ELEMENTS[element], dense, second)
    else:
        mixed_type, to_first = types.FLOAT, normalization.output_layout == "CHW"
        run = compiled(_build_mix_normalized, RUN, to_first, dense, second)
        inputs.append(linear_factors(own, normalization))
    operator = CompiledOperator(
        run_fn=run,
        setup_fn=compiled(_build_mix_shapes, SETUP, to_first),
        out_types=[mixed_type, types.INT32, types.FLOAT],
        outs_ndim=[3, 1, 1],
        in_types=[
            *(element, types.FLOAT, element if second else types.INT64),
            *(types.UINT8, types.UINT8, types.FLOAT),
        ][: len(inputs)],
        ins_ndim=[3, 2 if dense else 1, 3 if second else 1, 1, 1, 1][: len(inputs)],
    )
    mixed, fault, lam = operator(*inputs)
    return mixed, fault, lam


def mix_targets(
    labels: DataNode,
    partner_labels: DataNode,
    lam: DataNode,
    arguments: LabelArguments,
    check: DataNode | None = None,
) -> DataNode:
    """:func:`.kernels.write_targets` over a batch; see :meth:`dali_msda.backends.Backend.mix_ids`.

    The checks are not read: they are inputs so that DALI makes them first.
    """
    assert arguments.num_classes is not None
    checks = [check_label_range(labels, arguments.num_classes), *([] if check is None else [check])]
    operator = CompiledOperator(
        run_fn=compiled(_build_targets, RUN),
        setup_fn=compiled(_build_targets_shapes, SETUP),
        out_types=[types.FLOAT],
        outs_ndim=[1],
        in_types=[types.FLOAT, types.INT32, types.INT32, *[types.FLOAT] * (1 + len(checks))],
        ins_ndim=[1] * (4 + len(checks)),
    )
    # As long as the targets, and behind that the label smoothing: an operator takes six inputs.
    numbers = np.array([0] * arguments.num_classes + [arguments.label_smoothing], np.float32)
    return operator(types.Constant(numbers, device="cpu"), labels, partner_labels, lam, *checks)


def expand_mask(
    element: types.DALIDataType, own: DataNode, weights: DataNode, layout: str, *, dense: bool
) -> DataNode:
    """:func:`.kernels.write_mask` over a batch: float32, with the height and width of `own`."""
    operator = CompiledOperator(
        run_fn=compiled(_build_mask, RUN, layout == "CHW", dense),
        setup_fn=compiled(_build_mask_shapes, SETUP, layout.index("C")),
        out_types=[types.FLOAT],
        outs_ndim=[3],
        in_types=[element, types.FLOAT],
        ins_ndim=[3, 2 if dense else 1],
    )
    return operator(own, weights)
