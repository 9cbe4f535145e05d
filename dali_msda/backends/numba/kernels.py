"""The compiled kernels: from the numbers of one sample to its mask, its mixed image and its targets.

Weights and products are float32 as in the graph form, in the same order, and integers are rounded to nearest,
halves away from 0. All functions work on plain arrays of one sample; DALI calls them through
:mod:`.entry_points`. A mask is either one vector of base, height, rows (times the scale) and columns, or an
array with a weight for every pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from ...fault_codes import CHANNELS_DIFFER, LAYOUT_DIFFERS, MASK_DIFFERS, SIZES_DIFFER
from ...masks import Axis, Grid, Separable
from ...methods import Method
from . import functions
from .formulas import chosen, compiled_formula, fingerprint
from .intrinsics import to_fixed_tuple

_ONE, _ZERO, _INFINITY = np.float32(1.0), np.float32(0.0), np.float32(np.inf)
_BELOW_HALF = np.nextafter(np.float32(0.5), _ZERO)
_LETTER_C, _LETTER_H = ord("C"), ord("H")
_U = np.uint64
_U1, _U2, _U3 = _U(1), _U(2), _U(3)


@numba.njit
def _write_profiles(weights: Any, rows: Any, columns: Any, scale: float) -> Any:
    """Write ``scale * rows`` and `columns` after the base; return the mean of ``rows * columns``."""
    height, width = rows.shape[0], columns.shape[1]
    down, across = 0.0, 0.0
    for y in range(height):
        down += rows[y, 0]
        weights[2 + y] = rows[y, 0] * scale
    for x in range(width):
        across += columns[0, x]
        weights[2 + height + x] = columns[0, x]
    return (down / height) * (across / width)


@numba.njit
def _write_constant(weights: Any, lam: Any, mask: Any, coin: float, probability: float) -> None:
    """:func:`_write_separable` for a mask without rows and columns."""
    lam[0] = chosen(mask.base, 1.0, coin, probability)
    weights[0] = lam[0]
    weights[2:] = _ZERO


@numba.njit
def _write_separable(weights: Any, lam: Any, mask: Any, coin: float, probability: float) -> None:
    """Write a mask's base, rows and columns, and its mean, the label weight (1 for a sample not mixed).

    Parameters
    ----------
    weights : float32 [2 + H + W], output
    lam : float32 [1], output
    mask : Separable
    coin, probability : float
        A sample is mixed where `coin` is below `probability`.
    """
    base = chosen(mask.base, 1.0, coin, probability)
    scale = chosen(mask.scale, 0.0, coin, probability)
    weights[0] = base
    lam[0] = base + scale * _write_profiles(weights, mask.rows, mask.columns, scale)


@numba.njit
def join_mask(weights: Any, lam: Any, base: float, scale: float, rows: Any, columns: Any) -> None:
    """Clip a caller's base, scale, rows [H] and columns [W], and write them by :func:`_write_separable`."""
    base = min(max(base, 0.0), 1.0)
    scale = min(max(scale, -base), 1.0 - base)
    down = np.minimum(np.maximum(rows, _ZERO), _ONE).reshape(-1, 1)
    across = np.minimum(np.maximum(columns, _ZERO), _ONE).reshape(1, -1)
    weights[1] = rows.size
    _write_separable(weights, lam, Separable(base, scale, down, across), 0.0, 1.0)


@numba.njit
def _write_dense(weights: Any, lam: Any, mask: Any, coin: float, probability: float) -> None:
    """:func:`_write_separable` for a mask of any shape: `weights` are float32 [H, W]; no label weight yet."""
    lam[0] = _ZERO
    if coin < probability:
        weights[:] = mask.values
    else:
        weights[:] = _ONE


# What every mask depends on, besides the values of its formula.
_COMMON = ("_row", "_column", "_coin", "_probability", "_paper", "_given")


def inputs_of(method: Method) -> tuple[str, ...]:
    """What the kernel of a method's masks takes, in order: names of :attr:`dali_msda.draws.Draws.slots`."""
    return (*method.values, *_COMMON)


