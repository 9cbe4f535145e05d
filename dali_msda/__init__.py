"""Mixup, CutMix, Stochastic Mixup & CutMix, HMix and GMix inside NVIDIA DALI pipelines.

    import dali_msda as msda

    images, targets = msda.hmix(images, labels, num_classes=1000, alpha=1.0, ratio=0.75)

inside any ``@pipeline_def``, on the CPU or the GPU. :func:`mix` takes the method by name and describes all
arguments. The methods are those of Park, Yun and Chun, "A Unified Analysis of Mixed Sample Data
Augmentation: A Loss Function Perspective", NeurIPS 2022.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import methods
from .masks import Dense, Separable
from .methods import Argument, Beta, Method, Uniform, register
from .mixing import Mixing

if TYPE_CHECKING:
    from .explanations import explain
    from .operators import blend, mix
    from .signatures import MixFunction, MixParams, Pair
    from .steps import Drawn, apply, draw, mix_labels
    from .wrapping import with_mixing

    METHODS: tuple[str, ...]
    mixup: MixFunction
    cutmix: MixFunction
    stochastic: MixFunction
    hmix: MixFunction
    gmix: MixFunction

__version__ = "0.1.0"

_OLDEST_DALI = (2, 4)  # also the newest one tested: pyproject.toml caps it

_NEED_DALI = {
    **dict.fromkeys(("MixParams", "Pair"), "signatures"),
    **dict.fromkeys(("blend", "mix"), "operators"),
    **dict.fromkeys(("Drawn", "apply", "draw", "mix_labels"), "steps"),
    "explain": "explanations",
    "with_mixing": "wrapping",
}

__all__ = [
    "METHODS",
    "Argument",
    "Beta",
    "Dense",
    "Drawn",
    "Method",
    "MixParams",
    "Mixing",
    "Pair",
    "Separable",
    "Uniform",
    "apply",
    "blend",
    "cutmix",
    "draw",
    "explain",
    "gmix",
    "hmix",
    "mix",
    "mix_labels",
    "mixup",
    "register",
    "stochastic",
    "with_mixing",
]


def __getattr__(name: str) -> Any:
    """Import DALI only for names that need it: the table of methods and the doctor work without it.

    Every mixing method of the table has a function, registered ones included.
    """
    if name == "METHODS":
        return methods.METHODS
    if name not in _NEED_DALI and name not in methods.MIXING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_dali()
    if name in methods.MIXING:
        return importlib.import_module(".operators", __name__).function(methods.TABLE[name])
    return getattr(importlib.import_module(f".{_NEED_DALI[name]}", __name__), name)


def require_dali() -> None:
    """Raise a one-line ImportError if DALI is missing or older than the tested version."""
    try:
        dali = importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise ImportError(
            "dali_msda needs NVIDIA DALI: install the build for your CUDA version,"
            " for example: pip install 'dali-msda[cuda12]'"
        ) from error
    found = tuple(int(part) for part in dali.__version__.split(".")[:2])
    if found < _OLDEST_DALI:
        oldest = ".".join(map(str, _OLDEST_DALI))
        raise ImportError(
            f"DALI must be {oldest} (tested); got {dali.__version__}: pip install --upgrade"
            " 'dali-msda[cuda12]'"
        )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *methods.MIXING})
