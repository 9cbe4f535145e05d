"""Mixing the images of a batch by given masks, whatever computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..validation import ArgumentValueError
from . import compiled
from .arguments import Normalization, to_device
from .masks import Masks

# PyTorch has few operators for these types, and all for the others.
_SAME_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def mix_images(
    images: Tensor,
    source: Tensor,
    partner: Tensor,
    masks: Masks,
    normalization: Normalization | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mix every image with its partner.

    Weights and products are float32, in the order of the pipeline's kernel: results on the CPU are equal to
    the bit. A pixel with weight 0 has no influence, not even NaN.

    Parameters
    ----------
    images : Tensor
        [N, C, H, W], contiguous or channels_last.
    source : Tensor
        The partners' images, of the same shape and type.
    partner : Tensor
        Index into `source` of every sample's partner: int64 [N].
    masks : Masks
    normalization : Normalization, optional
    backend : {"auto", "kernel", "torch"}, optional
        Compiled code (see :mod:`.compiled`) or PyTorch's operators.

    Returns
    -------
    Tensor
        Shape, memory format and device of the images; their type, integers rounded to nearest, or that of
        the normalization.
    """
    reason = "'torch'" if backend == "torch" else compiled.why_not(images, source)
    if reason is None:
        return compiled.mix_images(images, source, partner, masks, normalization)
    if backend == "kernel":
        raise ArgumentValueError("backend", f"'auto' or 'torch' with {reason}", backend)
    return _mix_with_operators(images, source, partner, masks, normalization)


def _mix_with_operators(
    images: Tensor, source: Tensor, partner: Tensor, masks: Masks, normalization: Normalization | None
) -> Tensor:
    weight = masks.pixels((images.shape[-2], images.shape[-1]))[:, None]
    own, other = images.to(torch.float32), source.to(torch.float32).index_select(0, partner)
    mixed = weight * own + (1.0 - weight) * other
    if images.dtype.is_floating_point:
        # Two equal pixels mix to themselves, and 0 * NaN is NaN.
        mixed = torch.where((weight == 1.0) | (own == other), own, torch.where(weight == 0.0, other, mixed))
        if normalization is None or images.dtype != torch.float32:
            mixed = mixed.to(images.dtype)
    else:
        # To nearest, halves away from 0. The fraction is exact; adding 0.5 first would round twice.
        whole = mixed.trunc()
        fraction = mixed - whole
        mixed = whole + (fraction >= 0.5).to(torch.float32) - (fraction <= -0.5).to(torch.float32)
    if normalization is None:
        return mixed.to(images.dtype)
    return normalize(mixed, normalization)


def normalize(images: Tensor, normalization: Normalization) -> Tensor:
    """Normalise images [N, C, H, W] as ``fn.crop_mirror_normalize`` does."""
    factors = to_device(torch.tensor(normalization.factors), images.device)
    mean, scale = factors[:, :, None, None]
    normalized: Tensor = (images.to(torch.float32) - mean) * scale
    return normalized.to(normalization.dtype)


def select_nearest(images: Tensor, source: Tensor, partner: Tensor, masks: Masks) -> Tensor:
    """Each pixel of whoever weighs more there, the own one where both weigh the same: maps of any type."""
    weight = masks.pixels((images.shape[-2], images.shape[-1]))
    weight = weight.reshape(len(images), *[1] * (images.ndim - 3), *weight.shape[1:])
    kind = images.dtype
    own, other = (tensor.view(_SAME_BITS.get(kind, kind)) for tensor in (images, source))
    return torch.where(weight < 0.5, other.index_select(0, partner), own).view(kind)
