"""The compiled kernels: from the draws of one sample to its mixed image, its targets and its mask.

The formulas are those of :mod:`dali_msda.formulas`, compiled by Numba. Weights and products are float32 as in
the graph form, in the same order, and uint8 results are rounded to the nearest, halves up. All functions work
on plain arrays of one sample; DALI calls them through :mod:`.entry_points`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from ... import draws as slot
from ...checks import CHANNELS_DIFFER, LAYOUT_DIFFERS, SIZES_DIFFER
from ...formulas import MaskFormulas
from ...methods import METHODS

_FORMULAS = MaskFormulas(
    sqrt=math.sqrt, floor=math.floor, exp=math.exp, minimum=min, maximum=max, compiled=numba.njit
)
_box_side, _drawn_center, _box_span = _FORMULAS.box_side, _FORMULAS.drawn_center, _FORMULAS.box_span
_hmix_level, _gmix_levels = _FORMULAS.hmix_level, _FORMULAS.gmix_levels
_gaussian, _chosen = _FORMULAS.gaussian, _FORMULAS.chosen

_NONE, _MIXUP, _CUTMIX, _STOCHASTIC, _HMIX, _GMIX = (
    METHODS.index(name) for name in ("none", "mixup", "cutmix", "stochastic", "hmix", "gmix")
)
_LAM, _RATIO, _ROW, _COLUMN = slot.LAM, slot.RATIO, slot.CENTER_ROW, slot.CENTER_COLUMN
_APPLY, _SWITCH, _LAM_MIXUP = slot.APPLY_COIN, slot.SWITCH_COIN, slot.LAM_MIXUP
_PROBABILITY, _SWITCH_PROBABILITY, _PI = slot.PROBABILITY, slot.SWITCH_PROBABILITY, slot.PI
_METHOD, _PAPER, _CENTER_GIVEN, _CHW = slot.METHOD, slot.PAPER, slot.CENTER_GIVEN, slot.CHANNELS_FIRST
_SMOOTHING = slot.LABEL_SMOOTHING
# What the image kernel tells the target kernel about a sample.
INFO_LAM, INFO_SMOOTHING = 0, 1
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
_LETTER_C, _LETTER_H = ord("C"), ord("H")
_U = np.uint64
_U1, _U2, _U3 = _U(1), _U(2), _U(3)


@numba.njit
def _axis_center(value: float, size: float, side: float, draws: Any) -> float:
    """The caller's pixel, or a drawn one."""
    if draws[_CENTER_GIVEN] != 0.0:
        return value
    return float(_drawn_center(value, size, side, draws[_PAPER] != 0.0))


@numba.njit
def _fill_box(size: int, value: float, lam: float, ratio: float, draws: Any, profile: Any) -> float:
    """Write a box's indicator along one axis; return its share of the axis."""
    paper = draws[_PAPER] != 0.0
    side = _box_side(float(size), lam, ratio)
    low, high = _box_span(_axis_center(value, float(size), side, draws), float(size), side, paper)
    for i in range(size):
        profile[i] = 1.0 if low <= i < high else 0.0
    return float((high - low) / size)


@numba.njit
def _fill_gaussian(size: int, value: float, width: float, area: float, draws: Any, profile: Any) -> float:
    """Write the blob along one axis; return its mean."""
    center = _axis_center(value, float(size), 1.0, draws)  # a point is a box of one pixel
    total = 0.0
    for i in range(size):
        profile[i] = _gaussian(i - center, width, area, draws[_PI])
        total += profile[i]
    return total / size


