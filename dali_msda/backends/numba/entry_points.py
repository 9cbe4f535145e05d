"""The kernels as DALI operators: how each is called, and the shapes of its outputs."""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from ...arguments import DrawArguments, ImageArguments
from ...checks import check_label_range
from ...common_arguments import LabelArguments
from ...draws import Draws
from ...masks import Separable
from ...normalization import linear_factors
from .builders import (
    build_joined,
    build_joined_shapes,
    build_mask,
    build_mask_shapes,
    build_mix,
    build_mix_normalized,
    build_mix_shapes,
    build_targets,
    build_targets_shapes,
    build_views,
    build_views_shapes,
    build_weights_shapes,
    weights_writer,
)
from .compat import CompiledOperator
from .compiled import RUN, RUN_BATCH, SETUP, compiled
from .drawn import parts_of

# The types of images that the kernels take.
ELEMENTS: dict[types.DALIDataType, type] = {
    types.UINT8: np.uint8,
    types.INT16: np.int16,
    types.UINT16: np.uint16,
    types.FLOAT: np.float32,
}


def partner_views(element: types.DALIDataType, own: DataNode, partner: DataNode) -> DataNode:
    """The addresses of each sample's own image and its partner, and the partner's shape: int64 [5].

    Passing addresses saves the copy of the batch that ``fn.permute_batch`` makes. `element` is the type of
    the images, `partner` the index within the batch (int32 scalar).
    """
    operator = CompiledOperator(
        run_fn=compiled(build_views, RUN_BATCH),
        setup_fn=compiled(build_views_shapes, SETUP),
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
    parts = parts_of(draws, method)
    operator = CompiledOperator(
        run_fn=weights_writer(method, height_axis),
        setup_fn=compiled(build_weights_shapes, SETUP, height_axis, dense),
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
        run_fn=compiled(build_joined, RUN),
        setup_fn=compiled(build_joined_shapes, SETUP),
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
        run = compiled(build_mix, RUN, ELEMENTS[element], dense, second)
    else:
        mixed_type, to_first = types.FLOAT, normalization.output_layout == "CHW"
        run = compiled(build_mix_normalized, RUN, to_first, dense, second)
        inputs.append(linear_factors(own, normalization))
    operator = CompiledOperator(
        run_fn=run,
        setup_fn=compiled(build_mix_shapes, SETUP, to_first),
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
        run_fn=compiled(build_targets, RUN),
        setup_fn=compiled(build_targets_shapes, SETUP),
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
        run_fn=compiled(build_mask, RUN, layout == "CHW", dense),
        setup_fn=compiled(build_mask_shapes, SETUP, layout.index("C")),
        out_types=[types.FLOAT],
        outs_ndim=[3],
        in_types=[element, types.FLOAT],
        ins_ndim=[3, 2 if dense else 1],
    )
    return operator(own, weights)
