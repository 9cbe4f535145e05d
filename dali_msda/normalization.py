"""Normalisation after mixing: its settings, and the operator for where the kernel cannot do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .arguments import ImageArguments


class Normalization(NamedTuple):
    """Mean and standard deviation of every channel, the layout of the images and that of the output."""

    mean: Sequence[float]
    std: Sequence[float]
    layout: str
    output_layout: str

    @classmethod
    def from_arguments(cls, arguments: ImageArguments) -> Normalization | None:
        """The normalisation that the arguments ask for, None without one."""
        if arguments.mean is None or arguments.std is None:
            return None
        layout = arguments.layout
        return cls(arguments.mean, arguments.std, layout, arguments.output_layout or layout)


def normalize(images: DataNode, normalization: Normalization) -> DataNode:
    """(images - mean) / std as float32, by DALI's operator, on any device."""
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout=normalization.output_layout,
        mean=_for_channels(images, normalization),
        std=list(normalization.std),
    )


def normalize_if_asked(images: DataNode, arguments: ImageArguments) -> DataNode:
    """The images, normalised if the arguments ask for it."""
    normalization = Normalization.from_arguments(arguments)
    return images if normalization is None else normalize(images, normalization)


def _for_channels(images: DataNode, normalization: Normalization) -> DataNode:
    """The mean, float32 [n]; stop the pipeline where the images do not have n channels.

    On the GPU DALI's operator leaves channels without a number as they are, and writes behind its arrays
    where there are more numbers than channels.
    """
    n, axis = len(normalization.mean), normalization.layout.index("C")
    channels = fn.slice(images.shape(dtype=types.INT32), start=[axis], shape=[1], axes=[0])
    # The slice is all of the mean, or begins or ends outside.
    mean = types.Constant(np.array(normalization.mean, np.float32), device="cpu")
    return fn.slice(mean, start=channels - n, shape=[n], axes=[0])  # mean must have one number per channel
