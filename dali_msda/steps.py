"""Mixing in the three steps behind the one-line functions: draw, apply, mix the labels.

For cases that one line cannot express: further inputs per sample, class maps, labels from elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode, do_not_convert

from .arguments import (
    DrawArguments,
    ImageArguments,
    PartnerArguments,
    as_views,
    check_node,
)
from .backends import Backend, Mixed, choose, graph
from .checks import check_image_dtype, wait_for
from .common_arguments import LabelArguments
from .draws import Draws, draw_numbers, draw_partner
from .labels import Labels, mix_read_labels, read_labels
from .layouts import as_pictures, from_pictures, layouts_of, picture_layout
from .masks import Dense, Separable
from .methods import Beta
from .normalization import normalize_if_asked
from .signatures import Pair, PerChannel
from .validation import ArgumentTypeError, ArgumentValueError, check_flag

F = TypeVar("F", bound=Callable[..., Any])


def without_conversion(function: F) -> F:
    """Exclude a function from DALI's conditionals: nothing in it depends on a sample's value."""
    return do_not_convert(function)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The masks and partners of a batch, from :func:`draw`.

    :attr:`lam` and :attr:`partner` are public; the rest is internal.
    """

    arguments: PartnerArguments
    draws: Draws | None
    """None if the mask is the caller's."""
    partner: DataNode
    """Index of the partner within the batch: int32 scalar, CPU."""
    images: DataNode
    """The images that they were drawn for."""
    layout: str
    weights: Any
    """The masks of those images, as the backend represents them."""

    @property
    def backend(self) -> Backend:
        """The backend for the device of the images."""
        return choose(self.arguments.backend, self.images.device)

    @functools.cached_property
    def lam(self) -> DataNode:
        """Label weight of the own image, the mean of its mask: float32 scalar, CPU."""
        return fn.reshape(self.backend.label_weight(self.weights), shape=[])


def draw_for(images: DataNode, layout: str, arguments: DrawArguments) -> Drawn:
    """Draw partners and masks for a batch of images."""
    backend = choose(arguments.backend, images.device)
    draws = draw_numbers(arguments)
    partner = draw_partner(arguments)
    return Drawn(
        arguments=arguments,
        draws=draws,
        partner=partner,
        images=images,
        layout=layout,
        weights=backend.make_mask(as_pictures(images, layout), picture_layout(layout), draws, arguments),
    )


def give_mask(images: DataNode, layout: str, mask: Separable | Dense, arguments: PartnerArguments) -> Drawn:
    """Draw partners for a batch of images, with the caller's mask."""
    return Drawn(
        arguments=arguments,
        draws=None,
        partner=draw_partner(arguments),
        images=images,
        layout=layout,
        weights=choose(arguments.backend, images.device).given_mask(mask),
    )


def _weights_for(images: DataNode, layout: str, drawn: Drawn) -> Any:
    """The same masks at the size of other images."""
    if images is drawn.images and layout == drawn.layout:
        return drawn.weights
    assert isinstance(drawn.arguments, DrawArguments)
    assert drawn.draws is not None
    draws = drawn.draws
    if drawn.arguments.center is not None:
        # In pixels of the original images.
        here, there = (
            fn.cast(graph.height_and_width(node.shape(dtype=types.INT64), form), dtype=types.FLOAT64)
            for node, form in ((images, layout), (drawn.images, drawn.layout))
        )
        given = fn.cat(draws.pick("_row"), draws.pick("_column"), axis=0)
        draws = draws.with_center(graph.FUNCTIONS.floor((given + 0.5) * here / there))
    backend = choose(drawn.arguments.backend, images.device)
    return backend.make_mask(as_pictures(images, layout), picture_layout(layout), draws, drawn.arguments)


def apply_to(
    images: DataNode, drawn: Drawn, arguments: ImageArguments, source: DataNode | None = None
) -> Mixed:
    """Mix images with given draws; `source` holds the partners' images if they come from elsewhere."""
    backend = choose(drawn.arguments.backend, images.device)
    layout = arguments.layout
    weights = _weights_for(images, layout, drawn)
    own = as_pictures(images, layout)
    other = own if source is None else as_pictures(source, layout)
    mixed = backend.mix_images(own, other, drawn.partner, weights, arguments.of_pictures)
    if isinstance(drawn.arguments, DrawArguments) and drawn.arguments.method == "none":
        return mixed._replace(images=normalized(images, arguments), check=None)
    return mixed._replace(images=from_pictures(mixed.images, arguments.result_layout))


