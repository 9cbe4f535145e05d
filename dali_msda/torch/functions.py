"""The functions of formulas (:class:`dali_msda.masks.Functions`) for tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# A tensor, or a number where a formula has the same for all samples.
Number = Tensor | float


def _of_one(name: str, of_tensor: Callable[[Tensor], Tensor]) -> Callable[[Number], Number]:
    of_number: Callable[[float], float] = getattr(math, name)

    def function(x: Number) -> Number:
        return of_tensor(x) if isinstance(x, Tensor) else float(of_number(x))

    return function


sqrt, exp, log = _of_one("sqrt", torch.sqrt), _of_one("exp", torch.exp), _of_one("log", torch.log)
sin, cos = _of_one("sin", torch.sin), _of_one("cos", torch.cos)
floor, ceil, absolute = (
    _of_one("floor", torch.floor),
    _of_one("ceil", torch.ceil),
    _of_one("fabs", torch.abs),
)


def _minimum(x: Number, y: Number) -> Number:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.minimum(x, y)
    if isinstance(x, Tensor):
        return torch.clamp(x, max=y)
    return torch.clamp(y, max=x) if isinstance(y, Tensor) else min(x, y)


def _maximum(x: Number, y: Number) -> Number:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.maximum(x, y)
    if isinstance(x, Tensor):
        return torch.clamp(x, min=y)
    return torch.clamp(y, min=x) if isinstance(y, Tensor) else max(x, y)


class Functions:
    """All of them, on float64 tensors of one device.

    Values of the samples are [N, 1, 1], pixels [1, H, 1] and [1, 1, W], so that they broadcast.
    """

    pi = math.pi
    sqrt, exp, log = staticmethod(sqrt), staticmethod(exp), staticmethod(log)
    sin, cos = staticmethod(sin), staticmethod(cos)
    floor, ceil, absolute = staticmethod(floor), staticmethod(ceil), staticmethod(absolute)
    minimum, maximum = staticmethod(_minimum), staticmethod(_maximum)

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def constant(self, number: float) -> Tensor:
        """The number, in float64: a literal times a comparison is float32."""
        return torch.full((1, 1, 1), number, dtype=torch.float64, device=self._device)
