"""mean= and std=: the same numbers as mixing first and normalising afterwards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import dali_msda as msda
from tests.running import build, image_source, random_images, source

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def mixed(images: np.ndarray, layout: str = "HWC", **arguments: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """One batch and its targets, with draws that depend on nothing but the seed; and the layout."""
    pipeline = build(
        lambda: msda.mix(
            image_source(images, layout),
            source([np.array([i % 3], np.int32) for i in range(len(images))]),
            num_classes=3,
            layout=layout,
            seed=3,
            **arguments,
        ),
        len(images),
    )
    lists = pipeline.run()
    return np.array(lists[0].as_array()), np.array(lists[1].as_array()), lists[0].layout()


# One kernel mixes and normalises uint8 HWC images, every method in its own way; "none" only normalises.
# Everywhere else it is DALI's operator after the mixing, which no longer knows the method.
FUSED = itertools.product(msda.METHODS, ["kernel"], ["uint8"], ["HWC"], [None, "HWC", "CHW"])
AFTERWARDS = itertools.product(
    ["none", "hmix"],
    ["kernel", "graph"],
    ["uint8", "float16", "float32"],
    ["HWC", "CHW"],
    [None, "HWC", "CHW"],
)


@pytest.mark.parametrize(
    ("method", "backend", "dtype", "layout", "output_layout"), sorted({*FUSED, *AFTERWARDS}, key=str)
)
def test_as_if_normalised_afterwards(
    method: str, backend: str, dtype: str, layout: str, output_layout: str | None
) -> None:
    images = random_images(6, (13, 10), dtype=np.dtype(dtype))
    images = images.transpose(0, 3, 1, 2).copy() if layout == "CHW" else images
    common: dict[str, Any] = {"layout": layout, "method": method, "backend": backend}
    plain, targets, _ = mixed(images, **common)
    norm: dict[str, Any] = {"mean": MEAN, "std": STD} | (
        {"output_layout": output_layout} if output_layout else {}
    )
    normal, same_targets, made = mixed(images, **common, **norm)
    assert made == (output_layout or layout)
    assert normal.dtype == np.float32
    last = plain.transpose(0, 2, 3, 1) if layout == "CHW" else plain
    expected = (last.astype(np.float64) - MEAN) / STD
    if made == "CHW":
        expected = expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normal, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(same_targets, targets)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    images = random_images(4, (9, 12), channels)
    mean, std = [10.0 * (c + 1) for c in range(channels)], [2.0 + c for c in range(channels)]
    plain, _, _ = mixed(images, method="hmix")
    for layout, axes in (("HWC", (0, 1, 2, 3)), ("CHW", (0, 3, 1, 2))):
        normal, _, _ = mixed(images, method="hmix", mean=mean, std=std, output_layout=layout)
        expected = ((plain.astype(np.float64) - mean) / std).transpose(axes)
        np.testing.assert_allclose(normal, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["kernel", "graph"])
def test_a_mean_for_other_channels(backend: str) -> None:
    """In the graph form it is the operator of DALI that says so."""
    with pytest.raises(RuntimeError, match=r"3: mean|match the number of channels"):
        mixed(random_images(4, (8, 8)), method="hmix", backend=backend, mean=[1.0, 2.0], std=[1.0, 1.0])
