"""Masks and mixed images by compiled code: the kernels of pipelines on the CPU, Triton on a GPU.

On the CPU the kernels work on NumPy views of the tensors, so nothing is copied.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import buffers
from ..methods import Method
from .arguments import Normalization
from .draws import Draws
from .masks import Masks
from .tiling import is_channels_last, memory_format

# Triton comes with PyTorch's builds for GPUs.
HAS_TRITON = importlib.util.find_spec("triton") is not None

# Types of images that the kernels on the CPU take; others are converted to float32 and back.
_KERNEL_DTYPES = (torch.uint8, torch.int16, torch.uint16, torch.float32)

# Bytes below which a second thread costs more time than it saves.
_LITTLE = 1 << 18


def why_not(images: Tensor, source: Tensor) -> str | None:
    """Why compiled code cannot mix these images, for an error; None if it can."""
    kind = images.device.type
    if torch.is_grad_enabled() and (images.requires_grad or source.requires_grad):
        return "images that require a gradient"
    if kind not in ("cpu", "cuda"):
        return f"images on {images.device}"
    if kind == "cuda" and not HAS_TRITON:
        return "images on a GPU without Triton"
    if not torch.compiler.is_compiling() and type(images) is not Tensor:
        return f"images of type {type(images).__name__}"
    return None


def writes_masks(device: torch.device, values: Sequence[Tensor]) -> bool:
    """Whether :func:`write_masks` can run: on the CPU, with tensors that hold numbers."""
    plain = all(type(value) is Tensor for value in values)
    return device.type == "cpu" and plain and not torch.compiler.is_compiling()


def write_masks(method: Method, draws: Draws, count: int, size: tuple[int, int]) -> Masks:
    """Make the masks of `count` images of a size on the CPU, to the bit as the pipeline's kernel does."""
    columns = {name: value.detach().expand(count).numpy() for name, value in draws.values.items()}
    columns["_paper"], columns["_given"] = (
        np.full(count, flag, float) for flag in (draws.paper, draws.given)
    )
    slots = {name: slot for slot, name in enumerate(columns)}
    arrays = importlib.import_module("..backends.numba.arrays", __package__)
    numbers = np.stack(list(columns.values()), axis=1)
    written = arrays.write_masks(method, numbers, slots, size, threads=_threads(4 * count * sum(size)))
    weights = torch.from_numpy(written.weights)
    if written.lam is None:
        dense = weights.clamp(0.0, 1.0)
        lam = dense.mean(dim=(1, 2), dtype=torch.float64).to(torch.float32)
        return Masks(lam, torch.zeros_like(lam), None, None, dense)
    height = 2 + size[0]
    return Masks(
        torch.from_numpy(written.lam), weights[:, 0], weights[:, 2:height], weights[:, height:], None
    )


def mix_targets(
    own: Tensor, partners: Tensor, lam: Tensor, num_classes: int, label_smoothing: float
) -> Tensor:
    """Make the targets of class ids, int64 [N], on the CPU, to the bit as the pipeline's kernel does.

    PyTorch's operators would wake its threads for them, which takes longer than mixing the images does.
    """
    arrays = importlib.import_module("..backends.numba.arrays", __package__)
    ids = (labels.numpy() for labels in (own, partners))
    return torch.from_numpy(arrays.mix_targets(*ids, lam.detach().numpy(), num_classes, label_smoothing))


def _threads(work: int) -> int:
    """How many threads to use for `work` bytes: a loader's worker has one."""
    return 1 if work < _LITTLE else torch.get_num_threads()


def mix_images(
    images: Tensor, source: Tensor, partner: Tensor, masks: Masks, normalization: Normalization | None
) -> Tensor:
    """See :func:`.blend.mix_images`."""
    _, base, rows, columns, dense = masks
    n = normalization
    asked: dict[str, Any] = {}
    if images.device.type == "cuda":
        if n is not None:
            asked = {"mean": n.mean, "std": n.std, "scale": n.scale, "shift": n.shift, "out_dtype": n.dtype}
        # Not by importlib, which torch.compile does not trace.
        from . import triton_kernel

        mix: Callable[..., Tensor] = triton_kernel.mix_images
    else:
        if n is not None:
            asked = {"mean": n.factors[0], "factor": n.factors[1], "dtype": n.dtype}
        # As one operator, a compiled graph does not break here.
        mix = _mix_operator if torch.compiler.is_compiling() else _mix_on_cpu
    mixed: Tensor = mix(images, source, partner, base, rows, columns, dense, **asked)
    return mixed


