"""Scaled decoding in running pipelines: exact resume, several at once, deleted early, and at exit."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali_msda import Mixing
from pipelines import scaled_decoding
from pipelines.loader import DALILoader
from pipelines.records import Shard
from tests.image_sets import run, train
from tests.jpegs import noise, save, smooth
from tests.sources import memory_class

ROOT = Path(scaled_decoding.__file__).resolve().parent.parent
CLASSES = 3


@pytest.fixture(scope="module")
def source() -> Any:
    """Of three images, two are large; one is a PNG-sized JPEG that always goes the usual way."""
    files = [save(smooth(160 + 3 * i, 200 - i, i) if i % 3 else noise(20, 25, i)) for i in range(21)]
    return memory_class()(("a", "b", "c"), [(file, i % CLASSES) for i, file in enumerate(files)])


@pytest.fixture(scope="module")
def folder(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("running")
    for index, (content, label) in enumerate(source.samples):
        (root / str(label)).mkdir(exist_ok=True)
        (root / str(label) / f"{index:02d}.JPEG").write_bytes(content)
    return root


def make(data: Any, **changes: Any) -> Any:
    settings = {"mix": Mixing("hmix"), "image_size": 16, "batch_size": 4, "num_threads": 2, **changes}
    return train(data, scaled_decoding="on", **settings)


def assert_same(found: Any, expected: Any) -> None:
    for batch, other in zip(found, expected, strict=True):
        for output, wanted in zip(batch, other, strict=True):
            np.testing.assert_array_equal(output, wanted)


def batches(pipeline: Any, count: int) -> list[Any]:
    return list(run(pipeline, count))


@pytest.mark.parametrize("shards", [1, 2])
def test_exact_resume(shards: int, folder: Path) -> None:
    """From a checkpoint in the middle of an epoch, with batches prefetched; into the third epoch."""
    arguments: dict[str, Any] = {"enable_checkpointing": True, "shard": Shard(index=shards - 1, count=shards)}

    def loader(state: dict[str, Any] | None = None) -> DALILoader:
        pipeline = make(folder, **arguments, checkpoint=None if state is None else state["pipeline"])
        return DALILoader(pipeline, state=state)

    def take(source: DALILoader, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            for images, targets in source:
                found.append((images.numpy().copy(), targets.numpy().copy()))
                if len(found) == count:
                    break
        return found

    whole = loader()
    expected = take(whole, 14)
    for stop in (1, 4, 8):
        first = loader()
        assert_same(take(first, stop), expected[:stop])
        assert_same(take(loader(first.state()), 14 - stop), expected[stop:])
    assert not np.array_equal(expected[0][0], expected[1][0])


def test_several_at_once(source: Any) -> None:
    """Interleaved, with threads that decode for all of them: each makes what it makes alone."""
    seeds = (5, 6, 7)
    expected = [batches(make(source, seed=seed), 5) for seed in seeds]
    pipelines = [make(source, seed=seed) for seed in seeds]
    found: list[list[Any]] = [[] for _ in seeds]
    for _ in range(5):
        for pipeline, results in zip(pipelines, found, strict=True):
            results += batches(pipeline, 1)
    for results, wanted in zip(found, expected, strict=True):
        assert_same(results, wanted)


def test_deleted_with_batches_on_their_way(source: Any) -> None:
    """Deleting waits for them, and they for Python's lock: no deadlock."""
    expected = batches(make(source), 1)
    for scheduled in (1, 2, 1, 2):
        pipeline = make(source, batch_size=16)
        pipeline.build()
        for _ in range(scheduled):
            pipeline.schedule_run()
        del pipeline
        gc.collect()
    assert_same(batches(make(source), 1), expected)


EXIT = """
import os, sys
from pipelines import scaled_decoding
from pipelines.imagenet import train_pipeline
from pipelines.records import Execution

class Decoder(scaled_decoding._Decoder):
    def __del__(self, write=os.write):
        write(2, b"freed while threads may call it")

scaled_decoding._Decoder = Decoder
execution = Execution(scaled_decoding="on")
pipelines = [
    train_pipeline(sys.argv[1], num_classes=1, batch_size=64, num_threads=2, execution=execution)
    for _ in range(2)
]
for pipeline in pipelines:
    pipeline.build()
    pipeline.schedule_run()
    pipeline.schedule_run()
# Python frees all that it can before these.
sys.kept = pipelines
pipelines.append(pipelines)
assert "torch" not in sys.modules
print("leaving", flush=True)
"""


def test_a_process_ends_with_batches_on_their_way(tmp_path: Path) -> None:
    """Python ends while DALI's threads decode."""
    (tmp_path / "a").mkdir()
    for index in range(8):
        (tmp_path / "a" / f"{index}.JPEG").write_bytes(save(smooth(1000, 1200, index)))
    command = [sys.executable, "-c", EXIT, str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout == "leaving\n", process.stderr
    assert process.stderr == ""
    assert process.returncode == 0