@functools.cache
def mask_writer(method: Method) -> Any:
    """Make a kernel ``write(weights, lam, numbers, height, width)``: one sample's mask from its draws.

    Parameters
    ----------
    method : Method
        `numbers`, float64 [n], are in the order of :func:`inputs_of`.
    """
    count = len(method.values)
    row, column, coin, probability, paper, given = range(count, count + len(_COMMON))
    formula = compiled_formula(method.mask)
    write = {"constant": _write_constant, "separable": _write_separable, "dense": _write_dense}[method.kind]

    def write_weights(weights: Any, lam: Any, numbers: Any, height: int, width: int) -> None:
        down = np.arange(height).astype(np.float64).reshape(height, 1)
        across = np.arange(width).astype(np.float64).reshape(1, width)
        rows = Axis(float(height), down, numbers[row])
        columns = Axis(float(width), across, numbers[column])
        grid = Grid(rows, columns, numbers[paper] != 0.0, numbers[given] != 0.0)
        mask = formula(functions, grid, *to_fixed_tuple(numbers[:count], count))  # type: ignore[call-arg]
        write(weights, lam, mask, numbers[coin], numbers[probability])
        if weights.ndim == 1:
            weights[1] = height

    write_weights.__qualname__ += f"_{fingerprint(method.mask)}"  # see `compiled`
    return numba.njit(write_weights)


# The sum may be taken in any order, so that the processor adds several weights at a time. It is float32 over
# at most 256 of them, so that its rounding error stays below that of the weights.
@numba.njit(fastmath={"reassoc"})
def _repeat_clipped(line: Any, weights: Any, repeats: int, low: Any, high: Any) -> Any:
    """Clip weights to [low, high] and write each `repeats` times, once for each element of its pixel.

    Returns the sum of the clipped weights (float64).
    """
    total, first, size = 0.0, _U(0), _U(weights.size)
    while first < size:
        stop, part = min(first + _U(256), size), _ZERO
        if repeats == 3:
            for x in range(first, stop):
                at, weight = x * _U3, min(max(weights[x], low), high)
                part += weight
                line[at] = weight
                line[at + _U1] = weight
                line[at + _U2] = weight
        else:
            for x in range(first, stop):
                weight = min(max(weights[x], low), high)
                part += weight
                for i in range(x * _U(repeats), (x + _U1) * _U(repeats)):
                    line[i] = weight
        total += np.float64(part)
        first = stop
    return total


@numba.njit
def write_mask(mask: Any, weights: Any, channels_first: bool) -> None:
    """Write the mask of one sample with a weight for every pixel: float32, HxWx1 or 1xHxW."""
    flat = mask.reshape(-1)
    if weights.ndim == 2:
        _repeat_clipped(flat, weights.reshape(-1), 1, _ZERO, _ONE)
    else:
        width = mask.shape[2] if channels_first else mask.shape[1]
        height = flat.size // width
        for y in range(height):
            for x in range(width):
                flat[y * width + x] = weights[0] + weights[2 + y] * weights[2 + height + x]


def _to_element_type(value: Any, own: Any, partner: Any) -> Any:
    """Convert the blended float32 `value` to the element type of `own`: integers are rounded to nearest."""
    raise NotImplementedError("compiled by Numba only")


@numba.extending.overload(_to_element_type)
def _overload_to_element_type(value: Any, own: Any, partner: Any) -> Callable[[Any, Any, Any], Any]:
    if own in (numba.types.uint8, numba.types.uint16):
        element = np.uint8 if own == numba.types.uint8 else np.uint16

        def to_element_type(value: Any, own: Any, partner: Any) -> Any:
            # 0.5 would be too much for the float below 0.5: their sum is rounded to 1.
            return element(np.int32(value + _BELOW_HALF))

    elif own == numba.types.int16:

        def to_element_type(value: Any, own: Any, partner: Any) -> Any:
            whole = np.int32(value)
            fraction = value - np.float32(whole)
            return np.int16(whole + (fraction >= np.float32(0.5)) - (fraction <= np.float32(-0.5)))

    else:

        def to_element_type(value: Any, own: Any, partner: Any) -> Any:
            # Two equal pixels mix to themselves, not to the next float32.
            return own if own == partner else value

    return to_element_type


@numba.njit
def _blend_element(own: Any, partner: Any, weight: Any) -> Any:
    value = weight * np.float32(own) + (_ONE - weight) * np.float32(partner)
    return _to_element_type(value, own, partner)


def _drop_weightless(value: Any, own: Any, partner: Any, weight: Any) -> Any:
    """The blended `value`, or one pixel if the other has weight 0, because 0 * NaN is NaN."""
    raise NotImplementedError("compiled by Numba only")


@numba.extending.overload(_drop_weightless)
def _overload_drop_weightless(
    value: Any, own: Any, partner: Any, weight: Any
) -> Callable[[Any, Any, Any, Any], Any]:
    if isinstance(own, numba.types.Integer):

        def drop_weightless(value: Any, own: Any, partner: Any, weight: Any) -> Any:
            return value

    else:

        def drop_weightless(value: Any, own: Any, partner: Any, weight: Any) -> Any:
            return own if weight == _ONE else partner if weight == _ZERO else value

    return drop_weightless


