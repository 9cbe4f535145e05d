"""DALI's run-time errors in a sentence: on real pipelines, in each backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, pipeline_def, tensors, types

import dali_msda as msda
from dali_msda import Mixing
from pipelines.folders import ImageFolder, list_images
from pipelines.loader import DALILoader
from pipelines.sources import Order
from tests.image_sets import train
from tests.running import build, image_source, random_images, source
from training.bad_files import GuardedLoader, PipelineError, Quarantine

COUNT, SIZE = 4, (8, 10)
IMAGES = random_images(COUNT, SIZE)
BACKENDS = ("kernel", "hybrid", "graph")
# The partner of all samples; and a value for all samples except one.
COMMON: dict[str, Any] = {"num_classes": 10, "partner": 0, "lam": 0.5}


def ids(*values: Any, dtype: Any = np.int32) -> Any:
    return source([np.array([value], dtype) for value in values])


def images(shapes: Any = None) -> Any:
    return image_source(IMAGES if shapes is None else [np.zeros(shape, np.uint8) for shape in shapes], "HWC")


def images_of_layout(layout: str) -> Any:
    """Only the data shows it."""
    batch = tensors.TensorListCPU(IMAGES, layout)
    return fn.external_source(source=lambda: batch, dtype=types.UINT8)


def vectors(*values: Any) -> Any:
    return source([np.array(value, np.float32) for value in values])


# The nodes to mix: images, labels and arguments; and the sentence.
Situation = tuple[Callable[[], tuple[Any, Any, dict[str, Any]]], str]
SITUATIONS: dict[str, Situation] = {
    "a label above": (
        lambda: (images(), ids(0, 1, 10, 3), {}),
        "msda.hmix: labels must be in [0, 10); got 10",
    ),
    "a label below": (
        lambda: (images(), ids(0, 1, 2, -3), {}),
        "msda.hmix: labels must be in [0, 10); got -3",
    ),
    "labels that are floats": (
        lambda: (images(), ids(0, 1, 2, 2.5, dtype=np.float32), {}),
        "msda.hmix: labels must be integers",
    ),
    "two labels": (
        lambda: (images(), source([np.array([1, 2], np.int32)] * COUNT), {}),
        "msda.hmix: labels must be one integer per image; got the shape [2] in sample 0",
    ),
    "images of different sizes": (
        lambda: (images([(8, 8, 3)] * 3 + [(9, 8, 3)]), ids(0, 1, 2, 3), {}),
        "msda.hmix: images must have one size within a batch: resize or crop them before",
    ),
    "another layout": (
        lambda: (images_of_layout("CHW"), ids(0, 1, 2, 3), {}),
        "msda.hmix: layout must be the layout of the images",
    ),
    "four dimensions": (
        lambda: (source([np.zeros((2, 8, 8, 3), np.uint8)] * COUNT), ids(0, 1, 2, 3), {}),
        "msda.hmix: layout must have a letter for each dimension of the images; got 3 for 4 dimensions",
    ),
    "a partner that is not in the batch": (
        lambda: (images(), ids(0, 1, 2, 3), {"partner": ids(0, 1, 4, 3)}),
        "msda.hmix: partner must be in [0, 4), the batch; got 4 in sample 2",
    ),
    "a partner that is a float": (
        lambda: (images(), ids(0, 1, 2, 3), {"partner": vectors(0, 1, 2, 3)}),
        "msda.hmix: partner must be an integer",
    ),
    "a mirror that is a float": (
        lambda: (images(), ids(0, 1, 2, 3), {"mean": 0, "std": 1, "mirror": vectors(0, 1, 0, 1)}),
        "msda.hmix: mirror must be integers, 1 where an image is mirrored; got floats",
    ),
    "a lam of two numbers": (
        lambda: (images(), ids(0, 1, 2, 3), {"lam": vectors([0.5], [0.5], [0.5, 0.2], [0.5])}),
        "msda.hmix: lam must be a node with one number per sample; got the shape [2] in sample 2",
    ),
    "a center of one number": (
        lambda: (images(), ids(0, 1, 2, 3), {"center": vectors([1, 2], [1], [1, 2], [1, 2])}),
        "msda.hmix: center must be a node with two numbers per sample; got the shape [1] in sample 1",
    ),
    "an alpha below 0": (
        lambda: (images(), ids(0, 1, 2, 3), {"alpha": vectors(1, 1, -1, 1), "lam": None}),
        "msda.hmix: alpha must be above 0 and finite; got -1 in sample 2",
    ),
    "a mean of two channels": (
        lambda: (images(), ids(0, 1, 2, 3), {"mean": [1, 2], "std": [1, 2]}),
        "msda.hmix: mean and std must have one number for each channel of the images",
    ),
}
MASKS: dict[str, Situation] = {
    "a mask of another size": (
        lambda: (images(), ids(0, 1, 2, 3), {"mask": vectors(*[np.zeros((8, 9))] * COUNT)}),
        "msda.blend: mask must have the height and width of its image",
    ),
    "a mask for each channel": (
        lambda: (images(), ids(0, 1, 2, 3), {"mask": vectors(*[np.zeros((8, 10, 3))] * COUNT)}),
        "msda.blend: mask must be HxW, or HxWx1 for HWC, 1xHxW for CHW; got the shape [8, 10, 3] in sample 0",
    ),
    "a label above": (
        lambda: (images(), ids(0, 1, 10, 3), {"mask": vectors(*[np.zeros((8, 10))] * COUNT)}),
        "msda.blend: labels must be in [0, 10); got 10",
    ),
}


def assert_explained(pipeline: Any, words: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        pipeline.run()
    found = msda.explain(caught.value)
    assert found is not None, str(caught.value)
    assert found.startswith(words), found


@pytest.mark.parametrize("situation", SITUATIONS)
def test_mixing(situation: str) -> None:
    define, words = SITUATIONS[situation]
    for backend in BACKENDS:

        def defined(backend: Any = backend) -> Any:
            images, labels, arguments = define()
            return msda.hmix(images, labels, backend=backend, **{**COMMON, **arguments})

        assert_explained(build(defined, COUNT), words)


@pytest.mark.parametrize("situation", MASKS)
def test_masks(situation: str) -> None:
    define, words = MASKS[situation]
    for backend in BACKENDS:

        def defined(backend: Any = backend) -> Any:
            images, labels, arguments = define()
            return msda.blend(images, labels, backend=backend, num_classes=10, **arguments)

        assert_explained(build(defined, COUNT), words)


def nodes() -> tuple[Any, Any]:
    return images(), ids(0, 1, 10, 3)


LABELS = "labels must be in [0, 10); got 10"


def converted() -> Any:
    given, labels = nodes()
    if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
        given = fn.flip(given)
    return msda.mix(
        given,
        labels,
        num_classes=10,
    )


STANDARD: dict[str, Any] = {"batch_size": COUNT, "num_threads": 1, "device_id": None}
CALLERS: dict[str, tuple[Callable[[], Any], str]] = {
    "by name, in lines": (
        lambda: build(
            lambda: msda.mix(
                *nodes(),
                num_classes=10,
            ),
            COUNT,
        ),
        "msda.mix",
    ),
    "with_mixing, of nodes": (
        lambda: build(msda.with_mixing(nodes, "gmix", num_classes=10), COUNT),
        "msda.with_mixing",
    ),
    "with_mixing, of a pipeline": (
        lambda: msda.with_mixing(pipeline_def(nodes), num_classes=10)(**STANDARD),
        "msda.with_mixing",
    ),
    "with conditionals": (lambda: pipeline_def(converted, enable_conditionals=True)(**STANDARD), "msda.mix"),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_callers(caller: str) -> None:
    make, name = CALLERS[caller]
    assert_explained(make(), f"{name}: {LABELS}")


def test_a_cause_is_explained() -> None:
    pipeline = build(lambda: msda.hmix(*nodes(), num_classes=10), COUNT)

    def loop() -> None:
        try:
            pipeline.run()
        except RuntimeError as error:
            raise ValueError("the loop failed") from error

    with pytest.raises(ValueError, match="the loop failed") as caught:
        loop()
    assert msda.explain(caught.value) == f"msda.hmix: {LABELS}"


def test_what_is_not_of_this_library() -> None:
    def theirs() -> Any:
        found = fn.slice(images(), start=[20], shape=[1], axes=[0])
        return msda.hmix(found, ids(0, 1, 2, 3), num_classes=10)

    with pytest.raises(RuntimeError) as caught:
        build(theirs, COUNT).run()
    assert msda.explain(caught.value) is None
    for error in (ValueError("labels must be in [0, 10); got 10"), RuntimeError(""), KeyboardInterrupt()):
        assert msda.explain(error) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_serializing(backend: Any) -> None:
    def defined() -> Any:
        labels = fn.external_source(name="labels", dtype=types.INT32, ndim=1)
        given = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC")
        return msda.hmix(given, labels, num_classes=10, backend=backend, seed=3)

    pipeline: Any = build(defined, COUNT)
    if backend != "graph":
        with pytest.raises(RuntimeError) as caught:
            pipeline.serialize()
        assert "only backend='graph' can be serialized" in str(caught.value)
        assert msda.explain(caught.value) == (
            "msda: backend must be 'graph' for a pipeline to be serialized; got compiled operators"
        )
        return
    found = []
    for one in (pipeline, Pipeline.deserialize(pipeline.serialize())):
        one.feed_input("images", list(IMAGES))
        one.feed_input("labels", [np.array([i], np.int32) for i in range(COUNT)])
        found.append([np.array(output.as_array()) for output in one.run()])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# -- The loader and the trainer ----------------------------------------------------------------------------


class OneMore(ImageFolder):
    """A folder whose labels start at 1, as in many lists."""

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[Any, ...]:
        encoded, labels, *kept = super().read(order, report_stand_ins=report_stand_ins)
        return encoded, labels + 1, *kept


@pytest.fixture(scope="module")
def from_one(coded: Path) -> OneMore:
    folder = list_images(coded / "train")
    return OneMore(**{name: getattr(folder, name) for name in folder.__dataclass_fields__})


WORDS = "msda.mix: labels must be in [0, 3); got 3"


def make_loader(images: Any, *_: Any) -> DALILoader:
    order = Order(size=len(images), batch_size=4, shuffle=True)
    return DALILoader(train(images, mix=Mixing("hmix")), order=order)


def test_loader(from_one: OneMore) -> None:
    with pytest.raises(RuntimeError) as caught:
        list(make_loader(from_one))
    assert str(caught.value) == WORDS
    assert "Slice" in str(caught.value.__cause__)


def test_trainer(from_one: OneMore, tmp_path: Path) -> None:
    """Immediately: no file is at fault, and a retry would fail too."""
    order = Order(size=len(from_one), batch_size=4, shuffle=True)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", skip=True)
    attempts = []

    def make(images: Any, state: Any) -> DALILoader:
        attempts.append(state)
        return make_loader(images)

    images: Any = from_one
    loader = GuardedLoader(images, make, order, quarantine, dict, resumable=False)
    with pytest.raises(PipelineError) as caught:
        list(loader)
    assert (str(caught.value), len(attempts)) == (WORDS, 1)
    assert not (tmp_path / "quarantine.jsonl").exists()