def _empty_like(images: Tensor, form: torch.memory_format, dtype: torch.dtype) -> Tensor:
    """Make images [N, C, H, W] of the same shape that are not set, in memory of earlier ones."""
    memory = buffers.empty((images.numel() * dtype.itemsize,), np.uint8)  # NumPy has no bfloat16
    flat = torch.from_numpy(memory).view(dtype)
    if form == torch.contiguous_format:
        return flat.view(images.shape)
    count, channels, height, width = images.shape
    return flat.view(count, height, width, channels).permute(0, 3, 1, 2)


def _mix_on_cpu(
    images: Tensor,
    source: Tensor,
    partner: Tensor,
    base: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    dense: Tensor | None,
    mean: Sequence[float] | None = None,
    factor: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Mix, and normalise to ``(mixed - mean) * factor`` if they are given."""
    arrays = importlib.import_module("..backends.numba.arrays", __package__)
    channels_last = is_channels_last(images)
    form = memory_format(channels_last)
    normalizes = mean is not None and factor is not None
    # One pass does all for uint8 with the channels last; else the normalisation comes behind.
    fused = normalizes and images.dtype == torch.uint8 and channels_last
    kind = images.dtype if images.dtype in _KERNEL_DTYPES else torch.float32
    own, other = (tensor.detach().to(kind).contiguous(memory_format=form) for tensor in (images, source))
    mixed = _empty_like(own, form, torch.float32 if fused else kind)
    asked = {}
    if fused:
        pairs = np.asarray([mean, factor], np.float32)
        asked["normalization"] = np.repeat(pairs, images.shape[1], axis=1) if pairs.shape[1] == 1 else pairs
    views = [
        (tensor.permute(0, 2, 3, 1) if channels_last else tensor).numpy() for tensor in (own, mixed, other)
    ]
    arrays.mix_batch(
        views[0],
        partner.numpy(),
        _join(images, base, rows, columns, dense),
        views[1],
        source=None if source is images else views[2],
        channels_first=not channels_last,
        threads=_threads(own.nbytes),
        **asked,
    )
    mixed = mixed if fused else mixed.to(images.dtype)
    if not normalizes:
        return mixed
    if not fused:
        shifts, factors = torch.tensor([mean, factor])[:, :, None, None]
        mixed = _empty_like(own, form, torch.float32).copy_(mixed).sub_(shifts).mul_(factors)
    assert dtype is not None
    return mixed.to(dtype)


def _join(
    images: Tensor, base: Tensor, rows: Tensor | None, columns: Tensor | None, dense: Tensor | None
) -> Any:
    """The masks as the kernels take them."""
    arrays = importlib.import_module("..backends.numba.arrays", __package__)
    if dense is not None:
        return arrays.Masks(dense.contiguous().numpy(), None)
    height, width = images.shape[-2:]
    weights = torch.zeros((len(base), 2 + height + width))
    weights[:, 0], weights[:, 1] = base, height
    if rows is not None and columns is not None:
        weights[:, 2 : 2 + height], weights[:, 2 + height :] = rows, columns
    return arrays.Masks(weights.numpy(), base.contiguous().numpy())


_mix_operator = torch.library.custom_op("dali_msda::mix_images", _mix_on_cpu, mutates_args=())


@_mix_operator.register_fake
def _(
    images: Tensor,
    source: Tensor,
    partner: Tensor,
    base: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    dense: Tensor | None,
    mean: Sequence[float] | None = None,
    factor: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    form = memory_format(is_channels_last(images))
    return torch.empty_like(images, memory_format=form, dtype=dtype or images.dtype)
