"""Checks of the content of tensors, which need its values."""

from __future__ import annotations

import torch
from torch import Tensor


def check_range(name: str, indices: Tensor, upper: int) -> Tensor:
    """The same indices, int64; raise if one is not in [0, upper).

    Only on the CPU: elsewhere the host would wait for the device. There PyTorch's own assertion about an
    index stops the program.
    """
    if indices.device.type != "cpu":
        return indices
    return (
        _check_range(name, indices, upper)
        if torch.compiler.is_compiling()
        else _checked(name, indices, upper)
    )


def _checked(name: str, indices: Tensor, upper: int) -> Tensor:
    if indices.numel() and type(indices) is Tensor:
        low, high = (int(bound) for bound in torch.aminmax(indices))
        if low < 0 or high >= upper:
            bad = int(((indices < 0) | (indices >= upper)).nonzero()[0])
            raise ValueError(f"{name} must be in [0, {upper}); got {int(indices[bad])} in sample {bad}")
    return indices


# As an operator, so that the check runs in a compiled graph too.
@torch.library.custom_op("dali_msda::check_range", mutates_args=())
def _check_range(name: str, indices: Tensor, upper: int) -> Tensor:
    return _checked(name, indices, upper).clone()


@_check_range.register_fake
def _(name: str, indices: Tensor, upper: int) -> Tensor:
    return torch.empty_like(indices)
