"""Mixing the images of a batch by given masks, whatever computes it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ..factors import fold_factors
from .arguments import Normalization, to_device
from .masks import Masks


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
        "torch": PyTorch's operators.

    Returns
    -------
    Tensor
        Shape, memory format and device of the images; their type, integers rounded to nearest, or that of
        the normalization.
    """
    if _uses_triton(images, source, backend):
        return _mix_with_triton(images, source, partner, masks, normalization)
    return _mix_with_operators(images, source, partner, masks, normalization)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def _uses_triton(images: Tensor, source: Tensor, backend: str) -> bool:
    differentiable = torch.is_grad_enabled() and (images.requires_grad or source.requires_grad)
    return images.device.type == "cuda" and backend != "torch" and not differentiable and has_triton()


def _mix_with_triton(
    images: Tensor, source: Tensor, partner: Tensor, masks: Masks, normalization: Normalization | None
) -> Tensor:
    kernel = importlib.import_module(".triton_kernel", __package__)
    asked: dict[str, Any] = {}
    if normalization is not None:
        asked = {name: getattr(normalization, name) for name in ("mean", "std", "scale", "shift")}
        asked["out_dtype"] = normalization.dtype
    _, base, rows, columns, dense = masks
    mixed: Tensor = kernel.mix_images(images, source, partner, base, rows, columns, dense, **asked)
    return mixed


def _mix_with_operators(
    images: Tensor, source: Tensor, partner: Tensor, masks: Masks, normalization: Normalization | None
) -> Tensor:
    weight = masks.pixels((images.shape[-2], images.shape[-1]))[:, None]
    own, other = images.to(torch.float32), source.index_select(0, partner).to(torch.float32)
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
    n = normalization
    factors = to_device(torch.tensor(fold_factors(n.mean, n.std, n.scale, n.shift).tolist()), images.device)
    mean, scale = factors[:, :, None, None]
    normalized: Tensor = (images.to(torch.float32) - mean) * scale
    return normalized.to(n.dtype)


def select_nearest(images: Tensor, source: Tensor, partner: Tensor, masks: Masks) -> Tensor:
    """Each pixel of whoever weighs more there, the own one where both weigh the same: maps of any type."""
    weight = masks.pixels((images.shape[-2], images.shape[-1]))
    weight = weight.reshape(len(images), *[1] * (images.ndim - 3), *weight.shape[1:])
    return torch.where(weight < 0.5, source.index_select(0, partner), images)
