"""with_mixing: what it accepts and refuses, its draws, arguments that change.

On pipelines as people write them: test_their_pipelines.py.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.pipeline import experimental
from nvidia.dali.plugin.pytorch import DALIGenericIterator

import dali_msda as msda
from dali_msda import reference
from pipelines.ramps import Ramp
from tests.devices import array
from tests.running import image_source, random_images, source

COUNT, SIZE = 6, (12, 16)
IMAGES = random_images(COUNT, SIZE)
LABELS = [np.array([i], np.int32) for i in range(COUNT)]


@pipeline_def(batch_size=COUNT, num_threads=1, device_id=None, seed=5)
def plain(order: tuple[int, ...] = (0, 1, 2), images: Any = IMAGES) -> Any:
    nodes = (
        image_source(images, "HWC"),
        source(LABELS, dtype=types.INT32),
        fn.random.uniform(range=(0, 1), dtype=types.FLOAT),
    )
    return tuple(nodes[i] for i in order)


def run(pipeline: Any) -> list[np.ndarray]:
    return [array(output) for output in pipeline.run()]


def mix(pipeline: Any = plain, *arguments: Any, **more: Any) -> Any:
    return msda.with_mixing(pipeline, *arguments, **{"num_classes": COUNT, **more})


# -- Errors ------------------------------------------------------------------------------------------------


class NoOutputs(Pipeline):
    def __init__(self) -> None:
        super().__init__(COUNT, 1, None)


class NoNode(NoOutputs):
    def define_graph(self) -> Any:
        return [image_source(IMAGES, "HWC"), 5]


def built() -> Any:
    pipeline = plain()
    pipeline.build()
    return pipeline


def in_a_pipeline(outputs: Callable[[], Any], **arguments: Any) -> Any:
    with Pipeline(COUNT, 1, None):
        return mix(outputs, **arguments)()


def a_dict() -> Any:
    return {"image": image_source(IMAGES, "HWC"), "label": source(LABELS)}


def a_pair() -> Any:
    return tuple(a_dict().values())


STANDARD: dict[str, Any] = {"batch_size": COUNT, "num_threads": 1, "device_id": None}
# Situation: the call, the error type, its message.
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a method that is not there": (
        lambda: mix(plain, "hmx"),
        ValueError,
        "method must be one of 'none', 'mixup', 'cutmix', 'stochastic', 'hmix', 'gmix'; got 'hmx'",
    ),
    "no function": (
        lambda: mix("pipeline.py"),
        TypeError,
        "pipeline_function must be a function, or a Pipeline or its class; got 'pipeline.py'",
    ),
    "another class": (
        lambda: mix(dict),
        TypeError,
        "pipeline_function must be a function, or a Pipeline or its class; got <class 'dict'>",
    ),
    "a place that is no place": (
        lambda: mix(images=1.0),
        TypeError,
        "images must be the position or key of an output; got 1.0",
    ),
    "a position that is not there": (
        lambda: mix(labels=3)(),
        ValueError,
        "labels must be the position of one of 3 outputs; got 3",
    ),
    "a position before the first": (
        lambda: mix(images=-4)(),
        ValueError,
        "images must be the position of one of 3 outputs; got -4",
    ),
    "one output": (
        lambda: mix(lambda: plain((0,)))(),
        ValueError,
        "labels must be the position of one of 1 outputs; got 1",
    ),
    "a key where there are positions": (
        lambda: mix(images="image")(),
        TypeError,
        "images must be the position of one of 3 outputs; got 'image'",
    ),
    "a position where there are keys": (
        lambda: in_a_pipeline(a_dict),
        ValueError,
        "images must be one of the keys 'image', 'label'; got 0",
    ),
    "a key that is not there": (
        lambda: in_a_pipeline(a_dict, images="image", labels="labels"),
        ValueError,
        "labels must be one of the keys 'image', 'label'; got 'labels'",
    ),
    "one output for both": (
        lambda: mix(images=2, labels=-1)(),
        ValueError,
        "images and labels must be different outputs; got 2, 2",
    ),
    "an output that is no node": (
        lambda: mix(NoNode)().build(),
        TypeError,
        "labels must be a DALI node; got int as output 1",
    ),
    "a pipeline without outputs": (
        lambda: mix(NoOutputs()),
        ValueError,
        "pipeline must have outputs: call set_outputs or write define_graph; got a NoOutputs without",
    ),
    "a pipeline in debug mode": (
        lambda: mix(experimental.pipeline_def(a_pair, debug=True, **STANDARD))(),
        ValueError,
        "debug must be False, because a pipeline in debug mode has no graph; got True",
    ),
    "a type that the labels no longer have": (
        lambda: mix(pipeline_def(a_pair, output_dtype=[types.UINT8, types.INT32], **STANDARD))(),
        ValueError,
        "output_dtype must be FLOAT or None for the labels, which become targets; got 'INT32'",
    ),
    "an iterator": (
        lambda: mix(lambda: DALIGenericIterator([plain()], ["a", "b", "c"]))(),
        TypeError,
        "images must be a DALI node; got DALIGenericIterator as output 0",
    ),
    "a pipeline that is built": (
        lambda: mix(built()),
        ValueError,
        "pipeline must not be built yet; got one that is: mix before build() and run()",
    ),
    "an argument of another method": (
        lambda: mix(plain, "cutmix", ratio=0.5)(),
        TypeError,
        "ratio must be left out with 'cutmix'",
    ),
    "a function for what cannot change": (
        lambda: mix(granularity=lambda batch: "batch")(),
        ValueError,
        "granularity must be one of 'sample', 'batch'; got <function",
    ),
    "a key that is taken": (
        lambda: in_a_pipeline(
            lambda: {**a_dict(), "lam": 1}, images="image", labels="label", return_params=True
        ),
        ValueError,
        "outputs must have other keys than what comes with them; got 'lam'",
    ),
    "outside of a pipeline": (
        lambda: mix(lambda: (1, 2))(),
        TypeError,
        "images must be a DALI node; got int",
    ),
}


@pytest.mark.parametrize("situation", REFUSED)
def test_refused(situation: str) -> None:
    do, error, words = REFUSED[situation]
    with pytest.raises(error) as caught:
        do()
    assert str(caught.value).startswith(words), str(caught.value)


def test_values_of_functions_are_checked() -> None:
    for arguments, must, got in (
        ({"probability": lambda batch: 1.5}, "probability must be in [0, 1]", "got 1.5"),
        ({"lam": lambda batch: "1"}, "lam must be a number in [0, 1]", "got '1'"),
        ({"ratio": lambda batch: 2}, "ratio must be in [0, 1]", "got 2"),
        ({"alpha": lambda batch: -1.0}, "alpha must be", "got -1.0"),
    ):
        pipeline = mix(**arguments)()
        with pytest.raises((ValueError, TypeError)) as caught:
            pipeline.run()
        words = str(caught.value)
        assert words.startswith(must), words
        assert words.endswith(f" in batch 0; {got}"), words


# -- Results -----------------------------------------------------------------------------------------------


def assert_params(images: np.ndarray, found: list[np.ndarray]) -> None:
    """Check mixed images and targets against the parameters, the last three outputs."""
    mixed, targets, lam, partner, mask = (*found[:2], *found[-3:])
    for i, j in enumerate(partner):
        expected = reference.blend_uint8(images[i], images[j], mask[i, :, :, 0].astype(np.float64))
        assert np.abs(mixed[i].astype(int) - expected).max() <= 1
        hot = lam[i] * np.eye(COUNT)[i] + (1 - lam[i]) * np.eye(COUNT)[j]
        np.testing.assert_allclose(targets[i], hot, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mask.mean(axis=(1, 2, 3)), lam, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in msda.METHODS if name != "none"])
def test_parameters_come_last(method: str) -> None:
    found = run(mix(plain, method, return_params=True)())
    assert len(found) == 6
    assert_params(IMAGES, found)
    assert len(np.unique(found[2])) == COUNT  # the output before them


def test_parameters_of_a_dict() -> None:
    @pipeline_def(batch_size=COUNT, num_threads=1, device_id=None, seed=5)
    def pipeline() -> Any:
        found = mix(a_dict, images="image", labels="label", return_params=True)()
        assert list(found) == ["image", "label", "lam", "partner", "mask"]
        return tuple(found.values())

    assert_params(IMAGES, run(pipeline()))


Named = namedtuple("Named", ["image", "label"])


def test_the_kind_of_the_outputs_stays() -> None:
    kinds: tuple[Any, ...] = (tuple, list, Named._make, dict)
    for kind in kinds:

        def outputs(kind: Any = kind) -> Any:
            pair = image_source(IMAGES, "HWC"), source(LABELS)
            return dict(enumerate(pair)) if kind is dict else kind(pair)

        found: Any = in_a_pipeline(outputs)
        nodes = list(found.values()) if kind is dict else list(found)
        assert [node.device for node in nodes] == ["cpu", "cpu"]
        assert type(found) is (Named if kind == Named._make else kind)


def test_the_function_stays_what_it_was() -> None:
    def load(folder: str, *, size: int = 5) -> Any:
        """Some words."""

    mixed = mix(load)
    assert (mixed.__name__, mixed.__doc__, mixed.__wrapped__) == ("load", "Some words.", load)
    with pytest.raises(TypeError, match="argument"):
        mixed()
    assert mix(plain)(batch_size=3, prefetch_queue_depth=1).max_batch_size == 3
    assert mix(functools.partial(plain, batch_size=4))(prefetch_queue_depth=1).max_batch_size == 4
    typed = mix(pipeline_def(a_pair, output_dtype=[types.UINT8, types.FLOAT], **STANDARD))()
    assert [output.dtype for output in typed.run()] == [types.UINT8, types.FLOAT]


# -- Views, images alone, pairs ----------------------------------------------------------------------------


@pipeline_def(batch_size=COUNT, num_threads=1, device_id=None, seed=5)
def views() -> Any:
    images = image_source(IMAGES, "HWC")
    return images, source(LABELS, dtype=types.INT32), fn.random.uniform(range=(0, 1)), images + np.uint8(0)


def test_views_share_their_draws() -> None:
    found = run(mix(views, images=(3, 0), return_params=True)())
    assert_params(IMAGES, [found[0], *found[1:]])
    np.testing.assert_array_equal(found[3], found[0])


def test_images_alone() -> None:
    found = run(mix(plain, labels=None, num_classes=None, return_params=True)())
    assert_params(IMAGES, [found[0], pair_targets(found[-3], found[-2]), *found[2:]])
    np.testing.assert_array_equal(found[1], np.stack(LABELS))


def pair_targets(lam: np.ndarray, partner: np.ndarray) -> np.ndarray:
    hot = np.eye(COUNT)
    return np.stack([lam[i] * hot[i] + (1 - lam[i]) * hot[j] for i, j in enumerate(partner)])


def test_pairs() -> None:
    """The own label stays in place; the partner's and the weight follow the last output."""
    _, own, _, partners, lam = run(mix(plain, output="pair", num_classes=None)())
    found = run(mix(plain, return_params=True)())
    np.testing.assert_array_equal(own.ravel(), np.arange(COUNT))
    np.testing.assert_array_equal(partners.ravel(), found[-2])
    np.testing.assert_allclose(lam.ravel(), found[-3], rtol=0, atol=1e-6)


