"""The backend for images on the GPU: compiled masks and targets on the CPU, images mixed by DALI's operators.

An operator of DALI costs the processor about as much for a number per sample as for a row of pixels, and a
mask from its formula takes dozens of them; here it takes one. The images see the operators of :mod:`..graph`
alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode, Pipeline

from ...arguments import BlendArguments, MixArguments, MixParams
from ...checks import label_in_range, unless_fault
from ...draws import Draws
from ...masks import Dense, Separable
from ...normalization import asked_for, normalized
from .. import graph
from .entry_points import mix_targets
from .profiles import Profiles, find_faults, mask_profiles, shape_of


class Weights(NamedTuple):
    """A mask, as :func:`blend` takes it."""

    profiles: Profiles
    cut: bool
    """Whether it is 1, and 0 inside a box."""
    shape: DataNode
    """The images' own: what :func:`.profiles.shape_of` returns."""

    def shaped(self, device: str) -> graph.Mask:
        """The mask as it is applied."""
        _, *parts = self.profiles
        base, rows, columns, dense = (
            None if part is None else graph.to_device(part, device) for part in parts
        )
        return graph.Mask(base, rows, columns, dense, self.cut)


def make_mask(images: DataNode, draws: Draws, arguments: MixArguments) -> Weights:
    """The masks of a batch from what was drawn; see :class:`dali_msda.backends.Backend`."""
    cut, shape = arguments.entry.cuts, shape_of(images)
    return Weights(mask_profiles(shape, draws, arguments, cut=cut), cut, shape)


def given_mask(mask: Separable | Dense) -> graph.Weights:
    """A caller's mask; see :class:`dali_msda.backends.Backend`."""
    return graph.given_mask(mask)


def blend(
    images: DataNode,
    labels: DataNode,
    partner: DataNode,
    weights: Weights | graph.Weights,
    arguments: BlendArguments,
) -> tuple[DataNode, DataNode, MixParams | None]:
    """Blend a batch; see :class:`dali_msda.backends.Backend`."""
    if isinstance(weights, graph.Weights):
        return graph.blend(images, labels, partner, weights, arguments)
    layout = arguments.layout
    # On the GPU the layout is a property that lies there too, out of reach: it counts as right.
    known = np.frombuffer(layout.encode(), np.uint8)
    letters = (
        fn.get_property(images, key="layout")
        if images.device == "cpu"
        else types.Constant(known, device="cpu")
    )
    indices, fault = find_faults(weights.shape, partner, letters, layout == "CHW")
    # What follows waits for the check: the images and the labels are fetched by what comes of it.
    checked = fn.reshape(unless_fault(indices, fault), shape=[])
    mask = weights.shaped(images.device)
    mixed = graph.mix_pixels(images, checked, mask)
    if Pipeline.current().max_batch_size == 1:
        mixed = images  # nothing to mix with; float32 weights would change the last bit
    if normalization := asked_for(arguments):
        mixed = normalized(mixed, normalization)
    lam = weights.profiles.lam
    targets = mix_targets(
        arguments.num_classes,
        arguments.label_smoothing,
        labels,
        fn.permute_batch(labels, indices=checked),
        lam,
        label_in_range(labels, arguments.num_classes),
    )
    targets = graph.to_device(targets, images.device)
    if not arguments.return_params:
        return mixed, targets, None
    full = graph.full_mask(mask, images.shape(dtype=types.INT64), layout)
    return mixed, targets, MixParams(fn.reshape(lam, shape=[]), partner, full)
