"""mean= and std=: the same results as mixing first and normalising afterwards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types

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


MIRRORED = [1, 0, 0, 1]
CHANNELS_FIRST = {"mean": MEAN, "std": STD, "output_layout": "CHW"}
# Every argument of fn.crop_mirror_normalize that mixing takes. A function makes a node.
WAYS: dict[str, dict[str, Any]] = {
    "numbers": {"mean": 127.5, "std": 60},
    "numbers, channels first": {"mean": 127.5, "std": np.float32(60), "output_layout": "CHW"},
    "number and numbers": {"mean": 127.5, "std": STD},
    "numbers and number": {"mean": tuple(MEAN), "std": 60.0, "output_layout": "CHW"},
    "arrays": {"mean": np.array(MEAN, np.float32), "std": np.array(STD)},
    "array of no dimensions": {"mean": np.array(127.5), "std": np.array(60)},
    "scale and shift": {**CHANNELS_FIRST, "scale": 1 / 255, "shift": 0.3},
    "scale and shift of numbers": {"mean": 0.0, "std": 1.0, "scale": -3.7, "shift": 1000},
    "mirrored": {**CHANNELS_FIRST, "mirror": 1},
    "mirrored by a node": {**CHANNELS_FIRST, "mirror": lambda: source(np.array(MIRRORED, np.int64))},
    "mirrored by booleans": {
        "mean": MEAN,
        "std": STD,
        "mirror": lambda: source([np.array([flag], bool) for flag in MIRRORED], dtype=types.BOOL),
    },
    "float16": {**CHANNELS_FIRST, "output_dtype": types.FLOAT16},
    "float16 beyond its range": {**CHANNELS_FIRST, "output_dtype": types.FLOAT16, "scale": 1e5},
    "uint8": {**CHANNELS_FIRST, "output_dtype": types.UINT8, "scale": 40.5, "shift": 127.5},
    "int8": {"mean": MEAN, "std": STD, "output_dtype": types.INT8, "scale": 60.0},
    "padded": {"mean": MEAN, "std": STD, "pad_output": True},
    "padded numbers": {"mean": 1.0, "std": 2.0, "pad_output": True, "output_layout": "CHW"},
    "all": {
        **CHANNELS_FIRST,
        "scale": 2.0,
        "shift": 0.7,
        "mirror": 1,
        "output_dtype": types.FLOAT16,
        "pad_output": True,
    },
}


def by_numpy(plain: np.ndarray, way: dict[str, Any]) -> np.ndarray:
    """What the arguments mean, in float64 and not rounded."""
    made = plain.astype(np.float64) - way["mean"]
    made = way.get("scale", 1.0) * made / way["std"] + way.get("shift", 0.0)
    mirror = way.get("mirror", 0)
    flags = MIRRORED if callable(mirror) else [mirror] * len(made)
    made = np.stack([image[:, ::-1] if flag else image for image, flag in zip(made, flags, strict=True)])
    made = np.pad(made, [(0, 0)] * 3 + [(0, int(way.get("pad_output", False)))])
    return made.transpose(0, 3, 1, 2) if way.get("output_layout") == "CHW" else made


def nodes(way: dict[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in way.items()}


@in_every_form
def test_every_argument_is_that_of_the_operator(backend: str, device: str) -> None:
    """Equal to the last bit, and what the arguments mean."""
    images = random_images(4, (13, 10))

    def define() -> list[Any]:
        common: dict[str, Any] = {"method": "hmix", "seed": 3, "backend": backend}
        own = image_source(images, "HWC", device=device)
        plain = msda.mix(own, None, **common)
        made = [plain]
        for way in WAYS.values():
            given = nodes(way)
            theirs = {"output_layout": "HWC", **given}
            theirs["dtype"] = theirs.pop("output_dtype", types.FLOAT)
            if callable(way.get("mirror")):  # the operator takes int32 only
                theirs["mirror"] = fn.cast(given["mirror"], dtype=types.INT32)
            made += [msda.mix(own, None, **common, **given), fn.crop_mirror_normalize(plain, **theirs)]
        return made

    plain, *made = map(array, build(define, len(images), device=device).run())
    for name, own, theirs in zip(WAYS, made[::2], made[1::2], strict=True):
        way = WAYS[name]
        assert own.dtype == theirs.dtype, name
        np.testing.assert_array_equal(own, theirs, name)
        exact = by_numpy(plain, way)
        assert own.shape == exact.shape, name
        if own.dtype.kind in "iu":
            info = np.iinfo(own.dtype)
            exact, bound = np.clip(exact, info.min, info.max), 0.5 + 1e-4
        else:
            # Rounded: the mean with the shift, its difference from the pixel, the factor, the product.
            bound = 2 * float(np.finfo(own.dtype).eps) * max(np.abs(exact).max(), abs(way.get("shift", 0.0)))
            in_range = np.abs(exact) < float(np.finfo(own.dtype).max)
            np.testing.assert_array_equal(np.isfinite(own), in_range, name)
            own, exact = own[in_range], exact[in_range]
        assert np.abs(own - exact).max() <= bound, name


@in_every_form
def test_the_mask_is_mirrored_with_the_images(backend: Any, device: str) -> None:
    images = random_images(4, (13, 10))

    def define() -> list[Any]:
        made = []
        for mirror in (0, source(np.array(MIRRORED, np.int32))):
            norm: dict[str, Any] = {"mean": 0.0, "std": 1.0, "mirror": mirror, "output_layout": "CHW"}
            own = image_source(images, "HWC", device=device)
            mixed, params = msda.hmix(own, None, seed=3, return_params=True, backend=backend, **norm)
            made += [mixed, params.mask]
        return made

    plain, mask, mirrored, mirrored_mask = map(array, build(define, len(images), device=device).run())
    assert mask.shape == (4, 13, 10, 1)
    assert (mask != mask[:, :, ::-1]).any()
    for i, flag in enumerate(MIRRORED):
        step = -1 if flag else 1
        np.testing.assert_array_equal(mirrored[i], plain[i][..., ::step])
        np.testing.assert_array_equal(mirrored_mask[i], mask[i][:, ::step])


def test_with_mixing_takes_the_same_arguments() -> None:
    images = random_images(4, (13, 10))

    @pipeline_def(batch_size=4, num_threads=2, device_id=None)
    def define() -> Any:
        return image_source(images, "HWC")

    made: list[np.ndarray] = []
    for norm in ({}, WAYS["all"]):
        pipeline = msda.with_mixing(define, labels=None, seed=3, **norm)()
        pipeline.build()
        made += map(array, pipeline.run())
    np.testing.assert_allclose(made[1], by_numpy(made[0], WAYS["all"]), rtol=1e-3, atol=1e-3)


def test_blend_and_apply_take_the_same_arguments() -> None:
    images = random_images(4, (13, 10))
    way = {**WAYS["all"], "mirror": 1}

    def define() -> list[Any]:
        own = image_source(images, "HWC")
        drawn = msda.draw("hmix", own, seed=3)
        mask = source([np.full((13, 10), 0.25, np.float32)] * 4)
        made = []
        for norm in ({}, way):
            labels = source([np.array([0], np.int32)] * 4)
            blended, _ = msda.blend(own, labels, mask=mask, num_classes=2, seed=3, **norm)
            made += [msda.apply(own, drawn, **norm), blended]
        return made

    made = list(map(array, build(define, len(images)).run()))
    for plain, normal in zip(made[:2], made[2:], strict=True):
        np.testing.assert_allclose(normal, by_numpy(plain, way), rtol=1e-3, atol=1e-3)


@in_every_form
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("method", ["none", "hmix"])
def test_a_mean_for_other_channels(method: str, layout: str, count: int, backend: str, device: str) -> None:
    """On a GPU only our own check raises: there DALI's operator takes any number of means."""
    images = random_images(4, (8, 8))
    images = images.transpose(0, 3, 1, 2).copy() if layout == "CHW" else images
    norms = [
        {"mean": [1.0] * count, "std": [1.0] * count},
        {"mean": 1.0, "std": np.ones(count), "output_dtype": types.FLOAT16, "pad_output": True},
    ]
    for norm in norms:
        with pytest.raises(RuntimeError, match=r"3: mean|mean must have"):
            mixed(images, norm, layout=layout, method=method, backend=backend, device=device)
