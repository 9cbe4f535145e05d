"""How loading and mixing scale: with cores, with batch size, with image size.

    python -m benchmarks.bench_scale --data DIR

The whole training loader with HMix on one core and on all cores (one thread each), and with batches of 32 to
512 images; and the mixing kernel alone on one core: time per pixel, from 32 to 448 pixels.
"""

from __future__ import annotations

import dataclasses
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.bench_loader import measure
from benchmarks.bench_mix import contenders as mixers
from benchmarks.bench_mix import in_turns
from benchmarks.common import Record, save, spread
from benchmarks.loaders import Settings as Loading
from benchmarks.photos import prepare_images
from benchmarks.tables import show

_LOADER = "dali-hmix"


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    data: Path
    """Folder of class folders with JPEGs."""

    source_size: str = "500"
    """Size of the JPEGs, see benchmarks.bench_loader."""

    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Images per batch."""

    image_sizes: tuple[int, ...] = (32, 64, 112, 224, 448)
    """Sides of the mixed images in pixels."""

    images: int = 2048
    """Images per pass of a loader."""

    rounds: int = 7
    """Passes of every contender, after one for warm-up."""


def _measure_loaders(settings: Settings) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        largest = max(settings.batch_sizes)
        data = prepare_images(
            settings.data, Path(folder), batch_size=largest, source_size=settings.source_size
        )
        common = Loading(data=data, images=settings.images)
        one = dataclasses.replace(common, cores=1, workers=1)
        by_batch = [dataclasses.replace(common, batch_size=size) for size in settings.batch_sizes]
        turns = {"cores": [one, common], "batch_size": by_batch}
        return [
            {"varied": varied} | record
            for varied, each in turns.items()
            for record in measure([(_LOADER, loading) for loading in each], settings.rounds)
        ]


def _measure_pixels(settings: Settings) -> list[Record]:
    """Nanoseconds per pixel of every method on one core; all batches have the same number of pixels."""
    largest = max(settings.image_sizes)
    with ThreadPoolExecutor(1) as pool:
        found, records, pixels = [], [], []
        for size in settings.image_sizes:
            batch_size = 16 * (largest // size) ** 2
            for mixer in mixers(batch_size, 1, size, pool, peers=False):
                found.append(mixer)
                where = {"batch_size": batch_size, "image_size": size, "device": "cpu", "cores": 1}
                records.append({"varied": "image_size"} | mixer.fields() | where)
                pixels.append(batch_size * size * size)
        for record, count, seconds in zip(records, pixels, in_turns(found, settings.rounds), strict=True):
            record["ns_per_pixel"] = spread([1e9 * value / count for value in seconds])
    return records


def main() -> None:
    """Measure, write the results, print tables."""
    settings = tyro.cli(Settings, description=__doc__)
    path = save("bench_scale", vars(settings), _measure_pixels(settings) + _measure_loaders(settings))
    print(f"{show('scale_mix', path)}\n\n{show('scale_loader', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
