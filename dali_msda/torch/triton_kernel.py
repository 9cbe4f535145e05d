"""Mixing on a GPU in one kernel: it reads each image and its partner once, and writes the result once.

Weights, products and sums are float32, in the order of :mod:`dali_msda.backends.numba.kernels` and without
fused multiply-add: the same masks give the same images as that kernel, to the bit. Integers are rounded to
nearest, halves away from 0; a pixel of weight 0 has no influence, not even NaN; two equal pixels mix to
themselves. Normalisation is ``(mixed - a) * b``, with scale and shift folded into a and b, as in DALI.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..factors import fold_factors
from ..signatures import PerChannel
from .tiling import TILE_LINES, WARPS, cut, in_lines, is_channels_last, memory_format, strides


@triton.jit
def _round(value: tl.tensor, SIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Round float32 to the nearest int32, halves away from 0."""
    whole = value.to(tl.int32)
    fraction = value - whole.to(tl.float32)  # exact; adding 0.5 first would round twice
    rounded = whole + (fraction >= 0.5).to(tl.int32)
    if SIGNED:
        rounded -= (fraction <= -0.5).to(tl.int32)
    return rounded


@triton.jit
def _blend(own, partner, weight):  # type: ignore[no-untyped-def]
    """Blend pixels to the type of the images; the kernel in Numba has the same function."""
    x, y = own.to(tl.float32), partner.to(tl.float32)
    value = weight * x + (1.0 - weight) * y
    if own.dtype.is_floating():
        value = tl.where(x == y, x, value)
        value = tl.where(weight == 1.0, x, tl.where(weight == 0.0, y, value))
        return value.to(own.dtype)
    else:
        return _round(value, own.dtype.is_int_signed()).to(own.dtype)


@triton.jit
def _convert(value, like):  # type: ignore[no-untyped-def]
    """Convert to the element type of the pointer `like`: to integers by rounding, with saturation."""
    element: tl.constexpr = like.dtype.scalar.element_ty
    if value.dtype == element:
        return value
    elif element.is_floating():
        return value.to(tl.float32).to(element)
    else:
        signed: tl.constexpr = element.is_int_signed()
        bits: tl.constexpr = element.primitive_bitwidth
        lowest: tl.constexpr = -(2 ** (bits - 1)) if signed else 0
        highest: tl.constexpr = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        value = tl.minimum(tl.maximum(value.to(tl.float32), lowest), highest)
        return _round(value, signed).to(element)


