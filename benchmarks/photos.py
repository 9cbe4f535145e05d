"""The JPEGs that benchmarks of loaders read: a folder's own, or the same pictures in another size.

Pictures in another size are JPEGs of quality 90. Enlarged pictures get noise as of a camera, because
interpolation leaves smooth pictures, whose files would be a fraction of a photo's. The same folder always
gives the same files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dali_msda.processors import usable_processors
from pipelines.demo_data import make_demo_dataset
from pipelines.folders import list_images

ORIGINAL = "original"
"""The source size that leaves the files as they are."""

_QUALITY = 90
_NOISE = 4.0  # standard deviation, of 255
_BATCHES = 64
_GENERATED_PER_CLASS = 6


def parse_size(source_size: str) -> tuple[int, int] | None:
    """Width and height of "WxH"; (N, N) of "N", the longest side; None of "original".

    Raises
    ------
    ValueError
        It is none of these.
    """
    if source_size == ORIGINAL:
        return None
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", source_size)
    if found is None:
        raise ValueError(f'source_sizes must be "{ORIGINAL}", N or WIDTHxHEIGHT; got "{source_size}"')
    return int(found[1]), int(found[2] or found[1])


def _with_size(image: Image.Image, source_size: str) -> Image.Image:
    """Resize so that the longest side is N, or to WIDTH x HEIGHT after a centre crop to its proportions."""
    sides = parse_size(source_size)
    assert sides is not None
    if "x" in source_size:
        return ImageOps.fit(image, sides, Image.Resampling.BICUBIC)
    return ImageOps.contain(image, sides, Image.Resampling.BICUBIC)


def _add_noise(image: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).standard_normal((image.height, image.width, 1), np.float32)
    noisy = np.clip(np.asarray(image) + np.rint(_NOISE * noise), 0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def write_resized(path: Path, result: Path, source_size: str, seed: int) -> None:
    """Write a picture in another size; copy a JPEG that has it already.

    Parameters
    ----------
    path, result : Path
        The picture, and the JPEG to write.
    source_size : str
        See :func:`parse_size`; not "original".
    seed : int
        Of the noise.
    """
    with Image.open(path) as image:
        picture = image.convert("RGB")
        is_jpeg = image.format == "JPEG"
    resized = _with_size(picture, source_size)
    if is_jpeg and resized.size == picture.size:
        shutil.copyfile(path, result)
        return
    if resized.width * resized.height > picture.width * picture.height:
        resized = _add_noise(resized, seed)
    resized.save(result, "JPEG", quality=_QUALITY)


def _resize_all(paths: Sequence[Path], folder: Path, source_size: str) -> list[Path]:
    folder.mkdir()
    results = [folder / f"{number}.jpg" for number in range(len(paths))]
    with ThreadPoolExecutor(usable_processors()) as pool:
        list(pool.map(write_resized, paths, results, repeat(source_size), range(len(paths))))
    return results


def _spread(values: Sequence[str], count: int | None) -> Sequence[str]:
    """`count` values, evenly from all."""
    if count is None or count >= len(values):
        return values
    return [values[number * len(values) // count] for number in range(count)]


def prepare_images(
    data: Path | None,
    folder: Path,
    *,
    batch_size: int,
    source_size: str = ORIGINAL,
    photos: int | None = None,
    batches: int = _BATCHES,
) -> Path:
    """Link images repeatedly, until an epoch has as many batches as wanted.

    Work done once per epoch (padding, starting threads) then counts for little, as on a real data set.

    Parameters
    ----------
    data : Path, optional
        Folder of class folders, by default the project's generated images.
    folder : Path
        Where to put links and resized images.
    batch_size : int
    source_size : str
        See :func:`parse_size`.
    photos : int, optional
        Use only so many of the images, evenly from all.
    batches : int
        Batches in an epoch, at least.

    Returns
    -------
    Path
        A folder of class folders.
    """
    if data is None:
        generated = make_demo_dataset(
            folder / "generated", train_per_class=_GENERATED_PER_CLASS, val_per_class=1
        )
        data = generated / "train"
    listed = list_images(data)
    names = _spread(listed.files, photos)
    paths = [(listed.root / name).resolve() for name in names]
    suffix = ""
    if source_size != ORIGINAL:
        paths, suffix = _resize_all(paths, folder / "resized", source_size), ".jpg"
    for again in range(-(-batches * batch_size // len(paths))):
        for name, path in zip(names, paths, strict=True):
            link = folder / "images" / Path(name).with_name(f"{again}-{Path(name).name}{suffix}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder / "images"


def mean_size(data: Path) -> float:
    """Bytes per file of a folder of class folders."""
    sizes = [path.stat().st_size for path in data.rglob("*") if path.is_file()]
    return sum(sizes) / len(sizes)
