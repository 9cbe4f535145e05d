"""The compiled kernels: from the draws of one sample to its mixed image, its targets and its mask.

The formulas are those of :mod:`._formulas`, compiled by Numba. Weights and products are float32 as in the
graph form (:mod:`._backend_graph`), in the same order, and uint8 results are rounded to the nearest, halves
up. All functions work on plain arrays of one sample; DALI calls them through :mod:`._entry_points`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from . import _draws as slot
from ._arguments import METHODS
from ._checks import LAYOUT_DIFFERS, SIZES_DIFFER
from ._formulas import MaskFormulas

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


# The loops run over slices from 0: only then does Numba know that no index is negative, and vectorise.
@numba.njit
def _blend_span(out: Any, own: Any, partner: Any, weight: Any) -> None:
    """One weight for all elements."""
    if weight == _ONE:  # loops too: an assignment of slices first looks for overlap
        for i in range(out.size):
            out[i] = own[i]
    elif weight == _ZERO:
        for i in range(out.size):
            out[i] = partner[i]
    else:
        for i in range(out.size):
            out[i] = _blended(own[i], partner[i], weight)


@numba.njit
def _blend_line(out: Any, own: Any, partner: Any, base: Any, row: Any, columns: Any) -> None:
    """A weight of its own for every element."""
    for i in range(out.size):
        out[i] = _blended(own[i], partner[i], base + row * columns[i])


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
        0, or one of the faults of :mod:`._checks`; then the image is copied, unmixed.
    own, partner : uint8 or float32, three-dimensional, C-contiguous
        The images.
    draws : float64 [SLOTS]
        As :mod:`._draws` packs them.
    layout : uint8 [n]
        The layout that DALI has for the images, as letters; may be empty.
    """
    info[INFO_LAM] = _ONE
    info[INFO_SMOOTHING] = draws[_SMOOTHING]
    fault[0] = 0
    # The graph turns a fault into an error; here it only must not read past a smaller partner.
    if own.shape != partner.shape:
        fault[0] = SIZES_DIFFER
    elif layout.size > 0 and layout[0] != (_LETTER_C if draws[_CHW] != 0.0 else _LETTER_H):
        fault[0] = LAYOUT_DIFFERS
    if fault[0] != 0:
        mixed[:] = own
        return
    # A line is a row of pixels, of one channel (CHW) or of all of them (HWC).
    if draws[_CHW] != 0.0:
        lines, height, width, repeats = own.shape[0] * own.shape[1], own.shape[1], own.shape[2], 1
    else:
        lines, height, width, repeats = own.shape[0], own.shape[0], own.shape[1], own.shape[2]
    rows = np.empty(height, np.float64)
    profile = np.empty(width, np.float64)
    base64, info[INFO_LAM] = _fill_mask(draws, rows, profile)
    base = np.float32(base64)

    # The columns as float32, one weight per element of a line, and the part where they are not 0.
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
    is_box = int(draws[_METHOD]) != _GMIX
    out, a, b = mixed.reshape(-1), own.reshape(-1), partner.reshape(-1)
    for line in range(lines):
        start, stop = line * length, (line + 1) * length
        row = np.float32(rows[line % height])
        if row == _ZERO or first >= last:
            _blend_span(out[start:stop], a[start:stop], b[start:stop], base)
        elif is_box:
            low, high = start + first, start + last
            _blend_span(out[start:low], a[start:low], b[start:low], base)
            _blend_span(out[low:high], a[low:high], b[low:high], base + row)
            _blend_span(out[high:stop], a[high:stop], b[high:stop], base)
        else:
            _blend_line(out[start:stop], a[start:stop], b[start:stop], base, row, columns)


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
