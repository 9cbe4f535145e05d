"""The graph backend: the same formulas as DALI operators, for the GPU, and on the CPU to test them.

It uses only operators that DALI lists for the device they run on. Small values (draws, rows and columns of
the mask, label weights) are computed on the CPU, where DALI draws its random numbers; the images stay on
their device.
"""

from __future__ import annotations

import math as scalar_math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode, Pipeline

from ..arguments import DrawArguments, ImageArguments
from ..checks import LONGEST_SIDE, check_fault, check_label_range, with_layout
from ..common_arguments import LabelArguments
from ..draws import Draws, float64_constant
from ..dtypes import as_type, static_dtype
from ..fault_codes import LAYOUT_DIFFERS, MASK_DIFFERS, SIZES_DIFFER
from ..layouts import mask_layout
from ..masks import Axis, Dense, Grid, Separable, chosen
from ..normalization import normalize_if_asked
from ..validation import ArgumentValueError
from . import Mixed

# The integers that hold the bits of a float.
_FLOAT_BITS = {types.FLOAT16: types.INT16, types.FLOAT: types.INT32, types.FLOAT64: types.INT64}

_PIXEL_INDICES = np.arange(LONGEST_SIDE, dtype=np.float32)


def _accept_numbers(function: Callable[..., DataNode]) -> Any:
    """Make an arithmetic operator accept plain numbers too, by turning them into nodes."""

    def applied(*values: Any) -> DataNode:
        return function(*(x if isinstance(x, DataNode) else float64_constant([x]) for x in values))

    return staticmethod(applied)


class _Functions:
    """The functions of formulas (:class:`..masks.Functions`) as operators."""

    sqrt, exp, log, sin, cos = map(_accept_numbers, (math.sqrt, math.exp, math.log, math.sin, math.cos))
    floor, ceil, absolute = map(_accept_numbers, (math.floor, math.ceil, math.abs))
    minimum, maximum = map(_accept_numbers, (math.min, math.max))

    def constant(self, number: float) -> DataNode:
        return float64_constant([number])

    @property
    def pi(self) -> DataNode:
        return self.constant(scalar_math.pi)


FUNCTIONS = _Functions()


class Mask(NamedTuple):
    """A mask that broadcasts over the images, on their device: HxWx1, or 1xHxW for CHW.

    It is ``base + rows * columns``, `base` alone, or `dense`; with `cut`, ``1 - rows * columns``.
    """

    base: DataNode | None = None
    """float32 1x1x1."""
    rows: DataNode | None = None
    """float32, times the scale; with `cut` uint8, 1 inside the box."""
    columns: DataNode | None = None
    """Like `rows`."""
    dense: DataNode | None = None
    """float32."""
    cut: bool = False
    """Whether it is 0 inside a box and 1 outside."""

    def weights(self) -> DataNode:
        """The weight of every pixel, float32; 1x1x1 if all are the same."""
        if self.dense is not None:
            return self.dense
        if self.rows is None or self.columns is None:
            assert self.base is not None
            return self.base
        inside = self.rows * self.columns
        return 1.0 - inside if self.cut else self.base + inside


class Weights(NamedTuple):
    """A mask in the form :func:`blend` takes: float32 nodes on the CPU, or `dense` on the images' device.

    It is ``base + rows * columns``, `base` alone, or `dense`.
    """

    lam: DataNode
    """The mean of the mask, the label weight, [1]."""
    base: DataNode | None = None
    """[1]"""
    rows: DataNode | None = None
    """[H], times the scale."""
    columns: DataNode | None = None
    """[W]"""
    dense: DataNode | None = None
    """[H, W]"""
    given: bool = False
    """Whether it is the caller's: :func:`blend` compares its size with that of the images."""
    cut: bool = False
    """Whether it is 0 inside a box and 1 outside: `base` 1, rows 0 or -1, columns 0 or 1."""


def height_and_width(shape: DataNode, layout: str) -> DataNode:
    """Height and width of images of a shape (int64 [n]), [2]."""
    return fn.slice(shape, start=[layout.index("H")], shape=[2], axes=[0])


def _float(node: DataNode) -> DataNode:
    return fn.cast(node, dtype=types.FLOAT)


def _flat(node: DataNode) -> DataNode:
    return fn.reshape(node, shape=[-1])


def _pixels(length: DataNode, columns: bool) -> DataNode:
    """0, 1, ..., length - 1: [length, 1] or [1, length]."""
    ramp = types.Constant(_PIXEL_INDICES, device="cpu")
    pixels = fn.slice(ramp, start=[0], shape=length, axes=[0])  # a side must be at most 65536 pixels
    return fn.expand_dims(pixels, axes=[0 if columns else 1])


