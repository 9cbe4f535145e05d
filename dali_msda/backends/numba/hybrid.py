"""The backend for images on the GPU: compiled masks and targets on the CPU, images mixed by DALI's operators.

A DALI operator costs the processor about as much for one number per sample as for a row of pixels, and a mask
from its formula takes dozens of them; here it takes one. Only the operators of :mod:`..graph` see the images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode, Pipeline

from ...arguments import BlendArguments, MixArguments, MixParams
from ...checks import check_fault, pass_unless_fault
from ...draws import Draws
from ...masks import Dense, Separable
from ...normalization import Normalization, normalize
from .. import graph
from .entry_points import mix_targets
from .faults import find_faults, shape_of
from .profiles import Profiles, given_profiles, mask_profiles


class Weights(NamedTuple):
    """A mask made from the draws, in the form :func:`blend` takes."""

    profiles: Profiles
    cut: bool
    """Whether it is 0 inside a box and 1 outside."""
    shape: DataNode
    """The images' shape, from :func:`.faults.shape_of`."""


def make_mask(images: DataNode, draws: Draws, arguments: MixArguments) -> Weights:
    """Make the masks of a batch from its draws; see :class:`dali_msda.backends.Backend`."""
    cut, shape = arguments.entry.cuts, shape_of(images)
    return Weights(mask_profiles(shape, draws, arguments, cut=cut), cut, shape)


def given_mask(mask: Separable | Dense) -> Separable | Dense:
    """Return a caller's mask unchanged: :func:`blend` checks it first; see
    :class:`dali_msda.backends.Backend`.
    """
    return mask


def _layout_of(images: DataNode, layout: str) -> DataNode:
    """The layout that DALI has for the images, uint8 [n], CPU."""
    if images.device == "cpu":
        return fn.get_property(images, key="layout")
    # On the GPU the property is there too, where it cannot be read: the layout counts as right.
    return types.Constant(np.frombuffer(layout.encode(), np.uint8), device="cpu")


def _sized_parts(weights: Weights | Separable | Dense) -> list[DataNode]:
    """The parts of a caller's mask whose size must fit the images."""
    if isinstance(weights, Weights):
        return []
    return [weights.values] if isinstance(weights, Dense) else [weights.rows, weights.columns]


def _to_mask(profiles: Profiles, cut: bool, device: str) -> graph.Mask:
    """The mask on the device of the images."""
    base, rows, columns, dense = (
        None if part is None else graph.to_device(part, device) for part in profiles[1:]
    )
    return graph.Mask(base, rows, columns, dense, cut)


def _convert_on_gpu(mask: Dense, layout: str, check: DataNode) -> Profiles:
    """:func:`.profiles.given_profiles` for a mask on the GPU, by DALI's operators; `check` is float32 [1]."""
    weights = graph.wait_for_check(graph.given_mask(mask), check)
    return Profiles(weights.lam, dense=graph.shape_mask(weights, layout, "gpu").dense)


def blend(
    images: DataNode,
    labels: DataNode,
    partner: DataNode,
    weights: Weights | Separable | Dense,
    arguments: BlendArguments,
) -> tuple[DataNode, DataNode, MixParams | None]:
    """Blend a batch; see :class:`dali_msda.backends.Backend`."""
    layout = arguments.layout
    shape = weights.shape if isinstance(weights, Weights) else shape_of(images)
    letters = _layout_of(images, layout)
    indices, fault = find_faults(shape, partner, layout, letters, _sized_parts(weights))
    # What follows waits for the check, because images, labels and a caller's mask are fetched by its result.
    checked = pass_unless_fault(indices, fault)
    if isinstance(weights, Weights):
        profiles, cut = weights.profiles, weights.cut
    elif isinstance(weights, Dense) and weights.values.device == "gpu":
        profiles, cut = _convert_on_gpu(weights, layout, check_fault(fault)), False
    else:
        profiles, cut = given_profiles(weights, layout, checked), False
    mask, indices = _to_mask(profiles, cut, images.device), fn.reshape(checked, shape=[])
    mixed = graph.mix_pixels(images, indices, mask)
    if Pipeline.current().max_batch_size == 1:
        mixed = images  # nothing to mix with; float32 weights would change the last bit
    if normalization := Normalization.from_arguments(arguments):
        mixed = normalize(mixed, normalization)
    lam = profiles.lam
    mix_labels = mix_targets if lam.device == "cpu" else graph.mix_targets
    targets = graph.to_device(mix_labels(labels, indices, lam, arguments), images.device)
    if not arguments.return_params:
        return mixed, targets, None
    full = graph.full_mask(mask, images.shape(dtype=types.INT64), layout)
    return mixed, targets, MixParams(fn.reshape(lam, shape=[]), partner, full)