# The loops use unsigned indices: only then does Numba know that none is negative, and vectorise.
@numba.njit
def _blend_span(out: Any, own: Any, partner: Any, start: Any, stop: Any, weight: Any) -> None:
    """Blend elements `start` to `stop` (uint64) of flat images, all with one weight."""
    if weight == _ONE:
        for i in range(start, stop):
            out[i] = own[i]
    elif weight == _ZERO:
        for i in range(start, stop):
            out[i] = partner[i]
    else:
        for i in range(start, stop):
            out[i] = _blend_element(own[i], partner[i], weight)


@numba.njit
def _blend_line(
    out: Any, own: Any, partner: Any, to: Any, start: Any, base: Any, row: Any, columns: Any
) -> None:
    """Blend a line with a weight for each element: from `start` in the images, to `to` in the result."""
    for i in range(_U(columns.size)):
        x, y, weight = own[start + i], partner[start + i], base + row * columns[i]
        out[to + i] = _drop_weightless(_blend_element(x, y, weight), x, y, weight)


@numba.njit
def _fits(weights: Any, height: int, width: int) -> Any:
    """Whether a mask has the size of the image."""
    if weights.ndim == 2:
        return weights.shape == (height, width)
    return weights.size == 2 + height + width and weights[1] == height


@numba.njit
def _height_of(weights: Any) -> Any:
    """The height of a mask."""
    return weights.shape[0] if weights.ndim == 2 else int(weights[1])


@numba.njit
def _find_fault(own: Any, partner: Any, weights: Any, channels_first: bool, layout: Any, clips: bool) -> int:
    """0, or why the images cannot be mixed: one of the faults of :mod:`dali_msda.fault_codes`."""
    # The graph turns a fault into an error; this code only has to avoid reading beyond a smaller partner.
    if own.shape != partner.shape:
        return SIZES_DIFFER
    if layout.size > 0 and layout[0] != (_LETTER_C if channels_first else _LETTER_H):
        return LAYOUT_DIFFERS
    height, width = (own.shape[1], own.shape[2]) if channels_first else (own.shape[0], own.shape[1])
    if clips and not channels_first:
        frame = _height_of(weights)
        height = frame if frame > 0 and height % frame == 0 else height
    return 0 if _fits(weights, height, width) else MASK_DIFFERS


@numba.njit
def _find_box(columns: Any) -> Any:
    """Whether the columns that are not 0 are all 1, a box; the first of them, and the one after the last."""
    first, last = columns.size, 0
    for i in range(columns.size):
        if columns[i] != _ZERO:
            first, last = min(first, i), i + 1
    is_box = True
    for i in range(first, last):
        is_box &= columns[i] == _ONE
    return is_box, first, last


@numba.njit
def mix_image(
    mixed: Any,
    lam: Any,
    fault: Any,
    own: Any,
    weights: Any,
    partner: Any,
    channels_first: bool,
    layout: Any,
    clips: bool = False,
) -> None:
    """Mix one image.

    Parameters
    ----------
    mixed : array, output
        Shape and dtype of `own`.
    lam : float32 [1], output
        The label weight, if there is a weight for every pixel; for a mask in one vector it is known already.
    fault : int32 [1], output
        0, or one of the faults of :mod:`dali_msda.fault_codes`; then the image is copied, unmixed.
    own, partner : uint8, int16, uint16 or float32, three-dimensional, C-contiguous
        The images.
    weights : float32 [2 + H + W] or [H, W]
        The mask: base, height, scaled rows and columns, or a weight for every pixel.
    channels_first : bool
        Whether the images are CxHxW.
    layout : uint8 [n]
        The layout that DALI has for the images, as letters; may be empty.
    clips : bool
        Whether the first side joins the frames of a clip, each with the same mask.
    """
    fault[0] = _find_fault(own, partner, weights, channels_first, layout, clips)
    if fault[0] != 0:
        mixed[:] = own
        lam[0] = _ONE
        return
    # A line is a row of pixels, of one channel (CHW) or of all of them (HWC).
    if channels_first:
        lines, height, width, repeats = own.shape[0] * own.shape[1], own.shape[1], own.shape[2], 1
    else:
        lines, height, width, repeats = own.shape[0], _height_of(weights), own.shape[1], own.shape[2]
    length = _U(width * repeats)
    out, a, b = mixed.reshape(-1), own.reshape(-1), partner.reshape(-1)
    columns = np.empty(width * repeats, np.float32)
    if weights.ndim == 2:
        total, y = 0.0, 0
        for line in range(lines):
            start = _U(line) * length
            total += _repeat_clipped(columns, weights[y], repeats, _ZERO, _ONE)
            _blend_line(out, a, b, start, start, _ZERO, _ONE, columns)
            y = y + 1 if y + 1 < height else 0  # channels or frames begin again; cheaper than a division
        lam[0] = total / (lines * width)
        return
    base, rows = weights[0], weights[2 : 2 + height]
    _repeat_clipped(columns, weights[2 + height :], repeats, -_INFINITY, _INFINITY)
    is_box, first, last = _find_box(columns)
    if is_box:  # the whole image first, then the box over it: long loops are fast loops
        _blend_span(out, a, b, _U(0), _U(out.size), base)
    y = 0
    for line in range(lines):
        start, row = _U(line) * length, rows[y]
        y = y + 1 if y + 1 < height else 0
        if not is_box:
            _blend_line(out, a, b, start, start, base, row, columns)
        elif row != _ZERO and first < last:
            _blend_span(out, a, b, start + _U(first), start + _U(last), base + row)


