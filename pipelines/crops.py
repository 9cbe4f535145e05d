"""Crops of training images: DALI's random crop, resized to a square; or a crop of the padded image."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode, do_not_convert

from dali_msda.backends import compiled_module

from .records import Augmentation

# Sides of ImageNet's largest images: buffers of that size are allocated once, at the start. Otherwise they
# would grow, and stall the GPU, in the middle of an epoch.
_PREALLOCATE_WIDTH, _PREALLOCATE_HEIGHT = 5980, 6430
_DEVICE_PADDING, _HOST_PADDING = 211_025_920, 140_544_512


def decoder_arguments(device: str, hw_decoder_load: float) -> dict[str, Any]:
    """Arguments of DALI's image decoders for a pipeline on "cpu" or "gpu"."""
    arguments: dict[str, Any] = {"output_type": types.RGB}
    if device == "cpu":
        return arguments | {"device": "cpu"}
    return arguments | {
        "device": "mixed",
        "hw_decoder_load": hw_decoder_load,
        "preallocate_width_hint": _PREALLOCATE_WIDTH,
        "preallocate_height_hint": _PREALLOCATE_HEIGHT,
        "device_memory_padding": _DEVICE_PADDING,
        "host_memory_padding": _HOST_PADDING,
    }


@do_not_convert  # does not depend on values of samples
def decode_and_crop(
    encoded: DataNode, augmentation: Augmentation, size: int, device: str, hw_decoder_load: float
) -> DataNode:
    """Decode images, mirror some of them, and cut a square out of each.

    Parameters
    ----------
    encoded : DataNode
        Files whose headers have been checked.
    augmentation : Augmentation
    size : int
        Side of the result in pixels.
    device : {"cpu", "gpu"}
    hw_decoder_load : float
        See :class:`.records.Execution`.

    Returns
    -------
    DataNode
        uint8 [size, size, 3], layout HWC, on `device`.
    """
    decoder = decoder_arguments(device, hw_decoder_load)
    padding = augmentation.crop_padding
    if padding is None:
        images = fn.decoders.image_random_crop(
            encoded,
            **decoder,
            random_area=list(augmentation.crop_area),
            random_aspect_ratio=list(augmentation.crop_aspect_ratio),
            num_attempts=10,
        )
    else:
        images = fn.decoders.image(encoded, **decoder)
    mirrored = fn.random.coin_flip(probability=augmentation.mirror_probability, shape=[1], dtype=types.INT32)
    if padding is None:
        return _resize_to_square(images, mirrored, size, device)
    return _padded_crop(images, mirrored, size, padding)


def _resize_to_square(images: DataNode, mirrored: DataNode, size: int, device: str) -> DataNode:
    """Resize, bilinear and antialiased; mirror where `mirrored` (int32 [1]) is 1."""
    compiled = compiled_module("resize") if device == "cpu" else None
    if compiled is not None:
        resized: DataNode = compiled.resize_mirrored(images, mirrored, size)
        return resized
    return _resize(images, mirrored, size, mode="stretch")


def _padded_crop(images: DataNode, mirrored: DataNode, size: int, padding: int) -> DataNode:
    """Resize the shorter side to `size`, mirror, add `padding` black pixels on every side, cut a square.

    All places of the square, in whole pixels, are equally likely.
    """
    resized = _resize(images, mirrored, size, mode="not_smaller")
    sides = fn.slice(resized.shape(dtype=types.INT32), start=[0], shape=[2], axes=[0])
    places = sides + (2 * padding + 1 - size)
    drawn = fn.random.uniform(range=[0.0, 1.0], shape=[2], dtype=types.FLOAT64)
    start = fn.cast(math.floor(drawn * places), dtype=types.INT32) - padding
    return fn.slice(
        resized,
        start=start,
        shape=[size, size],
        axis_names="HW",
        out_of_bounds_policy="pad",
        fill_values=0,
    )


def _resize(images: DataNode, mirrored: DataNode, size: int, *, mode: str) -> DataNode:
    # A region of interest with swapped ends mirrors the image at no cost.
    left = mirrored * types.Constant(np.array([0.0, 1.0], np.float32), device="cpu")
    right = types.Constant(np.array([1.0, 1.0], np.float32), device="cpu") - left
    return fn.resize(
        images,
        size=[size, size],
        mode=mode,
        roi_start=left,
        roi_end=right,
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
