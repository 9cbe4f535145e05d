"""The CPU backend: compiled operators make the masks and mix images and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode

from ...arguments import DrawArguments, ImageArguments
from ...checks import check_fault, with_layout
from ...draws import Draws
from ...dtypes import as_type, static_dtype
from ...fault_codes import MASK_DIFFERS
from ...layouts import is_sequence, mask_layout
from ...masks import Dense, Separable
from ...normalization import fits_kernel, normalize_if_asked
from .. import Mixed, graph
from .entry_points import ELEMENTS, expand_mask, join_masks, mask_weights, mix_pixels, mix_targets


class Weights(NamedTuple):
    """A mask, as :func:`mix_images` takes it: float32 nodes on the CPU."""

    lam: DataNode | None
    """The mean of the mask, the label weight, [1]; None for a dense mask, averaged when it is applied."""
    node: DataNode
    """Base, height, scaled rows and columns, [2 + H + W]; or all weights, [H, W], not yet clipped."""

    @property
    def dense(self) -> bool:
        """Whether there is a weight for every pixel."""
        return self.lam is None


def _to_kernel_dtype(images: DataNode) -> tuple[types.DALIDataType, DataNode]:
    """A type that the kernels work in, and the images cast to it.

    Numba has no float16 on the CPU, and a type that the graph does not show could be any: both are mixed as
    float32.
    """
    dtype = static_dtype(images)
    if dtype in ELEMENTS:
        return dtype, images
    return types.FLOAT, fn.cast(images, dtype=types.FLOAT)


def make_mask(images: DataNode, layout: str, draws: Draws, arguments: DrawArguments) -> Weights:
    """The masks of a batch from what was drawn; see :class:`dali_msda.backends.Backend`."""
    element, own = _to_kernel_dtype(images)
    weights, lam = mask_weights(element, _frame_of(own, layout), mask_layout(layout), draws, arguments)
    return Weights(None if arguments.entry.kind == "dense" else lam, weights)


def given_mask(mask: Separable | Dense) -> Weights:
    """Convert a caller's mask; see :class:`dali_msda.backends.Backend`."""
    if isinstance(mask, Dense):
        return Weights(None, mask.values)
    weights, lam = join_masks(mask)
    return Weights(lam, weights)


def label_weight(weights: Weights) -> DataNode:
    """The mean of the mask; see :class:`dali_msda.backends.Backend`."""
    if weights.lam is not None:
        return weights.lam
    mean = fn.reductions.mean(math.clamp(weights.node, 0.0, 1.0))
    return fn.reshape(fn.cast(mean, dtype=types.FLOAT), shape=[1])


def full_mask(images: DataNode, weights: Weights, layout: str) -> DataNode:
    """The weight of every pixel; see :class:`dali_msda.backends.Backend`."""
    element, own = _to_kernel_dtype(images)
    layout, own = mask_layout(layout), _frame_of(own, layout)
    return fn.reshape(expand_mask(element, own, weights.node, layout, dense=weights.dense), layout=layout)


def _frame_of(images: DataNode, layout: str) -> DataNode:
    """Images whose height and width masks can be made for: of sequences a frame without channels."""
    if not is_sequence(layout):
        return images
    none = fn.slice(with_layout(images, layout), start=[0], shape=[0], axes=[0])
    order = [1, 2, 0] if mask_layout(layout) == "HWC" else [0, 2, 3]
    return fn.reshape(none, src_dims=order, rel_shape=[1, 1, 1])


def _join_frames(images: DataNode) -> DataNode:
    """Sequences as images, without a copy: FxHxWxC as (F H)xWxC, FxCxHxW as (F C)xHxW."""
    return fn.reshape(images, src_dims=[0, 2, 3], rel_shape=[-1, 1, 1])


def _find_clip_fault(
    images: DataNode, source: DataNode, partner: DataNode, weights: Weights, layout: str
) -> DataNode:
    """The fault, if any, that the kernel cannot see in joined frames: int32 [1]."""
    shape = images.shape(dtype=types.INT64)
    fault = graph.find_fault(images, source, partner, shape, layout)
    height = fn.slice(shape, start=[layout.index("H")], shape=[1], axes=[0])
    if weights.dense:
        found = fn.slice(weights.node.shape(dtype=types.INT64), start=[0], shape=[1], axes=[0])
    else:
        found = fn.cast(fn.slice(weights.node, start=[1], shape=[1], axes=[0]), dtype=types.INT64)
    return math.max(fault, fn.cast(found != height, dtype=types.INT32) * MASK_DIFFERS)


def mix_images(
    images: DataNode, source: DataNode, partner: DataNode, weights: Weights, arguments: ImageArguments
) -> Mixed:
    """Mix images on the CPU in compiled code; see :class:`dali_msda.backends.Backend`."""
    layout = arguments.layout
    element, own = _to_kernel_dtype(images)
    other = None if source is images else as_type(source, element)
    letters = fn.get_property(images, key="layout")
    if clips := is_sequence(layout):
        own = _join_frames(with_layout(own, layout))
        other = None if other is None else _join_frames(with_layout(other, layout))
        letters = types.Constant(np.frombuffer(mask_layout(layout).encode(), np.uint8), device="cpu")
    fused = arguments.normalizes and fits_kernel(arguments) and element == types.UINT8 and layout == "HWC"
    mixed, fault, lam = mix_pixels(
        element,
        own,
        other,
        weights.node,
        partner,
        letters,
        mask_layout(layout) == "CHW",
        arguments if fused else None,
        dense=weights.dense,
        clips=clips,
    )
    # The plugin's operator drops the layout.
    shape = {"shape": images.shape(dtype=types.INT32)} if clips else {}
    mixed = fn.reshape(mixed, **shape, layout=(arguments.output_layout or layout) if fused else layout)
    if clips:
        fault = math.max(fault, _find_clip_fault(images, source, partner, weights, layout))
    if static_dtype(images) != element:
        mixed = fn.cast_like(mixed, images)
    if not fused:
        mixed = normalize_if_asked(mixed, arguments)
    elif arguments.output_dtype != types.FLOAT:
        # DALI's operator converts in the same way, and takes longer for all of it.
        mixed = fn.cast(mixed, dtype=arguments.output_dtype)
    return Mixed(mixed, lam if weights.lam is None else weights.lam, check_fault(fault))


mix_ids = mix_targets
