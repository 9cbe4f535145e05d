"""A training pipeline then reads the samples that were predicted."""

from __future__ import annotations

from pathlib import Path

import pytest

from dali_msda import Mixing
from pipelines.records import Shard
from pipelines.upcoming import predict_upcoming
from tests.image_sets import indices, run, train


@pytest.mark.parametrize(("shard", "shards"), [(0, 1), (0, 3), (2, 3)])
@pytest.mark.parametrize("done", [0, 1, 4, 9, 20])
def test_upcoming(done: int, shard: int, shards: int, coded: Path) -> None:
    """Over several epochs, each in another order, with rotating shards."""
    part = Shard(index=shard, count=shards)
    pipeline = train(coded, enable_checkpointing=True, shard=part, mix=Mixing("hmix", probability=0.0))
    pipeline.build()
    list(run(pipeline, done))
    state = pipeline.checkpoint() if done else None
    found = predict_upcoming(23, state, batches=2, batch_size=4, shard=part, seed=5)
    actual = [i for images, _ in run(pipeline, 2) for i in indices(images)]
    assert found == list(dict.fromkeys(actual))
