"""Crops of training images: DALI's random crop, resized to a square; or a crop of the padded image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode, do_not_convert

from dali_msda.backends import compiled_module

from .headers import check_and_measure, check_headers
from .records import Augmentation, Execution
from .scaled_decoding import central_window, crop_window, decode_scaled

# Sides of ImageNet's largest images: buffers of that size are allocated once, at the start. Otherwise they
# would grow, and stall the GPU, in the middle of an epoch.
_PREALLOCATE_WIDTH, _PREALLOCATE_HEIGHT = 5980, 6430
_DEVICE_PADDING, _HOST_PADDING = 211_025_920, 140_544_512


# Arguments of DALI's random crops besides area and aspect ratio.
_ATTEMPTS = 10


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


def decode_and_crop(
    encoded: DataNode,
    augmentation: Augmentation,
    size: int,
    device: str,
    execution: Execution,
    *,
    scaled: bool = False,
) -> DataNode:
    """Check headers, decode images, mirror some of them, and cut a square out of each.

    Parameters
    ----------
    encoded : DataNode
        Whole files.
    augmentation : Augmentation
    size : int
        Side of the result in pixels.
    device : {"cpu", "gpu"}
    execution : Execution
    scaled : bool
        Whether to decode large JPEGs at a smaller scale (:mod:`.scaled_decoding`). The pipeline then needs
        ``enable_conditionals=True``. Draws do not change.

    Returns
    -------
    DataNode
        uint8 [size, size, 3], layout HWC, on `device`.
    """
    decoder = decoder_arguments(device, execution.hw_decoder_load)
    if scaled and augmentation.crop_padding is None:
        return _choose(_scaled_random_crop(encoded, augmentation, size, device, decoder))
    return _random_crop(encoded, augmentation, size, device, decoder)


def decode_and_resize(
    encoded: DataNode, shorter: int, size: int, device: str, execution: Execution, *, scaled: bool = False
) -> DataNode:
    """Check headers, decode images, and resize the shorter side.

    Parameters
    ----------
    encoded, device, execution, scaled
        As in :func:`decode_and_crop`.
    shorter : int
        Length of the shorter side in pixels.
    size : int
        Side of the central square that is used.

    Returns
    -------
    DataNode
        uint8 HxWx3, layout HWC, on `device`: the resized image, or its central square.
    """
    decoder = decoder_arguments(device, execution.hw_decoder_load)
    if scaled:
        return _choose(_scaled_resize(encoded, shorter, size, device, decoder))
    return _resize_shorter(encoded, shorter, decoder)


# Nothing below depends on values of samples, except the choice itself.
class _Ways(NamedTuple):
    """Two ways to decode, and for which samples the first may be tried."""

    smaller: DataNode
    """bool scalar, CPU."""
    scaled: Callable[[], tuple[DataNode, DataNode]]
    """Makes the images, and whether each was decoded: bool scalar, CPU."""
    usual: Callable[[], DataNode]
    nothing: tuple[DataNode, DataNode]
    """In place of the result of `scaled`."""


def _choose(ways: _Ways) -> DataNode:
    if ways.smaller:
        images, taken = ways.scaled()
    else:
        images, taken = ways.nothing
    if taken:  # noqa: SIM108 (DALI's conditionals are statements)
        chosen = images
    else:
        chosen = ways.usual()
    return chosen


def _nothing(device: str) -> tuple[DataNode, DataNode]:
    pixel = fn.reshape(types.Constant(np.zeros((1, 1, 3), np.uint8), device="cpu"), layout="HWC")
    return _on(device, pixel), fn.constant(idata=[0], dtype=types.BOOL, shape=[])


def _on(device: str, images: DataNode) -> DataNode:
    return images.gpu() if device == "gpu" else images


@do_not_convert
def _random_crop(
    encoded: DataNode, augmentation: Augmentation, size: int, device: str, decoder: dict[str, Any]
) -> DataNode:
    encoded = check_headers(encoded)
    padding = augmentation.crop_padding
    if padding is None:
        images = fn.decoders.image_random_crop(encoded, **decoder, **_crop_arguments(augmentation))
    else:
        images = fn.decoders.image(encoded, **decoder)
    mirrored = _draw_mirrored(augmentation)
    if padding is None:
        return _resize_to_square(images, mirrored, size, device)
    return _padded_crop(images, mirrored, size, padding)


@do_not_convert
def _scaled_random_crop(
    encoded: DataNode, augmentation: Augmentation, size: int, device: str, decoder: dict[str, Any]
) -> _Ways:
    encoded, shape = check_and_measure(encoded)
    # The same seed, and so the same windows, as those of the decoder with a random crop (tested).
    start, extent = fn.random_crop_generator(shape, **_crop_arguments(augmentation))
    mirrored = _draw_mirrored(augmentation)
    window, smaller = crop_window(start, extent, size)

    @do_not_convert
    def scaled() -> tuple[DataNode, DataNode]:
        images, taken = decode_scaled(encoded, shape, window, mirrored, size=size, clip=True)
        return _on(device, images), taken

    @do_not_convert
    def usual() -> DataNode:
        cropped = fn.decoders.image_slice(encoded, start, extent, axis_names="HW", **decoder)
        return _resize_to_square(cropped, mirrored, size, device)

    return _Ways(smaller, scaled, usual, _nothing(device))


@do_not_convert
def _scaled_resize(encoded: DataNode, shorter: int, size: int, device: str, decoder: dict[str, Any]) -> _Ways:
    encoded, shape = check_and_measure(encoded)
    window, smaller = central_window(shape, shorter, size)
    never = types.Constant(np.zeros(1, np.int32), device="cpu")

    @do_not_convert
    def scaled() -> tuple[DataNode, DataNode]:
        images, taken = decode_scaled(encoded, shape, window, never, size=size, clip=False)
        return _on(device, images), taken

    @do_not_convert
    def usual() -> DataNode:
        return _decode_and_resize_shorter(encoded, shorter, decoder)

    return _Ways(smaller, scaled, usual, _nothing(device))


@do_not_convert
def _resize_shorter(encoded: DataNode, shorter: int, decoder: dict[str, Any]) -> DataNode:
    return _decode_and_resize_shorter(check_headers(encoded), shorter, decoder)


def _decode_and_resize_shorter(encoded: DataNode, shorter: int, decoder: dict[str, Any]) -> DataNode:
    return fn.resize(
        fn.decoders.image(encoded, **decoder),
        size=[shorter, shorter],
        mode="not_smaller",
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def _crop_arguments(augmentation: Augmentation) -> dict[str, Any]:
    return {
        "random_area": list(augmentation.crop_area),
        "random_aspect_ratio": list(augmentation.crop_aspect_ratio),
        "num_attempts": _ATTEMPTS,
    }


def _draw_mirrored(augmentation: Augmentation) -> DataNode:
    probability = augmentation.mirror_probability
    return fn.random.coin_flip(probability=probability, shape=[1], dtype=types.INT32)


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
