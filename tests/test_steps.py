"""Mixing in steps: several inputs of a sample, maps, a second source, against NumPy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, types

import dali_msda as msda
from dali_msda.methods import MIXING
from tests import reference
from tests.devices import in_every_form, placed
from tests.running import build, image_source, outputs, random_images, source
from tests.test_labels import IDS, LAM, PARTNER, K, flat, label_source, run

COUNT, SIZE = 6, (24, 32)
IMAGES = random_images(COUNT, SIZE)
OTHERS = random_images(COUNT, SIZE, seed=1)
Arrays = np.ndarray[Any, Any]


def images_of(values: Arrays = IMAGES, device: str = "cpu") -> Any:
    return image_source(values, "HWC", device=device)


@in_every_form
@pytest.mark.parametrize("method", MIXING)
def test_steps_are_the_one_line(method: str, backend: Any, device: str) -> None:
    """The same seed gives the same images and targets, bit for bit."""

    def one_line() -> Any:
        return msda.mix(
            images_of(device=device),
            label_source(IDS),
            K,
            method=method,
            seed=7,
            label_smoothing=0.1,
            probability=0.8,
            backend=backend,
            return_params=True,
        )

    def steps() -> Any:
        images, labels = images_of(device=device), label_source(IDS)
        drawn = msda.draw(method, images, seed=7, probability=0.8, backend=backend)
        mixed = msda.apply(images, drawn)
        targets = msda.mix_labels(labels, drawn, K, label_smoothing=0.1)
        return mixed, targets, drawn.lam, drawn.partner

    for whole, parts in zip(
        outputs(lambda: flat(one_line())[:4], COUNT, batches=3, device=device),
        outputs(lambda: flat(steps()), COUNT, batches=3, device=device),
        strict=True,
    ):
        for expected, found in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(found, expected)


@in_every_form
def test_views_share_their_draws(backend: Any, device: str) -> None:
    """Each view is what it would be alone, with the draws of the first."""

    def define() -> Any:
        views = [images_of(device=device), images_of(OTHERS, device)]
        return msda.hmix(views, label_source(IDS), K, seed=3, backend=backend)

    def alone(values: Arrays) -> Any:
        return msda.hmix(images_of(values, device), label_source(IDS), K, seed=3, backend=backend)

    first, second, targets = run(define, device)
    for found, values in ((first, IMAGES), (second, OTHERS)):
        expected, expected_targets = run(lambda values=values: alone(values), device)  # type: ignore[misc]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(targets, expected_targets)


@in_every_form
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize("method", ["cutmix", "gmix"])
def test_a_map_of_a_quarter_of_the_size(method: str, given: bool, backend: Any, device: str) -> None:
    """Has the same mask at its own scale: of the same lam, with its centre in the same place."""
    features = np.random.default_rng(0).random((COUNT, 6, 8, 4)).astype(np.float32)
    lam = np.full(COUNT, 0.75, np.float32)
    center = {"center": source([np.array([12, 16], np.int32)] * COUNT)} if given else {}

    def define() -> Any:
        images = images_of(device=device)
        drawn = msda.draw(
            method,
            images,
            lam=source(list(lam)),
            partner=source(list(PARTNER)),
            seed=2,
            backend=backend,
            **center,
        )
        small = image_source(features, "HWC", device=device)
        ones, zeros = (
            image_source(np.full((COUNT, *size, 1), value, np.float32), "HWC", device=device)
            for size, value in ((SIZE, 0), ((6, 8), 0))
        )
        masks = [msda.apply(node + 1.0, drawn, partner_images=node) for node in (ones, zeros)]
        return msda.apply(small, drawn), *masks

    mixed, large, small = run(define, device)
    blocks = large[..., 0].reshape(COUNT, 6, 4, 8, 4).mean((2, 4))
    assert np.abs(small[..., 0] - blocks).mean() < 0.12
    assert np.abs(small.mean((1, 2, 3)) - large.mean((1, 2, 3))).max() < 0.15
    for i, j in enumerate(PARTNER):
        exact = reference.blend(features[i], features[j], small[i, ..., 0].astype(np.float64), "HWC")
        np.testing.assert_allclose(mixed[i], exact, rtol=0, atol=1e-6)


# -- Maps ---------------------------------------------------------------------------------------------------

MAPS = np.random.default_rng(3).integers(0, 5, (COUNT, *SIZE))
MAPS[:, :4] = 255  # ignored


@in_every_form
@pytest.mark.parametrize(
    ("layout", "dtype"), [("HW", "uint8"), ("HWC", "uint16"), ("HW", "int32"), ("HWC", "int64")]
)
def test_maps_of_class_ids(layout: str, dtype: str, backend: Any, device: str) -> None:
    """Every pixel is that of whoever weighs more, the own one of equals; 255 only where one had it."""
    maps = MAPS.astype(dtype)
    if layout == "HWC":
        maps = maps[..., None]

    def define() -> Any:
        images = images_of(device=device)
        drawn = msda.draw(
            "hmix", images, lam=source(list(LAM)), partner=source(list(PARTNER)), seed=2, backend=backend
        )
        kind = getattr(types, dtype.upper())
        ids = placed(source(list(maps), dtype=kind, ndim=maps.ndim - 1, layout=layout), device)
        zeros = image_source(np.zeros((COUNT, *SIZE, 1), np.float32), "HWC", device=device)
        mask = msda.apply(zeros + 1.0, drawn, partner_images=zeros)
        return msda.apply(ids, drawn, layout=layout, nearest=True), mask

    mixed, mask = run(define, device)
    assert (mixed.dtype, mixed.shape) == (maps.dtype, maps.shape)
    own = mask.reshape(COUNT, *SIZE, *(1,) * (maps.ndim - 3)) >= 0.5
    np.testing.assert_array_equal(mixed, np.where(own, maps, maps[PARTNER]))


@pytest.mark.parametrize("backend", ["kernel", "graph"])
def test_equal_weights_go_to_the_own_map(backend: Any) -> None:
    def define() -> Any:
        drawn = msda.draw("mixup", images_of(), lam=0.5, partner=source(list(PARTNER)), backend=backend)
        ids = source(list(MAPS.astype(np.int32)), dtype=types.INT32, layout="HW")
        return [msda.apply(ids, drawn, layout="HW", nearest=True)]

    np.testing.assert_array_equal(run(define)[0], MAPS)


@in_every_form
def test_depth_maps_and_soft_planes(backend: Any, device: str) -> None:
    depth = np.random.default_rng(4).random((COUNT, *SIZE)).astype(np.float32)

    def define() -> Any:
        images = images_of(device=device)
        drawn = msda.draw(
            "gmix", images, lam=source(list(LAM)), partner=source(list(PARTNER)), seed=2, backend=backend
        )
        zeros = image_source(np.zeros((COUNT, *SIZE, 1), np.float32), "HWC", device=device)
        ids = placed(source(list(MAPS.astype(np.int32)), dtype=types.INT32, layout="HW"), device)
        planes = fn.reshape(fn.one_hot(ids, num_classes=5, axis=2), layout="HWC")
        return (
            msda.apply(
                placed(source(list(depth), dtype=types.FLOAT, layout="HW"), device), drawn, layout="HW"
            ),
            msda.apply(planes, drawn),
            msda.apply(zeros + 1.0, drawn, partner_images=zeros),
        )

    mixed, planes, mask = run(define, device)
    weight = mask[..., 0].astype(np.float64)
    np.testing.assert_allclose(mixed, weight * depth + (1 - weight) * depth[PARTNER], rtol=0, atol=1e-6)
    hot = (MAPS[..., None] == np.arange(5)).astype(np.float64)  # ignored pixels are 0 in all planes
    exact = mask * hot + (1 - mask.astype(np.float64)) * hot[PARTNER]
    np.testing.assert_allclose(planes, exact, rtol=0, atol=1e-6)


# -- A second source ----------------------------------------------------------------------------------------


@in_every_form
@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, np.uint8) for method in MIXING), ("cutmix", np.float16), ("hmix", np.float32)],
)
def test_partners_of_a_second_source(method: str, dtype: Any, backend: Any, device: str) -> None:
    own, other = (random_images(COUNT, SIZE, seed=seed, dtype=dtype) for seed in (0, 1))
    other_ids = (IDS + 2) % K

    def define() -> Any:
        return msda.mix(
            images_of(own, device),
            label_source(IDS),
            K,
            method=method,
            partner_images=images_of(other, device),
            partner_labels=label_source(other_ids),
            partner=source(list(PARTNER)),
            seed=1,
            backend=backend,
            return_params=True,
        )

    mixed, targets, lam, _, mask = run(define, device)
    bound = {"uint8": 0.5 + 1e-4, "float16": 2e-3, "float32": 2e-6}[np.dtype(dtype).name]
    for i, j in enumerate(PARTNER):
        exact = reference.blend(own[i], other[j], mask[i, ..., 0].astype(np.float64), "HWC")
        assert np.abs(mixed[i].astype(np.float64) - exact).max() <= bound
        expected = reference.targets(int(IDS[i]), int(other_ids[j]), float(lam[i]), K)
        np.testing.assert_allclose(targets[i], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["kernel", "hybrid", "graph"])
def test_a_second_source_of_another_type_normalised(backend: Any) -> None:
    """And a batch of one mixes with it."""
    other = random_images(1, SIZE, seed=1, dtype=np.float32)

    def define() -> Any:
        return msda.mixup(
            images_of(IMAGES[:1]),
            None,
            lam=0.25,
            partner_images=images_of(other),
            mean=[10.0] * 3,
            std=[2.0] * 3,
            output_layout="CHW",
            backend=backend,
        )

    (mixed,) = outputs(lambda: [define()], 1)[0]
    partner = np.clip(np.round(other[0].astype(np.float64)), 0, 255)  # as uint8, like the images
    exact = (np.round(0.25 * IMAGES[0] + 0.75 * partner) - 10) / 2
    assert np.abs(mixed[0].transpose(1, 2, 0) - exact).max() <= 0.5


BAD = {
    "sizes": (lambda **_: images_of(OTHERS[:, :-1].copy()), label_source, IDS, "images differ in size"),
    "a label": (lambda **_: images_of(OTHERS), label_source, IDS + K, "a label must be in"),
}


@pytest.mark.parametrize("backend", ["kernel", "hybrid", "graph"])
@pytest.mark.parametrize(("images", "labels", "ids", "words"), BAD.values(), ids=BAD)
def test_faults_of_a_second_source(
    images: Callable[..., Any], labels: Callable[..., Any], ids: Arrays, words: str, backend: Any
) -> None:
    pipeline = build(
        lambda: msda.hmix(
            images_of(),
            label_source(IDS),
            K,
            partner_images=images(),
            partner_labels=labels(ids),
            backend=backend,
        ),
        COUNT,
    )
    with pytest.raises(RuntimeError, match=words):
        pipeline.run()


@pytest.mark.parametrize("backend", ["kernel", "hybrid", "graph"])
@pytest.mark.parametrize("nearest", [False, True])
def test_faults_of_images_without_labels(nearest: bool, backend: Any) -> None:
    """The images wait for their own check."""
    sizes = [image[: 10 + i] for i, image in enumerate(IMAGES)]

    def define() -> Any:
        images = image_source(sizes, "HWC")
        drawn = msda.draw("cutmix", images, partner=source(list(PARTNER)), backend=backend)
        return [msda.apply(images, drawn, nearest=nearest)]

    pipeline = build(define, COUNT)
    with pytest.raises(RuntimeError, match="images differ in size"):
        pipeline.run()


REFUSED = {
    "no labels of partners": (
        lambda: msda.hmix(images_of(), label_source(IDS), K, partner_images=images_of()),
        "partner_labels must be given with partner_images",
    ),
    "fewer sources than views": (
        lambda: msda.hmix([images_of(), images_of()], None, partner_images=[images_of()]),
        "partner_images must be as many as images, 2; got 1",
    ),
    "no views": (lambda: msda.hmix([], None), "images must be a DALI node or a sequence of them"),
    "something else than draws": (
        lambda: msda.apply(images_of(), 0.5),  # type: ignore[arg-type]
        "drawn must be what msda.draw returns; got 0.5",
    ),
    "normalised ids": (
        lambda: msda.apply(
            images_of(), msda.draw("mixup", images_of()), nearest=True, mean=[0.0] * 3, std=[1.0] * 3
        ),
        "mean must be left out with nearest=True",
    ),
    "an unknown argument": (
        lambda: msda.hmix(images_of(), None, ratoi=0.5),  # type: ignore[call-overload]
        "hmix has no argument 'ratoi'; did you mean ratio",
    ),
    "an unknown argument of draw": (
        lambda: msda.draw("hmix", images_of(), ratoi=0.5),
        "hmix has no argument 'ratoi'; did you mean ratio",
    ),
}


@pytest.mark.parametrize(("define", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(define: Callable[[], Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        build(lambda: flat(define()), COUNT)


def test_names_of_operators() -> None:
    names: list[str] = []

    def define() -> Any:
        views = msda.hmix([images_of(), images_of()], None, name="mixed")
        names.extend(node.name for node in views)
        return views

    build(define, COUNT)
    assert names == ["mixed", "mixed_1"]


def test_help_is_complete() -> None:
    """Each method's own: every argument with its text."""
    for name in MIXING:
        function = getattr(msda, name)
        text = function.__doc__
        for argument in inspect.signature(function).parameters:
            assert argument in text, (name, argument)
        assert "See :func:`mix`" not in text
