"""Which files will DALI's reader of a training pipeline read next? See :meth:`.folders.ImageFolder.upcoming`.

The reader alone is built, over as many copies of one small file as there are samples, and put where the
training pipeline's reader was: its part of DALI's checkpoint is taken over.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline

from .folders import READER, training_order
from .imagenet import pipeline_seed
from .records import Shard

# As much of DALI's checkpoint as is read here: DALI does not ship its schema as Python. Fields that are not
# named here, the operators' states among them, stay in the messages as they came.
_SCHEMA = """
name: "dali_checkpoint.proto"
message_type {
  name: "Operator"
  field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
}
message_type {
  name: "Checkpoint"
  field { name: "operators" number: 1 type: TYPE_MESSAGE type_name: ".Operator" label: LABEL_REPEATED }
}
"""
_pool = descriptor_pool.DescriptorPool()  # its own: the default one is shared by the whole process
_pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
_Checkpoint = message_factory.GetMessageClass(_pool.FindMessageTypeByName("Checkpoint"))


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
        state = _transplanted(template.checkpoint(), checkpoint)
    pipeline = reader(state)
    order = training_order(count, seed)
    found = [int(i) for _ in range(batches) for i in np.asarray(pipeline.run()[0].as_array()).ravel()]
    return list(dict.fromkeys(int(order[i]) for i in found))


def _transplanted(template: bytes, donor: bytes) -> bytes:
    """The checkpoint `template` with the reader's state, and all that is not of an operator, of `donor`."""
    own, given = _Checkpoint.FromString(template), _Checkpoint.FromString(donor)
    (reader,) = (operator for operator in given.operators if operator.name == READER)
    operators = [reader if operator.name == READER else operator for operator in own.operators]
    result = _Checkpoint()
    result.CopyFrom(given)
    result.ClearField("operators")
    result.operators.extend(operators)
    serialized: bytes = result.SerializeToString()
    return serialized
