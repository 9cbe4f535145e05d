"""What packing a data set gains and loses: bytes, images/s of the training pipeline, PSNR of training crops.

    python -m benchmarks.bench_pack --data DIR

DIR is a folder of class folders. It is packed by python -m pipelines.pack; then the training pipeline reads
the originals, with and without decoding at a fraction of the size, and the packed images, in turns. The PSNR
compares random crops, as in training, of the originals with the same crops of the packed images.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageOps

from benchmarks.common import Record, save, spread
from benchmarks.tables import show
from dali_msda.processors import usable_processors
from pipelines.folders import list_images
from pipelines.imagenet import train_pipeline
from pipelines.records import Execution

ROOT = Path(__file__).resolve().parent.parent
# After its turn a pipeline still makes some batches ahead, which must not slow down the next one.
_REFILL_S = 1.0
_CROP, _AREA, _RATIO = 224, (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    data: Path
    """Folder of class folders."""

    max_side: int = 512
    """--max-side of the packer."""

    quality: int = 90
    """--quality of the packer."""

    images: int = 256
    """Pack at least this many, with repeated images."""

    batch_size: int = 16
    """Images per batch."""

    workers: int = field(default_factory=usable_processors)
    """Threads of DALI and processes of the packer."""

    batches: int = 16
    """Batches per turn."""

    rounds: int = 5
    """Turns of every pipeline, after one for warm-up."""

    crops: int = 4
    """Crops of every image for the PSNR, of at most 100 images."""


def link_images(settings: Settings, folder: Path) -> Path:
    """Link the images into `folder`, repeatedly, until there are enough."""
    listed = list_images(settings.data)
    for repeat in range(-(-settings.images // len(listed))):
        for name in listed.files:
            link = folder / Path(name).with_name(f"{repeat}-{Path(name).name}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((listed.root / name).resolve())
    return folder


def pack(settings: Settings, source: Path, target: Path) -> list[Record]:
    """Run the packer; records of its speed, with its start, and of the sizes."""
    command = [sys.executable, "-m", "pipelines.pack", str(source), str(target)]
    command += ["--max-side", str(settings.max_side), "--quality", str(settings.quality)]
    start = time.perf_counter()
    subprocess.run([*command, "--workers", str(settings.workers)], cwd=ROOT, check=True)
    elapsed = time.perf_counter() - start
    files = list_images(source).files
    before, after = (
        sum((root / name).stat().st_size for name in files) / len(files) for root in (source, target)
    )
    return [
        {"figure": "packing", "images": len(files), "images_per_s": len(files) / elapsed},
        {"figure": "size", "images": "original", "kilobytes_per_image": before / 1000},
        {"figure": "size", "images": "packed", "kilobytes_per_image": after / 1000},
    ]


def draw_windows(count: int, rng: np.random.Generator) -> Iterator[tuple[float, float, float, float]]:
    """Windows of random-resized crops, relative to the image: left, top, right, bottom."""
    for _ in range(count):
        area, ratio = rng.uniform(*_AREA), np.exp(rng.uniform(*np.log(_RATIO)))
        width, height = min(1.0, np.sqrt(area * ratio)), min(1.0, np.sqrt(area / ratio))
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        yield left, top, left + width, top + height


def crop(image: Image.Image, window: tuple[float, float, float, float]) -> np.ndarray:
    """The crop, resized with antialiasing from the whole decoded image."""
    box = (
        window[0] * image.width,
        window[1] * image.height,
        window[2] * image.width,
        window[3] * image.height,
    )
    return np.asarray(image.resize((_CROP, _CROP), Image.Resampling.BILINEAR, box), np.float64)


def measure_psnr(settings: Settings, source: Path, target: Path) -> Record:
    """The PSNR of crops of the packed images that were made smaller."""
    rng = np.random.default_rng(0)
    files = list_images(source).files
    found = []
    for name in files[:: -(-len(files) // 100)]:
        with Image.open(source / name) as first, Image.open(target / name) as second:
            if first.size == second.size:
                continue
            whole, small = (ImageOps.exif_transpose(image).convert("RGB") for image in (first, second))
        for window in draw_windows(settings.crops, rng):
            error = np.mean((crop(whole, window) - crop(small, window)) ** 2)
            found.append(float(10 * np.log10(255**2 / max(error, 1e-9))))
    return {"figure": "psnr", "db": spread(found)}


def measure_training(settings: Settings, source: Path, target: Path) -> list[Record]:
    """Images/s of the training pipeline, in turns."""
    cases = {("original", "off"): source, ("original", "auto"): source, ("packed", "auto"): target}
    pipelines = {}
    for (images, scaled), folder in cases.items():
        listing = list_images(folder)
        pipeline = train_pipeline(
            listing,
            mix="hmix",
            num_classes=len(listing.classes),
            batch_size=settings.batch_size,
            num_threads=settings.workers,
            seed=1,
            execution=Execution(scaled_decoding=scaled),  # type: ignore[arg-type]
        )
        pipeline.build()
        pipelines[images, scaled] = pipeline
    found: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for number in range(settings.rounds + 1):
        for case, pipeline in pipelines.items():
            start = time.perf_counter()
            for _ in range(settings.batches):
                pipeline.run()
            if number:
                elapsed = time.perf_counter() - start
                found[case].append(settings.batches * settings.batch_size / elapsed)
            time.sleep(_REFILL_S)
    return [
        {"figure": "training", "images": images, "scaled_decoding": scaled, "images_per_s": spread(values)}
        for (images, scaled), values in found.items()
    ]


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        source = link_images(settings, Path(temporary) / "set")
        target = Path(temporary) / "packed"
        records = pack(settings, source, target)
        records.append(measure_psnr(settings, source, target))
        records += measure_training(settings, source, target)
    path = save("bench_pack", vars(settings), records)
    print(f"{show('pack', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
