"""Which files will DALI's reader of a training pipeline read next? See :meth:`.folders.ImageFolder.upcoming`.

The reader alone is built, over as many copies of one small file as there are samples, and put where the
training pipeline's reader was: its part of DALI's checkpoint is taken over.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline

from .checkpoints import fitted
from .records import Shard
from .shuffling import READER, pipeline_seed, training_order


def upcoming(
    count: int,
    checkpoint: bytes | None,
    *,
    batches: int,
    batch_size: int,
    shard: Shard,
    seed: int | None,
) -> list[int]:
    """Positions in the listing of the samples that :func:`.imagenet.train_pipeline` will read next.

    Parameters
    ----------
    count : int
        Samples in the listing.
    checkpoint : bytes or None
        DALI's checkpoint of the training pipeline; None for its beginning.
    batches : int
        How many batches to look ahead.
    batch_size, shard, seed
        As the training pipeline has them.

    Returns
    -------
    list of int
        In order, each once.
    """

    def reader(state: bytes | None) -> Pipeline:
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
        template = reader(None)
        template.run()
        state = fitted(template.checkpoint(), checkpoint)
    pipeline = reader(state)
    order = training_order(count, seed)
    found = [int(i) for _ in range(batches) for i in np.asarray(pipeline.run()[0].as_array()).ravel()]
    return list(dict.fromkeys(int(order[i]) for i in found))
