"""ImageNet-style pipelines: read, decode, crop, resize, mirror, mix, normalise.

The same definition runs on the CPU and on a GPU. On a GPU, decoding is shared between the CPU and the GPU's
decoders ("mixed"), and the images stay there. On the CPU, compiled operators resize and mix the training
images.
"""

from __future__ import annotations

import os
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import DataNode, Pipeline, do_not_convert

import dali_msda as msda
from dali_msda import Mixing
from dali_msda.changing import values_of
from dali_msda.checks import cast_labels
from dali_msda.mixing import Scheduled
from dali_msda.validation import (
    ArgumentError,
    ArgumentTypeError,
    ArgumentValueError,
    check_choice,
    check_integer,
    check_type,
)

from .augment import augment
from .constants import MEAN, STD
from .crops import decode_and_crop, decode_and_resize
from .datasets import list_source
from .records import Augmentation, Execution, Output, Shard
from .scaled_decoding import is_on
from .shuffling import pipeline_seed
from .sources import Order, Source

msda.require_dali()

DEVICES = ("cpu", "gpu")


def train_pipeline(
    data_dir: str | os.PathLike[str] | Source,
    *,
    mix: str | Mixing = "hmix",
    num_classes: int,
    batch_size: int,
    num_threads: int,
    device: str = "cpu",
    seed: int | None = None,
    augmentation: Augmentation = Augmentation(),
    output: Output = Output(),
    shard: Shard = Shard(),
    execution: Execution = Execution(),
    enable_checkpointing: bool = False,
    checkpoint: bytes | None = None,
    report_stand_ins: bool = False,
    return_masks: bool = False,
) -> Pipeline:
    """Make the training pipeline.

    Parameters
    ----------
    data_dir : path or Source
        A folder of class folders, or a dataset with such a folder in ``train/``; CIFAR's binary files; or any
        :class:`.sources.Source`, such as the result of :func:`.folders.list_images`.
    mix : str or Mixing
        Name of a mixing method, with its defaults, or :class:`dali_msda.Mixing`. Functions in it get the
        batch number, counted from 0 through all epochs (:class:`.ramps.Ramp`). It is exact, even though the
        pipeline prefetches.
    num_classes : int
        Length of the targets; at least the number of classes in the source.
    batch_size, num_threads : int
        Images per batch; CPU threads of DALI.
    device : {"cpu", "gpu"}
        Where the images are decoded and mixed, and where they are returned.
    seed : int, optional
        Makes the order and all draws repeatable. Shards have different draws.
    augmentation : Augmentation
        Crop, mirror and other augmentations of single images before mixing.
    output : Output
        Size, layout and type of the images.
    shard : Shard
        The part of the data that this pipeline reads. Every epoch the whole set is shuffled and then cut into
        shards, so `seed` must be the same in all of them.
    execution : Execution
        GPU, decoder load, number of prefetched batches.
    enable_checkpointing : bool
        Enable ``pipeline.checkpoint()`` and :meth:`.loader.DALILoader.state`.
    checkpoint : bytes, optional
        Resume from a result of one of these, from a pipeline with the same arguments.
    report_stand_ins : bool
        Add the output ``kept``: 0 for a stand-in for a sample that cannot be decoded, else 1
        (:meth:`.sources.Source.without`).
    return_masks : bool
        Add the output ``mask``, the weight of the own image, float32 HxWx1 on `device`. Draws do not change.

    Returns
    -------
    nvidia.dali.Pipeline
        Outputs ``images`` (normalised, as set by `output`) and ``targets`` (float32 [num_classes]) on
        `device`, and ``kept`` (int32 [1], CPU) and ``mask`` if requested.

    Raises
    ------
    ValueError, TypeError
        An argument is invalid, or `data_dir` is neither a source nor a data set with images.
    """
    mixing = _to_mixing(mix)
    check_integer("num_classes", num_classes, 1)
    if seed is not None:
        check_integer("seed", seed, 0)
    check_type("augmentation", augmentation, Augmentation)
    check_type("output", output, Output)
    augmentation.check_fits(output.image_size)
    _check_common(device, shard, execution, batch_size=batch_size, num_threads=num_threads)
    source = _to_source(data_dir, "train", shard, report_stand_ins)
    if len(source.classes) > num_classes:
        raise ValueError(
            f"num_classes must be at least {len(source.classes)}, the number of classes in {source}; got"
            f" {num_classes}"
        )
    order = Order(size=len(source), batch_size=batch_size, shuffle=True, seed=seed, shard=shard)
    fused = output.dtype == "float32"  # the library normalises to float32
    scaled = augmentation.crop_padding is None and is_on(execution.scaled_decoding, device)
    read = do_not_convert(source.read)

    # These two need conditionals; otherwise they would only cost time.
    @pipeline_def(enable_conditionals=scaled or augmentation.auto_augment != "none")
    def pipeline() -> tuple[DataNode, ...]:
        encoded, labels, *kept = read(order, report_stand_ins=report_stand_ins)
        images = decode_and_crop(encoded, augmentation, output.image_size, device, execution, scaled=scaled)
        images = augment(images, augmentation)
        images, targets, *params = msda.mix(
            images,
            labels,
            num_classes=num_classes,
            **mix_arguments(mixing),
            mean=MEAN if fused else None,
            std=STD if fused else None,
            output_layout=output.layout if fused else None,
            return_params=return_masks,
        )
        masks = [param.mask for param in params]
        return images if fused else normalize(images, output), targets, *kept, *masks

    built = pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=execution.device_id if device == "gpu" else None,
        seed=None if seed is None else pipeline_seed(seed, shard),
        prefetch_queue_depth=execution.prefetched_on(device),
        enable_checkpointing=enable_checkpointing or checkpoint is not None,
        checkpoint=checkpoint,
    )
    assert isinstance(built, Pipeline)
    built.sample_order = order  # for DALILoader
    return built