@triton.jit
def _mix(  # type: ignore[no-untyped-def]
    out,
    own,
    source,
    partner,
    base,
    rows,
    columns,
    dense,
    factors,
    height,
    length,
    tiles,
    tiles_across,
    out_image,
    out_plane,
    out_line,
    own_image,
    own_plane,
    own_line,
    source_image,
    source_plane,
    source_line,
    MASK: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLANES: tl.constexpr,
    TILE_LINES: tl.constexpr,
    TILE_LENGTH: tl.constexpr,
):
    """Mix one tile of one image.

    An image has planes of `height` lines of `length` elements: a plane for each channel (NCHW), or one with
    CHANNELS elements for each pixel (NHWC). Strides are in elements.
    """
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    tile = program % tiles
    lines = (tile // tiles_across) * TILE_LINES + tl.arange(0, TILE_LINES)
    places = (tile % tiles_across) * TILE_LENGTH + tl.arange(0, TILE_LENGTH)
    inside = (lines < height)[:, None] & (places < length)[None, :]
    width = length // CHANNELS
    other = tl.load(partner + image).to(tl.int64)

    # An image without weight in the whole tile is not read.
    if MASK == "dense":
        at = dense + (image * height + lines)[:, None] * width + (places // CHANNELS)[None, :]
        weight = tl.minimum(tl.maximum(tl.load(at, mask=inside, other=0.0), 0.0), 1.0)
        own_length = length
        partner_length = length
    else:
        weight = tl.load(base + image)
        lowest = weight
        highest = weight
        if MASK == "separable":
            down = tl.load(rows + image * height + lines, mask=lines < height, other=0.0)
            across = tl.load(columns + image * width + places // CHANNELS, mask=places < length, other=0.0)
            # The extremes of a product are at the extremes of its factors, after rounding too.
            a, b = tl.min(down, 0), tl.max(down, 0)
            c, d = tl.min(across, 0), tl.max(across, 0)
            lowest += tl.minimum(tl.minimum(a * c, a * d), tl.minimum(b * c, b * d))
            highest += tl.maximum(tl.maximum(a * c, a * d), tl.maximum(b * c, b * d))
            weight += down[:, None] * across[None, :]
        own_length = tl.where((lowest == 0.0) & (highest == 0.0), 0, length)
        partner_length = tl.where((lowest == 1.0) & (highest == 1.0), 0, length)
    own_inside = (lines < height)[:, None] & (places < own_length)[None, :]
    partner_inside = (lines < height)[:, None] & (places < partner_length)[None, :]

    first = tl.program_id(1) * PLANES
    out += image * out_image + first.to(tl.int64) * out_plane
    own += image * own_image + first.to(tl.int64) * own_plane
    source += other * source_image + first.to(tl.int64) * source_plane
    lines = lines.to(tl.int64)[:, None]
    places = places[None, :]
    # A plane is read while the one before is mixed: the compiler moves no load across a store.
    own += lines * own_line + places
    source += lines * source_line + places
    out += lines * out_line + places
    next_own = tl.load(own, mask=own_inside, other=0)
    next_partner = tl.load(source, mask=partner_inside, other=0)
    for plane in tl.static_range(PLANES):
        own_pixels = next_own
        partner_pixels = next_partner
        if plane + 1 < PLANES:
            own += own_plane
            source += source_plane
            next_own = tl.load(own, mask=own_inside, other=0)
            next_partner = tl.load(source, mask=partner_inside, other=0)
        mixed = _blend(own_pixels, partner_pixels, weight)
        if len(factors) > 0:  # a of every channel, then b
            channel = places % CHANNELS if CHANNELS > 1 else first + plane
            a = factors[0]
            b = factors[len(factors) // 2]
            for i in tl.static_range(1, len(factors) // 2):
                a = tl.where(channel == i, factors[i], a)
                b = tl.where(channel == i, factors[len(factors) // 2 + i], b)
            mixed = (mixed.to(tl.float32) - a) * b
        tl.store(out, _convert(mixed, out), mask=inside)
        out += out_plane


def _check(name: str, tensor: Tensor, expected: Sequence[int], device: torch.device) -> None:
    """Raise unless a tensor has the expected shape, on the device of the images."""
    if tuple(tensor.shape) != tuple(expected) or tensor.device != device:
        got = f"{list(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name} must be {list(expected)} on {device}; got {got}")


def mix_images(
    images: Tensor,
    source: Tensor,
    partner: Tensor,
    base: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    dense: Tensor | None,
    *,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Mix every image with its partner, and normalise it if `mean` and `std` are given.

    The host does not wait for the GPU. An image's lines are read in pieces of 16 bytes if tensors begin, and
    lines and images follow each other, at multiples of 16 elements; otherwise element by element.

    Parameters
    ----------
    images : Tensor
        [N, C, H, W], contiguous, channels_last or a view with whole lines of one of them: uint8, int16,
        uint16, float16, bfloat16 or float32, on a GPU.
    source : Tensor
        The partners' images: [M, C, H, W], with the type of the images.
    partner : Tensor
        Index into `source` of every sample's partner: int32 or int64 [N]. The range is not checked.
    base : Tensor
        float32 [N]; not needed with `dense`.
    rows, columns : Tensor or None
        float32 [N, H], times the scale, and [N, W]: the weight of a pixel is base + row * column, in [0, 1].
    dense : Tensor or None
        The weight of every pixel, in place of the others: float32 [N, H, W], clipped to [0, 1].
    mean, std : float or sequence of float, optional
        One number, or one for each channel: scale * (mixed - mean) / std + shift.
    scale, shift : float, optional
    out_dtype : torch.dtype, optional
        Of the result, by default that of the images. Integers are rounded, and saturate.
    out : Tensor, optional
        Where to write the result: of its shape, type and layout, and not one of the images.

    Returns
    -------
    Tensor
        [N, C, H, W], contiguous or channels_last like the images.

    Raises
    ------
    ValueError
        A tensor has a shape, device or layout that does not fit the images.
    """
    if images.ndim != 4 or source.dtype != images.dtype or source.shape[1:] != images.shape[1:]:
        got = f"{list(images.shape)} of {images.dtype} and {list(source.shape)} of {source.dtype}"
        raise ValueError(f"images and source must be [N, C, H, W], of one size and type; got {got}")
    count, channels, height, width = images.shape
    if (rows is None) != (columns is None) or (base is None and dense is None):
        raise ValueError("a mask must be base, or base with rows and columns, or dense; got parts of them")
    for name, tensor, expected in (
        ("source", source, source.shape),
        ("partner", partner, (count,)),
        ("base", base, (count,)),
        ("rows", rows, (count, height)),
        ("columns", columns, (count, width)),
        ("dense", dense, (count, height, width)),
    ):
        if tensor is not None:
            _check(name, tensor, expected, images.device)
    norm = (
        [] if mean is None or std is None else [*_per_channel(mean, channels), *_per_channel(std, channels)]
    )
    if len(norm) not in (0, 2 * channels):
        raise ValueError(f"mean and std must be for {channels} channels; got {len(norm)} numbers in all")
    given = (images, source, partner, base, rows, columns, dense, norm, scale, shift, out_dtype)
    if out is not None:
        _check_out(out, images, source, out_dtype or images.dtype)
    elif torch.compiler.is_compiling():
        mixed: Tensor = _mix_as_operator(*given)
        return mixed
    return _launch(*given, out=out)


def _per_channel(given: PerChannel, channels: int) -> list[float]:
    return [given] * channels if isinstance(given, int | float) else list(given)


def _check_out(out: Tensor, images: Tensor, source: Tensor, dtype: torch.dtype) -> None:
    """Raise unless the result can be written to `out`."""
    _check("out", out, images.shape, images.device)
    channels_last = is_channels_last(images)
    inputs = [one.untyped_storage().data_ptr() for one in (images, source)]
    if (
        out.dtype != dtype
        or in_lines(out, channels_last) is not out
        or out.untyped_storage().data_ptr() in inputs
    ):
        layout = "channels_last" if channels_last else "contiguous"
        raise ValueError(f"out must be {layout}, of {dtype}, and share no memory with the images")


def _empty_result(images: Tensor, out_dtype: torch.dtype | None) -> Tensor:
    layout = memory_format(is_channels_last(images))
    return torch.empty_like(images, dtype=out_dtype or images.dtype, memory_format=layout)


def _launch(
    images: Tensor,
    source: Tensor,
    partner: Tensor,
    base: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    dense: Tensor | None,
    norm: Sequence[float],
    scale: float,
    shift: float,
    out_dtype: torch.dtype | None,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`mix_images`, checked; `norm` is the mean of every channel and then their std, or nothing."""
    channels_last = is_channels_last(images)
    if out is None:
        out = _empty_result(images, out_dtype)
    if images.numel() == 0:
        return out
    own, other = (in_lines(one, channels_last) for one in (images, source))
    weights = (base, rows, columns, None) if dense is None else (None, None, None, dense)
    tiling = cut(images.shape, images.dtype, channels_last)
    mean, std = np.reshape(norm, (2, -1))
    factors = tuple(fold_factors(mean, std, scale, shift).ravel().tolist())
    device = torch.cuda.device(images.device) if images.is_cuda else contextlib.nullcontext()
    with device:
        _mix[(len(images) * tiling.tiles, tiling.planes // tiling.planes_at_once)](
            out,
            own,
            other,
            partner.contiguous(),
            *(None if part is None else part.contiguous() for part in weights),
            factors,
            tiling.height,
            tiling.length,
            tiling.tiles,
            tiling.across,
            *(stride for one in (out, own, other) for stride in strides(one, channels_last)),
            MASK="dense" if dense is not None else "constant" if rows is None else "separable",
            CHANNELS=tiling.channels,
            PLANES=tiling.planes_at_once,
            TILE_LINES=TILE_LINES,
            TILE_LENGTH=tiling.tile_length,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out


# For torch.compile, which does not trace the launch.
@torch.library.custom_op("dali_msda::mix_images_on_gpu", mutates_args=())
def _mix_as_operator(
    images: Tensor,
    source: Tensor,
    partner: Tensor,
    base: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    dense: Tensor | None,
    norm: list[float],
    scale: float,
    shift: float,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return _launch(images, source, partner, base, rows, columns, dense, norm, scale, shift, out_dtype)


@_mix_as_operator.register_fake
def _(
    images: Tensor,
    source: Tensor,
    partner: Tensor,
    base: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    dense: Tensor | None,
    norm: list[float],
    scale: float,
    shift: float,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return _empty_result(images, out_dtype)
