"""ImageNet-style pipelines: read, decode, crop, resize, mirror, mix, normalise.

The same definition runs on the CPU and on the GPU. On the GPU decoding is split between the CPU and the
GPU's decoders ("mixed") and everything after it stays there. On the CPU the training images are resized and
mixed by compiled operators.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import DataNode, Pipeline, do_not_convert

import dali_msda as msda
from dali_msda.arguments import check_choice, check_fraction, check_integer, check_method_argument
from dali_msda.backends import compiled_module
from dali_msda.methods import takers

from .augment import augmented, check_augmentation
from .constants import MEAN, STD
from .folders import list_images, split_folder
from .ramps import number_or_node
from .sources import Order, Source

msda.require_dali()

DEVICES = ("cpu", "gpu")
OUTPUT_LAYOUTS = ("CHW", "HWC")

# Sides of the largest images of ImageNet: buffers of that size are taken once, at the start, instead of
# growing (and stalling the GPU) in the middle of an epoch.
_PREALLOCATE_WIDTH, _PREALLOCATE_HEIGHT = 5980, 6430
_DEVICE_PADDING, _HOST_PADDING = 211_025_920, 140_544_512


def train_pipeline(
    data_dir: str | os.PathLike[str] | Source,
    *,
    mix: str = "hmix",
    num_classes: int,
    image_size: int = 224,
    batch_size: int,
    num_threads: int,
    device: str = "cpu",
    shard_id: int = 0,
    num_shards: int = 1,
    seed: int | None = None,
    mix_alpha: float | Callable[[int], float] | None = None,
    mix_ratio: float | None = None,
    mix_probability: float | Callable[[int], float] = 1.0,
    mix_convention: str = "reference",
    label_smoothing: float = 0.0,
    auto_augment: str = "none",
    rand_augment: tuple[int, int] = (2, 9),
    color_jitter: float = 0.0,
    random_area: tuple[float, float] = (0.08, 1.0),
    random_aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    mirror_probability: float = 0.5,
    output_layout: str = "CHW",
    output_dtype: types.DALIDataType = types.FLOAT,
    device_id: int = 0,
    hw_decoder_load: float = 0.65,
    prefetch_queue_depth: int = 2,
    enable_checkpointing: bool = False,
    checkpoint: bytes | None = None,
    report_stand_ins: bool = False,
    return_masks: bool = False,
) -> Pipeline:
    """The training pipeline.

    Parameters
    ----------
    data_dir : path or Source
        A folder of class folders, or a dataset with such a folder in ``train/``; or any
        :class:`.sources.Source`, such as what :func:`.folders.list_images` found there.
    mix : str
        Mixing method, one of ``dali_msda.METHODS``, see :func:`dali_msda.mix`.
    num_classes : int
        Length of the targets; at least the number of classes of the images.
    image_size : int
        Side of the square output in pixels.
    batch_size, num_threads : int
        Images per batch; CPU threads of DALI.
    device : {"cpu", "gpu"}
        Where the images are decoded, mixed and left.
    shard_id, num_shards : int
        The part of the data this pipeline reads. The whole set is shuffled anew every epoch before it is
        cut into shards, so `seed` has to be the same in all of them.
    seed : int, optional
        Makes the order and all draws repeatable; shards draw differently.
    mix_alpha, mix_ratio : float, optional
        ``alpha`` and ``ratio`` of the method, None for its defaults (`mix_ratio` is only for "hmix").
    mix_probability, mix_convention, label_smoothing
        As ``probability``, ``convention``, ``label_smoothing`` of :func:`dali_msda.mix`.
        `mix_alpha` and `mix_probability` may be functions: their value in the batch of that number, counted
        from 0 through all epochs (:class:`.ramps.Ramp`), exact whatever the pipeline has made ahead.
    auto_augment : {"none", "rand", "trivial"}
        DALI's RandAugment or TrivialAugment (wide), before mixing.
    rand_augment : pair of int
        Number of operations and magnitude (0 to 30) for ``auto_augment="rand"``.
    color_jitter : float
        Brightness, contrast and saturation are scaled by factors from 1 - `color_jitter` to 1 + it.
    random_area, random_aspect_ratio : pair of float
        Share of the image's area and width / height of the random crop.
    mirror_probability : float
        Probability of a horizontal mirror.
    output_layout : {"CHW", "HWC"}
        Layout of the images. HWC suits models in ``channels_last`` format (see :class:`.loader.DALILoader`).
    output_dtype : DALIDataType
        ``types.FLOAT`` or ``types.FLOAT16``.
    device_id : int
        GPU number for ``device="gpu"``.
    hw_decoder_load : float
        Share of the JPEGs for the GPU's hardware decoder, where it has one.
    prefetch_queue_depth : int
        Batches made ahead.
    enable_checkpointing : bool
        Let ``pipeline.checkpoint()`` and :meth:`.loader.DALILoader.state` work.
    checkpoint : bytes, optional
        Go on from what one of those returned for a pipeline of the same arguments.
    report_stand_ins : bool
        A third output ``kept``: whether the sample is one of its own, and no stand-in for one that cannot be
        decoded (:meth:`.sources.Source.without`).
    return_masks : bool
        A last output ``mask``, the own image's weight, float32 HxWx1 on `device`. The draws stay the same.

    Returns
    -------
    nvidia.dali.Pipeline
        Outputs ``images`` (normalised, `output_dtype`, `output_layout`) and ``targets`` (float32
        [num_classes]), on `device`, and ``kept`` (int32 [1], CPU) and ``mask`` if asked for.

    Raises
    ------
    ValueError, TypeError
        An argument cannot be taken or `data_dir` is neither a source nor a folder of class folders with
        images.
    """
    _check_mix(
        mix,
        None if callable(mix_alpha) else mix_alpha,
        mix_ratio,
        1.0 if callable(mix_probability) else mix_probability,
    )
    check_augmentation(auto_augment, rand_augment, color_jitter)
    check_integer("num_classes", num_classes, 1)
    if seed is not None:
        check_integer("seed", seed, 0)
    _check_range("random_area", random_area, 1.0)
    _check_range("random_aspect_ratio", random_aspect_ratio, math.inf)
    check_fraction("mirror_probability", mirror_probability, node_allowed=False)
    source = _check_common(
        data_dir,
        "train",
        output_dtype,
        device=device,
        output_layout=output_layout,
        shard_id=shard_id,
        report_stand_ins=report_stand_ins,
        num_shards=num_shards,
        image_size=image_size,
        batch_size=batch_size,
        num_threads=num_threads,
    )
    if len(source.classes) > num_classes:
        raise ValueError(
            f"num_classes must be at least the number of classes of the images; got {num_classes},"
            f" {source} holds {len(source.classes)}"
        )
    order = Order(
        size=len(source),
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
        shard_id=shard_id,
        num_shards=num_shards,
    )
    read = do_not_convert(source.read)  # nothing in it depends on a sample's value
    fused = output_dtype == types.FLOAT  # the library normalises to float32

    # Each sample takes its own branch of auto_aug's choices; without them conditionals cost a little.
    @pipeline_def(enable_conditionals=auto_augment != "none")
    def pipeline() -> tuple[DataNode, ...]:
        encoded, labels, *kept = read(order, report_stand_ins=report_stand_ins)
        images = fn.decoders.image_random_crop(
            encoded,
            **decoder_arguments(device, hw_decoder_load),
            random_area=list(random_area),
            random_aspect_ratio=list(random_aspect_ratio),
            num_attempts=10,
        )
        mirrored = fn.random.coin_flip(probability=mirror_probability, shape=[1], dtype=types.INT32)
        images = _resized(images, mirrored, image_size, device)
        images = augmented(images, auto_augment, rand_augment, color_jitter)
        images, targets, *params = msda.mix(
            images,
            labels,
            method=mix,
            num_classes=num_classes,
            alpha=number_or_node(mix_alpha, "mix_alpha", lambda alpha: alpha > 0, batch_size),
            ratio=mix_ratio,
            probability=number_or_node(
                mix_probability, "mix_probability", lambda probability: 0 <= probability <= 1, batch_size
            ),
            convention=mix_convention,
            label_smoothing=label_smoothing,
            mean=MEAN if fused else None,
            std=STD if fused else None,
            output_layout=output_layout if fused else None,
            return_params=return_masks,
        )
        masks = [param.mask for param in params]
        return images if fused else normalized(images, output_layout, output_dtype), targets, *kept, *masks

    built = pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id if device == "gpu" else None,
        seed=None if seed is None else pipeline_seed(seed, shard_id, num_shards),
        prefetch_queue_depth=prefetch_queue_depth,
        enable_checkpointing=enable_checkpointing or checkpoint is not None,
        checkpoint=checkpoint,
    )
    assert isinstance(built, Pipeline)
    return built


def val_pipeline(
    data_dir: str | os.PathLike[str] | Source,
    *,
    image_size: int = 224,
    resize_size: int | None = None,
    batch_size: int,
    num_threads: int,
    device: str = "cpu",
    shard_id: int = 0,
    num_shards: int = 1,
    output_layout: str = "CHW",
    output_dtype: types.DALIDataType = types.FLOAT,
    device_id: int = 0,
    hw_decoder_load: float = 0.65,
    prefetch_queue_depth: int = 2,
    report_stand_ins: bool = False,
) -> Pipeline:
    """The validation pipeline: resize the shorter side (antialiased), centre crop, normalise.

    Parameters
    ----------
    data_dir : path or Source
        A folder of class folders, or a dataset with such a folder in ``val/``; or any source.
    image_size : int
        Side of the crop in pixels.
    resize_size : int, optional
        Length of the shorter side before the crop; 256/224 of `image_size` by default.
    batch_size, num_threads, device, shard_id, num_shards, output_layout, output_dtype, device_id, \
