"""Mixing in DALI's dynamic mode, where operators run at once and pipelines are not needed.

    import nvidia.dali.experimental.dynamic as ndd
    from dali_msda import dynamic as msda

    images, targets = msda.hmix(images, labels, num_classes=1000, rng=ndd.random.RNG(seed=1))

The functions and arguments are those of :mod:`dali_msda`, with ``rng`` in place of ``seed``. :func:`mix`
takes the method by name and describes all arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import methods, require_dali

require_dali()

from ..signatures import MixParams, Pair  # noqa: E402
from .mixing import Drawn, apply, draw, function, mix, mix_labels  # noqa: E402

if TYPE_CHECKING:
    mixup: Callable[..., Any]
    cutmix: Callable[..., Any]
    stochastic: Callable[..., Any]
    hmix: Callable[..., Any]
    gmix: Callable[..., Any]

__all__ = [
    "Drawn",
    "MixParams",
    "Pair",
    "apply",
    "cutmix",
    "draw",
    "gmix",
    "hmix",
    "mix",
    "mix_labels",
    "mixup",
    "stochastic",
]


def __getattr__(name: str) -> Any:
    """The function of a method of the table, registered ones included."""
    if name in methods.MIXING:
        return function(methods.TABLE[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *methods.MIXING})
