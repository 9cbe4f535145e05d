"""Three ways to mix a batch by the same formulas, one module each; :class:`Backend` is their interface."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ..masks import Dense, Separable

if TYPE_CHECKING:
    from nvidia.dali.pipeline import DataNode

    from ..arguments import DrawArguments, ImageArguments
    from ..common_arguments import LabelArguments
    from ..draws import Draws


# Modules of the folder numba.
_COMPILED = {"kernel": "mix", "hybrid": "hybrid"}


class Mixed(NamedTuple):
    """What comes of mixing images."""

    images: DataNode
    lam: DataNode
    """Mean of the own image's mask, the label weight: float32 [1]."""
    check: DataNode | None = None
    """float32 [1], 0, CPU: whoever uses the images has to wait for it. None if they do themselves."""


class Backend(Protocol):
    """The functions of a backend.

    Masks are computed in float64 and applied in float32; integers are rounded to nearest. The arguments are
    checked already. Checks of the content of a batch (label out of range, different sizes) are the backend's,
    with :mod:`dali_msda.checks`. The representation of masks is its own choice.
    """

    def make_mask(self, images: DataNode, layout: str, draws: Draws, arguments: DrawArguments) -> Any:
        """The masks of a batch of images from what was drawn."""

    def given_mask(self, mask: Separable | Dense) -> Any:
        """Convert the caller's nodes to the masks of a batch, with weights clipped to [0, 1].

        `base` and `scale` float64 [1], `rows` [H] and `columns` [W] float32 on the CPU, each clipped so that
        the weights stay in range; or `values` float32 [H, W].
        """

    def label_weight(self, weights: Any) -> DataNode:
        """The mean of the mask, float32 [1]."""

    def full_mask(self, images: DataNode, weights: Any, layout: str) -> DataNode:
        """The weight of every pixel, float32 HxWx1 or 1xHxW, on the device of the images."""

    def mix_images(
        self,
        images: DataNode,
        source: DataNode,
        partner: DataNode,
        weights: Any,
        arguments: ImageArguments,
    ) -> Mixed:
        """Mix every image with one of `source`, by its index within the batch.

        Parameters
        ----------
        images : uint8, int16, uint16, float16 or float32, three-dimensional
        source : the partners' images; the same node, unless there is a second source
        partner : int32 scalar, CPU
        weights : what :meth:`make_mask` or :meth:`given_mask` returned
        """

    def mix_ids(
        self,
        labels: DataNode,
        partner_labels: DataNode,
        lam: DataNode,
        arguments: LabelArguments,
        check: DataNode | None = None,
    ) -> DataNode:
        """Targets of class ids, float32 [num_classes], on the device of `lam`.

        Parameters
        ----------
        labels, partner_labels : int32 [1], CPU
        lam : float32 [1]
        check : float32 [1], CPU, optional
            What the targets have to wait for.
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