hw_decoder_load, prefetch_queue_depth, report_stand_ins
        See :func:`train_pipeline`.

    Returns
    -------
    nvidia.dali.Pipeline
        Outputs ``images`` (normalised) and ``labels`` (int64 scalars), on `device`, in the order of
        the source: class folders are sorted by file name. The last batch is padded with its last image;
        :class:`.loader.DALILoader` cuts that off.

    Raises
    ------
    ValueError, TypeError
        As :func:`train_pipeline`.
    """
    source = _check_common(
        data_dir,
        "val",
        output_dtype,
        device=device,
        output_layout=output_layout,
        shard_id=shard_id,
        report_stand_ins=report_stand_ins,
        num_shards=num_shards,
        image_size=image_size,
        batch_size=batch_size,
        num_threads=num_threads,
    )
    shorter = round(image_size * 256 / 224) if resize_size is None else resize_size
    check_integer("resize_size", shorter, 1)
    if shorter < image_size:
        raise ValueError(f"resize_size must be at least image_size ({image_size}); got {shorter}")
    order = Order(
        size=len(source), batch_size=batch_size, shuffle=False, shard_id=shard_id, num_shards=num_shards
    )

    @pipeline_def
    def pipeline() -> tuple[DataNode, ...]:
        encoded, labels, *kept = source.read(order, report_stand_ins=report_stand_ins)
        images = fn.decoders.image(encoded, **decoder_arguments(device, hw_decoder_load))
        images = fn.resize(
            images,
            size=[shorter, shorter],
            mode="not_smaller",
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        labels = fn.reshape(fn.cast(labels, dtype=types.INT64), shape=[])
        images = normalized(images, output_layout, output_dtype, crop=image_size)
        return images, labels.gpu() if device == "gpu" else labels, *kept

    built = pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id if device == "gpu" else None,
        prefetch_queue_depth=prefetch_queue_depth,
    )
    assert isinstance(built, Pipeline)
    return built


def pipeline_seed(seed: int, shard_id: int, num_shards: int) -> int:
    """The seed of one shard's pipeline: the first stream is that of the order."""
    stream = np.random.SeedSequence(seed).spawn(1 + num_shards)[1 + shard_id]
    return int(stream.generate_state(1)[0] >> 1)


