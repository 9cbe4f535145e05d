"""The backend for images on the GPU: compiled masks and targets on the CPU, images mixed by DALI's operators.

A DALI operator costs the processor about as much for one number per sample as for a row of pixels, and a mask
from its formula takes dozens of them; here it takes one. Only the operators of :mod:`..graph` see the images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode

from ...arguments import DrawArguments, ImageArguments
from ...checks import check_fault, pass_unless_fault, with_layout
from ...common_arguments import LabelArguments
from ...draws import Draws
from ...layouts import is_sequence, mask_layout
from ...masks import Dense, Separable
from .. import Mixed, graph
from ..blending import Mask
from .entry_points import mix_targets
from .faults import find_faults, shape_of
from .profiles import Profiles, given_profiles, mask_profiles


class Weights(NamedTuple):
    """A mask, as :func:`mix_images` takes it: from what was drawn."""

    profiles: Profiles
    cut: bool
    """Whether it is 0 inside a box and 1 outside."""
    shape: DataNode
    """The images' shape, from :func:`.faults.shape_of`."""


def make_mask(images: DataNode, layout: str, draws: Draws, arguments: DrawArguments) -> Weights:
    """The masks of a batch from what was drawn; see :class:`dali_msda.backends.Backend`."""
    cut, shape = arguments.entry.cuts, shape_of(images, layout)
    return Weights(mask_profiles(shape, mask_layout(layout), draws, arguments, cut=cut), cut, shape)


def given_mask(mask: Separable | Dense) -> Separable | Dense:
    """A caller's mask, for :func:`mix_images` to check first; see :class:`dali_msda.backends.Backend`."""
    return mask


def label_weight(weights: Weights | Separable | Dense) -> DataNode:
    """The mean of the mask; see :class:`dali_msda.backends.Backend`."""
    return weights.profiles.lam if isinstance(weights, Weights) else graph.given_mask(weights).lam


def full_mask(images: DataNode, weights: Weights | Separable | Dense, layout: str) -> DataNode:
    """The weight of every pixel; see :class:`dali_msda.backends.Backend`."""
    if not isinstance(weights, Weights):
        return graph.full_mask(images, graph.given_mask(weights), layout)
    mask = _to_mask(weights.profiles, weights.cut, images.device)
    return graph.expand_mask(mask, images.shape(dtype=types.INT64), layout)


def _layout_of(images: DataNode, layout: str) -> DataNode:
    """The layout that DALI has for the images, uint8 [n], CPU."""
    if images.device == "cpu" and not is_sequence(layout):
        return fn.get_property(images, key="layout")
    # On the GPU the property is there too, where it cannot be read: the layout counts as right. That of
    # sequences is compared elsewhere.
    return types.Constant(np.frombuffer(mask_layout(layout).encode(), np.uint8), device="cpu")


def _sized_parts(weights: Weights | Separable | Dense) -> list[DataNode]:
    """The parts of a caller's mask whose size must fit the images."""
    if isinstance(weights, Weights):
        return []
    return [weights.values] if isinstance(weights, Dense) else [weights.rows, weights.columns]


def _to_mask(profiles: Profiles, cut: bool, device: str) -> Mask:
    """The mask on the device of the images."""
    base, rows, columns, dense = (
        None if part is None else graph.to_device(part, device) for part in profiles[1:]
    )
    return Mask(base, rows, columns, dense, cut)


def _convert_on_gpu(mask: Dense, layout: str, check: DataNode) -> Profiles:
    """:func:`.profiles.given_profiles` for a mask on the GPU, by DALI's operators; `check` is float32 [1]."""
    weights = graph.wait_for_check(graph.given_mask(mask), check)
    return Profiles(weights.lam, dense=graph.shape_mask(weights, layout, "gpu").dense)


def mix_images(
    images: DataNode,
    source: DataNode,
    partner: DataNode,
    weights: Weights | Separable | Dense,
    arguments: ImageArguments,
) -> Mixed:
    """Mix images with DALI's operators; see :class:`dali_msda.backends.Backend`."""
    layout = arguments.layout
    indices, fault = find_faults(
        weights.shape if isinstance(weights, Weights) else shape_of(images, layout),
        partner,
        mask_layout(layout),
        _layout_of(images, layout),
        source=None if source is images else shape_of(source, layout),
        mask=_sized_parts(weights),
    )
    if is_sequence(layout):
        shape = with_layout(images, layout).shape(dtype=types.INT64)
        fault = math.max(fault, graph.find_fault(images, source, partner, shape, layout))
    # What follows waits for the check: images and a caller's mask are fetched by what comes of it.
    checked = pass_unless_fault(indices, fault)
    if isinstance(weights, Weights):
        profiles, cut = weights.profiles, weights.cut
    elif isinstance(weights, Dense) and weights.values.device == "gpu":
        profiles, cut = _convert_on_gpu(weights, layout, check_fault(fault)), False
    else:
        profiles, cut = given_profiles(weights, mask_layout(layout), checked), False
    mask = _to_mask(profiles, cut, images.device)
    mixed = graph.mix_pixels(images, source, fn.reshape(checked, shape=[]), mask)
    return Mixed(graph.finished(images, source, mixed, arguments), profiles.lam)


def mix_ids(
    labels: DataNode,
    partner_labels: DataNode,
    lam: DataNode,
    arguments: LabelArguments,
    check: DataNode | None = None,
) -> DataNode:
    """Targets of class ids; see :class:`dali_msda.backends.Backend`."""
    mix = mix_targets if lam.device == "cpu" else graph.mix_ids
    return mix(labels, partner_labels, lam, arguments, check)
