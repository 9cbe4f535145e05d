"""The contenders of :mod:`.bench_loader` that read the files themselves: torchvision, timm, SPDL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.loader_settings import Batches, Settings


def torchvision(mix: str) -> Callable[[Settings], Batches]:
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


def timm(mix: str) -> Callable[[Settings], Batches]:
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


def spdl(settings: Settings) -> Batches:
    """SPDL as in its example for ImageNet: FFmpeg decodes, crops, resizes and flips; then one normalisation.

    FFmpeg's filters draw no random crops, so torchvision draws them, and each image has its own filters.
    """
    import random

    import spdl.io
    import torch
    from spdl.pipeline import PipelineBuilder
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.v2.functional import normalize

    from pipelines.constants import MEAN, STD
    from pipelines.folders import list_images

    listed = list_images(settings.data)
    samples = list(zip(listed.files, listed.labels, strict=True))
    mean, std = ([value / 255 for value in values] for values in (MEAN, STD))
    scale = f"scale={settings.image_size}:{settings.image_size}:flags=bilinear"

    def endless() -> Iterator[tuple[str, int]]:
        shuffling = random.Random(0)
        while True:
            yield from shuffling.sample(samples, len(samples))

    def decode(sample: tuple[str, int]) -> tuple[Any, int]:
        packets = spdl.io.demux_image(str(listed.root / sample[0]))
        shape = torch.empty((packets.height, packets.width), device="meta")
        top, left, height, width = RandomResizedCrop.get_params(shape, [0.08, 1.0], [3 / 4, 4 / 3])
        filters = [f"crop={width}:{height}:{left}:{top}:exact=1", scale]
        filters += ["hflip"] if random.random() < 0.5 else []
        filters += ["format=pix_fmts=rgb24"]
        return spdl.io.decode_packets(packets, filter_desc=",".join(filters)), sample[1]

    def to_batch(decoded: list[tuple[Any, int]]) -> tuple[Any, Any]:
        frames, labels = zip(*decoded, strict=True)
        images = spdl.io.to_torch(spdl.io.convert_frames(list(frames))).permute(0, 3, 1, 2)
        return normalize(images.float() / 255, mean, std), torch.tensor(labels)

    pipeline = (
        PipelineBuilder()
        .add_source(endless())
        .pipe(decode, concurrency=settings.workers)
        .aggregate(settings.batch_size, drop_last=True)
        .pipe(to_batch)
        .add_sink(settings.workers)
        .build(num_threads=settings.workers)
    )
    device = settings.torch_device
    with pipeline.auto_stop():
        for images, labels in pipeline:
            yield images.to(device), labels.to(device)
