"""Mixing batches of tensors, in a training loop, a collate function or a list of transforms.

    from dali_msda.torch import HMix

    mix = HMix(num_classes=1000, alpha=1.0, ratio=0.75)
    images, targets = mix(images, labels)

A class for every method, with the masks, draws and labels of the pipeline's functions; :class:`Mix` takes the
method by name and describes all arguments. It needs PyTorch, and not DALI.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from .. import methods

if importlib.util.find_spec("torch") is None:
    raise ImportError("dali_msda.torch needs PyTorch: pip install torch")

from .classes import class_name, mixer_class
from .labels import Pair
from .mixers import Drawn, Mix, MixParams

if TYPE_CHECKING:
    from collections.abc import Callable

    MixUp: Callable[..., Mix]
    CutMix: Callable[..., Mix]
    Stochastic: Callable[..., Mix]
    HMix: Callable[..., Mix]
    GMix: Callable[..., Mix]

__all__ = ["CutMix", "Drawn", "GMix", "HMix", "Mix", "MixParams", "MixUp", "Pair", "Stochastic"]


def __getattr__(name: str) -> Any:
    """The class of a method of the table, registered ones included."""
    for method in methods.MIXING:
        if name == class_name(method):
            return mixer_class(methods.TABLE[method])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *map(class_name, methods.MIXING)})