def normalized(images: DataNode, arguments: ImageArguments) -> DataNode:
    """The images without mixing, normalised if that is asked for."""
    if not arguments.normalizes:
        return images
    pictures = normalize_if_asked(as_pictures(images, arguments.layout), arguments.of_pictures)
    return from_pictures(pictures, arguments.result_layout)


def mask_for(images: DataNode, layout: str, drawn: Drawn) -> DataNode:
    """The weight of every pixel of the own image: float32, an image of one channel in that layout."""
    weights = _weights_for(images, layout, drawn)
    backend = choose(drawn.arguments.backend, images.device)
    return backend.full_mask(as_pictures(images, layout), weights, picture_layout(layout))


def alone(mixed: Mixed, layout: str) -> DataNode:
    """Mixed images of that layout that depend on their own check."""
    return mixed.images if mixed.check is None else wait_for(mixed.images, mixed.check, layout)


def partners_of(labels: Labels, partner: DataNode) -> Labels:
    """The labels of the partners."""
    return Labels(fn.permute_batch(labels.values, indices=partner), labels.are_vectors)


@without_conversion
def draw(
    method: str,
    images: DataNode,
    *,
    alpha: float | DataNode | None = None,
    probability: float | DataNode = 1.0,
    convention: str = "reference",
    granularity: str = "sample",
    layout: str | None = None,
    seed: int | None = None,
    lam: float | DataNode | None = None,
    center: Any = None,
    partner: int | DataNode | None = None,
    allow_self: bool = True,
    backend: str = "auto",
    **arguments: float | DataNode | Beta | None,
) -> Drawn:
    """Draw masks and partners for a batch, without mixing anything yet.

    ``msda.mix(images, labels, num_classes, method=m)`` is ``drawn = msda.draw(m, images)``,
    ``msda.apply(images, drawn)`` and ``msda.mix_labels(labels, drawn, num_classes)``: the same `seed` gives
    the same draws.

    Parameters
    ----------
    method : str
        One of ``dali_msda.METHODS``.
    images : DataNode
        The images whose size and device the masks have, of any type.
    alpha, probability, convention, granularity, layout, seed, lam, center, partner, allow_self, backend
        See :func:`dali_msda.mix`.
    **arguments : float, DataNode or Beta, optional
        Arguments of the method.

    Returns
    -------
    Drawn
        For :func:`apply` and :func:`mix_labels`. ``drawn.lam`` is the label weight, float32 scalar,
        ``drawn.partner`` the partner's index, int32 scalar; both on the CPU.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        See :func:`dali_msda.mix`.
    """
    checked = DrawArguments.from_call(
        method,
        alpha,
        arguments,
        probability=probability,
        convention=convention,
        granularity=granularity,
        seed=seed,
        lam=lam,
        center=center,
        partner=partner,
        allow_self=allow_self,
        backend=backend,
    )
    (images,) = as_views("images", [images], backend)
    (layout,) = layouts_of([images], None, layout)
    return draw_for(images, layout, checked)


