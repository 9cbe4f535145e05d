"""Three ways to mix a batch by the same formulas, one module each; :class:`Backend` is their interface."""

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
    """The interface of a backend.

    Masks are computed in float64 and applied in float32; uint8 is rounded to nearest. Arguments are already
    checked; what only the data shows (a label out of range, sizes that differ) is checked here, with
    :mod:`dali_msda.checks`. Each backend has its own representation of masks.
    """

    def make_mask(self, images: DataNode, draws: Draws, arguments: MixArguments) -> Any:
        """Make the masks of a batch from its draws."""

    def given_mask(self, mask: Separable | Dense) -> Any:
        """Convert the caller's nodes to the masks of a batch, with weights clipped to [0, 1].

        `base` and `scale` float64 [1], `rows` [H] and `columns` [W] float32 on the CPU, each clipped so that
        the weights stay in range; or `values` float32 [H, W].
        """

    def blend(
        self, images: DataNode, labels: DataNode, partner: DataNode, weights: Any, arguments: BlendArguments
    ) -> tuple[DataNode, DataNode, MixParams | None]:
        """Mixed images, targets and, with ``arguments.return_params``, the draws.

        Parameters
        ----------
        images : uint8, float16 or float32, three-dimensional
        labels : int32 [1], CPU
        partner : index within the batch, int32 scalar, CPU
        weights : the masks, from one of the functions above
        """


def choose(backend: str, device: str) -> Backend:
    """The backend with that name, or "auto", for images on "cpu" or "gpu".

    Raises
    ------
    ImportError
        For "kernel" or "hybrid", if Numba or DALI's plugin for it does not work here.
    """
    found = None
    if backend in _COMPILED:
        found = importlib.import_module(f"{__name__}.numba.{_COMPILED[backend]}")
    elif backend == "auto":
        found = compiled_module("mix" if device == "cpu" else "hybrid")
    return cast(Backend, found or importlib.import_module(f"{__name__}.graph"))


def compiled_module(name: str) -> ModuleType | None:
    """Import a module of the compiled backends, and Numba with it; None if that fails."""
    try:
        return importlib.import_module(f"{__name__}.numba.{name}")
    except (ImportError, AttributeError) as error:
        # Numba or DALI's plugin for it does not import, or the plugin lacks a hook that it used to have.
        _warn(str(error))
        return None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"dali_msda runs without its compiled operators, slower on the CPU: {reason}; for details, run python"
        " -m dali_msda.doctor",
        RuntimeWarning,
        stacklevel=2,
    )
