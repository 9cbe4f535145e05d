"""Images per second and peak memory of whole training loaders on the same folder of JPEGs.

    python -m benchmarks.bench_loader --data DIR [--loaders dali-none dali-hmix timm-cutmix ...]

Every loader reads, decodes, crops (the same random resized crop), mirrors, mixes and gives float32
N x 3 x S x S normalised images with soft labels, on the CPU, with the same number of threads or worker
processes. Each lives in a process of its own and is asked for one pass at a time, in turns, so that all of
them see the same moods of the machine. ``dali-plain`` is DALI without this library and without mixing.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tyro

from benchmarks.common import save, spread, table

Batches = Iterator[tuple[Any, Any]]
MIXES: tuple[str, ...] = ("none", "mixup", "cutmix", "stochastic", "hmix", "gmix")


@dataclass(frozen=True)
class Settings:
    """What all loaders are given."""

    data: Path
    """Folder of class folders with JPEGs."""

    loaders: list[str] = field(default_factory=lambda: ["dali-plain", *(f"dali-{m}" for m in MIXES)])
    """Loaders to compare; "all" for every one that is installed."""

    batch_size: int = 64
    """Images per batch."""

    image_size: int = 224
    """Side of the images in pixels."""

    workers: int = len(os.sched_getaffinity(0))
    """Threads or worker processes."""

    images: int = 1024
    """Images per pass (the data is read as often as it takes)."""

    rounds: int = 7
    """Passes of every loader, after one that does not count."""


def _dali(mix: str) -> Callable[[Settings], Batches]:
    def batches(settings: Settings) -> Batches:
        from pipelines.folders import list_images
        from pipelines.imagenet import train_pipeline
        from pipelines.loader import DALILoader

        pipeline = train_pipeline(
            settings.data,
            mix=mix,
            num_classes=len(list_images(settings.data).classes),
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            num_threads=settings.workers,
            seed=0,
        )
        loader = DALILoader(pipeline, drop_last=True)
        while True:
            yield from loader

    return batches


def _dali_plain(settings: Settings) -> Batches:
    """DALI as its documentation shows it: no mixing, flip with the normalisation, one-hot targets."""
    from nvidia.dali import fn, pipeline_def, types

    from pipelines.folders import list_images
    from pipelines.imagenet import MEAN, STD
    from pipelines.loader import DALILoader

    classes = len(list_images(settings.data).classes)

    @pipeline_def(batch_size=settings.batch_size, num_threads=settings.workers, device_id=None, seed=0)
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(
            file_root=str(settings.data), shuffle_after_epoch=True, pad_last_batch=True, name="Reader"
        )
        images = fn.decoders.image_random_crop(encoded, random_area=[0.08, 1.0], num_attempts=10)
        images = fn.resize(images, size=[settings.image_size] * 2)
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=list(MEAN),
            std=list(STD),
            mirror=fn.random.coin_flip(),
        )
        return images, fn.one_hot(fn.squeeze(labels, axes=[0]), num_classes=classes)

    loader = DALILoader(pipeline(), drop_last=True)
    while True:
        yield from loader


def _torchvision(mix: str) -> Callable[[Settings], Batches]:
    """DataLoader and transforms v2, mixed in the collate function, as torchvision's documentation advises."""

    def batches(settings: Settings) -> Batches:
        import torch
        from torch.utils.data import DataLoader, default_collate
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        # Decoding through Pillow; the fast order: tensors as uint8 until the normalisation.
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
            collate_fn=lambda samples: mixing(*default_collate(samples)),
        )
        while True:
            yield from loader

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
            device=torch.device("cpu"),
            pin_memory=False,
        )
        while True:
            yield from loader

    return batches


LOADERS: dict[str, Callable[[Settings], Batches]] = {
    "dali-plain": _dali_plain,
    **{f"dali-{mix}": _dali(mix) for mix in MIXES},
    **{f"torchvision-{mix}": _torchvision(mix) for mix in ("none", "mixup", "cutmix")},
    **{f"timm-{mix}": _timm(mix) for mix in ("none", "mixup", "cutmix")},
}


def _serve(name: str, settings: Settings, pipe: Connection) -> None:
    """Build a loader, then time a pass for every message until the other side closes."""
    import torch

    # Worker processes start as they do outside of this benchmark, on Linux.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)  # the loaders' own threads are what is compared
    began = time.perf_counter()
    batches = LOADERS[name](settings)
    next(batches)
    pipe.send(time.perf_counter() - began)
    steps = max(1, settings.images // settings.batch_size)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        began = time.perf_counter()
        for _ in range(steps):
            images, _ = next(batches)
            # What a training step would do first: look at every value.
            images.sum()
        rate = steps * settings.batch_size / (time.perf_counter() - began)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((rate, (own + _children_peak()) / 1024))


def _children_peak() -> int:
    """Peak memory of the worker processes that are alive, in KiB; shared pages count in each."""
    total = 0
    for child in multiprocessing.active_children():
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                total += int(line.split()[1])
    return total


def measure(settings: Settings) -> dict[str, Any]:
    """Images per second of every loader, in turns."""
    context = multiprocessing.get_context("spawn")
    servers: dict[str, tuple[Any, Connection]] = {}
    results: dict[str, Any] = {}
    for name in settings.loaders:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(name, settings, theirs))
        process.start()
        theirs.close()
        servers[name] = (process, ours)
        results[name] = {"first_batch_s": ours.recv(), "rates": [], "peak_MiB": 0.0}
    for round_number in range(settings.rounds + 1):
        for name, (_, pipe) in servers.items():
            pipe.send("pass")
            rate, peak = pipe.recv()
            if round_number:
                results[name]["rates"].append(rate)
                results[name]["peak_MiB"] = peak
    for process, pipe in servers.values():
        pipe.close()
        process.join(timeout=10)
        process.kill()
    return results


def _mean_size(files: list[Path]) -> float:
    return sum(path.stat().st_size for path in files) / len(files)


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.loaders == ["all"]:
        settings = dataclasses.replace(settings, loaders=list(LOADERS))
    if not settings.data.is_dir():
        raise SystemExit(f"--data must be a folder of class folders; there is no folder {settings.data}")
    unknown = [name for name in settings.loaders if name not in LOADERS]
    if unknown:
        raise SystemExit(f"--loaders must be among {', '.join(LOADERS)}; got {unknown[0]}")
    results = measure(settings)
    baseline = spread(results[settings.loaders[0]]["rates"])["median"]
    rows = []
    for name, result in results.items():
        rate = result["images_per_s"] = spread(result["rates"])
        rows.append(
            [
                name,
                f"{rate['median']:.0f} ({rate['q1']:.0f}-{rate['q3']:.0f})",
                f"{rate['median'] / baseline:.2f}",
                f"{result['peak_MiB']:.0f}",
                f"{result['first_batch_s']:.1f}",
            ]
        )
    header = [
        "loader",
        "images/s (quartiles)",
        f"ratio to {settings.loaders[0]}",
        "peak MiB",
        "first batch, s",
    ]
    print(table(header, rows))
    files = [path for path in settings.data.rglob("*") if path.is_file()]
    content = {
        "settings": vars(settings)
        | {"data": settings.data.name, "files": len(files), "kB_per_file": _mean_size(files) / 1000},
        "loaders": results,
    }
    print(f"wrote {save('bench_loader', content)}")


if __name__ == "__main__":
    main()
