"""The graph backend: the same formulas as DALI operators, for the GPU and as a proof on the CPU.

Only operators that DALI lists for the device they run on are used. What is small (draws, rows and columns
of the mask, label weights) is computed on the CPU, where DALI draws its random numbers; the images stay
where they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode, Pipeline

from .. import draws as slot
from ..arguments import MixArguments, MixParams
from ..checks import LAYOUT_DIFFERS, SIZES_DIFFER, label_in_range, no_fault, three_dimensional
from ..dtypes import static_dtype
from ..formulas import MaskFormulas
from ..normalization import asked_for, normalized

_FORMULAS = MaskFormulas(sqrt=math.sqrt, floor=math.floor, exp=math.exp, minimum=math.min, maximum=math.max)
# Sides of JPEG files end at 65535 pixels.
_PIXEL_INDICES = np.arange(65536, dtype=np.float32)


def _pick(draws: DataNode, index: int, length: int = 1) -> DataNode:
    return fn.slice(draws, start=[index], shape=[length], axes=[0])


def _profiles(values: list[DataNode], size: DataNode, make: Any) -> tuple[DataNode, DataNode]:
    """One profile along each axis, float32 [H] and [W].

    `values` holds what differs between the axes (float64, one column per axis), `make` maps the pixel
    indices and that axis' values to weights.
    """
    profiles = []
    for axis in (0, 1):
        length = fn.cast(size[axis], dtype=types.INT32)
        ramp = types.Constant(_PIXEL_INDICES, device="cpu")
        pixels = fn.slice(ramp, start=[0], shape=length, axes=[0])  # a side must be at most 65536 pixels
        profiles.append(fn.cast(make(pixels, *(value[axis] for value in values)), dtype=types.FLOAT))
    return profiles[0], profiles[1]


def _mask_parts(
    draws: DataNode, size: DataNode, arguments: MixArguments
) -> tuple[DataNode, DataNode | None, DataNode | None, DataNode]:
    """Base [1], scaled rows [H] and columns [W] of the mask as float32, and the label weight [1].

    Rows and columns are None for a mask that is the same everywhere.
    """
    paper = arguments.convention == "paper"
    lam = math.clamp(_pick(draws, slot.LAM), 0.0, 1.0)
    one = lam * 0.0 + 1.0  # float64 and one per sample, which DALI's constants are not
    applies = (_pick(draws, slot.APPLY_COIN), _pick(draws, slot.PROBABILITY))
    if arguments.method in ("none", "mixup"):
        base = lam if arguments.method == "mixup" else one
        base = fn.cast(_FORMULAS.chosen(base, 1.0, *applies), dtype=types.FLOAT)
        return base, None, None, base

    place = _pick(draws, slot.CENTER_ROW, 2)
    given = arguments.center is not None
    if arguments.method == "gmix":
        base, scale, width = _FORMULAS.gmix_levels(lam, paper)
        area = size[0] * size[1]
        pi = _pick(draws, slot.PI)
        center = place if given else _FORMULAS.drawn_center(place, size, size * 0.0 + 1.0, paper)
        rows, columns = _profiles(
            [center], size, lambda pixels, middle: _FORMULAS.gaussian(pixels - middle, width, area, pi)
        )
    else:
        is_hmix = arguments.method == "hmix"
        ratio = math.clamp(_pick(draws, slot.RATIO), 0.0, 1.0) if is_hmix else one
        side = _FORMULAS.box_side(size, lam, ratio)
        center = place if given else _FORMULAS.drawn_center(place, size, side, paper)
        low, high = _FORMULAS.box_span(center, size, side, paper)
        rows, columns = _profiles(
            [low, high], size, lambda pixels, first, after: 1.0 * (pixels >= first) * (pixels < after)
        )
        if is_hmix:
            shares = (high - low) / size
            base = _FORMULAS.hmix_level(lam, ratio, shares[0] * shares[1], paper)
            scale = -base
        elif arguments.method == "stochastic":
            lam_mixup = math.clamp(_pick(draws, slot.LAM_MIXUP), 0.0, 1.0)
            switch = (_pick(draws, slot.SWITCH_COIN), _pick(draws, slot.SWITCH_PROBABILITY))
            base = _FORMULAS.chosen(lam_mixup, 1.0, *switch)
            scale = _FORMULAS.chosen(0.0, -1.0, *switch)
        else:
            base, scale = one, -one
    base = _FORMULAS.chosen(base, 1.0, *applies)
    scale = _FORMULAS.chosen(scale, 0.0, *applies)
    share = fn.reductions.mean(rows) * fn.reductions.mean(columns)
    weight = fn.cast(base + scale * share, dtype=types.FLOAT)
    return (
        fn.cast(base, dtype=types.FLOAT),
        fn.cast(scale * rows, dtype=types.FLOAT),
        columns,
        weight,
    )


def _to_device(node: DataNode, device: str) -> DataNode:
    return node.gpu() if device == "gpu" else node


def _outer(rows: DataNode, columns: DataNode, layout: str, device: str) -> DataNode:
    """rows * columns, shaped to broadcast over the images: HxWx1 or 1xHxW."""
    across = [0, 2] if layout == "HWC" else [0, 1]
    down = [1, 2] if layout == "HWC" else [0, 2]
    rows = fn.expand_dims(_to_device(rows, device), axes=down)
    columns = fn.expand_dims(_to_device(columns, device), axes=across)
    return rows * columns


def _expand(
    base: DataNode, rows: DataNode | None, columns: DataNode | None, layout: str, device: str
) -> DataNode:
    """The mask, shaped to broadcast over the images: HxWx1 or 1xHxW (1x1x1 where it is constant)."""
    base = fn.expand_dims(_to_device(base, device), axes=[1, 2])
    if rows is None or columns is None:
        return base
    return base + _outer(rows, columns, layout, device)


def _pasted(
    own: DataNode, partner: DataNode, rows: DataNode, columns: DataNode, layout: str, device: str
) -> DataNode:
    """CutMix of uint8 images in uint8: a quarter of the bytes of float32 products, and nothing to round.

    `rows` are -1 or 0, `columns` 1 or 0; both are not 0 inside the box.
    """
    rows, columns = fn.cast(-rows, dtype=types.UINT8), fn.cast(columns, dtype=types.UINT8)
    inside = _outer(rows, columns, layout, device)
    one = types.Constant(1, dtype=types.UINT8)
    return own * (one - inside) + partner * inside


def _fault(images: DataNode, shape: DataNode, partner: DataNode, layout: str) -> DataNode:
    """SIZES_DIFFER where the partner's size differs from the own, LAYOUT_DIFFERS or 0: int32 [1]."""
    other = fn.permute_batch(shape, indices=partner)
    fault = fn.reductions.max(fn.cast(shape != other, dtype=types.INT32)) * SIZES_DIFFER
    if images.device == "cpu":  # on the GPU the property lies there too, out of reach of the check
        letters = fn.pad(fn.get_property(images, key="layout"), axes=[0], shape=[3], fill_value=0)
        first = fn.slice(letters, start=[0], shape=[1], axes=[0])
        wrong = (first != ord(layout[0])) & (first != 0)
        fault = math.max(fault, fn.cast(wrong, dtype=types.INT32) * LAYOUT_DIFFERS)
    return fn.reshape(fn.cast(fault, dtype=types.INT32), shape=[1])


