"""The transforms: a class for any method, and one for each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..common_arguments import LabelArguments, check_known, check_partner_labels
from ..methods import TABLE, Beta, check_method, methods_with
from ..signatures import PerChannel
from ..validation import ArgumentTypeError, ArgumentValueError, check_choice, check_flag
from . import blend, compiled
from .arguments import (
    BackendName,
    DrawArguments,
    Normalization,
    check_device,
    check_images,
    check_same,
    given_center,
    given_lam,
    given_partner,
)
from .draws import Draws, draw_numbers, draw_partner, drawn_lam
from .functions import Functions
from .labels import Pair, check_labels, mix_labels
from .masks import Masks, make_masks


class MixParams(NamedTuple):
    """What was drawn for a batch; the last result with ``return_params=True``."""

    lam: Tensor
    """Label weight of the own image, the mean of its mask: float32 [N]."""
    partner: Tensor
    """Index of the partner within the batch: int64 [N]."""
    mask: Tensor
    """Weight of the own image: float32 [N, 1, H, W]."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The masks and partners of a batch, from :meth:`Mix.draw`.

    :attr:`lam` and :attr:`partner` are public; the rest is internal.
    """

    draws: Draws
    partner: Tensor
    """Index of the partner within the batch: int64 [N]."""
    size: tuple[int, int]
    """Height and width of the images that they were drawn for."""
    masks: Masks
    """The masks at that size."""
    device: torch.device = field(repr=False)

    @property
    def lam(self) -> Tensor:
        """Label weight of the own image, the mean of its mask: float32 [N]."""
        return self.masks.lam


class Mix(nn.Module):
    """Mix every image of a batch with a partner from the same batch, and their labels too.

    The own image has the weight M(y, x) in [0, 1], the partner 1 - M:
    ``image = M * own + (1 - M) * partner``. The label weight lam is the mean of M, and
    ``targets = lam * onehot(own) + (1 - lam) * onehot(partner)``.

    Parameters
    ----------
    method : str
        One of ``dali_msda.METHODS``. :class:`HMix` and so on are classes for one method, with its own
        arguments and without this one.
    num_classes : int, optional
        Length of the targets, at least 1. Labels that are vectors have it themselves, and class ids do not
        need it with ``output="pair"``.
    alpha : float, optional
        lam ~ Beta(alpha, alpha), at least 0; 0 does not mix. By default the paper's value for ImageNet. It
        sets all alphas of a method.
    probability : float, optional
        Probability that a sample is mixed, 1 by default; otherwise its image and label stay unchanged.
    label_smoothing : float, optional
        s in [0, 1]: a target is s / K for every class, plus (1 - s) times the mixed one-hot vector.
    convention : {"reference", "paper"}, optional
        Masks as in the authors' published code (default), or by the formulas of the paper.
    granularity : {"sample", "batch"}, optional
        Separate draws for every sample (default), or one draw for all samples of a batch.
    allow_self : bool, optional
        Whether a sample may be its own partner, True by default. False draws uniformly from the others.
    output : {"dense", "pair"}, optional
        Targets as vectors (default), or as a :class:`Pair` of both labels and their weight.
    correct_lam : bool, optional
        Whether the label weight is the mean of the mask (default) or the drawn lam.
    return_params : bool, optional
        Add a last result, :class:`MixParams`.
    mean, std : float, sequence of float or array, optional
        Normalise the mixed images: scale * (mixed - mean) / std + shift, with one number for all channels or
        one per channel.
    scale, shift : float, optional
        1 and 0 by default; `scale` is not 0. They and `output_dtype` need `mean` and `std`.
    output_dtype : torch.dtype, optional
        Type of the normalised images: float32 (default), float16 or bfloat16.
    generator : torch.Generator, optional
        Where the draws come from, on the device of the images; by default PyTorch's own.
    backend : {"auto", "kernel", "torch"}, optional
        "kernel": one pass of compiled code (Triton on a GPU). "torch": PyTorch's operators. "auto" (default):
        "kernel" where it runs.
    **arguments : float or Beta, optional
        Arguments of the method, such as ``ratio``. One in [0, 1] can be a :class:`dali_msda.Beta`: then it is
        drawn for every sample.

    Raises
    ------
    TypeError, ValueError
        An argument is not valid; the message has the argument, what it must be and what came.

    Notes
    -----
    It has no parameters and no state, and mixes in evaluation mode too. Nothing waits for a GPU: there, a
    label that is not a class is found by PyTorch's own assertion, on the CPU by an error.

    Park, Yun, Chun: "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022, equation 1 and
    section 4.
    """

    def __init__(
        self,
        method: str,
        num_classes: int | None = None,
        *,
        alpha: float | None = None,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
        convention: str = "reference",
        granularity: str = "sample",
        allow_self: bool = True,
        output: str = "dense",
        correct_lam: bool = True,
        return_params: bool = False,
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        output_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        backend: str = "auto",
        **arguments: float | Beta | None,
    ) -> None:
        super().__init__()
        check_method(method)
        unknown = [name for name in arguments if not methods_with(name)]
        check_known(TABLE[method], unknown, ["num_classes", *COMMON])
        given = {"alpha": alpha, **arguments}
        self.draw_arguments = DrawArguments(
            method=method,
            values={name: value for name, value in given.items() if value is not None},
            probability=probability,
            convention=convention,
            granularity=granularity,
            allow_self=allow_self,
            generator=generator,
        )
        self.label_arguments = LabelArguments(
            num_classes=num_classes, label_smoothing=label_smoothing, output=output, correct_lam=correct_lam
        )
        self.normalization = Normalization.from_call(mean, std, scale, shift, output_dtype)
        check_flag("return_params", return_params)
        self.return_params = return_params
        check_choice("backend", backend, get_args(BackendName))
        self.backend = backend

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.draw_arguments.method

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        labels: Tensor | None = None,
        *,
        lam: float | Sequence[float] | Tensor | None = None,
        center: Sequence[int] | Tensor | None = None,
        partner: int | Sequence[int] | Tensor | None = None,
        partner_images: Tensor | Sequence[Tensor] | None = None,
        partner_labels: Tensor | None = None,
    ) -> Any:
        """Mix a batch.

        Parameters
        ----------
        images : Tensor or sequence of Tensor
            [N, C, H, W], contiguous or channels_last, uint8, int16, uint16, float16, bfloat16 or float32.
            Several views of a sample share their draws, each at its own size; the label weight is that of the
            first. Of a clip [N, C, T, H, W] all frames have one mask. A pair (images, labels), as a loader
            returns it, is a batch with labels.
        labels : Tensor, optional
            Class ids in [0, num_classes), integers [N] or [N, 1]; or vectors of floats [N, K]. None mixes the
            images alone.
        lam : float, sequence of float or Tensor, optional
            Use this lam, in [0, 1], instead of drawing it; values of a tensor are clipped.
        center : (row, column) or Tensor, optional
            Use this centre of the box or blob, in pixels, instead of drawing it; a tensor has shape [2] or
            [N, 2].
        partner : int, sequence of int or Tensor, optional
            Use these partners, indices within the batch; by default a random permutation of the batch.
        partner_images, partner_labels : Tensor, optional
            Take the partners from here, such as another loader's batch, instead of `images` and `labels`.

        Returns
        -------
        images : Tensor
            Mixed images: type, memory format and device of the input; integers are rounded to nearest. With
            `mean` and `std`: `output_dtype`. A list if `images` are several views.
        targets : Tensor or Pair
            float32 [N, num_classes], on the device of the images. Absent without labels. A single result
            comes without a tuple.
        params : MixParams
            Only with ``return_params=True``.

        Raises
        ------
        TypeError, ValueError
            An argument is not valid, or a label or partner is out of range (on the CPU).
        """
        if labels is None and _is_batch(images):
            images, labels = images
        several = isinstance(images, tuple | list)
        views = [check_images("images", view) for view in (images if several else [images])]
        if not views:
            raise ValueError("images must be a tensor or a sequence of them; got an empty one")
        sources = self._check_sources(views, partner_images)
        drawn = self.draw(views[0], lam=lam, center=center, partner=partner)
        checked = self._check_labels(labels, partner_labels, drawn, partner_images is not None)
        mixed = [self._mix(view, drawn, source) for view, source in zip(views, sources, strict=True)]
        results: list[Any] = [mixed if several else mixed[0]]
        if checked is not None:
            results.append(self._targets(*checked, drawn))
        if self.return_params:
            results.append(
                MixParams(self._label_weight(drawn), drawn.partner, drawn.masks.pixels(drawn.size)[:, None])
            )
        return tuple(results) if len(results) > 1 else results[0]

    def draw(
        self,
        images: Tensor,
        *,
        lam: float | Sequence[float] | Tensor | None = None,
        center: Sequence[int] | Tensor | None = None,
        partner: int | Sequence[int] | Tensor | None = None,
    ) -> Drawn:
        """Draw masks and partners for a batch, without mixing anything yet: for
        :meth:`mix_images` and :meth:`mix_labels`.

        Parameters
        ----------
        images : Tensor
            The images [N, ..., H, W] whose size and device the masks have, of any type.
        lam, center, partner
            See :meth:`forward`.
        """
        images = check_images("images", images, maps=True)
        arguments, count, device = self.draw_arguments, len(images), images.device
        if partner is not None and not arguments.allow_self:
            raise ArgumentValueError("allow_self", "True with partner=, which decides", False)
        generator = arguments.generator
        if generator is not None and generator.device.type != device.type:
            raise ValueError(f"generator must be on {device}, like the images; got one on {generator.device}")
        draws = draw_numbers(
            arguments,
            count,
            device,
            None if lam is None else given_lam(lam, count, device),
            None if center is None else given_center(center, count, device),
        )
        chosen = None if partner is None else given_partner(partner, count, device)
        size = (images.shape[-2], images.shape[-1])
        return Drawn(
            draws=draws,
            partner=draw_partner(arguments, count, device, chosen),
            size=size,
            masks=self._make_masks(draws, count, size, device),
            device=device,
        )

    def mix_images(
        self, images: Tensor, drawn: Drawn, *, partner_images: Tensor | None = None, nearest: bool = False
    ) -> Tensor:
        """Mix images or maps with masks drawn before, each made at their size.

        Parameters
        ----------
        images : Tensor
            One input per sample of the batch.
        drawn : Drawn
            From :meth:`draw`.
        partner_images : Tensor, optional
            Source of the partners, instead of `images`.
        nearest : bool, optional
            Take each pixel from the image with the larger weight there (the own image if equal) instead of
            blending: for maps of class ids [N, H, W], of any type.
        """
        check_flag("nearest", nearest)
        if not isinstance(drawn, Drawn):
            raise ArgumentTypeError("drawn", "what draw() returns", drawn)
        images = check_images("images", images, maps=nearest)
        check_device("images", images, drawn.device)
        if len(images) != len(drawn.partner):
            raise ArgumentValueError("images", f"{len(drawn.partner)}, as drawn", len(images))
        (source,) = self._check_sources([images], partner_images, maps=nearest)
        if not nearest:
            return self._mix(images, drawn, source)
        return blend.select_nearest(images, source, drawn.partner, self._masks_for(images, drawn))

    def mix_labels(
        self, labels: Tensor, drawn: Drawn, *, partner_labels: Tensor | None = None
    ) -> Tensor | Pair:
        """Mix labels with masks and partners drawn before; see :meth:`forward`."""
        if not isinstance(drawn, Drawn):
            raise ArgumentTypeError("drawn", "what draw() returns", drawn)
        checked = self._check_labels(labels, partner_labels, drawn, partner_labels is not None)
        assert checked is not None
        return self._targets(*checked, drawn)

    def extra_repr(self) -> str:
        """The method and its arguments, for ``print``."""
        own = [f"{name}={value}" for name, value in self.draw_arguments.values.items()]
        return ", ".join([repr(self.method), *own])

    def _check_sources(self, views: Sequence[Tensor], given: Any, *, maps: bool = False) -> Sequence[Tensor]:
        """The images that the partners of every view come from."""
        if given is None:
            return views
        sources = [
            check_images("partner_images", source, maps=maps)
            for source in (given if isinstance(given, tuple | list) else [given])
        ]
        if len(sources) != len(views):
            raise ArgumentValueError("partner_images", f"as many as images, {len(views)}", len(sources))
        for view, source in zip(views, sources, strict=True):
            check_same("partner_images", source, view)
        return sources

    def _check_labels(
        self, labels: Tensor | None, partner_labels: Tensor | None, drawn: Drawn, second_source: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The labels, and those that the partners' are taken from; None without labels."""
        check_partner_labels(labels, partner_labels, second_source, "a tensor")
        if labels is None:
            return None
        count, arguments = len(drawn.partner), self.label_arguments
        own = check_labels("labels", labels, count, drawn.device, arguments)
        others = own
        if partner_labels is not None:
            others = check_labels("partner_labels", partner_labels, count, drawn.device, arguments)
            if others.shape != own.shape or others.dtype != own.dtype:
                kind = "vectors" if own.dtype.is_floating_point else "class ids"
                got = f"a tensor of {partner_labels.dtype}, shape {list(partner_labels.shape)}"
                raise ArgumentTypeError("partner_labels", f"{kind}, as labels are", got)
        return own, others

    def _targets(self, own: Tensor, others: Tensor, drawn: Drawn) -> Tensor | Pair:
        partners, lam = others.index_select(0, drawn.partner), self._label_weight(drawn)
        arguments = self.label_arguments
        by_kernel = self.backend != "torch" and compiled.writes_masks(drawn.device, (own, partners, lam))
        if by_kernel and arguments.output == "dense" and not own.dtype.is_floating_point:
            assert arguments.num_classes is not None
            return compiled.mix_targets(own, partners, lam, arguments.num_classes, arguments.label_smoothing)
        return mix_labels(own, partners, lam, arguments)

    def _label_weight(self, drawn: Drawn) -> Tensor:
        if self.label_arguments.correct_lam:
            return drawn.lam
        lam = drawn_lam(self.draw_arguments, drawn.draws, Functions(drawn.device))
        return lam.expand(len(drawn.partner))

    def _masks_for(self, images: Tensor, drawn: Drawn) -> Masks:
        """The same masks at the size of other images."""
        size = (images.shape[-2], images.shape[-1])
        if size == drawn.size:
            return drawn.masks
        draws = drawn.draws
        if draws.given:  # in pixels of the images that they were drawn for
            row, column = (
                torch.floor((draws.values[name] + 0.5) * float(here) / float(there))
                for name, here, there in zip(("_row", "_column"), size, drawn.size, strict=True)
            )
            draws = draws.with_center(row, column)
        return self._make_masks(draws, len(images), size, drawn.device)

    def _make_masks(self, draws: Draws, count: int, size: tuple[int, int], device: torch.device) -> Masks:
        method = self.draw_arguments.entry
        if self.backend != "torch" and compiled.writes_masks(device, list(draws.values.values())):
            return compiled.write_masks(method, draws, count, size)
        return make_masks(method, draws, count, size, device)

    def _mix(self, images: Tensor, drawn: Drawn, source: Tensor) -> Tensor:
        normalization = self.normalization
        if normalization is not None:
            channels = normalization.channels
            if images.ndim != 4:
                raise ArgumentValueError("images", "[N, C, H, W] with mean=", list(images.shape))
            if channels is not None and channels != images.shape[1]:
                raise ArgumentValueError("mean", f"one number per channel, {images.shape[1]}", channels)
        if self.method == "none":
            return images if normalization is None else blend.normalize(images, normalization)
        masks = self._masks_for(images, drawn)
        own, other = (images, source) if images.ndim == 4 else (images.flatten(1, -3), source.flatten(1, -3))
        mixed = blend.mix_images(own, other, drawn.partner, masks, normalization, self.backend)
        return mixed if images.ndim == 4 else mixed.reshape(images.shape)


def _is_batch(images: Any) -> bool:
    """Whether this is (images, labels), which a loader returns, and not several views."""
    if not isinstance(images, tuple | list) or len(images) != 2:
        return False
    second = images[1]
    return isinstance(second, Tensor) and second.ndim <= 2


# The arguments that all methods take.
COMMON = {
    name: parameter
    for name, parameter in inspect.signature(Mix.__init__).parameters.items()
    if parameter.kind == parameter.KEYWORD_ONLY
}
