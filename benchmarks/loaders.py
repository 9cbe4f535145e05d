"""The training loaders that :mod:`.bench_loader` compares, each built as its documentation recommends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dali_msda.methods import TABLE
from dali_msda.processors import usable_processors

Batches = Iterator[tuple[Any, Any]]


@dataclass(frozen=True)
class Settings:
    """The settings of all loaders."""

    data: Path
    """Folder of class folders with JPEGs."""

    loaders: list[str] = field(default_factory=lambda: ["dali-plain", *(f"dali-{mix}" for mix in TABLE)])
    """Loaders to compare; "all" for every one that is installed."""

    batch_size: int = 64
    """Images per batch."""

    image_size: int = 224
    """Side of the images in pixels."""

    workers: int = field(default_factory=usable_processors)
    """Threads or worker processes."""

    longest_side: int | None = None
    """Shrink larger images to this first (JPEG quality 90); FFCV's recipe for ImageNet does so with 500."""

    images: int = 1024
    """Images per pass, after the batches that the loaders had made ahead."""

    cores: int | None = None
    """Limit every loader to this many cores. Default: all."""

    rounds: int = 7
    """Passes of every loader, after one for warm-up."""

    prefetch_queue_depth: int | None = None
    """Batches that this project's pipelines make ahead. Default: their own."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where batches must end up. DALI decodes, mixes and normalises there; the others load on the CPU."""

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the device."""
        return "cuda" if self.device == "gpu" else "cpu"


def _dali(mix: str) -> Callable[[Settings], Batches]:
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
            execution=Execution(prefetch_queue_depth=settings.prefetch_queue_depth),
            seed=0,
        )
        loader = DALILoader(pipeline, drop_last=True)
        while True:
            yield from loader

    return batches


def _dali_plain(settings: Settings) -> Batches:
    """DALI as in its documentation: no mixing, flip with the normalisation, one-hot targets."""
    from nvidia.dali import fn

    from pipelines.folders import list_images

    classes = len(list_images(settings.data).classes)
    return _run_plain_dali(settings, lambda labels: fn.one_hot(labels, num_classes=classes))


def _dali_then_msda(mix: str) -> Callable[[Settings], Batches]:
    """DALI decodes and normalises, then this project mixes the batches as tensors."""

    def batches(settings: Settings) -> Batches:
        from dali_msda.torch import Mix
        from pipelines.folders import list_images

        mixing = Mix(mix, num_classes=len(list_images(settings.data).classes))
        for images, labels in _run_plain_dali(settings, _int64):
            yield mixing(images, labels)

    return batches


def _dali_dynamic(mix: str) -> Callable[[Settings], Batches]:
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


def _dali_then_torch(mix: str) -> Callable[[Settings], Batches]:
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


def _torchvision(mix: str) -> Callable[[Settings], Batches]:
    """DataLoader and transforms v2, mixed in the collate function, as in torchvision's documentation."""

    def batches(settings: Settings) -> Batches:
        import torch
        from torch.utils.data import DataLoader, default_collate
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        # Pillow decodes; tensors stay uint8 until the normalisation, which is the fast order.
        transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(settings.image_size, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        dataset = ImageFolder(str(settings.data), transform)
        mixing = {
            "none": lambda images, labels: (images, labels),
            "mixup": v2.MixUp(num_classes=len(dataset.classes)),
            "cutmix": v2.CutMix(num_classes=len(dataset.classes)),
        }[mix]
        loader = DataLoader(
            dataset,
            settings.batch_size,
            shuffle=True,
            num_workers=settings.workers,
            drop_last=True,
            persistent_workers=True,
            pin_memory=settings.device == "gpu",
            collate_fn=lambda samples: mixing(*default_collate(samples)),
        )
        device = settings.torch_device
        while True:
            for images, labels in loader:
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return batches


def _timm(mix: str) -> Callable[[Settings], Batches]:
    """timm's loader with FastCollateMixup (uint8), then its float conversion and normalisation."""

    def batches(settings: Settings) -> Batches:
        import torch
        from timm.data import FastCollateMixup, ImageDataset, create_loader

        dataset = ImageDataset(str(settings.data))
        collate = None
        if mix != "none":
            collate = FastCollateMixup(
                mixup_alpha=1.0 if mix == "mixup" else 0.0,
                cutmix_alpha=1.0 if mix == "cutmix" else 0.0,
                mode="elem",
                label_smoothing=0.0,
                num_classes=len(dataset.reader.class_to_idx),
            )
        loader = create_loader(
            dataset,
            (3, settings.image_size, settings.image_size),
            settings.batch_size,
            is_training=True,
            use_prefetcher=True,
            interpolation="bilinear",
            color_jitter=None,
            num_workers=settings.workers,
            collate_fn=collate,
            device=torch.device(settings.torch_device),
            pin_memory=settings.device == "gpu",
        )
        while True:
            yield from loader

    return batches


def _ffcv(mix: str) -> Callable[[Settings], Batches]:
    """FFCV with its own decoder, flip, mixup and normalisation, all in its compiled threads (no CUDA).

    FFCV reads a .beton file, which is first written to a temporary folder. ``RGBImageField`` would decode and
    re-encode; here the bytes of the JPEG files go in, so that every loader decodes the same JPEGs. (FFCV can
    also store raw pixels, which need no decoding but several times the space: not compared here.)
    """

    def batches(settings: Settings) -> Batches:
        import numpy as np
        import torch

        threads = torch.get_num_threads()  # before FFCV, which sets it at import and for every epoch
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.fields.rgb_image import IMAGE_MODES
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import (
            ImageMixup,
            LabelMixup,
            MixupToOneHot,
            NormalizeImage,
            RandomHorizontalFlip,
            ToTensor,
            ToTorchImage,
        )
        from ffcv.writer import DatasetWriter
        from PIL import Image

        from pipelines.constants import MEAN, STD
        from pipelines.folders import list_images

        class KeptJPEGField(RGBImageField):
            """The field "image" of a .beton file, with the unchanged bytes of JPEG files."""

            def encode(self, destination: Any, path: Path, malloc: Callable[[int], Any]) -> None:
                with Image.open(path) as image:
                    # FFCV's decoder asks libjpeg-turbo for RGB, which cannot convert CMYK.
                    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                        super().encode(destination, image.convert("RGB"), malloc)
                        return
                    destination["width"], destination["height"] = image.size
                content = np.frombuffer(path.read_bytes(), np.uint8)
                destination["mode"] = IMAGE_MODES["jpg"]
                destination["data_ptr"], storage = malloc(content.nbytes)
                storage[:] = content

        listed = list_images(settings.data)
        samples = [
            (listed.root / file, label) for file, label in zip(listed.files, listed.labels, strict=True)
        ]
        classes = len(listed.classes)
        images: list[Any] = [
            RandomResizedCropRGBImageDecoder((settings.image_size, settings.image_size)),
            RandomHorizontalFlip(),
        ]
        labels: list[Any] = [IntDecoder()]
        if mix == "mixup":
            images += [ImageMixup(alpha=1.0, same_lambda=False)]
            labels += [LabelMixup(alpha=1.0, same_lambda=False)]
        # On the CPU NormalizeImage works on arrays (a table of 256 values), so it comes before ToTensor.
        images += [NormalizeImage(np.array(MEAN), np.array(STD), np.float32), ToTensor(), ToTorchImage()]
        labels += [ToTensor()]
        if mix == "mixup":
            labels += [MixupToOneHot(classes)]

        with tempfile.TemporaryDirectory(prefix="ffcv-") as folder:
            beton = f"{folder}/train.beton"
            fields = {"image": KeptJPEGField(write_mode="jpg", jpeg_quality=100), "label": IntField()}
            DatasetWriter(beton, fields, num_workers=settings.workers).from_indexed_dataset(samples)
            loader = Loader(
                beton,
                settings.batch_size,
                settings.workers,
                os_cache=True,
                order=OrderOption.RANDOM,
                seed=0,
                pipelines={"image": images, "label": labels},
                custom_fields={"image": KeptJPEGField},
                drop_last=True,
            )
            while True:
                epoch = iter(loader)
                torch.set_num_threads(threads)
                try:
                    for batch, targets in epoch:
                        if mix == "none":
                            targets = torch.nn.functional.one_hot(targets[:, 0], classes).float()
                        yield batch, targets
                finally:  # otherwise its thread still runs when Python exits, which aborts
                    epoch.close()
                    epoch.join()

    return batches


class Contender(NamedTuple):
    """A loader with a mixing method."""

    loader: str
    mix: str
    batches: Callable[[Settings], Batches]


def contenders() -> dict[str, Contender]:
    """All contenders, by their names for ``--loaders``."""
    found = [
        *(Contender("dali", mix, _dali(mix)) for mix in TABLE),
        *(Contender("dali-then-msda", mix, _dali_then_msda(mix)) for mix in TABLE if mix != "none"),
        *(Contender("dali-dynamic", mix, _dali_dynamic(mix)) for mix in TABLE if mix != "none"),
        *(Contender("dali-then-torch", mix, _dali_then_torch(mix)) for mix in ("mixup", "cutmix")),
        *(Contender("torchvision", mix, _torchvision(mix)) for mix in ("none", "mixup", "cutmix")),
        *(Contender("timm", mix, _timm(mix)) for mix in ("none", "mixup", "cutmix")),
        *(Contender("ffcv", mix, _ffcv(mix)) for mix in ("none", "mixup")),
    ]
    plain = {"dali-plain": Contender("dali-plain", "none", _dali_plain)}
    return plain | {f"{each.loader}-{each.mix}": each for each in found}
