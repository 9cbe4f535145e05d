"""The crop of the padded image, compared with NumPy's; validation images at their own size."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dali_msda import Mixing
from pipelines.imagenet import train_pipeline
from pipelines.records import Augmentation, Execution, Output, Shard
from tests.devices import on_each_device
from tests.graph_check import problems
from tests.image_sets import pixels, run, train, val, write_split
from tests.test_resize import exact

SIDE = 8
COUNTS = (8, 8, 8)


def noise(index: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """An image without black pixels, so that padding can be told from it."""
    return np.random.default_rng(index).integers(1, 256, (height, width, 3), dtype=np.uint8)


def write(root: Path, height: int, width: int) -> Path:
    """A train/ and a val/ with PNG files of `noise`."""
    for split in ("train", "val"):
        write_split(root / split, COUNTS, lambda index, _: Image.fromarray(noise(index, height, width)))
        for path in (root / split).rglob("*.JPEG"):
            Image.fromarray(noise(int(path.stem), height, width)).save(path.with_suffix(".png"))
            path.unlink()
    return root


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the size that they are trained at."""
    return write(tmp_path_factory.mktemp("squares"), SIDE, SIDE)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("wide"), 2 * SIDE, 3 * SIDE)


def integers(images: np.ndarray) -> np.ndarray:
    """N x H x W x 3 of a pipeline's output, as the pixels were before the normalisation."""
    found = pixels(images).transpose(0, 2, 3, 1)
    assert np.abs(found - found.round()).max() < 1e-3
    return found.round().astype(np.uint8)


def crops(image: np.ndarray, padding: int) -> dict[bytes, tuple[bool, int, int]]:
    """Every possible crop: whether it is mirrored, and its row and column in the padded image."""
    found = {}
    for mirrored in (False, True):
        padded = np.pad(image[:, :: -1 if mirrored else 1], ((padding, padding), (padding, padding), (0, 0)))
        for row in range(padded.shape[0] - SIDE + 1):
            for column in range(padded.shape[1] - SIDE + 1):
                crop = padded[row : row + SIDE, column : column + SIDE]
                found[crop.tobytes()] = (mirrored, row, column)
    return found


@on_each_device
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crops_of_padded_images(padding: int, device: str, squares: Path) -> None:
    """Each is one of the possible crops, to the bit; mirror, row and column are uniform and independent."""
    possible = [crops(noise(index), padding) for index in range(sum(COUNTS))]
    known = {crop: place for image in possible for crop, place in image.items()}
    assert len(known) == sum(map(len, possible))
    pipeline = train(squares, crop_padding=padding, batch_size=24, image_size=SIDE, device=device)
    batches = 40
    found = [known[crop.tobytes()] for images, _ in run(pipeline, batches) for crop in integers(images)]
    places = 2 * padding + 1
    counts = np.zeros((2, places, places), int)
    for mirrored, row, column in found:
        counts[int(mirrored), row, column] += 1
    assert counts.sum() == 24 * batches
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


BORDER = ((1, 1), (1, 1), (0, 0))


def halved(image: np.ndarray) -> np.ndarray:
    """Half the size, in float64; beyond the border DALI repeats the last pixel."""
    around = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="edge")
    return exact(around, around.shape[0] // 2, around.shape[1] // 2)[2:-2, 2:-2]


@on_each_device
def test_other_sizes(device: str, wide: Path) -> None:
    """The shorter side is resized; the crop may then be anywhere along the longer one."""
    pipeline = train(
        wide, crop_padding=1, batch_size=24, image_size=SIDE, mirror_probability=0.0, device=device
    )
    padded = np.stack([np.pad(halved(noise(i, 2 * SIDE, 3 * SIDE)), BORDER) for i in range(sum(COUNTS))])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
    windows = windows.transpose(0, 1, 2, 4, 5, 3)  # image, row, column, crop
    rows, columns = set(), set()
    for images, _ in run(pipeline, 4):
        for crop in integers(images):
            errors = np.abs(windows - crop).max((3, 4, 5))
            _, row, column = np.unravel_index(errors.argmin(), errors.shape)
            assert errors.min() < 2.501  # DALI rounds between its passes
            rows.add(int(row))
            columns.add(int(column))
    assert rows == set(range(3))
    assert columns == set(range(SIDE // 2 + 3))


@on_each_device
def test_checkpoint(device: str, squares: Path) -> None:
    """A restored pipeline makes the same batches; another seed makes others."""
    arguments: dict[str, Any] = {"mix": Mixing("hmix"), "crop_padding": 2, "image_size": SIDE}
    arguments |= {"enable_checkpointing": True, "device": device}
    pipeline = train(squares, **arguments)
    pipeline.build()
    list(run(pipeline, 3))
    state = pipeline.checkpoint()
    expected = list(run(pipeline, 9))
    restored = train(squares, **arguments, checkpoint=state)
    restored.build()
    for (images, targets), (found, labels) in zip(expected, run(restored, 9), strict=True):
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(labels, targets)
    first, other = (next(run(train(squares, **arguments | {"seed": seed})))[0] for seed in (5, 6))
    assert not np.array_equal(first, other)


def test_graph_on_a_gpu(squares: Path) -> None:
    """Nothing in it keeps it from running there, or waits for the CPU."""
    pipeline = train_pipeline(
        squares,
        num_classes=3,
        batch_size=8,
        num_threads=2,
        device="gpu",
        augmentation=Augmentation(crop_padding=2),
        output=Output(image_size=SIDE, layout="HWC"),
        execution=Execution(device_id=1),
        shard=Shard(index=1, count=2),
    )
    assert problems(pipeline._graph_out) == []


@on_each_device
def test_validation_at_the_images_own_size(device: str, squares: Path) -> None:
    """With the size as `resize_size`, nothing is cut off or changed."""
    ((images, _),) = run(val(squares, image_size=SIDE, resize_size=SIDE, batch_size=24, device=device))
    np.testing.assert_array_equal(integers(images), np.stack([noise(index) for index in range(24)]))


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        ({"crop_padding": -1}, "crop_padding must be at least 0; got -1"),
        ({"crop_padding": 2.5}, "crop_padding must be an integer; got 2.5"),
        (
            {"crop_padding": 2, "crop_area": (0.5, 1.0)},
            "crop_area must be left out with crop_padding, which replaces it; got (0.5, 1.0)",
        ),
        (
            {"crop_padding": 2, "crop_aspect_ratio": (1.0, 1.0)},
            "crop_aspect_ratio must be left out with crop_padding, which replaces it; got (1.0, 1.0)",
        ),
        ({"crop_padding": SIDE}, f"crop_padding must be below the image size ({SIDE}); got {SIDE}"),
    ],
)
def test_bad_arguments(augmentation: dict[str, Any], words: str, squares: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        train(squares, image_size=SIDE, **augmentation)


def test_the_default_may_be_given() -> None:
    """Also as a list, as read from a file."""
    standard = dataclasses.asdict(Augmentation())
    assert Augmentation(**standard | {"crop_padding": 4, "crop_area": [0.08, 1.0]}).crop_padding == 4
