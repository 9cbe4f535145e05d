"""Which samples will a training pipeline read next? For finding the file that made a batch fail.

The reader alone is built, over as many copies of one small file as there are samples, and put where the
training pipeline's reader was: its part of DALI's checkpoint is taken over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline

from .imagenet import READER, pipeline_seed, training_order

_CHECKPOINTS, _NAME = 1, 1  # fields of DALI's messages: a pipeline's operators, an operator's name


def upcoming(
    count: int,
    checkpoint: bytes | None,
    *,
    batches: int,
    batch_size: int,
    shard_id: int,
    num_shards: int,
    seed: int,
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
    batch_size, shard_id, num_shards, seed : int
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
            seed=pipeline_seed(seed, shard_id, num_shards),
            prefetch_queue_depth=1,
            enable_checkpointing=True,
            checkpoint=state,
        )
        with pipeline:
            _, labels = fn.readers.file(
                file_root=str(Path(__file__).parent),
                files=["__init__.py"] * count,
                labels=list(range(count)),
                shard_id=shard_id,
                num_shards=num_shards,
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
        state = _transplanted(template.checkpoint(), checkpoint)
    pipeline = reader(state)
    order = training_order(count, seed)
    found = [int(i) for _ in range(batches) for i in np.asarray(pipeline.run()[0].as_array()).ravel()]
    return list(dict.fromkeys(int(order[i]) for i in found))


def _transplanted(template: bytes, donor: bytes) -> bytes:
    """The checkpoint `template` with the reader's state, and all that is not of an operator, of `donor`."""

    def is_operator(field: tuple[int, bytes, bytes]) -> bool:
        return field[0] == _CHECKPOINTS

    def name(field: tuple[int, bytes, bytes]) -> bytes:
        return next(content for number, content, _ in _fields(field[1]) if number == _NAME)

    readers = [f[2] for f in _fields(donor) if is_operator(f) and name(f) == READER.encode()]
    own = [f for f in _fields(template) if is_operator(f)]
    operators = [readers[0] if name(f) == READER.encode() else f[2] for f in own]
    return b"".join([*operators, *(f[2] for f in _fields(donor) if not is_operator(f))])


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, content, all bytes) of the fields of a Protocol Buffers message; texts and messages only."""

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    at = 0
    while at < len(message):
        start = at
        key, at = number(at)
        if key & 7 != 2:
            raise ValueError(f"a checkpoint of DALI has fields of kind 2 only; got kind {key & 7}")
        length, at = number(at)
        yield key >> 3, message[at : at + length], message[start : at + length]
        at += length
