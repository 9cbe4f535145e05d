"""The optimiser and its arguments, as one record that checks itself.

Imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dali_msda.validation import ArgumentTypeError, ArgumentValueError, check_choice, is_number

Optimizer = Literal["sgd", "adamw", "lamb"]

# Arguments and defaults of each. SGD: the paper's learning rate, and CutMix's recipe. AdamW: torchvision's
# recipe for ConvNeXt, for batches of 1024. LAMB: recipe A2 of "ResNet strikes back", for batches of 2048, and
# the eps and the clipping of timm's Lamb.
DEFAULTS: Mapping[Optimizer, Mapping[str, Any]] = {
    "sgd": {"lr": 0.1, "weight_decay": 1e-4, "clip_grad_norm": None, "momentum": 0.9},
    "adamw": {
        "lr": 1e-3,
        "weight_decay": 0.05,
        "clip_grad_norm": None,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
    },
    "lamb": {
        "lr": 5e-3,
        "weight_decay": 0.02,
        "clip_grad_norm": 1.0,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
    },
}


@dataclass(frozen=True, init=False)
class Optimization:
    """An optimiser with its arguments; omitted ones get the optimiser's own default, see `DEFAULTS`.

    Raises
    ------
    ValueError, TypeError
        Naming the field, what was expected and what came.
    """

    method: Optimizer
    """Optimiser: SGD with Nesterov momentum, AdamW, or LAMB (needs timm)."""

    lr: float
    """Peak learning rate."""

    weight_decay: float
    """Weight decay of the matrices of linear, convolution and attention layers."""

    clip_grad_norm: float | None
    """Clip the gradient norm to this."""

    momentum: float | None
    """Nesterov momentum."""

    betas: tuple[float, float] | None
    """Decay rates of the running averages of the gradient and its square."""

    eps: float | None
    """Added to the denominator of the update."""

    def __init__(
        self,
        method: Optimizer = "sgd",
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        clip_grad_norm: float | None = None,
        momentum: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
    ) -> None:
        check_choice("method", method, tuple(DEFAULTS))
        given = {
            "lr": lr,
            "weight_decay": weight_decay,
            "clip_grad_norm": clip_grad_norm,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
        }
        object.__setattr__(self, "method", method)
        own = DEFAULTS[method]
        for name, value in given.items():
            if value is not None:
                if name not in own:
                    takers = " and ".join(taker for taker, taken in DEFAULTS.items() if name in taken)
                    raise ArgumentTypeError(name, f"left out with {method} (it belongs to {takers})", value)
                _check(name, value)
            object.__setattr__(self, name, own.get(name) if value is None else value)


def _check(name: str, value: Any) -> None:
    """Raise unless `value` is valid for the argument."""
    if name == "betas":
        numbers: tuple[Any, ...] = value if isinstance(value, tuple) else ()
        if len(numbers) != 2 or not all(map(is_number, numbers)):
            raise ArgumentTypeError(name, "two numbers", value)
        if not all(0 <= number < 1 for number in numbers):
            raise ArgumentValueError(name, "two numbers in [0, 1)", value)
    elif not is_number(value):
        raise ArgumentTypeError(name, "a number", value)
    elif name in ("clip_grad_norm", "eps"):
        if not 0 < value < math.inf:
            raise ArgumentValueError(name, "above 0", value)
    elif not 0 <= value < math.inf:
        raise ArgumentValueError(name, "a number of at least 0", value)