def test_pairs_in_a_dict() -> None:
    pairs = in_a_pipeline(a_dict, images="image", labels="label", output="pair", num_classes=None)
    assert list(pairs) == ["image", "label", "partner_labels", "lam"]


# -- Draws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_other_draws_stay(order: tuple[int, ...]) -> None:
    """Whatever the order of the outputs, in which DALI assigns seeds."""
    place = order.index(2)
    drawn = run(plain(order))[place]
    found = run(mix(images=order.index(0), labels=order.index(1))(order))
    np.testing.assert_array_equal(found[place], drawn)


def test_draws_follow_the_seed_of_the_pipeline() -> None:
    def partners(**arguments: Any) -> list[int]:
        return [int(i) for i in run(mix(return_params=True)(**arguments))[-2]]

    assert partners() == partners() == partners(seed=5)
    assert len({tuple(partners(seed=seed)) for seed in range(6)}) > 3
    assert len({tuple(partners(seed=None)) for _ in range(6)}) > 3


def test_ranks_draw_their_own() -> None:
    """All ranks with one pipeline seed, as when a reader shards the data: seed + shard_id."""
    drawn = [run(mix(seed=7 + shard, return_params=True)())[-3:] for shard in (0, 1, 2, 0)]
    for i in range(3):
        np.testing.assert_array_equal(drawn[0][i], drawn[3][i])
    lams = np.stack([lam for lam, *_ in drawn[:3]])
    assert len(np.unique(lams)) == 3 * COUNT
    assert len({tuple(partner) for _, partner, _ in drawn[:3]}) == 3


