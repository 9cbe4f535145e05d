"""Predict which files DALI's reader reads next; see :meth:`.folders.ImageFolder.upcoming`.

This builds the reader alone, with one small file listed once per sample, and restores its state from the
training pipeline's checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline

from .checkpoints import transfer_states
from .records import Shard
from .shuffling import READER, pipeline_seed, training_order


def predict_upcoming(
    count: int,
    checkpoint: bytes | None,
    *,
    batches: int,
    batch_size: int,
    shard: Shard,
    seed: int | None,
) -> list[int]:
    """Predict the samples that :func:`.imagenet.train_pipeline` reads next, as positions in the listing.

    Parameters
    ----------
    count : int
        Samples in the listing.
    checkpoint : bytes or None
        DALI's checkpoint of the training pipeline; None for the start.
    batches : int
        How many batches to look ahead.
    batch_size, shard, seed
        As in the training pipeline.

    Returns
    -------
    list of int
        In order, without duplicates.
    """

    def make_reader(state: bytes | None) -> Pipeline:
        pipeline = Pipeline(
            batch_size,
            1,
            None,
            seed=pipeline_seed(seed or 0, shard),
            prefetch_queue_depth=1,
            enable_checkpointing=True,
            checkpoint=state,
        )
        with pipeline:
            _, labels = fn.readers.file(
                file_root=str(Path(__file__).parent),
                files=["__init__.py"] * count,
                labels=list(range(count)),
                shard_id=shard.index,
                num_shards=shard.count,
                pad_last_batch=True,
                shuffle_after_epoch=True,
                name=READER,
            )
            pipeline.set_outputs(labels)
        pipeline.build()
        return pipeline

    state = None
    if checkpoint is not None:
        template = make_reader(None)
        template.run()
        state = transfer_states(template.checkpoint(), checkpoint)
    pipeline = make_reader(state)
    order = training_order(count, seed)
    found = [int(i) for _ in range(batches) for i in np.asarray(pipeline.run()[0].as_array()).ravel()]
    return list(dict.fromkeys(int(order[i]) for i in found))
