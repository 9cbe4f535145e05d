"""The element type found in the graph is DALI's at run time, or unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.pipeline import do_not_convert
from PIL import Image

from dali_msda.dtypes import static_dtype
from tests.running import source


def encoded() -> Any:
    import io

    file = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 30, 90)).save(file, "JPEG")
    return source([np.frombuffer(file.getvalue(), np.uint8)] * 2, dtype=types.UINT8)


def photo() -> Any:
    return fn.decoders.image(encoded())


SEEN: dict[str, Callable[[], Any]] = {
    "decoder": photo,
    "random crop": lambda: fn.decoders.image_random_crop(encoded()),
    "decoder as float": lambda: fn.decoders.image(encoded(), dtype=types.FLOAT),
    "resize": lambda: fn.resize(photo(), size=[8, 8]),
    "resize to float": lambda: fn.resize(photo(), size=[8, 8], dtype=types.FLOAT),
    "flip of resize": lambda: fn.flip(fn.resize(photo(), size=[8, 8])),
    "crop": lambda: fn.crop(photo(), crop=[8, 8]),
    "normalised": lambda: fn.crop_mirror_normalize(photo()),
    "normalised to half": lambda: fn.crop_mirror_normalize(photo(), dtype=types.FLOAT16),
    "cast": lambda: fn.cast(photo(), dtype=types.FLOAT),
    "colour twist": lambda: fn.color_twist(photo(), hue=10.0),
    "jpeg distortion": lambda: fn.jpeg_compression_distortion(photo(), quality=10),
    "transposed": lambda: fn.transpose(photo(), perm=[2, 0, 1]),
    "labels of files": lambda: fn.readers.file(files=[__file__], labels=[3])[1],
    "permutation": lambda: fn.batch_permutation(),
    "coin flip": lambda: fn.random.coin_flip(),
    "coin flip of booleans": lambda: fn.random.coin_flip(dtype=types.BOOL),
    "arithmetic with a float": lambda: photo() * 2.0,
    "arithmetic of floats": lambda: fn.one_hot(fn.batch_permutation(), num_classes=2) * 0.9 + 0.05,
    "arithmetic of doubles": lambda: 2 * fn.cast(photo(), dtype=types.FLOAT64),
    "external with dtype": lambda: source([np.zeros((4, 4, 3), np.float32)] * 2, dtype=types.FLOAT),
}
NOT_SEEN: dict[str, Callable[[], Any]] = {
    "external": lambda: source([np.zeros((4, 4, 3), np.uint8)] * 2),
    "arithmetic of integers": lambda: photo() * 2,
    "comparison": lambda: photo() > 0.5,
    "arithmetic of float16": lambda: fn.cast(photo(), dtype=types.FLOAT16) * 2,
    "cast like": lambda: fn.cast_like(photo(), photo()),
    "resize of external": lambda: fn.resize(source([np.zeros((4, 4, 3), np.float32)] * 2), size=[8, 8]),
}


@pytest.mark.parametrize("name", SEEN)
def test_seen_type_is_the_type(name: str) -> None:
    pipeline = Pipeline(2, 1, None)
    with pipeline:
        node = SEEN[name]()
        seen = static_dtype(node)
        pipeline.set_outputs(node)
    pipeline.build()
    assert seen is not None
    assert pipeline.run()[0].dtype == seen


@pytest.mark.parametrize("name", NOT_SEEN)
def test_unseen_type_is_not_guessed(name: str) -> None:
    with Pipeline(2, 1, None):
        assert static_dtype(NOT_SEEN[name]()) is None


@pytest.mark.parametrize(("other", "expected"), [(photo, types.UINT8), (NOT_SEEN["external"], None)])
def test_type_behind_an_if(other: Callable[[], Any], expected: types.DALIDataType | None) -> None:
    """It is that of both branches, if both are seen."""
    found = []

    @pipeline_def(enable_conditionals=True, batch_size=2, num_threads=1, device_id=None)
    def pipeline() -> Any:
        images, others = do_not_convert(photo)(), do_not_convert(other)()
        if fn.random.coin_flip(dtype=types.BOOL):  # noqa: SIM108
            images = fn.flip(images)
        else:
            images = fn.flip(others)
        found.append(static_dtype(images))
        return images

    (images,) = pipeline().run()
    assert images.dtype == types.UINT8
    assert found == [expected]