@numba.njit
def _normalize_pixels(out: Any, to: Any, line: Any, mean: Any, scale: Any) -> None:
    """Normalise a line of pixels, channels last; `mean` and `scale` have a number for every element."""
    for i in range(_U(line.size)):
        out[to + i] = (np.float32(line[i]) - mean[i]) * scale[i]


@numba.njit
def _normalize_planes(out: Any, to: Any, plane: Any, line: Any, mean: Any, scale: Any) -> None:
    """Normalise a line of pixels into one line of each plane; planes are `plane` elements apart."""
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
    lam: Any,
    fault: Any,
    own: Any,
    weights: Any,
    partner: Any,
    layout: Any,
    norm: Any,
    channels_first: bool,
) -> None:
    """Mix one image and normalise it line by line, without storing the mixed image.

    Parameters
    ----------
    mixed : float32 [C, H, W] or [H, W, C], output
        (mixed - mean) / std, channels first if `channels_first`; 0 after a fault.
    own, partner : uint8 [H, W, C], C-contiguous
        The images.
    norm : float32 [2, C]
        Mean and 1 / std of every channel.
    lam, fault, weights, layout
        See :func:`mix_image`.
    """
    fault[0] = _find_fault(own, partner, weights, False, layout, False)
    if fault[0] == 0 and own.shape[2] != norm.shape[1]:
        fault[0] = CHANNELS_DIFFER
    out = mixed.reshape(-1)
    if fault[0] != 0:
        out[:] = _ZERO
        lam[0] = _ONE
        return
    height, width, channels = own.shape
    length = width * channels
    a, b = own.reshape(-1), partner.reshape(-1)
    columns, line = np.empty(length, np.float32), np.empty(length, own.dtype)
    if channels_first:
        mean, scale = norm[0], norm[1]
    else:
        mean, scale = np.empty(length, np.float32), np.empty(length, np.float32)
        for i in range(length):
            mean[i], scale[i] = norm[0, i % channels], norm[1, i % channels]
    if weights.ndim == 1:
        _repeat_clipped(columns, weights[2 + height :], channels, -_INFINITY, _INFINITY)
    total = 0.0
    for y in range(height):
        start = y * length
        if weights.ndim == 2:
            total += _repeat_clipped(columns, weights[y], channels, _ZERO, _ONE)
            _blend_line(line, a, b, _U(0), _U(start), _ZERO, _ONE, columns)
        else:
            _blend_line(line, a, b, _U(0), _U(start), weights[0], weights[2 + y], columns)
        if channels_first:
            _normalize_planes(out, _U(y * width), _U(height * width), line, mean, scale)
        else:
            _normalize_pixels(out, _U(start), line, mean, scale)
    if weights.ndim == 2:
        lam[0] = total / weights.size


@numba.njit
def write_targets(targets: Any, lam: Any, label: Any, partner_label: Any, smoothing: Any) -> None:
    """Label smoothing s: off = s / K, on = 1 - s + s / K, mixed by the label weight."""
    num_classes, weight = targets.size, lam[0]
    off = smoothing / np.float32(num_classes)
    on = np.float32(1.0) - smoothing + off
    own, other = label[0], partner_label[0]
    targets[:] = off
    if 0 <= own < num_classes and 0 <= other < num_classes:  # otherwise a check stops the pipeline
        if own == other:
            targets[own] = on
        else:
            targets[own] = off + (on - off) * weight
            targets[other] = off + (on - off) * (np.float32(1.0) - weight)
