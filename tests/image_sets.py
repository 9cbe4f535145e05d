"""Images whose pixels encode their index, their class or the position of a crop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.records import Augmentation, Execution, Output
from tests.devices import array

# ImageNet's statistics as documented by torchvision, for pixels in [0, 255].
MEAN: np.ndarray = 255 * np.array([0.485, 0.456, 0.406])
STD: np.ndarray = 255 * np.array([0.229, 0.224, 0.225])

CLASSES = ("ant", "bee", "cat")
# Uneven, so that the position of an image does not determine its label.
TRAIN_COUNTS, VAL_COUNTS = (11, 7, 5), (6, 8, 3)
TRAIN_LABELS, VAL_LABELS = (np.repeat(np.arange(3), counts) for counts in (TRAIN_COUNTS, VAL_COUNTS))
_LEVELS, _FIRST, _STEP = 5, 30, 48


def index_color(index: int) -> tuple[int, int, int]:
    """A distinct colour for every index below 125."""
    digits = (index % _LEVELS, index // _LEVELS % _LEVELS, index // _LEVELS**2)
    red, green, blue = (_FIRST + _STEP * digit for digit in digits)
    return red, green, blue


def pixels(images: Any) -> np.ndarray:
    """Undo the normalisation of an array or tensor, N x 3 x H x W: float64 pixels in [0, 255]."""
    on_cpu = images if isinstance(images, np.ndarray) else images.cpu()
    scaled: np.ndarray = np.asarray(on_cpu, np.float64) * STD[:, None, None]
    return np.asarray(scaled + MEAN[:, None, None])


def indices(images: Any) -> list[int]:
    """Read the indices of a batch, N x 3 x H x W, from its colours."""
    found = pixels(images)
    digits = np.rint((found - _FIRST) / _STEP).astype(int)
    # JPEG changes a colour by a level or two.
    assert np.abs(found - (_FIRST + _STEP * digits)).max() < 4 if found.size else True
    digits = digits[:, :, 0, 0]
    return [int(index) for index in digits @ np.array([1, _LEVELS, _LEVELS**2])]


def index_name(index: int) -> str:
    """File name for an index: alternately JPEG and PNG, sorted by index."""
    return f"{index:03d}.{'png' if is_exact(index) else 'JPEG'}"


def is_exact(index: int) -> bool:
    """Whether the image is stored losslessly."""
    return index % 2 == 1


def write_split(root: Path, counts: tuple[int, ...], make: Callable[[int, str], Image.Image]) -> None:
    """Write ``root/CLASS/index.{JPEG,png}`` for `counts` images per class, numbered across the classes."""
    index = 0
    for name, count in zip(CLASSES, counts, strict=False):
        (root / name).mkdir(parents=True)
        for _ in range(count):
            make(index, name).save(root / name / index_name(index), quality=95)
            index += 1


def plain(index: int, _: str = "") -> Image.Image:
    """An image with the uniform colour of its index; sizes vary."""
    return Image.new("RGB", (24 + 5 * index % 37, 24 + 7 * index % 31), index_color(index))


def photo(height: int, width: int, seed: int, channels: int = 3) -> np.ndarray:
    """Smooth colours with grain, H x W x channels, like a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), float)
    image = smooth[:, :, :channels] + rng.normal(0, 10, (height, width, channels))
    return np.clip(image, 0, 255).astype(np.uint8)


def run(pipeline: Any, batches: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The next batches of a pipeline with two outputs."""
    for _ in range(batches):
        first, second = map(array, pipeline.run())
        yield first, second


def train(data: Path, **changes: Any) -> Pipeline:
    """A training pipeline of small images, by default without mixing."""
    settings = {
        "mix": "none",
        "num_classes": 3,
        "image_size": 8,
        "batch_size": 4,
        "num_threads": 1,
        "seed": 5,
    }
    return train_pipeline(data, **_in_records({**settings, **changes}, augmentation=Augmentation))


def val(data: Path, **changes: Any) -> Pipeline:
    """A validation pipeline of small images."""
    return val_pipeline(data, **_in_records({"image_size": 8, "batch_size": 4, "num_threads": 1, **changes}))


def _in_records(changes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Collect arguments that are fields of a record in that record, unless it is given."""
    for name, record in {"output": Output, "execution": Execution, **more}.items():
        own = {field.name for field in dataclasses.fields(record)} & changes.keys()
        made = record(**{field: changes.pop(field) for field in own})
        changes.setdefault(name, made)
    return changes