@numba.njit
def _fill_mask(draws: Any, rows: Any, columns: Any) -> tuple[float, float]:
    """Write ``scale * rows`` and ``columns``; return the base and the mask's mean, the label weight.

    Both arrays come in uninitialised: every method writes all of them.
    """
    method, paper = int(draws[_METHOD]), draws[_PAPER] != 0.0
    height, width = rows.size, columns.size
    lam = min(max(draws[_LAM], 0.0), 1.0)
    ratio = min(max(draws[_RATIO], 0.0), 1.0) if method == _HMIX else 1.0
    base, scale, share = 1.0, 0.0, 0.0
    if method in (_CUTMIX, _HMIX, _STOCHASTIC):
        share = _fill_box(height, draws[_ROW], lam, ratio, draws, rows)
        share *= _fill_box(width, draws[_COLUMN], lam, ratio, draws, columns)
        scale = -1.0
        if method == _HMIX:
            base = _hmix_level(lam, ratio, share, paper)
            scale = -base
        elif method == _STOCHASTIC:
            lam_mixup = min(max(draws[_LAM_MIXUP], 0.0), 1.0)
            base = _chosen(lam_mixup, 1.0, draws[_SWITCH], draws[_SWITCH_PROBABILITY])
            scale = _chosen(0.0, -1.0, draws[_SWITCH], draws[_SWITCH_PROBABILITY])
    elif method == _GMIX:
        base, scale, blob = _gmix_levels(lam, paper)
        area = float(height) * float(width)
        share = _fill_gaussian(height, draws[_ROW], blob, area, draws, rows)
        share *= _fill_gaussian(width, draws[_COLUMN], blob, area, draws, columns)
    else:
        base = lam if method == _MIXUP else 1.0
        rows[:] = 0.0
        columns[:] = 0.0
    base = _chosen(base, 1.0, draws[_APPLY], draws[_PROBABILITY])
    scale = _chosen(scale, 0.0, draws[_APPLY], draws[_PROBABILITY])
    for i in range(height):
        rows[i] *= scale
    return base, base + scale * share


def _settled(value: Any, own: Any, partner: Any) -> Any:
    """The blended float32 `value` as the element type of `own`: uint8 to the nearest, halves up."""
    raise NotImplementedError("compiled by Numba only")


@numba.extending.overload(_settled)
def _settled_for(value: Any, own: Any, partner: Any) -> Callable[[Any, Any, Any], Any]:
    if own == numba.types.uint8:

        def settled(value: Any, own: Any, partner: Any) -> Any:
            # The fraction is exact; adding 0.5 first would round twice.
            whole = np.int32(value)
            return np.uint8(whole + (value - np.float32(whole) >= np.float32(0.5)))

    else:

        def settled(value: Any, own: Any, partner: Any) -> Any:
            # Two equal pixels mix to themselves, not to their neighbour in float32.
            return own if own == partner else value

    return settled


@numba.njit
def _blended(own: Any, partner: Any, weight: Any) -> Any:
    value = weight * np.float32(own) + (_ONE - weight) * np.float32(partner)
    return _settled(value, own, partner)


# The loops count with unsigned numbers: only then does Numba know that no index is negative, and vectorise.
@numba.njit
def _blend_span(out: Any, own: Any, partner: Any, start: Any, stop: Any, weight: Any) -> None:
    """Elements `start` to `stop` (uint64) of flat images, with one weight for all of them."""
    if weight == _ONE:
        for i in range(start, stop):
            out[i] = own[i]
    elif weight == _ZERO:
        for i in range(start, stop):
            out[i] = partner[i]
    else:
        for i in range(start, stop):
            out[i] = _blended(own[i], partner[i], weight)


@numba.njit
def _blend_line(
    out: Any, own: Any, partner: Any, to: Any, start: Any, base: Any, row: Any, columns: Any
) -> None:
    """A line with a weight of its own for every element, from `start` of the images to `to` of the result."""
    for i in range(_U(columns.size)):
        out[to + i] = _blended(own[start + i], partner[start + i], base + row * columns[i])


@numba.njit
def _fault(own: Any, draws: Any, partner: Any, layout: Any) -> int:
    """0, or why the images cannot be mixed: one of the faults of :mod:`dali_msda.checks`."""
    # The graph turns a fault into an error; here it only must not read past a smaller partner.
    if own.shape != partner.shape:
        return SIZES_DIFFER
    if layout.size > 0 and layout[0] != (_LETTER_C if draws[_CHW] != 0.0 else _LETTER_H):
        return LAYOUT_DIFFERS
    return 0


