"""The compiled resize compared with an independent one: every pixel is the nearest integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali_msda.backends.numba.resize import resize_image

GUARD = 64


def weights(source: int, target: int) -> np.ndarray:
    """Triangle filter as a matrix, target x source, rows sum to 1: from its definition, in float64."""
    scale = source / target
    support = max(scale, 1.0)
    centers = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centers[:, None])
    triangle = np.clip(1 - distance / support, 0, None)
    return np.asarray(triangle / triangle.sum(1, keepdims=True))


def exact(image: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.asarray(np.einsum("yi,xj,ijc->yxc", rows, columns, image.astype(np.float64)))


def resized(image: np.ndarray, height: int, width: int, mirror: bool = False) -> np.ndarray:
    """Resize, with guard bytes on both sides of the output and of a copy of the input."""
    buffer = np.full(height * width * 3 + 2 * GUARD, 171, np.uint8)
    out = buffer[GUARD:-GUARD].reshape(height, width, 3)
    padded = np.full(image.size + 2 * GUARD, 255, np.uint8)
    source = padded[GUARD:-GUARD].reshape(image.shape)
    source[:] = image
    resize_image(out, source, mirror)
    assert (buffer[:GUARD] == 171).all()
    assert (buffer[-GUARD:] == 171).all()
    np.testing.assert_array_equal(source, image)
    return out


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    mirror=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_pixel_is_the_nearest(
    source: tuple[int, int], target: tuple[int, int], mirror: bool, seed: int
) -> None:
    image = noise(*source, seed)
    expected = exact(image, *target)[:, :: -1 if mirror else 1]
    # float32 sums of up to 90 x 90 terms
    assert np.abs(resized(image, *target, mirror) - expected).max() <= 0.5 + 1e-4


def in_float32(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rows, then columns, each sum from the first pixel to the last: the order that fixes every bit."""
    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    rows, columns = rows.astype(np.float32), columns.astype(np.float32)
    blended = np.zeros((height, *image.shape[1:]), np.float32)
    for y in range(image.shape[0]):
        blended += rows[:, y, None, None] * image[y].astype(np.float32)
    out = np.zeros((height, width, 3), np.float32)
    for x in range(image.shape[1]):
        out += columns[None, :, x, None] * blended[:, x, None]
    return (out + np.float32(0.5)).astype(np.uint8)


@pytest.mark.parametrize(
    "source", [(90, 60), (64, 64), (96, 80), (128, 159), (200, 193), (300, 7), (5, 2), (1, 1)], ids=str
)
@pytest.mark.parametrize("mirror", [False, True])
def test_sums_have_one_order(source: tuple[int, int], mirror: bool) -> None:
    """Images do not change by a bit, whatever the processor can do at a time."""
    image = noise(*source)
    expected = in_float32(image, 64, 64)[:, :: -1 if mirror else 1]
    np.testing.assert_array_equal(resized(image, 64, 64, mirror), expected)


@pytest.mark.parametrize("source", [(375, 500), (224, 224), (97, 1200), (3000, 7), (1, 1)], ids=str)
def test_torch_agrees(source: tuple[int, int]) -> None:
    image = noise(*source)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(tensor, size=(224, 224), mode="bilinear", antialias=True)
    errors = np.abs(resized(image, 224, 224) - expected[0].permute(1, 2, 0).numpy())
    assert errors.max() <= 0.5 + 1e-4


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_uniform_images_stay_uniform(value: int) -> None:
    """Weights that sum to slightly more than 1 must not make 255 overflow to 0."""
    for side in (1, 7, 100, 223, 224, 225, 333, 1001):
        image = np.full((side, side + 3, 3), value, np.uint8)
        assert (resized(image, 224, 64) == value).all()


def test_same_size_is_the_same_image() -> None:
    image = noise(33, 47)
    np.testing.assert_array_equal(resized(image, 33, 47), image)
    np.testing.assert_array_equal(resized(image, 33, 47, mirror=True), image[:, ::-1])
