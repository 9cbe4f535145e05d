"""The graph backend: the same formulas as DALI operators, for the GPU, and on the CPU to test them.

The formulas and the arithmetic are those of :mod:`.blending`; here are the checks and the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode, Pipeline

from ..arguments import ImageArguments
from ..checks import check_fault, check_label_range, with_layout
from ..common_arguments import LabelArguments
from ..draws import float64_constant
from ..dtypes import static_dtype
from ..fault_codes import LAYOUT_DIFFERS, MASK_DIFFERS, SIZES_DIFFER
from ..normalization import normalize_if_asked
from . import Mixed
from .blending import Blending, Weights


class _PipelineOperators:
    """The operators of a pipeline's graph; see :class:`.blending.Operators`."""

    fn, math = fn, math

    def is_node(self, value: object) -> bool:
        return isinstance(value, DataNode)

    def float64(self, values: Sequence[float]) -> DataNode:
        return float64_constant(values)

    def constant(self, values: np.ndarray[Any, Any]) -> DataNode:
        return types.Constant(values, device="cpu")

    def one_like(self, node: DataNode) -> DataNode:
        return types.Constant(1, dtype=types.UINT8)

    def dtype_of(self, node: DataNode) -> types.DALIDataType | None:
        return static_dtype(node)

    def device_of(self, node: DataNode) -> str:
        return str(node.device)

    def shape_of(self, node: DataNode) -> DataNode:
        return node.shape(dtype=types.INT64)

    def element(self, node: DataNode, index: int) -> DataNode:
        return node[index]

    def to_gpu(self, node: DataNode, axes: Sequence[int] = ()) -> DataNode:
        # DALI 2.4 merges equal operators, and then fails ("Graph inconsistency detected") if only the one
        # that it drops has a copy on the GPU. `preserve` keeps the one that is copied apart.
        if axes:
            return fn.expand_dims(node, axes=list(axes), preserve=True).gpu()
        return fn.copy(node, preserve=True).gpu()


_BLENDING = Blending(_PipelineOperators())
FUNCTIONS = _BLENDING.functions
make_mask, given_mask, drawn_lam = _BLENDING.make_mask, _BLENDING.given_mask, _BLENDING.drawn_lam
shape_mask, expand_mask, mix_pixels = _BLENDING.shape_mask, _BLENDING.expand_mask, _BLENDING.mix_pixels
height_and_width, to_device = _BLENDING.height_and_width, _BLENDING.to_device


def find_fault(
    images: DataNode, source: DataNode, partner: DataNode, shape: DataNode, layout: str
) -> DataNode:
    """SIZES_DIFFER where the partner has another shape, LAYOUT_DIFFERS or 0: int32 [1].

    `shape` is that of the images, int64 [n].
    """
    shapes = shape if source is images else source.shape(dtype=types.INT64)
    other = fn.permute_batch(shapes, indices=partner)
    fault = fn.reductions.max(fn.cast(shape != other, dtype=types.INT32)) * SIZES_DIFFER
    if images.device == "cpu":  # on the GPU the property is there too, where the check cannot read it
        at = len(layout) - 3  # HWC, DHWC and FHWC differ in this letter from CHW and FCHW
        letters = fn.pad(fn.get_property(images, key="layout"), axes=[0], shape=[len(layout)], fill_value=0)
        first = fn.slice(letters, start=[at], shape=[1], axes=[0])
        wrong = (first != ord(layout[at])) & (first != 0)
        fault = math.max(fault, fn.cast(wrong, dtype=types.INT32) * LAYOUT_DIFFERS)
    return fn.reshape(fn.cast(fault, dtype=types.INT32), shape=[1])


def _find_mask_fault(weights: Weights, size: DataNode) -> DataNode:
    """MASK_DIFFERS if a caller's mask has another size than the image (int64 [2]), or 0: int32 [1]."""
    if weights.dense is not None:
        found = weights.dense.shape(dtype=types.INT64)
    else:
        assert weights.rows is not None
        assert weights.columns is not None
        found = fn.cat(*(profile.shape(dtype=types.INT64) for profile in (weights.rows, weights.columns)))
    differs = fn.reductions.max(fn.cast(found != size, dtype=types.INT32)) * MASK_DIFFERS
    return fn.reshape(fn.cast(differs, dtype=types.INT32), shape=[1])