def make_mask(images: DataNode, layout: str, draws: Draws, arguments: DrawArguments) -> Weights:
    """The masks of a batch from what was drawn; see :class:`..backends.Backend`."""
    method = arguments.entry
    size = height_and_width(images.shape(dtype=types.INT64), layout)
    sides, lengths = fn.cast(size, dtype=types.FLOAT64), fn.cast(size, dtype=types.INT32)
    rows, columns = (
        Axis(
            fn.slice(sides, start=[i], shape=[1], axes=[0]),
            _pixels(lengths[i], i == 1),
            draws.pick(name),
        )
        for i, name in enumerate(("_row", "_column"))
    )
    grid = Grid(rows, columns, arguments.convention == "paper", arguments.center is not None)
    mask = method.mask(FUNCTIONS, grid, *(draws.pick(name) for name in method.values))
    if isinstance(mask, Dense):
        return _dense_weights(_float(_choose_if_mixed(mask.values, 1.0, draws, arguments)))
    base = _choose_if_mixed(mask.base, 1.0, draws, arguments)
    if mask.rows is None or mask.columns is None:
        return Weights(lam=_float(base), base=_float(base))
    cut = method.cuts
    scale = _choose_if_mixed(mask.scale, 0.0, draws, arguments)
    return _separable_weights(base, scale, _float(_flat(mask.rows)), _float(_flat(mask.columns)), cut)


def drawn_lam(draws: Draws, arguments: DrawArguments) -> DataNode:
    """The lam that was drawn, whatever the mask made of it; 1 where a sample is not mixed: float32 [1].

    Raises
    ------
    ArgumentValueError
        The method draws no lam.
    """
    method = arguments.entry
    if method.drawn_lam is not None:
        lam = method.drawn_lam(FUNCTIONS, *(draws.pick(name) for name in method.lam_values))
    elif "lam" in method.draws:
        lam = draws.pick("lam")
    else:
        raise ArgumentValueError("correct_lam", f"True with {method.name!r}, which draws no lam", False)
    return _float(_choose_if_mixed(lam, 1.0, draws, arguments))


def given_mask(mask: Separable | Dense) -> Weights:
    """Convert a caller's mask; see :class:`..backends.Backend`."""
    if isinstance(mask, Dense):
        return _dense_weights(mask.values)._replace(given=True)
    base = math.clamp(mask.base, 0.0, 1.0)
    scale = math.min(math.max(mask.scale, -base), 1.0 - base)
    rows, columns = (math.clamp(profile, 0.0, 1.0) for profile in (mask.rows, mask.columns))
    return _separable_weights(base, scale, rows, columns)._replace(given=True)


def _choose_if_mixed(value: Any, otherwise: float, draws: Draws, arguments: DrawArguments) -> DataNode:
    """`value` where a sample is mixed at all, else `otherwise`, float64."""
    # Where all are mixed a node is the answer already; a number is not yet one per sample.
    if arguments.mixes_all and isinstance(value, DataNode):
        return value
    return chosen(value, otherwise, draws.pick("_coin"), draws.pick("_probability"))


def _separable_weights(
    base: Any, scale: Any, rows: DataNode, columns: DataNode, cut: bool = False
) -> Weights:
    share = fn.reductions.mean(rows) * fn.reductions.mean(columns)
    return Weights(
        lam=_float(base + scale * share),
        base=_float(base),
        rows=_float(scale * rows),
        columns=columns,
        cut=cut,
    )


def _dense_weights(dense: DataNode) -> Weights:
    dense = math.clamp(dense, 0.0, 1.0)
    return Weights(lam=fn.reshape(_float(fn.reductions.mean(dense)), shape=[1]), dense=dense)


def to_device(node: DataNode, device: str) -> DataNode:
    # DALI 2.4 merges equal operators, and then fails ("Graph inconsistency detected") if only the one that it
    # drops has a copy on the GPU. `preserve` keeps the one that is copied apart.
    if device == "gpu" and node.device == "cpu":
        return fn.copy(node, preserve=True).gpu()
    return node


def _broadcast(node: DataNode, axes: list[int], device: str) -> DataNode:
    """Add axes of length 1, on `device`."""
    if device == "gpu" and node.device == "cpu":
        return fn.expand_dims(node, axes=axes, preserve=True).gpu()  # as in :func:`to_device`, without a copy
    return fn.expand_dims(node, axes=axes)