@without_conversion
def apply(
    images: DataNode,
    drawn: Drawn,
    *,
    partner_images: DataNode | None = None,
    layout: str | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    mirror: int | DataNode = 0,
    output_layout: str | None = None,
    output_dtype: types.DALIDataType = types.FLOAT,
    pad_output: bool = False,
    nearest: bool = False,
    name: str | None = None,
) -> DataNode:
    """Mix images or maps with masks drawn before.

    Parameters
    ----------
    images : DataNode
        One input per sample of the batch, of a type that :func:`dali_msda.mix` takes. Its height and width
        may differ from those of the images that the masks were drawn for: each mask is made at its size.
    drawn : Drawn
        From :func:`draw`.
    partner_images : DataNode, optional
        Source of the partners, instead of `images`.
    layout : {"HWC", "CHW", "HW", "FHWC", "FCHW", "DHWC"}, optional
        Layout of these images; see :func:`dali_msda.mix`.
    mean, std, scale, shift, mirror, output_layout, output_dtype, pad_output
        See :func:`dali_msda.mix`.
    nearest : bool, optional
        Take each pixel from the image with the larger weight there (the own image if equal) instead of
        blending: for maps of class ids, of any type. An id such as ``ignore_index`` then appears only where
        its source map has it.
    name : str, optional
        Name of DALI's last operator.

    Returns
    -------
    DataNode
        Size and device of `images`, and their type unless they are normalised.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        See :func:`dali_msda.mix`.

    Notes
    -----
    Soft maps: ``msda.apply(fn.one_hot(ids, num_classes=K, axis=2, axis_name="C"), drawn)`` mixes class
    planes. Boxes and keypoints cannot be mixed by a mask.
    """
    if not isinstance(drawn, Drawn):
        raise ArgumentTypeError("drawn", "what msda.draw returns", drawn)
    check_flag("nearest", nearest)
    if nearest and mean is not None:
        raise ArgumentValueError("mean", "left out with nearest=True", mean)
    (own,) = as_views("images", [images], drawn.arguments.backend)
    source = None
    if partner_images is not None:
        (source,) = as_views("partner_images", [partner_images], drawn.arguments.backend)
    if not nearest:
        check_image_dtype("images", own)
        if source is not None:
            check_image_dtype("partner_images", source)
    (layout,) = layouts_of([own], None if source is None else [source], layout)
    arguments = ImageArguments(
        layout=layout,
        mean=mean,
        std=std,
        scale=scale,
        shift=shift,
        mirror=mirror,
        output_layout=output_layout,
        output_dtype=output_dtype,
        pad_output=pad_output,
    )
    if nearest:
        mixed = _nearest(own, drawn, layout, source)
    else:
        mixed = alone(apply_to(own, drawn, arguments, source), arguments.result_layout)
    return mixed if name is None else named(mixed, name, arguments.result_layout)


def _nearest(images: DataNode, drawn: Drawn, layout: str, source: DataNode | None) -> DataNode:
    """Each pixel of whoever weighs more there."""
    own = as_pictures(images, layout)
    other = own if source is None else as_pictures(source, layout)
    mask = mask_for(images, layout, drawn)
    return from_pictures(graph.nearest(own, other, drawn.partner, mask, picture_layout(layout)), layout)


def named(images: DataNode, name: str, layout: str) -> DataNode:
    """The same images from an operator with that name, which does not copy them."""
    return fn.reshape(images, layout=layout, name=name)


@without_conversion
def mix_labels(
    labels: DataNode,
    drawn: Drawn,
    num_classes: int | None = None,
    *,
    partner_labels: DataNode | None = None,
    label_smoothing: float = 0.0,
    output: str = "dense",
    correct_lam: bool = True,
) -> DataNode | Pair:
    """Mix labels with masks and partners drawn before.

    Parameters
    ----------
    labels, num_classes, label_smoothing, output, correct_lam
        See :func:`dali_msda.mix`.
    drawn : Drawn
        From :func:`draw`.
    partner_labels : DataNode, optional
        Source of the partners' labels, instead of `labels`.

    Returns
    -------
    DataNode or Pair
        See :func:`dali_msda.mix`; on the device of the images that the masks were drawn for.
    """
    if not isinstance(drawn, Drawn):
        raise ArgumentTypeError("drawn", "what msda.draw returns", drawn)
    arguments = LabelArguments(
        num_classes=num_classes, label_smoothing=label_smoothing, output=output, correct_lam=correct_lam
    )
    check_node("labels", labels)
    lam = drawn.backend.label_weight(drawn.weights) if correct_lam else drawn_lam(drawn)
    return labels_for(labels, partner_labels, drawn, lam, arguments)


def labels_for(
    labels: DataNode,
    partner_labels: DataNode | None,
    drawn: Drawn,
    lam: DataNode,
    arguments: LabelArguments,
    check: DataNode | None = None,
) -> DataNode | Pair:
    """Targets from given draws, with `lam` (float32 [1]); see :func:`.labels.mix_read_labels`."""
    own = read_labels(labels, arguments)
    others = own if partner_labels is None else read_labels(partner_labels, arguments, "partner_labels")
    if own.are_vectors != others.are_vectors:
        expected = f"{'vectors' if own.are_vectors else 'class ids'}, as labels are"
        raise ArgumentTypeError("partner_labels", expected, "a node of another kind")
    partners = partners_of(others, drawn.partner)
    return mix_read_labels(drawn.backend, own, partners, lam, drawn.images.device, arguments, check)


def drawn_lam(drawn: Drawn) -> DataNode:
    """The lam that was drawn, for ``correct_lam=False``: float32 [1]."""
    assert isinstance(drawn.arguments, DrawArguments)
    assert drawn.draws is not None
    return graph.drawn_lam(drawn.draws, drawn.arguments)
