"""The CPU backend: compiled operators make the masks and mix images and labels."""

from __future__ import annotations

from typing import NamedTuple

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from ...arguments import BlendArguments, MixArguments, MixParams
from ...checks import check_fault
from ...draws import Draws
from ...dtypes import static_dtype
from ...masks import Dense, Separable
from ...normalization import Normalization, normalize
from .entry_points import full_mask, join_masks, mask_weights, mix_images, mix_targets


class Weights(NamedTuple):
    """A mask in the form :func:`blend` takes: float32 nodes on the CPU."""

    lam: DataNode | None
    """The mean of the mask, the label weight, [1]; None for a dense mask, averaged when it is applied."""
    node: DataNode
    """Base, height, scaled rows and columns, [2 + H + W]; or all weights, [H, W], not yet clipped."""

    @property
    def dense(self) -> bool:
        """Whether there is a weight for every pixel."""
        return self.lam is None


def _to_kernel_dtype(images: DataNode) -> tuple[types.DALIDataType, DataNode]:
    """A type that the kernels work in, and the images cast to it.

    Numba has no float16 on the CPU, and a type that the graph does not show could be anything: both are mixed
    as float32.
    """
    dtype = static_dtype(images)
    if dtype in (types.UINT8, types.FLOAT):
        return dtype, images
    return types.FLOAT, fn.cast(images, dtype=types.FLOAT)


def make_mask(images: DataNode, draws: Draws, arguments: MixArguments) -> Weights:
    """Make the masks of a batch from its draws; see :class:`dali_msda.backends.Backend`."""
    weights, lam = mask_weights(*_to_kernel_dtype(images), draws, arguments)
    return Weights(None if arguments.entry.kind == "dense" else lam, weights)


def given_mask(mask: Separable | Dense) -> Weights:
    """Convert a caller's mask; see :class:`dali_msda.backends.Backend`."""
    if isinstance(mask, Dense):
        return Weights(None, mask.values)
    weights, lam = join_masks(mask)
    return Weights(lam, weights)


def blend(
    images: DataNode, labels: DataNode, partner: DataNode, weights: Weights, arguments: BlendArguments
) -> tuple[DataNode, DataNode, MixParams | None]:
    """Blend a batch on the CPU in compiled code; see :class:`dali_msda.backends.Backend`."""
    layout = arguments.layout
    element, own = _to_kernel_dtype(images)
    normalization = Normalization.from_arguments(arguments)
    fused = normalization if element == types.UINT8 and layout == "HWC" else None
    mixed, fault, lam = mix_images(
        element,
        own,
        weights.node,
        partner,
        fn.get_property(images, key="layout"),
        layout == "CHW",
        fused,
        dense=weights.dense,
    )
    if weights.lam is not None:
        lam = weights.lam
    # The plugin's operator drops the layout.
    mixed = fn.reshape(mixed, layout=layout if fused is None else fused.output_layout)
    if own is not images:
        mixed = fn.cast_like(mixed, images)
    if normalization is not None and fused is None:
        mixed = normalize(mixed, normalization)
    targets = mix_targets(labels, partner, lam, arguments, check_fault(fault))
    if not arguments.return_params:
        return mixed, targets, None
    mask = full_mask(element, own, weights.node, layout, dense=weights.dense)
    return (
        mixed,
        targets,
        MixParams(fn.reshape(lam, shape=[]), partner, fn.reshape(mask, layout=layout)),
    )