def decoder_arguments(device: str, hw_decoder_load: float) -> dict[str, Any]:
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


@do_not_convert  # nothing in it depends on a sample's value
def _resized(images: DataNode, mirrored: DataNode, size: int, device: str) -> DataNode:
    """Antialiased bilinear resize to a square, mirrored where `mirrored` (int32 [1]) is 1."""
    compiled = compiled_module("resize") if device == "cpu" else None
    if compiled is not None:
        resized: DataNode = compiled.resize_mirrored(images, mirrored, size)
        return resized
    # A region of interest that ends before it starts mirrors at no cost.
    left = mirrored * types.Constant(np.array([0.0, 1.0], np.float32), device="cpu")
    right = types.Constant(np.array([1.0, 1.0], np.float32), device="cpu") - left
    return fn.resize(
        images,
        size=[size, size],
        roi_start=left,
        roi_end=right,
        roi_relative=True,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def normalized(images: DataNode, layout: str, dtype: types.DALIDataType, crop: int | None = None) -> DataNode:
    """Zero mean and unit variance per channel, of the centre crop where `crop` is given."""
    return fn.crop_mirror_normalize(
        images,
        dtype=dtype,
        output_layout=layout,
        mean=list(MEAN),
        std=list(STD),
        **({} if crop is None else {"crop": [crop, crop]}),
    )


def _check_common(
    data_dir: str | os.PathLike[str] | Source,
    split: str,
    output_dtype: types.DALIDataType,
    *,
    device: str,
    output_layout: str,
    shard_id: int,
    report_stand_ins: bool,
    **at_least_one: int,
) -> Source:
    """Check what both pipelines take, then list the folder."""
    for name, value in at_least_one.items():
        check_integer(name, value, 1)
    check_integer("shard_id", shard_id, 0)
    num_shards = at_least_one["num_shards"]
    if shard_id >= num_shards:
        raise ValueError(f"shard_id must be in [0, {num_shards}); got {shard_id!r}")
    check_choice("device", device, DEVICES)
    check_choice("output_layout", output_layout, OUTPUT_LAYOUTS)
    if output_dtype not in (types.FLOAT, types.FLOAT16):
        raise ValueError(f"output_dtype must be types.FLOAT or types.FLOAT16; got {output_dtype!r}")
    if isinstance(data_dir, str | os.PathLike):
        images: Source = list_images(split_folder(data_dir, split))
    elif isinstance(data_dir, Source):
        images = data_dir
    else:
        raise TypeError(f"data_dir must be a path or a Source; got {data_dir!r}")
    if len(images) < num_shards:
        raise ValueError(f"num_shards must be at most the number of images, {len(images)}; got {num_shards}")
    if images.stand_ins and not report_stand_ins:
        raise ValueError("report_stand_ins must be True for images with stand-ins; got False")
    return images


def _check_mix(mix: str, alpha: float | None, ratio: float | None, probability: float) -> None:
    """The mixing arguments under the names that they have here; the library checks the rest."""
    check_choice("mix", mix, msda.METHODS)
    if alpha is not None:
        check_method_argument("alpha", alpha, "mix_alpha")
    if ratio is not None:
        check_method_argument("ratio", ratio, "mix_ratio")
        if mix not in takers("ratio"):
            choices = " or ".join(map(repr, takers("ratio")))
            raise ValueError(f"mix_ratio is only for mix={choices}; got {ratio!r} with mix={mix!r}")
    check_fraction("mix_probability", probability)


def _check_range(name: str, pair: Sequence[float], highest: float) -> None:
    """Two numbers 0 < low <= high <= highest."""
    numbers = isinstance(pair, Sequence) and all(isinstance(value, Real) for value in pair)
    if not numbers or len(pair) != 2:
        raise TypeError(f"{name} must be two numbers; got {pair!r}")
    if not 0 < pair[0] <= pair[1] <= highest or not math.isfinite(pair[1]):
        limit = "" if highest == math.inf else f" <= {highest:g}"
        raise ValueError(f"{name} must be two numbers 0 < a <= b{limit}; got {pair!r}")
