"""Use DALI's checkpoints in pipelines other than the one that made them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

# The part of DALI's checkpoint schema that is read here, because DALI does not ship it for Python. Unlisted
# fields, such as the states of operators, stay in the messages unchanged.
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
_pool = descriptor_pool.DescriptorPool()  # the default pool is shared by the whole process
_pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
_Checkpoint, _Operator = (
    message_factory.GetMessageClass(_pool.FindMessageTypeByName(name)) for name in ("Checkpoint", "Operator")
)


# DALI's error for a checkpoint of a pipeline with other operator names.
OTHER_OPERATORS = "as a name of an operator"


def transfer_states(template: bytes, donor: bytes) -> bytes:
    """Fill the checkpoint `template` of a pipeline with the operator states of `donor`.

    DALI numbers unnamed operators, so one more operator anywhere renames others. Here operators match by
    type, and by position among those of the same type.

    Parameters
    ----------
    template : bytes
        A checkpoint of the pipeline that resumes.
    donor : bytes
        The checkpoint to resume from. Everything outside the operators comes from it as well.
    """
    own, given = _Checkpoint.FromString(template), _Checkpoint.FromString(donor)
    states = dict(_numbered(given.operators))
    result = _Checkpoint()
    result.CopyFrom(given)
    result.ClearField("operators")
    for place, operator in _numbered(own.operators):
        state = _Operator()
        state.CopyFrom(states.get(place, operator))
        state.name = operator.name
        result.operators.append(state)
    serialized: bytes = result.SerializeToString()
    return serialized


def _numbered(operators: Iterable[Any]) -> Iterator[tuple[tuple[str, int], Any]]:
    """Yield each operator with its name, without DALI's number, and the count of that name before it."""
    seen: dict[str, int] = defaultdict(int)
    for operator in operators:
        name = re.sub(r"_[0-9]+$", "", operator.name)
        yield (name, seen[name]), operator
        seen[name] += 1