@numba.njit
def _line_weights(draws: Any, height: int, width: int, repeats: int) -> Any:
    """The mask, ready for lines of `width` pixels with `repeats` elements each.

    Returns the base (float32), the scaled rows (float64), the columns as float32 with one weight per element
    of a line, the part of a line where they are not 0 (first, last), and the label weight.
    """
    rows = np.empty(height, np.float64)
    profile = np.empty(width, np.float64)
    base, label_weight = _fill_mask(draws, rows, profile)
    length = width * repeats
    columns = np.empty(length, np.float32)
    first, last = length, 0
    for x in range(width):
        weight = np.float32(profile[x])
        for i in range(x * repeats, (x + 1) * repeats):
            columns[i] = weight
        if weight != _ZERO:
            first = min(first, x * repeats)
            last = (x + 1) * repeats
    return np.float32(base), rows, columns, first, last, label_weight


@numba.njit
def mix_image(mixed: Any, info: Any, fault: Any, own: Any, draws: Any, partner: Any, layout: Any) -> None:
    """Mix one image.

    Parameters
    ----------
    mixed : array, output
        Shape and dtype of `own`.
    info : float32 [2], output
        The label weight at INFO_LAM, the label smoothing at INFO_SMOOTHING.
    fault : int32 [1], output
        0, or one of the faults of :mod:`dali_msda.checks`; then the image is copied, unmixed.
    own, partner : uint8 or float32, three-dimensional, C-contiguous
        The images.
    draws : float64 [SLOTS]
        As :mod:`dali_msda.draws` packs them.
    layout : uint8 [n]
        The layout that DALI has for the images, as letters; may be empty.
    """
    info[INFO_LAM] = _ONE
    info[INFO_SMOOTHING] = draws[_SMOOTHING]
    fault[0] = _fault(own, draws, partner, layout)
    if fault[0] != 0:
        mixed[:] = own
        return
    # A line is a row of pixels, of one channel (CHW) or of all of them (HWC).
    if draws[_CHW] != 0.0:
        lines, height, width, repeats = own.shape[0] * own.shape[1], own.shape[1], own.shape[2], 1
    else:
        lines, height, width, repeats = own.shape[0], own.shape[0], own.shape[1], own.shape[2]
    base, rows, columns, first, last, info[INFO_LAM] = _line_weights(draws, height, width, repeats)
    is_box, length = int(draws[_METHOD]) != _GMIX, _U(width * repeats)
    out, a, b = mixed.reshape(-1), own.reshape(-1), partner.reshape(-1)
    if is_box:  # all at once as if there were no box, which comes on top: long loops are fast loops
        _blend_span(out, a, b, _U(0), _U(out.size), base)
    for line in range(lines):
        start = _U(line) * length
        row = np.float32(rows[line % height])
        if not is_box:
            _blend_line(out, a, b, start, start, base, row, columns)
        elif row != _ZERO and first < last:
            _blend_span(out, a, b, start + _U(first), start + _U(last), base + row)


@numba.njit
def _normalize_pixels(out: Any, to: Any, line: Any, mean: Any, scale: Any) -> None:
    """A line of pixels, channels last; `mean` and `scale` have a number for every element."""
    for i in range(_U(line.size)):
        out[to + i] = (np.float32(line[i]) - mean[i]) * scale[i]


