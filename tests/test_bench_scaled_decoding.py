"""The comparison of both ways to decode shows a difference only where there is one, at its scale."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from benchmarks.bench_scaled_decoding import Crop, crop_both_ways, draw, psnr, summarize
from tests.image_sets import photo


def test_psnr() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert psnr(image, image) == math.inf
    assert psnr(image + np.uint8(255), image) == 0
    assert psnr(image + np.uint8(1), image) == 20 * math.log10(255)


def test_crops_of_a_photo() -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo(600, 800, 0)).save(buffer, "JPEG", quality=90)
    crops = list(crop_both_ways([buffer.getvalue()], 120, 30))
    assert {crop.scale for crop in crops} == {1, 2, 4}
    for crop in crops:
        found = psnr(crop.scaled, crop.full)
        assert found == math.inf if crop.scale == 1 else 30 < found < math.inf
    again = next(crop_both_ways([buffer.getvalue()], 120, 1))
    assert np.array_equal(again.scaled, crops[0].scaled)


def test_summary_of_a_scale() -> None:
    grey = np.full((160, 160, 3), 100, np.uint8)
    crops = [Crop(2, grey + np.uint8(step), grey, grey + np.uint8(4)) for step in (1, 2, 4)]
    (record,) = summarize("x", [*crops, Crop(1, grey, grey, grey)])
    assert (record["scale"], record["crops"], record["share_of_crops"]) == (2, 3, 0.75)
    assert record["median_db"] == psnr(grey + np.uint8(2), grey)
    assert record["worst_db"] == record["bicubic_median_db"] == psnr(grey + np.uint8(4), grey)
    assert record["mean_difference_levels"] == 7 / 3
    assert draw({"x": crops}).getextrema() == ((0, 255),) * 3
