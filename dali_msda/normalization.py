"""Normalisation after mixing: what it is, and the operator that does it where the kernel cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .arguments import BlendArguments


class Normalization(NamedTuple):
    """Mean and standard deviation of every channel, and the layout to leave in."""

    mean: Sequence[float]
    std: Sequence[float]
    output_layout: str


def asked_for(arguments: BlendArguments) -> Normalization | None:
    """The normalisation that the caller wants, if any."""
    if arguments.mean is None or arguments.std is None:
        return None
    return Normalization(arguments.mean, arguments.std, arguments.output_layout or arguments.layout)


def normalized(images: DataNode, normalization: Normalization) -> DataNode:
    """(images - mean) / std as float32, by DALI's operator, on any device."""
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout=normalization.output_layout,
        mean=list(normalization.mean),
        std=list(normalization.std),
    )
