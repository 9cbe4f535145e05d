"""torchvision's ``MixUp`` and ``CutMix``, mixed by this library, and HMix, GMix and Stochastic likewise.

    from dali_msda.torch.torchvision import CutMix, HMix, MixUp

or, for a script that uses torchvision's module, whose other names are here too:

    from dali_msda.torch import torchvision as v2

``MixUp`` and ``CutMix`` draw what torchvision's draw, from PyTorch's global generator: with the same
``torch.manual_seed`` they give the same batches, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import get_size, is_pure_tensor

from ..methods import TABLE
from ..mixing import argument_of, check_argument
from ..validation import ArgumentValueError
from .blend import mix_images
from .given import GivenMasks

__all__ = ["CutMix", "GMix", "HMix", "MixUp", "Stochastic"]

if not hasattr(v2.Transform, "make_params"):
    raise ImportError("torchvision must be 0.21 or newer, whose transforms can be extended")

# Finds the labels in the input of a transform.
LabelsGetter = str | Callable[[Any], torch.Tensor] | None


def __getattr__(name: str) -> Any:
    """All other names are torchvision's."""
    return getattr(v2, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(v2)})


class _Mixed(v2.Transform):
    """Mixes images where torchvision's transform would; torchvision mixes the labels.

    ``make_params`` of a subclass returns the mask, and its label weight as "lam" and as "lam_adjusted".
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Mix labels, or images or videos with the sample before; return other inputs as they are."""
        is_tv_tensor = isinstance(inpt, tv_tensors.Image | tv_tensors.Video)
        if inpt is params["labels"] or not (is_tv_tensor or is_pure_tensor(inpt)):
            return super().transform(inpt, params)
        layout = "[N, T, C, H, W]" if isinstance(inpt, tv_tensors.Video) else "[N, C, H, W]"
        if inpt.ndim != layout.count(",") + 1:
            raise ArgumentValueError("images", f"a batch {layout}", list(inpt.shape))
        count = params["batch_size"]
        if inpt.shape[0] != count:
            raise ArgumentValueError("images", f"as many as labels, {count}", inpt.shape[0])
        images = inpt.as_subclass(torch.Tensor)
        if images.ndim == 5:
            images = images.flatten(1, 2)  # the frames of a video have the same mask
        partner = torch.arange(count, device=images.device).roll(1)
        masks = params["mask"].on(images.device, np.zeros(count, np.intp))
        mixed = mix_images(images, images, partner, masks).reshape(inpt.shape)
        return tv_tensors.wrap(mixed, like=inpt) if is_tv_tensor else mixed


class MixUp(_Mixed, v2.MixUp):
    """``torchvision.transforms.v2.MixUp``, also for integer images.

    Parameters
    ----------
    alpha : float
        lam ~ Beta(alpha, alpha), one for the batch.
    num_classes : int, optional
        Needed if the labels are class ids.
    labels_getter : "default" or callable
        As in torchvision.

    Raises
    ------
    ValueError
        As in torchvision, when called: the labels are not a tensor [N] or [N, num_classes]; class ids without
        `num_classes`; images that are no batch, or not as many as labels; PIL images, boxes, masks.

    Notes
    -----
    The partner of a sample is the one before, as in torchvision.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw lam, as torchvision does."""
        lam = super().make_params(flat_inputs)["lam"]
        masks = GivenMasks(1, (1, 1))  # the images may differ in size
        masks.set_constant(0, lam)
        return _params(masks)


class CutMix(_Mixed, v2.CutMix):
    """``torchvision.transforms.v2.CutMix``.

    Parameters, errors and partners are those of :class:`MixUp`.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a box, as torchvision does."""
        drawn = super().make_params(flat_inputs)
        left, top, right, bottom = drawn["box"]
        masks = GivenMasks(1, _height_and_width(flat_inputs))
        masks.set_box(0, (top, bottom, left, right), drawn["lam_adjusted"])
        return _params(masks)


class Stochastic(CutMix):
    """:class:`MixUp` or :class:`CutMix`, drawn for each batch.

    Parameters
    ----------
    mixup_alpha, cutmix_alpha : float
    switch_probability : float
        Probability of MixUp.
    num_classes, labels_getter
        As of :class:`MixUp`.
    """

    def __init__(
        self,
        *,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 1.0,
        switch_probability: float = 0.5,
        num_classes: int | None = None,
        labels_getter: LabelsGetter = "default",
    ) -> None:
        check_argument(argument_of(TABLE["stochastic"], "switch_probability"), switch_probability)
        super().__init__(alpha=cutmix_alpha, num_classes=num_classes, labels_getter=labels_getter)
        self.mixup_alpha, self.switch_probability = float(mixup_alpha), float(switch_probability)
        self._mixup = MixUp(alpha=mixup_alpha)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the method, then what it draws."""
        if float(torch.rand(())) < self.switch_probability:
            return self._mixup.make_params(flat_inputs)
        return super().make_params(flat_inputs)


class _Formula(CutMix):
    """A method of the table with one lam and one centre for the batch."""

    _method: str

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw lam, then the column and the row of the centre, like torchvision's CutMix."""
        height, width = _height_and_width(flat_inputs)
        lam = float(torch.distributions.Beta(self.alpha, self.alpha).sample(()))
        column, row = (int(torch.randint(length, (1,))) for length in (width, height))
        masks = GivenMasks(1, (height, width))
        masks.set_formula([0], self._method, [lam], [(row, column)], self._arguments())
        return _params(masks)

    def _arguments(self) -> dict[str, float]:
        return {}


class HMix(_Formula):
    """HMix in the manner of torchvision's CutMix.

    Parameters
    ----------
    alpha : float
    ratio : float
        r, the share of the box: 0 is MixUp, 1 is CutMix.
    num_classes, labels_getter
        As of :class:`MixUp`.
    """

    _method = "hmix"

    def __init__(
        self,
        *,
        alpha: float = TABLE["hmix"].defaults["alpha"],
        ratio: float = TABLE["hmix"].defaults["ratio"],
        num_classes: int | None = None,
        labels_getter: LabelsGetter = "default",
    ) -> None:
        check_argument(argument_of(TABLE["hmix"], "ratio"), ratio)
        super().__init__(alpha=alpha, num_classes=num_classes, labels_getter=labels_getter)
        self.ratio = float(ratio)

    def _arguments(self) -> dict[str, float]:
        return {"ratio": self.ratio}


class GMix(_Formula):
    """GMix in the manner of torchvision's CutMix: :class:`HMix` without `ratio`."""

    _method = "gmix"


def _height_and_width(flat_inputs: list[Any]) -> tuple[int, int]:
    """The size of the images, which must have one."""
    sizes = {
        tuple(get_size(inpt))
        for inpt in flat_inputs
        if isinstance(inpt, tv_tensors.Image | tv_tensors.Video) or is_pure_tensor(inpt)
    }
    if not sizes:
        raise TypeError("No image or video was found in the sample")
    if len(sizes) > 1:
        raise ArgumentValueError("images", "of one size", sorted(sizes))
    height, width = sizes.pop()
    return height, width


def _params(masks: GivenMasks) -> dict[str, Any]:
    """What `transform` takes; torchvision's MixUp takes "lam", its CutMix "lam_adjusted"."""
    lam = float(masks.lam[0])
    return {"mask": masks, "lam": lam, "lam_adjusted": lam}
