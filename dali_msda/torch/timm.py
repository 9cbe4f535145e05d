"""timm's ``Mixup`` and ``FastCollateMixup``, mixed by this library, with HMix and GMix.

    from dali_msda.torch.timm import FastCollateMixup, Mixup

in place of timm's. They draw what timm draws, from NumPy's global generator and in the same order: with the
same ``np.random.seed`` they give the same batches as timm, up to rounding.
"""

# ruff: noqa: NPY002 (that generator)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import mixup as original
from torch.utils.data import default_collate

from ..methods import TABLE
from ..validation import ArgumentTypeError, ArgumentValueError, check_choice, is_number
from .blend import mix_images
from .given import GivenMasks

__all__ = ["FastCollateMixup", "Mixup"]

_HMIX_ALPHA, _HMIX_RATIO = TABLE["hmix"].arguments
(_GMIX_ALPHA,) = TABLE["gmix"].arguments


class _Draw(NamedTuple):
    """What was drawn for one sample, or for all."""

    method: str
    lam: Any
    """A Python or NumPy float, as in timm: its precision decides how a box is rounded."""


_UNMIXED = _Draw("mixup", 1.0)


class Mixup(original.Mixup):
    """``timm.data.Mixup``, with HMix and GMix and for batches of any size.

    Of the methods with a mask (CutMix, HMix, GMix), those whose alpha is above 0 are equally likely.

    Parameters
    ----------
    mixup_alpha, cutmix_alpha, cutmix_minmax, prob, correct_lam, label_smoothing, num_classes, multi_label
        As in timm. `multi_label` needs a version of timm that has it.
    switch_prob : float
        Probability of a method with a mask, where Mixup is active too.
    mode : {"batch", "pair", "elem"}
        As in timm: one draw for the batch, for each pair of samples i and N - 1 - i, or for each sample.
    hmix_alpha, gmix_alpha : float
        lam ~ Beta(alpha, alpha); HMix and GMix are active above 0.
    ratio : float
        r of HMix, in [0, 1].

    Attributes
    ----------
    mixup_enabled : bool
        Set it to False to turn mixing off; labels are still smoothed.

    Raises
    ------
    ValueError, TypeError
        `mode`, `hmix_alpha`, `gmix_alpha` or `ratio` is not valid. When called: no method is active, or the
        images are not [N, C, H, W].

    Notes
    -----
    The partner of sample i is sample N - 1 - i, so the middle sample of an odd batch is not mixed. The input
    is not changed, where timm mixes in place.
    """

    _modes: tuple[str, ...] = ("batch", "pair", "elem")

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        hmix_alpha: float = 0.0,
        gmix_alpha: float = 0.0,
        ratio: float = _HMIX_RATIO.default,
    ) -> None:
        check_choice("mode", mode, self._modes)
        for name, value, argument in (
            ("hmix_alpha", hmix_alpha, _HMIX_ALPHA),
            ("gmix_alpha", gmix_alpha, _GMIX_ALPHA),
            ("ratio", ratio, _HMIX_RATIO),
        ):
            if not is_number(value):
                raise ArgumentTypeError(name, argument.expected_number, value)
            if not argument.takes(value):
                raise ArgumentValueError(name, argument.expected, value)
        super().__init__(
            mixup_alpha,
            cutmix_alpha,
            cutmix_minmax,
            prob,
            switch_prob,
            mode,
            correct_lam,
            label_smoothing,
            num_classes,
            **({"multi_label": True} if multi_label else {}),
        )
        self.hmix_alpha, self.gmix_alpha, self.ratio = hmix_alpha, gmix_alpha, ratio

    def __call__(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Parameters
        ----------
        x : Tensor
            [N, C, H, W], contiguous or channels_last, uint8 or float, on the CPU or a GPU.
        target : Tensor
            Class ids, [N]; with `multi_label` float [N, num_classes].

        Returns
        -------
        (Tensor, Tensor)
            The images, of the same type and layout; the targets, float32 [N, num_classes].
        """
        if x.ndim != 4:
            raise ArgumentValueError("x", "images [N, C, H, W]", list(x.shape))
        masks, order = self._draw_masks(len(x), x.shape)
        if masks.mix:
            x = mix_images(x, x, _partners(len(x), x.device), masks.on(x.device, order))
        return x, self._mix_target(target, masks, order)

    def _draw_masks(self, count: int, shape: Sequence[int]) -> tuple[GivenMasks, np.ndarray[Any, Any]]:
        """Masks for a batch of `count` samples, and which of them each sample has."""
        if self.mode == "batch":
            draws, order = [self._draw_for_batch()], np.zeros(count, np.intp)
        elif self.mode == "elem":
            draws, order = self._draw_for_samples(count), np.arange(count)
        else:
            draws, order = self._draw_for_samples(count // 2), np.arange(count // 2)
            if self.mode == "pair":
                draws.append(_UNMIXED)  # of the middle sample of an odd batch
                order = np.concatenate([order, [count // 2] * (count % 2), order[::-1]]).astype(np.intp)
        height, width = shape[-2:]
        masks = GivenMasks(len(draws), (height, width))
        self._set_masks(masks, draws)
        return masks, order

    def _set_masks(self, masks: GivenMasks, draws: Sequence[_Draw]) -> None:
        """Make the mask of every draw; the places of boxes and blobs are drawn here."""
        by_formula: dict[str, list[tuple[int, float, tuple[int, int]]]] = {}
        for sample, (method, lam) in enumerate(draws):
            if lam == 1.0:  # not mixed: timm draws no box then
                continue
            if method == "mixup":
                masks.set_constant(sample, lam)
            elif method == "cutmix":
                box, lam = original.cutmix_bbox_and_lam(
                    masks.size, lam, ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam
                )
                masks.set_box(sample, box, lam)
            else:
                row, column = map(np.random.randint, masks.size)
                by_formula.setdefault(method, []).append((sample, float(lam), (row, column)))
        for method, drawn in by_formula.items():
            arguments = {"ratio": self.ratio} if method == "hmix" else {}
            samples, lams, centers = map(list, zip(*drawn, strict=True))
            masks.set_formula(samples, method, lams, centers, arguments, self.correct_lam)

    def _draw_for_batch(self) -> _Draw:
        """One draw for all samples, with the random numbers that timm takes."""
        if not self.mixup_enabled or np.random.rand() >= self.mix_prob:
            return _UNMIXED
        mixup, others = self._active_methods()
        switch = not mixup or (bool(others) and np.random.rand() < self.switch_prob)
        method = others[_index(len(others))] if switch else "mixup"
        alpha = self._alphas[method]
        return _Draw(method, float(np.random.beta(alpha, alpha)))

    def _draw_for_samples(self, count: int) -> list[_Draw]:
        """One draw for each sample, with the random numbers that timm takes, in its order."""
        if not self.mixup_enabled:
            return [_UNMIXED] * count
        mixup, others = self._active_methods()
        both = mixup and bool(others)
        switches = np.random.rand(count) < self.switch_prob if both else np.full(count, not mixup)
        choices = [others[i] for i in _index(len(others), count)] if others else ["mixup"] * count
        drawn = [*others, "mixup"] if mixup else others
        lams = {name: np.random.beta(self._alphas[name], self._alphas[name], size=count) for name in drawn}
        mixed = np.random.rand(count) < self.mix_prob
        draws = []
        for i, (switch, choice) in enumerate(zip(switches, choices, strict=True)):
            method = choice if switch else "mixup"
            draws.append(_Draw(method, np.float32(lams[method][i])) if mixed[i] else _UNMIXED)
        return draws

    @property
    def _alphas(self) -> dict[str, float]:
        return {
            "mixup": self.mixup_alpha,
            "cutmix": self.cutmix_alpha,
            "hmix": self.hmix_alpha,
            "gmix": self.gmix_alpha,
        }

    def _active_methods(self) -> tuple[bool, list[str]]:
        """Whether Mixup is active, and the other active methods; raise if there is none."""
        active = [method for method, alpha in self._alphas.items() if alpha > 0.0]
        if not active:
            raise ArgumentValueError(
                "one of mixup_alpha, cutmix_alpha, hmix_alpha and gmix_alpha", "above 0", self._alphas
            )
        return "mixup" in active, [method for method in active if method != "mixup"]

    def _mix_target(
        self, target: torch.Tensor, masks: GivenMasks, order: np.ndarray[Any, Any]
    ) -> torch.Tensor:
        """Smoothed targets, mixed by timm."""
        options = {"multi_label": True} if getattr(self, "multi_label", False) else {}
        lam: Any = float(masks.lam[0])
        if self.mode != "batch":
            weights = np.ones((len(target), 1), np.float32)
            weights[: len(order), 0] = masks.lam[order]
            lam = torch.from_numpy(weights).to(target.device, non_blocking=True)
        mixed: torch.Tensor = original.mixup_target(
            target, self.num_classes, lam, self.label_smoothing, **options
        )
        return mixed


class FastCollateMixup(Mixup, original.FastCollateMixup):
    """``timm.data.FastCollateMixup``, likewise: collates uint8 images into a mixed batch.

    Parameters
    ----------
    mode : {"batch", "pair", "elem", "half"}
        As in timm. "half" loads two samples for each one of the batch, its own and its partner.

    Notes
    -----
    The other parameters are those of :class:`Mixup`. timm's loader, which turns mixing off after
    ``--mixup-off-epoch``, knows it as timm's own.
    """

    _modes = ("batch", "pair", "elem", "half")

    def __call__(  # type: ignore[override]
        self, batch: Sequence[tuple[Any, Any]], _: object = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Collate and mix samples.

        Parameters
        ----------
        batch : sequence of (image, target)
            N images, each a uint8 array or tensor [C, H, W]; targets as of :class:`Mixup`.

        Returns
        -------
        (Tensor, Tensor)
            Images, uint8 [N, C, H, W], and targets, float32 [N, num_classes]; with "half" N // 2 of each.
        """
        images = torch.stack([torch.as_tensor(image) for image, _ in batch])
        if images.dtype != torch.uint8:
            raise ArgumentTypeError("images", "uint8", images.dtype)
        target = default_collate([label for _, label in batch])
        masks, order = self._draw_masks(len(batch), images.shape)
        made = len(order)
        own, others = images[:made], images[len(batch) - made :]
        if masks.mix:
            own = mix_images(own, others, _partners(made, images.device), masks.on(images.device, order))
        return own, self._mix_target(target, masks, order)[:made]


def _index(length: int, count: int | None = None) -> Any:
    """A drawn index, or `count` of them; nothing is drawn where there is no choice, as in timm."""
    if length == 1:
        return 0 if count is None else np.zeros(count, np.intp)
    return np.random.randint(length, size=count)


def _partners(count: int, device: torch.device) -> torch.Tensor:
    """The batch in reverse order."""
    return torch.arange(count - 1, -1, -1, device=device)