def _one_hot(labels: DataNode, arguments: MixArguments) -> DataNode:
    """Label smoothing s: off = s / K, on = 1 - s + s / K."""
    off = arguments.label_smoothing / arguments.num_classes
    on = 1.0 - arguments.label_smoothing + off
    return fn.one_hot(labels, num_classes=arguments.num_classes, on_value=on, off_value=off)


def one_hot_targets(labels: DataNode, device: str, arguments: MixArguments) -> DataNode:
    """Targets without mixing, float32 [num_classes] on `device`; labels are int32 [1] on the CPU."""
    in_range = label_in_range(labels, arguments.num_classes)
    return _to_device(_one_hot(labels, arguments) + in_range, device)


def mix(
    images: DataNode, labels: DataNode, draws: DataNode, partner: DataNode, arguments: MixArguments
) -> tuple[DataNode, DataNode, MixParams | None]:
    """Mix a batch with DALI operators, on any device; otherwise as the numba backend."""
    images = three_dimensional(images)
    shape = images.shape(dtype=types.INT64)
    first_side = 1 if arguments.layout == "CHW" else 0
    size = fn.cast(fn.slice(shape, start=[first_side], shape=[2], axes=[0]), dtype=types.FLOAT64)
    base, rows, columns, weight = _mask_parts(draws, size, arguments)
    faultless = no_fault(_fault(images, shape, partner, arguments.layout))

    if arguments.return_params and rows is None:
        # The caller's mask is as large as the image, also where one number would do.
        rows, columns = _profiles([], size, lambda pixels: pixels * 0.0)
    # Through the base everything that follows waits for the check.
    mask = _expand(base + faultless, rows, columns, arguments.layout, images.device)
    # DALI's arithmetic does not take float16, and a type that the graph does not show could be that.
    plain = static_dtype(images) in (types.UINT8, types.FLOAT)
    own = images if plain else fn.cast(images, dtype=types.FLOAT)
    other = fn.permute_batch(own, indices=partner)
    if arguments.method == "cutmix" and static_dtype(images) == types.UINT8 and rows is not None:
        mixed = _pasted(own, other, rows + faultless, columns, arguments.layout, images.device)
    else:
        mixed = fn.cast_like(mask * own + (1.0 - mask) * other, images)
    if Pipeline.current().max_batch_size == 1:
        mixed = images  # nothing to mix with; float32 weights would change the last bit
    if normalization := asked_for(arguments):
        mixed = normalized(mixed, normalization)

    hot = _one_hot(labels, arguments)
    weight = weight + label_in_range(labels, arguments.num_classes)
    targets = weight * hot + (1.0 - weight) * fn.permute_batch(hot, indices=partner)
    targets = _to_device(targets, images.device)
    if not arguments.return_params:
        return mixed, targets, None
    lam = fn.reshape(weight, shape=[])
    return mixed, targets, MixParams(lam, partner, fn.reshape(mask, layout=arguments.layout))
