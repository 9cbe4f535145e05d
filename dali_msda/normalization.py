"""Normalisation after mixing: its settings, and the operator for where the kernel cannot do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .arguments import ImageArguments


class Normalization(NamedTuple):
    """Mean and standard deviation of every channel, and the layout of the output."""

    mean: Sequence[float]
    std: Sequence[float]
    output_layout: str

    @classmethod
    def from_arguments(cls, arguments: ImageArguments) -> Normalization | None:
        """The normalisation that the arguments ask for, None without one."""
        if arguments.mean is None or arguments.std is None:
            return None
        return cls(arguments.mean, arguments.std, arguments.output_layout or arguments.layout)


def normalize(images: DataNode, normalization: Normalization) -> DataNode:
    """(images - mean) / std as float32, by DALI's operator, on any device."""
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout=normalization.output_layout,
        mean=list(normalization.mean),
        std=list(normalization.std),
    )