def _one_hot(labels: DataNode, arguments: LabelArguments) -> DataNode:
    """Label smoothing s: off = s / K, on = 1 - s + s / K."""
    assert arguments.num_classes is not None
    off = arguments.label_smoothing / arguments.num_classes
    on = 1.0 - arguments.label_smoothing + off
    return fn.one_hot(labels, num_classes=arguments.num_classes, on_value=on, off_value=off)


def one_hot_targets(labels: DataNode, device: str, arguments: LabelArguments) -> DataNode:
    """Targets without mixing, float32 [num_classes] on `device`; labels are int32 [1] on the CPU."""
    assert arguments.num_classes is not None
    in_range = check_label_range(labels, arguments.num_classes)
    return to_device(_one_hot(labels, arguments) + in_range, device)


def mix_images(
    images: DataNode, source: DataNode, partner: DataNode, weights: Weights, arguments: ImageArguments
) -> Mixed:
    """Mix images with DALI operators, on any device; see :class:`..backends.Backend`."""
    layout = arguments.layout
    own = with_layout(images, layout)
    shape = own.shape(dtype=types.INT64)
    fault = find_fault(images, source, partner, shape, layout)
    if weights.given:
        fault = math.max(fault, _find_mask_fault(weights, height_and_width(shape, layout)))
    # Everything that follows waits for the check, through the mask's first part.
    weights = wait_for_check(weights, check_fault(fault))
    mixed = mix_pixels(
        own, own if source is images else source, partner, shape_mask(weights, layout, own.device)
    )
    return Mixed(finished(images, source, mixed, arguments), weights.lam)


def finished(images: DataNode, source: DataNode, mixed: DataNode, arguments: ImageArguments) -> DataNode:
    """Mixed images, or the own ones where there is nobody to mix with, normalised if that is asked for."""
    if source is images and Pipeline.current().max_batch_size == 1:
        mixed = images  # float32 weights would change the last bit
    return normalize_if_asked(mixed, arguments)


def label_weight(weights: Weights) -> DataNode:
    """The mean of the mask; see :class:`..backends.Backend`."""
    return weights.lam


def full_mask(images: DataNode, weights: Weights, layout: str) -> DataNode:
    """The weight of every pixel; see :class:`..backends.Backend`."""
    mask = shape_mask(weights, layout, images.device)
    return expand_mask(mask, images.shape(dtype=types.INT64), layout)


def mix_ids(
    labels: DataNode,
    partner_labels: DataNode,
    lam: DataNode,
    arguments: LabelArguments,
    check: DataNode | None = None,
) -> DataNode:
    """Targets of class ids; see :class:`..backends.Backend`."""
    assert arguments.num_classes is not None
    lam = lam + to_device(check_label_range(labels, arguments.num_classes), lam.device)
    if check is not None:
        lam = lam + to_device(check, lam.device)
    hot, other_hot = (to_device(_one_hot(ids, arguments), lam.device) for ids in (labels, partner_labels))
    return lam * hot + (1.0 - lam) * other_hot


def nearest(images: DataNode, source: DataNode, partner: DataNode, mask: DataNode, layout: str) -> DataNode:
    """Each pixel of whoever weighs more there, the own one of both where they weigh the same.

    `mask` is the own image's weight in every pixel, on the device of the images.
    """
    own = with_layout(images, layout)
    shape = own.shape(dtype=types.INT64)
    fault = find_fault(images, source, partner, shape, layout)
    mask = mask + to_device(check_fault(fault), mask.device)
    return _BLENDING.select(
        own, own if source is images else source, partner, fn.cast(mask < 0.5, dtype=types.UINT8)
    )


def wait_for_check(weights: Weights, check: DataNode) -> Weights:
    """The same weights, which DALI computes after `check` (float32 [1], 0)."""
    if weights.dense is not None:
        return weights._replace(dense=weights.dense + to_device(check, weights.dense.device))
    if weights.cut:
        return weights._replace(rows=weights.rows + check)
    return weights._replace(base=weights.base + check)