@numba.njit
def _normalize_planes(out: Any, to: Any, plane: Any, line: Any, mean: Any, scale: Any) -> None:
    """A line of pixels to a line of each of the planes, which are `plane` elements apart."""
    channels = _U(mean.size)
    if channels == _U3:  # all three in one loop: read once, and vectorised
        red, green, blue = mean[0], mean[1], mean[2]
        red_scale, green_scale, blue_scale = scale[0], scale[1], scale[2]
        at = _U(0)
        for x in range(_U(line.size) // _U3):
            out[to + x] = (np.float32(line[at]) - red) * red_scale
            out[to + plane + x] = (np.float32(line[at + _U1]) - green) * green_scale
            out[to + plane + plane + x] = (np.float32(line[at + _U2]) - blue) * blue_scale
            at += _U3
    else:
        for c in range(channels):
            for x in range(_U(line.size) // channels):
                out[to + c * plane + x] = (np.float32(line[x * channels + c]) - mean[c]) * scale[c]


@numba.njit
def mix_normalized(
    mixed: Any,
    info: Any,
    fault: Any,
    own: Any,
    draws: Any,
    partner: Any,
    layout: Any,
    norm: Any,
    channels_first: bool,
) -> None:
    """Mix one image and normalise it, line by line: what :func:`mix_image` makes is never stored.

    Parameters
    ----------
    mixed : float32 [C, H, W] or [H, W, C], output
        (mixed - mean) / std, channels first where `channels_first` says so; 0 after a fault.
    own, partner : uint8 [H, W, C], C-contiguous
        The images.
    norm : float32 [2, C]
        Mean and 1 / std of every channel.
    info, fault, draws, layout
        See :func:`mix_image`.
    """
    info[INFO_LAM] = _ONE
    info[INFO_SMOOTHING] = draws[_SMOOTHING]
    fault[0] = _fault(own, draws, partner, layout)
    if fault[0] == 0 and own.shape[2] != norm.shape[1]:
        fault[0] = CHANNELS_DIFFER
    out = mixed.reshape(-1)
    if fault[0] != 0:
        out[:] = _ZERO
        return
    height, width, channels = own.shape
    base, rows, columns, first, last, info[INFO_LAM] = _line_weights(draws, height, width, channels)
    is_box, length = int(draws[_METHOD]) != _GMIX, width * channels
    a, b = own.reshape(-1), partner.reshape(-1)
    line = np.empty(length, own.dtype)
    mean, scale = np.empty(length, np.float32), np.empty(length, np.float32)
    for i in range(length):
        mean[i], scale[i] = norm[0, i % channels], norm[1, i % channels]
    for y in range(height):
        start = y * length
        row = np.float32(rows[y])
        if is_box:
            own_line, partner_line = a[start : start + length], b[start : start + length]
            _blend_span(line, own_line, partner_line, _U(0), _U(length), base)
            if row != _ZERO and first < last:
                _blend_span(line, own_line, partner_line, _U(first), _U(last), base + row)
        else:
            _blend_line(line, a, b, _U(0), _U(start), base, row, columns)
        if channels_first:
            _normalize_planes(out, _U(y * width), _U(height * width), line, norm[0], norm[1])
        else:
            _normalize_pixels(out, _U(start), line, mean, scale)


@numba.njit
def write_mask(mask: Any, draws: Any) -> None:
    """Write the mask of one sample: float32 HxWx1, or 1xHxW where `draws` say CHW."""
    rows = np.empty(mask.shape[1] if draws[_CHW] != 0.0 else mask.shape[0], np.float64)
    columns = np.empty(mask.shape[2] if draws[_CHW] != 0.0 else mask.shape[1], np.float64)
    base, _ = _fill_mask(draws, rows, columns)
    flat = mask.reshape(-1)
    for y in range(rows.size):
        for x in range(columns.size):
            flat[y * columns.size + x] = np.float32(base) + np.float32(rows[y]) * np.float32(columns[x])


@numba.njit
def write_targets(targets: Any, info: Any, label: Any, partner_label: Any) -> None:
    """Label smoothing s: off = s / K, on = 1 - s + s / K, mixed by the label weight."""
    num_classes, smoothing, lam = targets.size, info[INFO_SMOOTHING], info[INFO_LAM]
    off = smoothing / np.float32(num_classes)
    on = np.float32(1.0) - smoothing + off
    own, other = label[0], partner_label[0]
    targets[:] = off
    if 0 <= own < num_classes and 0 <= other < num_classes:  # else a check has stopped the pipeline
        if own == other:
            targets[own] = on
        else:
            targets[own] = off + (on - off) * lam
            targets[other] = off + (on - off) * (np.float32(1.0) - lam)
