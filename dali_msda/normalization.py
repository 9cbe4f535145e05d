"""Normalisation after mixing: with DALI's operator, and what the kernel needs to do the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .arguments import ImageArguments
from .checks import LONGEST_SIDE, cast_mirror
from .factors import fold_factors


def normalize_if_asked(images: DataNode, arguments: ImageArguments) -> DataNode:
    """The images; normalised by DALI's operator if the arguments ask for it, on any device."""
    if not arguments.normalizes:
        return images
    return run_operator(fn, images, arguments, _checked_mean(images, arguments), _mirror(arguments))


def run_operator(operators: Any, images: Any, arguments: ImageArguments, mean: Any, mirror: Any) -> Any:
    """Normalise with the operator of a pipeline's graph (``fn``) or of dynamic mode (``ndd``)."""
    output_layout = arguments.result_layout
    if arguments.layout == "DHWC":  # which DALI's operator does not take
        images = operators.reshape(images, layout="FHWC")
    normalized = operators.crop_mirror_normalize(
        images,
        dtype=arguments.output_dtype,
        output_layout=output_layout.replace("D", "F"),
        mean=mean,
        std=arguments.std,
        scale=arguments.scale,
        shift=arguments.shift,
        mirror=mirror,
        pad_output=arguments.pad_output,
    )
    return operators.reshape(normalized, layout=output_layout) if arguments.layout == "DHWC" else normalized


def mirror_if_asked(mask: DataNode, arguments: ImageArguments) -> DataNode:
    """The mask of mixed images, mirrored as they are."""
    mirror = _mirror(arguments)
    return mask if isinstance(mirror, int) and not mirror else fn.flip(mask, horizontal=mirror)


def _mirror(arguments: ImageArguments) -> int | DataNode:
    mirror = arguments.mirror
    return cast_mirror(mirror) if isinstance(mirror, DataNode) else int(mirror)


def fits_kernel(arguments: ImageArguments) -> bool:
    """Whether the kernel can do all of the normalisation that is asked for, except for the output's type."""
    mirrors = isinstance(arguments.mirror, DataNode) or arguments.mirror
    return not mirrors and not arguments.pad_output


def linear_factors(images: DataNode, arguments: ImageArguments) -> DataNode:
    """a and b of :func:`.factors.fold_factors`: a for each of the n channels, then b, float32 [2n]."""
    assert arguments.mean is not None
    assert arguments.std is not None
    factors = fold_factors(arguments.mean, arguments.std, arguments.scale, arguments.shift)
    if channel_count(arguments) is not None:
        return types.Constant(factors.reshape(-1), device="cpu")
    many = types.Constant(np.repeat(factors, LONGEST_SIDE, axis=1), device="cpu")
    return fn.reshape(fn.slice(many, start=[0], shape=_channels(images, arguments), axes=[1]), shape=[-1])


def channel_count(arguments: ImageArguments) -> int | None:
    """How many channels the normalisation is for; None if it is for any number."""
    lengths = [len(values) for values in (arguments.mean, arguments.std) if isinstance(values, tuple)]
    return lengths[0] if lengths else None


def _channels(images: DataNode, arguments: ImageArguments) -> DataNode:
    """How many channels the images have, int32 [1], CPU."""
    axis = arguments.layout.index("C")
    return fn.slice(images.shape(dtype=types.INT32), start=[axis], shape=[1], axes=[0])


def _checked_mean(images: DataNode, arguments: ImageArguments) -> float | DataNode:
    """The mean, float32 [n]; stop the pipeline where the images do not have n channels.

    On the GPU DALI's operator does not notice that there are more or fewer numbers than channels.
    """
    n = channel_count(arguments)
    if n is None:
        assert isinstance(arguments.mean, float)
        return arguments.mean
    # The slice is all of the mean, or begins or ends outside.
    values = np.ascontiguousarray(np.broadcast_to(np.asarray(arguments.mean, np.float32), n))
    start = _channels(images, arguments) - n
    mean = types.Constant(values, device="cpu")
    return fn.slice(mean, start=start, shape=[n], axes=[0])  # mean must have one number per channel
