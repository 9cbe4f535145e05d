"""The contenders of :mod:`.bench_loader` that first pack the data set: FFCV, TurboLoader, LitData."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.loader_settings import Batches, Settings


def ffcv(mix: str) -> Callable[[Settings], Batches]:
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

        with tempfile.TemporaryDirectory(prefix="ffcv-", dir=settings.scratch) as folder:
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


def turboloader(mix: str) -> Callable[[Settings], Batches]:
    """TurboLoader's fused training pass over a TAR file: crop, flip, antialiased resize, normalisation.

    Its MixUp and CutMix take single images with a partner set by hand and mix no labels, and the fused pass
    takes no further transform; so torchvision mixes the batches, as in PyTorch's documentation.
    """

    def batches(settings: Settings) -> Batches:
        import itertools
        import tarfile

        import torch
        from torchvision.transforms import v2
        from turboloader import DataLoader, ImageNetNormalize

        from pipelines.folders import list_images

        listed = list_images(settings.data)
        every_label = torch.tensor(listed.labels)
        classes = len(listed.classes)
        mixing = {
            "none": lambda images, labels: (images, labels),
            "mixup": v2.MixUp(num_classes=classes),
            "cutmix": v2.CutMix(num_classes=classes),
        }[mix]
        device = settings.torch_device
        with tempfile.TemporaryDirectory(prefix="turboloader-", dir=settings.scratch) as folder:
            tar = f"{folder}/train.tar"
            with tarfile.open(tar, "w", dereference=True) as archive:
                for file in listed.files:
                    archive.add(listed.root / file, file)
            loader = DataLoader(
                tar,
                batch_size=settings.batch_size,
                num_workers=settings.workers,
                image_size=settings.image_size,
                output_format="pytorch",
                transform=ImageNetNormalize(),
                shuffle=True,
                drop_last=True,
                seed=0,
                train_aug=True,
                antialias=True,
            )
            for epoch in itertools.count():
                loader.set_epoch(epoch)
                for images, about in loader:
                    labels = every_label[about["indices"]]
                    yield mixing(torch.from_numpy(images).to(device), labels.to(device))

    return batches


def _litdata_sample(sample: tuple[str, int]) -> dict[str, Any]:
    import litdata

    return {"image": litdata.Jpeg(path=sample[0]), "class": sample[1]}


def _crop_litdata_sample(sample: dict[str, Any], *, transform: Callable[[Any], Any]) -> tuple[Any, Any]:
    return transform(sample["image"]), sample["class"]


def litdata(settings: Settings) -> Batches:
    """LitData's optimised data set with the bytes of the JPEGs, and torchvision's transforms."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset, optimize
    from torchvision.transforms import v2

    from pipelines.folders import list_images

    listed = list_images(settings.data)
    samples = [
        (str(listed.root / file), label) for file, label in zip(listed.files, listed.labels, strict=True)
    ]
    # LitData decodes into uint8 tensors.
    transform = v2.Compose(
        [
            v2.RGB(),
            v2.RandomResizedCrop(settings.image_size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    device = settings.torch_device
    with tempfile.TemporaryDirectory(prefix="litdata-", dir=settings.scratch) as folder:
        optimize(
            fn=_litdata_sample,
            inputs=samples,
            output_dir=folder,
            chunk_bytes="64MB",
            num_workers=settings.workers,
            verbose=False,
        )
        dataset = StreamingDataset(
            folder,
            shuffle=True,
            drop_last=True,
            seed=0,
            transform=partial(_crop_litdata_sample, transform=transform),
        )
        loader = StreamingDataLoader(
            dataset,
            batch_size=settings.batch_size,
            num_workers=settings.workers,
            persistent_workers=True,
            pin_memory=settings.device == "gpu",
        )
        while True:
            for images, labels in loader:
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
