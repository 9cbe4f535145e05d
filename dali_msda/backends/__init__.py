"""Three ways to mix a batch, by the same formulas: a module each, which :class:`Backend` describes."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..masks import Dense, Separable

if TYPE_CHECKING:
    from nvidia.dali.pipeline import DataNode

    from ..arguments import BlendArguments, MixArguments, MixParams
    from ..draws import Draws


# Modules of the folder numba.
_COMPILED = {"kernel": "mix", "hybrid": "hybrid"}


class Backend(Protocol):
    """What a backend offers.

    Masks are computed in float64 and applied in float32; uint8 is rounded to the nearest. Arguments are
    checked before; what only the content of a batch shows (a label out of range, sizes that differ) is
    checked here, with :mod:`dali_msda.checks`. How a backend holds the masks of a batch is its own affair.
    """

    def make_mask(self, images: DataNode, draws: Draws, arguments: MixArguments) -> Any:
        """The masks of a batch from what was drawn for it."""

    def given_mask(self, mask: Separable | Dense) -> Any:
        """The masks of a batch from the caller's nodes, with weights clipped to [0, 1].

        `base` and `scale` float64 [1], `rows` [H] and `columns` [W] float32 on the CPU, each of which is
        clipped to what keeps the weights in range; or `values` float32 [H, W].
        """

    def blend(
        self, images: DataNode, labels: DataNode, partner: DataNode, weights: Any, arguments: BlendArguments
    ) -> tuple[DataNode, DataNode, MixParams | None]:
        """Mixed images, targets and, if ``arguments.return_params``, what was drawn.

        Parameters
        ----------
        images : uint8, float16 or float32, three-dimensional
        labels : int32 [1], CPU
        partner : index within the batch, int32 scalar, CPU
        weights : what one of the functions above returned
        """


def choose(backend: str, device: str) -> Backend:
    """The backend of that name, or "auto", for images on "cpu" or "gpu".

    Raises
    ------
    ImportError
        "kernel" or "hybrid" was asked for and Numba, or DALI's plugin for it, does not work here.
    """
    found = None
    if backend in _COMPILED:
        found = importlib.import_module(f"{__name__}.numba.{_COMPILED[backend]}")
    elif backend == "auto":
        found = compiled_module("mix" if device == "cpu" else "hybrid")
    return cast(Backend, found or importlib.import_module(f"{__name__}.graph"))


def compiled_module(name: str) -> ModuleType | None:
    """A module of the compiled backend, with which Numba is imported; None where that does not work."""
    try:
        return importlib.import_module(f"{__name__}.numba.{name}")
    except (ImportError, AttributeError) as error:
        # Of Numba, of DALI's plugin for it, or of a hook that the plugin no longer has.
        _warn(str(error))
        return None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"dali_msda works without its compiled operators, slower on the CPU: {reason}; python -m"
        " dali_msda.doctor says more",
        RuntimeWarning,
        stacklevel=2,
    )