def val_pipeline(
    data_dir: str | os.PathLike[str] | Source,
    *,
    batch_size: int,
    num_threads: int,
    device: str = "cpu",
    resize_size: int | None = None,
    output: Output = Output(),
    shard: Shard = Shard(),
    execution: Execution = Execution(),
    report_stand_ins: bool = False,
) -> Pipeline:
    """Make the validation pipeline: resize the shorter side (antialiased), centre crop, normalise.

    Parameters
    ----------
    data_dir : path or Source
        A folder of class folders, or a dataset with such a folder in ``val/``; CIFAR's binary files, of which
        the test images are read; or any source.
    resize_size : int, optional
        Length of the shorter side before the crop, by default 256/224 of the output's `image_size`.
    batch_size, num_threads, device, output, shard, execution, report_stand_ins
        See :func:`train_pipeline`.

    Returns
    -------
    nvidia.dali.Pipeline
        Outputs ``images`` (normalised) and ``labels`` (int64 scalars) on `device`, in the order of the
        source: class folders are sorted by file name. The last batch is padded with its last image;
        :class:`.loader.DALILoader` removes the padding.

    Raises
    ------
    ValueError, TypeError
        As :func:`train_pipeline`.
    """
    check_type("output", output, Output)
    _check_common(device, shard, execution, batch_size=batch_size, num_threads=num_threads)
    size = output.image_size
    shorter = round(size * 256 / 224) if resize_size is None else resize_size
    check_integer("resize_size", shorter, 1)
    if shorter < size:
        raise ArgumentValueError("resize_size", f"at least the output's image_size ({size})", shorter)
    source = _to_source(data_dir, "val", shard, report_stand_ins)
    order = Order(size=len(source), batch_size=batch_size, shuffle=False, shard=shard)

    scaled = is_on(execution.scaled_decoding, device)
    read, to_integers = do_not_convert(source.read), do_not_convert(cast_labels)

    @pipeline_def(enable_conditionals=scaled)
    def pipeline() -> tuple[DataNode, ...]:
        encoded, labels, *kept = read(order, report_stand_ins=report_stand_ins)
        images = decode_and_resize(encoded, shorter, size, device, execution, scaled=scaled)
        labels = fn.reshape(to_integers(labels, types.INT64), shape=[])
        images = normalize(images, output, crop=size)
        return images, labels.gpu() if device == "gpu" else labels, *kept

    built = pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=execution.device_id if device == "gpu" else None,
        prefetch_queue_depth=execution.prefetched_on(device),
    )
    assert isinstance(built, Pipeline)
    built.sample_order = order  # for DALILoader
    return built


def mix_arguments(mixing: Mixing) -> dict[str, Any]:
    """Make the arguments of :func:`dali_msda.mix` in a pipeline, with nodes for functions of the batch."""
    nodes: dict[Scheduled, DataNode] = {}  # one per function, even if several arguments use it

    def number_or_node(name: str, value: Scheduled) -> float | DataNode:
        if not callable(value):
            return value
        if value not in nodes:
            nodes[value] = values_of(name, value, mixing.check_number)
        return nodes[value]

    return {
        "method": mixing.method,
        **{name: number_or_node(name, value) for name, value in mixing.arguments.items()},
        "probability": number_or_node("probability", mixing.probability),
        "label_smoothing": mixing.label_smoothing,
        "convention": mixing.convention,
        "granularity": mixing.granularity,
    }


def normalize(images: DataNode, output: Output, crop: int | None = None) -> DataNode:
    """Normalise to zero mean and unit variance per channel, after a centre crop if `crop` is given."""
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT if output.dtype == "float32" else types.FLOAT16,
        output_layout=output.layout,
        mean=list(MEAN),
        std=list(STD),
        **({} if crop is None else {"crop": [crop, crop]}),
    )


def _to_mixing(mix: str | Mixing) -> Mixing:
    """Return `mix`, or the method of that name with its defaults."""
    if isinstance(mix, Mixing):
        return mix
    if not isinstance(mix, str):
        raise ArgumentTypeError("mix", "the name of a method or a dali_msda.Mixing", mix)
    try:
        return Mixing(mix)
    except ArgumentError as error:
        raise error.renamed("mix") from None


def _check_common(device: str, shard: Shard, execution: Execution, **at_least_one: int) -> None:
    """Check the arguments of both pipelines; the records check their own fields."""
    check_type("shard", shard, Shard)
    check_type("execution", execution, Execution)
    for name, value in at_least_one.items():
        check_integer(name, value, 1)
    check_choice("device", device, DEVICES)


def _to_source(
    data_dir: str | os.PathLike[str] | Source, split: str, shard: Shard, report_stand_ins: bool
) -> Source:
    """Return the source, after checking that every shard has an image."""
    if isinstance(data_dir, str | os.PathLike):
        images: Source = list_source(data_dir, split)
    elif isinstance(data_dir, Source):
        images = data_dir
    else:
        raise ArgumentTypeError("data_dir", "a path or a Source", data_dir)
    if len(images) < shard.count:
        raise ArgumentValueError("shard", f"one of at most {len(images)} shards, the number of images", shard)
    if images.stand_ins and not report_stand_ins:
        raise ValueError("report_stand_ins must be True for images with stand-ins; got False")
    return images
