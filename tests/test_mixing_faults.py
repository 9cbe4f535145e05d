"""Mixing: labels other than integers are refused; a pixel with weight 0 has no influence."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from dali_msda.methods import MIXING
from pipelines.folders import ImageFolder, list_images
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.sources import Order
from tests.running import build, image_source, mix_nodes, random_images, results, source

Array = np.ndarray[Any, Any]
BACKENDS = ["kernel", "hybrid", "graph"]
IMAGES = random_images(4, (8, 8))
LABELS = [np.array([i], np.int64) for i in range(4)]


# Labels and partners of a float type.

FLOATS = {np.float16: types.FLOAT16, np.float32: types.FLOAT, np.float64: types.FLOAT64}
INTEGERS = {
    np.bool_: types.BOOL, np.uint8: types.UINT8, np.int8: types.INT8, np.uint16: types.UINT16,
    np.int16: types.INT16, np.uint32: types.UINT32, np.int32: types.INT32, np.uint64: types.UINT64,
    np.int64: types.INT64,
}  # fmt: skip


def dense() -> Any:
    return source([np.full((8, 8), 0.5, np.float32)] * 4)


def profiles() -> Any:
    return source([np.full(8, 0.5, np.float32)] * 4), source([np.ones(8, np.float32)] * 4)


# Every way to mix images and labels.
ENTRIES: dict[str, Callable[..., Any]] = {
    **{
        f"mix, {name}": lambda *nodes, m=name, **more: msda.mix(*nodes, method=m, **more)
        for name in msda.METHODS
    },
    **{f"msda.{name}": getattr(msda, name) for name in MIXING},
    "none with its mask": lambda *nodes, **more: msda.mix(*nodes, method="none", return_params=True, **more),
    "blend, dense": lambda *nodes, **more: msda.blend(*nodes, mask=dense(), **more),
    "blend, rows and columns": lambda *nodes, **more: msda.blend(*nodes, mask=profiles(), **more),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("entry", "name"),
    # Without mixing and without parameters, the partner is not used.
    [
        (entry, name)
        for entry in ENTRIES
        for name in ("labels", "partner")
        if (entry, name) != ("mix, none", "partner")
    ],
)
def test_floats_are_refused(entry: str, name: str, backend: str) -> None:
    """By type, whatever the values: before anything runs for a partner whose type shows, else by DALI."""
    for value, (dtype, known) in zip((2.7, 1.0, np.nan), FLOATS.items(), strict=True):
        values = [np.array([value], dtype)] * 4

        def define(values: Any = values, **told: Any) -> Any:
            given = {"labels": source(LABELS), name: source(values, **told)}
            images, labels = image_source(IMAGES, "HWC"), given.pop("labels")
            return ENTRIES[entry](images, labels, num_classes=10, backend=backend, **given)[:2]

        if name == "labels":  # they could be vectors
            with pytest.raises(RuntimeError, match="# labels must be class ids or num_classes"):
                build(functools.partial(define, dtype=known), 4).run()
        else:
            with Pipeline(4, 1, None), pytest.raises(TypeError) as caught:
                define(dtype=known)
            assert str(caught.value) == f"{name} must be integers; got a node of type {known.name}"
        pipeline = build(define, 4)
        with pytest.raises(RuntimeError, match=f"# {name} must be"):
            pipeline.run()


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.__name__)
def test_integers_of_every_type(dtype: Any, told: bool) -> None:
    known = {"dtype": INTEGERS[dtype]} if told else {}

    def define() -> Any:
        ids = [np.array([i % 2], dtype) for i in range(4)]
        images = image_source(IMAGES, "HWC")
        _, targets, params = msda.mixup(
            images,
            source(ids, **known),
            num_classes=2,
            lam=1.0,
            partner=source(ids, **known),
            return_params=True,
        )
        return targets, params.partner

    targets, partner = (np.array(tensors.as_array()) for tensors in build(define, 4).run())
    np.testing.assert_array_equal(targets, np.eye(2)[[0, 1, 0, 1]])
    np.testing.assert_array_equal(partner, [0, 1, 0, 1])


class FloatLabels(ImageFolder):
    """A source with labels that are numbers of float type."""

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[Any, ...]:
        encoded, labels, *kept = super().read(order, report_stand_ins=report_stand_ins)
        return encoded, labels * 1.0, *kept


@pytest.mark.parametrize("define", [train_pipeline, val_pipeline])
def test_a_source_with_float_labels(define: Any, coded: Path) -> None:
    folder = list_images(coded / "train")
    source = FloatLabels(**{field.name: getattr(folder, field.name) for field in fields(folder)})
    classes = {"num_classes": 3} if define is train_pipeline else {}
    with pytest.raises((RuntimeError, TypeError), match="labels must be"):
        define(source, batch_size=4, num_threads=1, **classes).run()


# NaN and infinities.

COUNT, SIZE = 8, (23, 31)
PLANTED = {1: np.nan, 3: np.inf, 5: -np.inf}


def planted_images(dtype: Any, layout: str) -> Array:
    """Zeros of both signs and the smallest numbers; three images have NaN or infinity in every row."""
    images = random_images(COUNT, SIZE, dtype=dtype)
    images[:, :, ::5] = -0.0
    images[:, :, 1::5] = np.finfo(dtype).smallest_subnormal
    for index, value in PLANTED.items():
        for row in range(SIZE[0]):
            images[index, row, row % 3 :: 3] = value
    return images if layout == "HWC" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def bits(values: Array) -> Array:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")


def assert_mixed(images: Array, mixed: Array, mask: Array, partner: Array, *, drop_own: bool) -> None:
    """Where the mask is 1 the own bits, elsewhere NumPy's sum, in which a weight of 0 drops the partner.

    Parameters
    ----------
    drop_own : bool
        Whether a weight of 0 drops the own image too; otherwise it is multiplied by 0.
    """
    for i, j in enumerate(partner):
        own, other = images[i].astype(np.float32), images[j].astype(np.float32)
        weight = np.broadcast_to(mask[i], own.shape)
        with np.errstate(invalid="ignore"):
            expected = weight * own + (1 - weight) * other
        expected = np.where((weight == 0) & (drop_own | np.isfinite(own)), other, expected)
        np.testing.assert_array_equal(bits(mixed[i])[weight == 1], bits(images[i])[weight == 1], str(i))
        tolerance = 1e-6 if images.dtype == np.float32 else 2e-3
        elsewhere = weight != 1
        np.testing.assert_allclose(
            mixed[i][elsewhere], expected[elsewhere], rtol=0, atol=tolerance, equal_nan=True, err_msg=str(i)
        )


# Which samples are mixed. Every image with NaN or infinity is the partner of a finite one.
MIXED = {
    "no sample": np.zeros(COUNT, np.float32),
    "all samples": np.ones(COUNT, np.float32),
    "every other sample": np.arange(COUNT, dtype=np.float32) % 2,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("method", MIXING)
def test_methods(method: str, dtype: Any, typed: bool, layout: str, backend: str) -> None:
    images = planted_images(dtype, layout)
    partner = np.roll(np.arange(COUNT, dtype=np.int32), -1)
    batches = itertools.cycle(MIXED.values())

    def define() -> Any:
        return mix_nodes(
            method,
            images,
            layout=layout,
            typed=typed,
            backend=backend,
            probability=fn.external_source(lambda: list(next(batches))),
            partner=partner,
        )

    pipeline = build(define, COUNT)
    for name, probability in MIXED.items():
        (result,) = results(pipeline)
        drop_own = backend == "kernel" or method == "cutmix"
        assert_mixed(images, result.images, result.mask, partner, drop_own=drop_own)
        np.testing.assert_array_equal(result.lam[probability == 0], 1, name)
        assert np.isfinite(result.targets).all()
        assert np.isfinite(result.mask).all()
        if name == "all samples" and method == "cutmix":
            boxes = (result.mask == 0).any(axis=(1, 2, 3))
            assert boxes[[0, 2, 4]].any()  # part of a partner with NaN or infinity is shown
            assert not (result.mask == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("form", ["dense", "rows and columns"])
def test_a_callers_own_masks(form: str, dtype: Any, layout: str, backend: str) -> None:
    """1, 0 and values in between in one mask."""
    images = planted_images(dtype, layout)
    rows = np.resize(np.array([1, 1, 0.25, 0], np.float32), SIZE[0])
    columns = np.resize(np.array([1, 1, 1, 0.5, 0], np.float32), SIZE[1])
    partner = np.roll(np.arange(COUNT, dtype=np.int32), -1)

    def define() -> Any:
        if form == "dense":
            mask: Any = source([rows[:, None] * columns] * COUNT)
        else:
            mask = source([rows] * COUNT), source([columns] * COUNT)
        labels = source([np.array([0], np.int32)] * COUNT)
        mixed, _, params = msda.blend(
            image_source(images, layout), labels, mask=mask, num_classes=2, layout=layout, backend=backend,
            partner=source(partner), return_params=True,
        )  # fmt: skip
        return mixed, params.mask

    mixed, mask = (np.array(tensors.as_array()) for tensors in build(define, COUNT).run())
    assert {0.0, 1.0, 0.5} <= set(np.unique(mask))
    assert_mixed(images, mixed, mask, partner, drop_own=backend == "kernel")


@pytest.mark.parametrize("method", MIXING)
def test_a_normalised_batch(method: str) -> None:
    """Normalisation does not spread NaN to other pixels either."""
    images = planted_images(np.float32, "HWC")
    labels = [np.array([0], np.int32)] * COUNT

    def define(backend: str) -> Any:
        return msda.mix(
            image_source(images, "HWC"), source(labels), method=method, num_classes=2, backend=backend,
            probability=0.0, mean=[0.5] * 3, std=[2.0] * 3,
        )  # fmt: skip

    for backend in BACKENDS:
        mixed = np.array(build(lambda: define(backend), COUNT).run()[0].as_array())  # noqa: B023
        np.testing.assert_allclose(mixed, (images - 0.5) / 2, rtol=0, atol=1e-6, equal_nan=True)
