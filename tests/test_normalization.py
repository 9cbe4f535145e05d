"""mean= and std=: the same results as mixing first and normalising afterwards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import dali_msda as msda
from tests.devices import array, in_every_form, on_each_device, with_device
from tests.running import build, image_source, random_images, source

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def mixed(
    images: np.ndarray, *ways: dict[str, Any], layout: str = "HWC", device: str = "cpu", **common: Any
) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """A batch, its targets and its layout for each way; the draws depend on the seed only."""

    def define() -> list[Any]:
        return [
            node
            for way in ways
            for node in msda.mix(
                image_source(images, layout, device=device),
                source([np.array([i % 3], np.int32) for i in range(len(images))]),
                num_classes=3,
                layout=layout,
                seed=3,
                **common,
                **way,
            )
        ]

    lists = build(define, len(images), device=device).run()
    pairs = zip(lists[::2], lists[1::2], strict=True)
    return [(array(made), array(targets), made.layout()) for made, targets in pairs]


# One kernel mixes and normalises uint8 HWC images, with every method; "none" only normalises. Everything else
# is normalised by DALI's operator after the mixing, for which the method makes no difference.
FUSED = itertools.product(msda.METHODS, ["kernel"], ["uint8"], ["HWC"], [None, "HWC", "CHW"])
AFTERWARDS = itertools.product(
    ["none", "hmix"],
    ["kernel", "graph"],
    ["uint8", "float16", "float32"],
    ["HWC", "CHW"],
    [None, "HWC", "CHW"],
)


CASES = sorted({*FUSED, *AFTERWARDS}, key=str)


@with_device(
    ["method", "backend", "dtype", "layout", "output_layout"],
    CASES,
    [case for case in CASES if case[1] == "graph"],
)
def test_as_if_normalised_afterwards(
    method: str, backend: str, dtype: str, layout: str, output_layout: str | None, device: str
) -> None:
    images = random_images(6, (13, 10), dtype=np.dtype(dtype))
    images = images.transpose(0, 3, 1, 2).copy() if layout == "CHW" else images
    norm: dict[str, Any] = {"mean": MEAN, "std": STD} | (
        {"output_layout": output_layout} if output_layout else {}
    )
    (plain, targets, _), (normal, same_targets, made) = mixed(
        images, {}, norm, layout=layout, device=device, method=method, backend=backend
    )
    assert made == (output_layout or layout)
    assert normal.dtype == np.float32
    last = plain.transpose(0, 2, 3, 1) if layout == "CHW" else plain
    expected = (last.astype(np.float64) - MEAN) / STD
    if made == "CHW":
        expected = expected.transpose(0, 3, 1, 2)
    # float32 rounding; the GPU may fuse multiplication and addition, after dividing the mean.
    np.testing.assert_allclose(normal, expected, rtol=0, atol=2e-6 if device == "gpu" else 1e-6)
    np.testing.assert_array_equal(same_targets, targets)


@on_each_device
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels(channels: int, device: str) -> None:
    images = random_images(4, (9, 12), channels)
    mean, std = [10.0 * (c + 1) for c in range(channels)], [2.0 + c for c in range(channels)]
    ways = [{"mean": mean, "std": std, "output_layout": layout} for layout in ("HWC", "CHW")]
    (plain, *_), *made = mixed(images, {}, *ways, method="hmix", device=device)
    for (normal, *_), axes in zip(made, [(0, 1, 2, 3), (0, 3, 1, 2)], strict=True):
        expected = ((plain.astype(np.float64) - mean) / std).transpose(axes)
        np.testing.assert_allclose(normal, expected, rtol=0, atol=1e-5)


@in_every_form
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("method", ["none", "hmix"])
def test_a_mean_for_other_channels(method: str, layout: str, count: int, backend: str, device: str) -> None:
    """On a GPU only our own check raises: there DALI's operator takes any number of means."""
    images = random_images(4, (8, 8))
    images = images.transpose(0, 3, 1, 2).copy() if layout == "CHW" else images
    norm = {"mean": [1.0] * count, "std": [1.0] * count}
    with pytest.raises(RuntimeError, match=r"3: mean|mean must have"):
        mixed(images, norm, layout=layout, method=method, backend=backend, device=device)