def shape_mask(weights: Weights, layout: str, device: str) -> Mask:
    """Make a mask broadcast over the images, on their device."""
    layout = mask_layout(layout)
    if weights.dense is not None:
        return Mask(dense=_broadcast(weights.dense, [layout.index("C")], device))
    assert weights.base is not None
    if weights.rows is None or weights.columns is None:
        return Mask(base=_broadcast(weights.base, [1, 2], device))
    rows, columns = weights.rows, weights.columns
    if weights.cut:
        rows, columns = (fn.cast(profile, dtype=types.UINT8) for profile in (-rows, columns))
    rows = _broadcast(rows, [1, 2] if layout == "HWC" else [0, 2], device)
    columns = _broadcast(columns, [0, 2] if layout == "HWC" else [0, 1], device)
    if weights.cut:
        return Mask(rows=rows, columns=columns, cut=True)
    return Mask(_broadcast(weights.base, [1, 2], device), rows, columns)


def _as_bits(images: DataNode) -> DataNode:
    """Reinterpret the images as integers, without a copy: then 0 times a NaN is 0."""
    dtype = static_dtype(images)
    return fn.reinterpret(images, dtype=_FLOAT_BITS[dtype]) if dtype in _FLOAT_BITS else images


def _select(images: DataNode, source: DataNode, indices: DataNode, inside: DataNode) -> DataNode:
    """The partner where `inside` (uint8) is 1, the own image where it is 0: in integers, without rounding."""
    own = _as_bits(images)
    partner = fn.permute_batch(own if source is images else _as_bits(source), indices=indices)
    selected = own * (types.Constant(1, dtype=types.UINT8) - inside) + partner * inside
    dtype = static_dtype(images)
    if own is not images:
        return fn.reinterpret(selected, dtype=dtype)
    # Of a type that the graph does not show, or int8, the arithmetic makes another one.
    return selected if dtype == types.UINT8 else fn.cast_like(selected, images)


def _paste_box(images: DataNode, source: DataNode, indices: DataNode, mask: Mask) -> DataNode:
    """A box of the partner."""
    assert mask.rows is not None
    return _select(images, source, indices, mask.rows * mask.columns)


def _blend_float(own: DataNode, source: DataNode, indices: DataNode, mask: DataNode) -> DataNode:
    """``mask * own + (1 - mask) * partner`` in float32."""
    partner = fn.permute_batch(source, indices=indices)
    if static_dtype(own) != types.UINT8:
        # 0 * NaN is NaN, so a partner with weight 0 must be 0 before the multiplication.
        partner = fn.reinterpret(_as_bits(partner) * (mask < 1.0), dtype=types.FLOAT)
    # A subtraction, because -0 + 0 is +0: where the mask is 1, the own bits must stay.
    return mask * own - (mask - 1.0) * partner


def mix_pixels(images: DataNode, source: DataNode, indices: DataNode, mask: Mask) -> DataNode:
    """Mix each image with the one of `source` at `indices` (int32 scalar, CPU), in the type of the images."""
    dtype = static_dtype(images)
    same = source is images
    if mask.cut and dtype in (types.UINT8, *_FLOAT_BITS):
        return _paste_box(images, images if same else as_type(source, dtype), indices, mask)
    # DALI's arithmetic does not take float16, and a type that the graph does not show could be that.
    if dtype in (types.UINT8, types.FLOAT):
        own, other = images, images if same else as_type(source, dtype)
    else:
        own = fn.cast(images, dtype=types.FLOAT)
        other = own if same else as_type(source, types.FLOAT)
    mixed = (
        _paste_box(own, other, indices, mask)
        if mask.cut
        else _blend_float(own, other, indices, mask.weights())
    )
    return mixed if dtype == types.FLOAT else fn.cast_like(mixed, images)


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
    return _select(own, own if source is images else source, partner, fn.cast(mask < 0.5, dtype=types.UINT8))


def wait_for_check(weights: Weights, check: DataNode) -> Weights:
    """The same weights, which DALI computes after `check` (float32 [1], 0)."""
    if weights.dense is not None:
        return weights._replace(dense=weights.dense + to_device(check, weights.dense.device))
    if weights.cut:
        return weights._replace(rows=weights.rows + check)
    return weights._replace(base=weights.base + check)


def expand_mask(mask: Mask, shape: DataNode, layout: str) -> DataNode:
    """The weight of every pixel of images of a shape (int64 [n]), float32 HxWx1 or 1xHxW."""
    weights = mask.weights()
    if mask.dense is None and mask.rows is None:
        # `base` alone was enough to mix.
        size = fn.cast(height_and_width(shape, layout), dtype=types.INT32)
        plane = _pixels(size[0], False) * _pixels(size[1], True)
        blank = fn.expand_dims(plane, axes=[mask_layout(layout).index("C")])
        weights = weights + to_device(blank * 0.0, weights.device)
    return fn.reshape(weights, layout=mask_layout(layout))
