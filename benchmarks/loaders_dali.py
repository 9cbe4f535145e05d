"""The contenders of :mod:`.bench_loader` that load with DALI: this project, and DALI without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.loader_settings import Batches, Settings
from pipelines.records import ScaledDecoding


def dali(mix: str, scaled_decoding: ScaledDecoding = "auto") -> Callable[[Settings], Batches]:
    """This project's training pipeline."""

    def batches(settings: Settings) -> Batches:
        from pipelines.folders import list_images
        from pipelines.imagenet import train_pipeline
        from pipelines.loader import DALILoader
        from pipelines.records import Execution, Output

        pipeline = train_pipeline(
            settings.data,
            mix=mix,
            num_classes=len(list_images(settings.data).classes),
            output=Output(image_size=settings.image_size),
            batch_size=settings.batch_size,
            num_threads=settings.workers,
            device=settings.device,
            execution=Execution(
                prefetch_queue_depth=settings.prefetch_queue_depth, scaled_decoding=scaled_decoding
            ),
            seed=0,
        )
        loader = DALILoader(pipeline, drop_last=True)
        while True:
            yield from loader

    return batches


def dali_plain(settings: Settings) -> Batches:
    """DALI as in its documentation: no mixing, flip with the normalisation, one-hot targets."""
    from nvidia.dali import fn

    from pipelines.folders import list_images

    classes = len(list_images(settings.data).classes)
    return _run_plain_dali(settings, lambda labels: fn.one_hot(labels, num_classes=classes))


def dali_decoder(settings: Settings) -> Batches:
    """DALI's decoder alone, with the crops of this project's pipeline; its images stay in DALI."""
    import torch
    from nvidia.dali import Pipeline, fn

    from pipelines.crops import decoder_arguments
    from pipelines.folders import list_images
    from pipelines.records import Augmentation, Execution
    from pipelines.sources import Order

    listed, crops = list_images(settings.data), Augmentation()
    gpu = settings.device == "gpu"
    pipeline = Pipeline(settings.batch_size, settings.workers, 0 if gpu else None, seed=0)
    with pipeline:
        order = Order(size=len(listed), batch_size=settings.batch_size, shuffle=True, seed=0)
        encoded, *_ = listed.read(order, report_stand_ins=False)
        images = fn.decoders.image_random_crop(
            encoded,
            **decoder_arguments(settings.device, Execution().hw_decoder_load),
            random_area=list(crops.crop_area),
            random_aspect_ratio=list(crops.crop_aspect_ratio),
            num_attempts=10,
        )
        pipeline.set_outputs(images)
    pipeline.build()
    nothing = torch.zeros(1)
    while True:
        pipeline.run()
        yield nothing, nothing


def dali_then_msda(mix: str) -> Callable[[Settings], Batches]:
    """DALI decodes and normalises, then this project mixes the batches as tensors."""

    def batches(settings: Settings) -> Batches:
        from dali_msda.torch import Mix
        from pipelines.folders import list_images

        mixing = Mix(mix, num_classes=len(list_images(settings.data).classes))
        for images, labels in _run_plain_dali(settings, _int64):
            yield mixing(images, labels)

    return batches


def dali_dynamic(mix: str) -> Callable[[Settings], Batches]:
    """DALI's dynamic mode, with mixing and normalisation in one pass."""

    def batches(settings: Settings) -> Batches:
        import nvidia.dali.experimental.dynamic as ndd
        from nvidia.dali import types

        from dali_msda import dynamic as msda
        from pipelines.constants import MEAN, STD
        from pipelines.crops import decoder_arguments
        from pipelines.folders import list_images
        from pipelines.records import Execution

        classes = len(list_images(settings.data).classes)
        ndd.set_num_threads(settings.workers)
        reader = ndd.readers.File(file_root=str(settings.data), random_shuffle=True, seed=0)
        decoding = decoder_arguments(settings.device, Execution().hw_decoder_load)
        rng = ndd.random.RNG(seed=0)
        while True:
            for encoded, labels in reader.next_epoch(batch_size=settings.batch_size):
                if encoded.batch_size < settings.batch_size:
                    continue
                images = ndd.decoders.image_random_crop(
                    encoded, **decoding, random_area=[0.08, 1.0], num_attempts=10, rng=rng
                )
                images = ndd.resize(
                    images, size=[settings.image_size] * 2, interp_type=types.INTERP_LINEAR, antialias=True
                )
                mirror = ndd.random.coin_flip(batch_size=settings.batch_size, rng=rng)
                images = ndd.flip(images, horizontal=mirror)
                images, targets = msda.mix(
                    images,
                    labels,
                    classes,
                    method=mix,
                    rng=rng,
                    mean=list(MEAN),
                    std=list(STD),
                    output_layout="CHW",
                )
                yield images.torch(), targets.torch()

    return batches


def _int64(labels: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.cast(labels, dtype=types.INT64)


def dali_then_torch(mix: str) -> Callable[[Settings], Batches]:
    """DALI decodes and normalises, then PyTorch mixes the batches, as in NVIDIA's examples."""

    def batches(settings: Settings) -> Batches:
        from torchvision.transforms import v2

        from pipelines.folders import list_images

        classes = len(list_images(settings.data).classes)
        mixing = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[mix](num_classes=classes)
        for images, labels in _run_plain_dali(settings, _int64):
            yield mixing(images, labels)

    return batches


def _run_plain_dali(settings: Settings, targets: Callable[[Any], Any]) -> Batches:
    """DALI's own operators; `targets` makes the targets from the labels, int32 scalars."""
    from nvidia.dali import fn, pipeline_def, types

    from pipelines.constants import MEAN, STD
    from pipelines.crops import decoder_arguments
    from pipelines.loader import DALILoader
    from pipelines.records import Execution

    gpu = settings.device == "gpu"

    @pipeline_def(
        batch_size=settings.batch_size, num_threads=settings.workers, device_id=0 if gpu else None, seed=0
    )
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(
            file_root=str(settings.data), shuffle_after_epoch=True, pad_last_batch=True, name="Reader"
        )
        images = fn.decoders.image_random_crop(
            encoded,
            **decoder_arguments(settings.device, Execution().hw_decoder_load),
            random_area=[0.08, 1.0],
            num_attempts=10,
        )
        images = fn.resize(images, size=[settings.image_size] * 2)
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=list(MEAN),
            std=list(STD),
            mirror=fn.random.coin_flip(),
        )
        labels = targets(fn.squeeze(labels, axes=[0]))
        return images, labels.gpu() if gpu else labels

    loader = DALILoader(pipeline(), drop_last=True)
    while True:
        yield from loader