def test_two_pairs_in_one_pipeline() -> None:
    """Each has its own draws; with the same seed, the same."""

    @pipeline_def(batch_size=COUNT, num_threads=1, device_id=None, seed=5)
    def views() -> Any:
        return (*a_dict().values(), *a_dict().values())

    for seed in (None, 4):
        first = mix(views, return_params=True, seed=seed)
        found = run(mix(first, images=2, labels=3, return_params=True, seed=seed)())
        same = [np.array_equal(a, b) for a, b in zip(found[4:7], found[7:], strict=True)]
        assert same == ([True] * 3 if seed else [False] * 3)


def test_several_pipelines_in_a_process() -> None:
    pipelines = [mix(plain, method)(seed=seed) for method in ("gmix", "cutmix") for seed in (1, 2)]
    alone = [run(mix(plain, method)(seed=seed)) for method in ("gmix", "cutmix") for seed in (1, 2)]
    for ours, theirs in zip([run(pipeline) for pipeline in pipelines], alone, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


# -- Arguments that change ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
def test_mixing_is_switched_off_from_a_batch_on(depth: int) -> None:
    for function in (lambda batch: float(batch < 3), Ramp(1.0, 1.0, off_from=3)):
        pipeline = mix(probability=function, lam=0.5)(prefetch_queue_depth=depth)
        mixed = [not np.array_equal(run(pipeline)[0], IMAGES) for _ in range(6)]
        assert mixed == [True] * 3 + [False] * 3


def test_lam_and_alpha_change() -> None:
    pipeline = mix(plain, "mixup", lam=lambda batch: batch / 4, return_params=True)()
    for batch in range(4):
        np.testing.assert_array_equal(run(pipeline)[-3], np.full(COUNT, batch / 4, np.float32))
    pipeline = mix(plain, "mixup", alpha=lambda batch: 1e-3 if batch else 1e3, return_params=True)()
    first, second = (run(pipeline)[-3] for _ in range(2))
    assert np.all(np.abs(first - 0.5) < 0.2)
    assert np.all(np.minimum(second, 1 - second) < 0.05)
