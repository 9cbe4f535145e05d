"""The targets of mixed samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common_arguments import LabelArguments
from ..validation import ArgumentTypeError, ArgumentValueError
from .arguments import check_device, is_integer
from .checks import check_range


class Pair(NamedTuple):
    """Both labels and their weight, for ``lam * loss(own) + (1 - lam) * loss(partner)``."""

    own: Tensor
    """Class ids, int64 [N]; or vectors, float32 [N, K]."""
    partner: Tensor
    """Likewise, of the partners."""
    lam: Tensor
    """Weight of the own label: float32 [N]."""


def check_labels(
    name: str, labels: object, count: int, device: torch.device, arguments: LabelArguments
) -> Tensor:
    """Raise unless labels are class ids or vectors; return them as int64 [N] or float32 [N, K]."""
    expected = f"class ids [{count}] or vectors of floats [{count}, K]"
    if not isinstance(labels, Tensor):
        raise ArgumentTypeError(name, f"a tensor, {expected}", type(labels).__name__)
    labels = labels if type(labels) is Tensor else labels.as_subclass(Tensor)
    check_device(name, labels, device)
    num_classes = arguments.num_classes
    if labels.dtype.is_floating_point:
        if labels.ndim != 2 or len(labels) != count:
            raise ArgumentValueError(name, expected, f"floats of shape {list(labels.shape)}")
        if num_classes is not None and labels.shape[1] != num_classes:
            expected = f"class ids or vectors of num_classes={num_classes} floats"
            raise ArgumentValueError(name, expected, f"floats of shape {list(labels.shape)}")
        return labels.to(torch.float32)
    if not is_integer(labels):
        raise ArgumentTypeError(name, expected, f"a tensor of {labels.dtype}")
    if labels.shape not in ((count,), (count, 1)):
        raise ArgumentValueError(name, expected, f"integers of shape {list(labels.shape)}")
    if num_classes is None and arguments.output == "dense":
        raise ArgumentValueError("num_classes", "given with class ids, as the targets' length", None)
    labels = labels.to(torch.int64).reshape(count)
    return labels if num_classes is None else check_range(name, labels, num_classes)


def mix_labels(own: Tensor, partners: Tensor, lam: Tensor, arguments: LabelArguments) -> Tensor | Pair:
    """Targets, float32 [N, K], or a pair; labels from :func:`check_labels`, `lam` float32 [N]."""
    if arguments.output == "pair":
        return Pair(own, partners, lam)
    smoothing = np.float32(arguments.label_smoothing)
    weight = lam[:, None]
    if own.dtype.is_floating_point:
        mixed = weight * own + (1.0 - weight) * partners
        return (1.0 - float(smoothing)) * mixed + float(smoothing) / own.shape[1] if smoothing else mixed
    assert arguments.num_classes is not None
    off = smoothing / np.float32(arguments.num_classes)
    on = np.float32(1.0) - smoothing + off
    targets = torch.full(
        (len(own), arguments.num_classes), float(off), dtype=torch.float32, device=own.device
    )
    own, partners = own[:, None], partners[:, None]
    same, span = own == partners, float(on - off)
    whole = torch.full_like(weight, float(on))
    targets.scatter_(1, own, float(off) + span * weight)
    targets.scatter_(1, partners, torch.where(same, whole, float(off) + span * (1.0 - weight)))
    return targets
