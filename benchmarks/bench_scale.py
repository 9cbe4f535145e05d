"""How loading and mixing scale: with cores, with the batch, with the size of the images.

    python -m benchmarks.bench_scale --data DIR

The whole training loader with HMix on one core and on all of them (as many threads as cores), and with
batches of 32 to 512 images; and the mixing kernel alone on one core: time per pixel, from 32 to 448 pixels.
"""

from __future__ import annotations

import dataclasses
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.bench_loader import measure, prepared
from benchmarks.bench_mix import contenders as mixers
from benchmarks.bench_mix import in_turns
from benchmarks.common import save, spread, table
from benchmarks.loaders import Settings as Loading
from dali_msda.processors import usable_processors

_LOADER = "dali-hmix"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    data: Path
    """Folder of class folders with JPEGs."""

    longest_side: int | None = 500
    """Make larger images this small first."""

    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Images per batch."""

    image_sizes: tuple[int, ...] = (32, 64, 112, 224, 448)
    """Sides of the mixed images in pixels."""

    images: int = 2048
    """Images per pass of a loader."""

    rounds: int = 7
    """Passes of every contender, after one that does not count."""


def _loaders(settings: Settings) -> dict[str, Any]:
    cores = usable_processors()
    with tempfile.TemporaryDirectory() as folder:
        common = Loading(settings.data, longest_side=settings.longest_side, images=settings.images)
        data = prepared(dataclasses.replace(common, batch_size=max(settings.batch_sizes)), Path(folder))
        common = dataclasses.replace(common, data=data)
        one = dataclasses.replace(common, cores=1, workers=1)
        by_cores = {"1 core": (_LOADER, one), f"{cores} cores": (_LOADER, common)}
        by_batch = {
            f"batch {size}": (_LOADER, dataclasses.replace(common, batch_size=size))
            for size in settings.batch_sizes
        }
        return measure(by_cores, settings.rounds) | measure(by_batch, settings.rounds)


def _pixels(settings: Settings) -> dict[str, Any]:
    """Nanoseconds per pixel of every method on one core; as many pixels in every batch."""
    largest = max(settings.image_sizes)
    seconds: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    with ThreadPoolExecutor(1) as pool:
        found = {}
        for size in settings.image_sizes:
            batch_size = 16 * (largest // size) ** 2
            for name, mix in mixers(batch_size, 1, size, pool, peers=False).items():
                found[f"{name}, {size} pixels"] = mix
                counts[f"{name}, {size} pixels"] = batch_size * size * size
        seconds = in_turns(found, settings.rounds)
    return {
        name: spread([1e9 * value / counts[name] for value in values]) for name, values in seconds.items()
    }


def main() -> None:
    """Measure, print tables, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    pixels = _pixels(settings)
    sizes = [f"{size} pixels" for size in settings.image_sizes]
    names = list(dict.fromkeys(name.split(", ")[0] for name in pixels))
    rows = [[name, *(f"{pixels[f'{name}, {size}']['median']:.3f}" for size in sizes)] for name in names]
    print("\nns per pixel (three bytes), one core\n\n" + table(["mixing", *sizes], rows))
    loaders = _loaders(settings)
    rates = {name: result["images_per_s"] for name, result in loaders.items()}
    rows = [
        [name, f"{rate['median']:.0f} ({rate['q1']:.0f}-{rate['q3']:.0f})"] for name, rate in rates.items()
    ]
    print("\n" + table(["loader with HMix", "images/s (quartiles)"], rows))
    content = {
        "settings": vars(settings) | {"data": settings.data.name},
        "loaders": loaders,
        "ns_per_pixel": pixels,
    }
    print(f"\nwrote {save('bench_scale', content)}")


if __name__ == "__main__":
    main()
