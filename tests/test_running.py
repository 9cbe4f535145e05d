"""Around a mixed pipeline: checkpoints, executors, iterators for PyTorch and JAX, short last batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIClassificationIterator, DALIGenericIterator, LastBatchPolicy

import dali_msda as msda
from tests.devices import array

CLASSES, SIDE, IMAGES, BATCH = 3, 12, 24, 5
BACKENDS = ("kernel", "hybrid", "graph")


def nodes(folder: Path, pad_last_batch: bool = True) -> Any:
    encoded, labels = fn.readers.file(
        file_root=str(folder / "train"), random_shuffle=True, pad_last_batch=pad_last_batch, name="Reader"
    )
    images = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB)
    images = fn.flip(fn.resize(images, size=[SIDE, SIDE]), horizontal=fn.random.coin_flip())
    return images, labels


STANDARD: dict[str, Any] = {"batch_size": BATCH, "num_threads": 2, "device_id": None, "seed": 7}
reading = pipeline_def(nodes, **STANDARD)


def mixed(method: str = "hmix", **arguments: Any) -> Any:
    return msda.with_mixing(reading, method, num_classes=CLASSES, **arguments)


def run(pipeline: Any, batches: int) -> list[list[np.ndarray]]:
    return [[array(output) for output in pipeline.run()] for _ in range(batches)]


def assert_same(ours: Any, theirs: Any) -> None:
    for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def halved(batch: int) -> float:
    """A probability that changes: its source continues counting from a checkpoint."""
    return 1.0 if batch < 4 else 0.5


@pytest.mark.parametrize("exec_dynamic", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints(photos: Path, backend: str, exec_dynamic: bool) -> None:
    define = mixed("stochastic", backend=backend, probability=halved, return_params=True)
    options = {"enable_checkpointing": True, "exec_dynamic": exec_dynamic}
    pipeline = define(photos, **options)
    run(pipeline, 3)
    checkpoint = pipeline.checkpoint()
    expected = run(pipeline, 4)  # into the next epoch
    continued = define(photos, checkpoint=checkpoint, **options)
    assert_same(run(continued, 4), expected)


def test_executors_make_the_same_batches(photos: Path) -> None:
    expected = run(mixed("gmix")(photos), 6)
    for options in (
        {"prefetch_queue_depth": 1},
        {"prefetch_queue_depth": 5},
        {"exec_dynamic": True},
        {"exec_dynamic": False},
        {"exec_async": False, "exec_pipelined": False},
        {"num_threads": 1},
    ):
        assert_same(run(mixed("gmix")(photos, **options), 6), expected)


# -- PyTorch -----------------------------------------------------------------------------------------------

# How many of 24 images come in batches of 5, and whether the last batch is short.
POLICIES = {
    "partial": (LastBatchPolicy.PARTIAL, [5, 5, 5, 5, 4]),
    "drop": (LastBatchPolicy.DROP, [5, 5, 5, 5]),
    "fill": (LastBatchPolicy.FILL, [5, 5, 5, 5, 5]),
}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_pytorch(photos: Path, policy: str, padded: bool) -> None:
    last, sizes = POLICIES[policy]
    pipeline = mixed()(photos, pad_last_batch=padded)
    iterator = DALIClassificationIterator(
        pipeline, reader_name="Reader", last_batch_policy=last, auto_reset=True
    )
    for _ in range(2):  # epochs
        batches = [batch for (batch,) in iterator]
        assert [len(batch["data"]) for batch in batches] == sizes
        for batch in batches:
            assert batch["label"].shape == (len(batch["data"]), CLASSES)
            np.testing.assert_allclose(batch["label"].sum(dim=1), 1, rtol=0, atol=1e-6)
        assert any(((batch["label"] > 0).sum(dim=1) > 1).any() for batch in batches)  # some are mixed
        if not padded:
            break  # the next epoch starts with the images that the last batch took from it


def test_pytorch_with_names(photos: Path) -> None:
    names = ["images", "targets", "lam", "partner", "mask"]
    pipeline = mixed(return_params=True)(photos)
    expected = run(mixed(return_params=True)(photos), 1)[0]
    (batch,) = next(DALIGenericIterator([pipeline], names, reader_name="Reader"))
    assert list(batch) == names
    assert_same([[batch[name].numpy() for name in names]], [expected])


# -- Short batches -----------------------------------------------------------------------------------------


def shrinking() -> Iterator[Any]:
    rng = np.random.default_rng(3)
    for size in (BATCH, 3, 1):
        images = [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(size)]
        yield images, [np.array([i % CLASSES], np.int32) for i in range(size)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_of_several_sizes(backend: str) -> None:
    @pipeline_def(**STANDARD)
    def pipeline() -> Any:
        return tuple(
            fn.external_source(
                source=shrinking,
                num_outputs=2,
                cycle="raise",
                dtype=[types.UINT8, types.INT32],
                ndim=[3, 1],
                layout=["HWC", None],
            )
        )

    define = msda.with_mixing(
        pipeline, "mixup", num_classes=CLASSES, lam=0.25, backend=backend, return_params=True
    )
    found = define()
    for _ in range(2):  # epochs
        for images, labels in shrinking():
            mixed, targets, _, partner, _ = map(array, found.run())
            assert set(partner) <= set(range(len(images)))
            own, hot = np.stack(images).astype(float), np.eye(CLASSES)[np.ravel(labels)]
            exact = 0.25 * own + 0.75 * own[partner]
            assert np.abs(mixed - exact).max() <= 0.5 + 1e-4
            np.testing.assert_allclose(targets, 0.25 * hot + 0.75 * hot[partner], rtol=0, atol=1e-6)
        with pytest.raises(StopIteration):
            found.run()
        found.reset()


# -- JAX ---------------------------------------------------------------------------------------------------


def test_jax(photos: Path) -> None:
    import jax
    from nvidia.dali.plugin.jax import DALIGenericIterator as JaxIterator
    from nvidia.dali.plugin.jax import data_iterator

    expected = run(mixed()(photos), 5)
    iterator = JaxIterator(mixed()(photos), ["images", "targets"], reader_name="Reader", auto_reset=True)
    batches = list(iterator)
    assert all(isinstance(batch["images"], jax.Array) for batch in batches)
    assert_same([[np.asarray(value) for value in batch.values()] for batch in batches], expected)

    @jax.jit
    def loss(logits: Any, targets: Any) -> Any:
        return -(targets * jax.nn.log_softmax(logits)).sum(axis=1).mean()

    np.testing.assert_allclose(loss(np.zeros((BATCH, CLASSES)), batches[0]["targets"]), np.log(3), rtol=1e-6)

    # It also makes the pipeline, from a function that returns nodes.
    named = data_iterator(output_map=["images", "targets"], reader_name="Reader")
    batch = next(named(msda.with_mixing(nodes, num_classes=CLASSES))(photos, **STANDARD))
    assert_same([[np.asarray(batch["images"]), np.asarray(batch["targets"])]], expected[:1])
