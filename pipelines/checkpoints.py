"""DALI's checkpoints, for pipelines other than the one that made them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

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
_Checkpoint, _Operator = (
    message_factory.GetMessageClass(_pool.FindMessageTypeByName(name)) for name in ("Checkpoint", "Operator")
)


# What DALI answers to a checkpoint of a pipeline whose operators have other names.
FOREIGN = "as a name of an operator"


def fitted(template: bytes, donor: bytes) -> bytes:
    """The checkpoint `template` of a pipeline, with the states that `donor` has for its operators.

    DALI numbers operators that have no name of their own, so that one more operator anywhere gives others
    another name. Here they are the same if their type is, and their place among those of the type.

    Parameters
    ----------
    template : bytes
        A checkpoint of the pipeline that is to continue.
    donor : bytes
        The checkpoint that it is to continue from; all that belongs to no operator comes from there.
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
    """Each operator with its name, without DALI's number, and how many of that name came before."""
    seen: dict[str, int] = defaultdict(int)
    for operator in operators:
        name = re.sub(r"_[0-9]+$", "", operator.name)
        yield (name, seen[name]), operator
        seen[name] += 1
