"""Checks without a GPU that a DALI graph can run on one.

A graph under construction knows the device of each operator and of its inputs, and DALI's registry and
schemas know which are allowed; comparing the two needs no device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from nvidia.dali import backend
from nvidia.dali.pipeline import DataNode

_REGISTERED = {
    "cpu": set(backend.RegisteredCPUOps()),
    "gpu": set(backend.RegisteredGPUOps()),
    "mixed": set(backend.RegisteredMixedOps()),
}
# In the names of operators that call Python, or code that Numba compiled on this machine; our own compiled
# ones may be on the CPU.
_FOREIGN = ("Numba", "Python", "Torch", "Jax")
_COMPILED = "CompiledOperator"


def operators(outputs: Sequence[DataNode]) -> list[Any]:
    """All operator instances that the outputs depend on, each after its inputs."""
    found: dict[int, Any] = {}
    stack = [output.source for output in reversed(outputs)]
    while stack:
        instance = stack.pop()
        if id(instance) in found:
            continue
        missing = [node.source for node in instance.inputs if id(node.source) not in found]
        if missing:
            stack += [instance, *missing]
        else:
            found[id(instance)] = instance
    return list(found.values())


def problems(outputs: Sequence[DataNode], device: str = "gpu") -> list[str]:
    """Find what keeps a graph from running on a GPU, or makes it wait for the CPU.

    Parameters
    ----------
    outputs : sequence of DataNode
        Outputs of the graph.
    device : {"gpu", "cpu"}, optional
        Where the outputs themselves must be.

    Returns
    -------
    list of str
        One line for each problem, with the operator's name; empty if there is none.
    """
    found = [f"output {i} is on the {o.device}" for i, o in enumerate(outputs) if o.device != device]
    found += [f"output {i} comes back from the GPU" for i, o in enumerate(outputs) if _returned(o)]
    instances = operators(outputs)
    for instance in instances:
        schema = instance._op.schema
        found += [f"{instance.name} ({schema.Name()}): {problem}" for problem in _faults(instance)]
    return found + lost_copies(instances)


def lost_copies(instances: Sequence[Any]) -> list[str]:
    """Equal operators on the CPU that DALI merges into one, some used on the GPU and some not.

    DALI's elimination of common subgraphs (``cse.cc``, 2.4) renames the inputs of the GPU's operators to the
    operator that it keeps, and fails ("Graph inconsistency detected") if that one has no copy there.
    """
    kept: dict[str, str] = {}  # names of outputs that are merged
    equal: dict[Any, list[Any]] = {}
    for instance in instances:
        schema = instance._op.schema
        arguments = str(instance.spec).partition("Arguments:")[2]
        own_seed = schema.HasRandomSeedArg() and " seed: " not in arguments
        fed = schema.Name() == "ExternalSource"  # each has its own data
        if own_seed or fed or schema.IsNoPrune() or " preserve: True" in arguments:
            continue
        inputs = tuple((kept.get(node.name, node.name), node.device) for node in instance.inputs)
        described = re.sub(r"(?m)^ *(_\w+|name|preserve\w*): .*\n?", "", arguments)
        group = equal.setdefault((schema.Name(), instance._op.device, inputs, described), [])
        group.append(instance)
        kept |= {one.name: first.name for one, first in zip(instance.outputs, group[0].outputs, strict=True)}
    copied = {id(n.source) for i in instances for n in i.inputs if n.device == "gpu"}
    found = []
    for group in equal.values():
        uses = {id(instance) in copied for instance in group}
        if group[0]._op.device == "cpu" and len(uses) == 2:
            names = ", ".join(instance.name for instance in group)
            found.append(f"{names} are equal, and only some are copied to the GPU")
    return found


def _faults(instance: Any) -> Iterator[str]:
    schema, spec, device = instance._op.schema, instance.spec, instance._op.device
    names = (schema.Name(), type(instance._op).__name__)
    ours = device == "cpu" and names[1].lstrip("_") == _COMPILED
    if any(part in name for part in _FOREIGN for name in names):
        if not ours:
            yield "runs Python or Numba code"
    elif device not in schema.GetSupportedBackends() or schema.Name() not in _REGISTERED[device]:
        yield f"is on {device!r}, made for {schema.GetSupportedBackends()}"
    try:
        schema.CheckArgs(spec)
    except (RuntimeError, ValueError) as error:
        yield f"has wrong arguments: {error}"
    count, least, most = spec.NumRegularInput(), schema.MinNumInput(), schema.MaxNumInput()
    if not least <= count <= most:
        yield f"has {count} inputs, takes {least} to {most}"
    for position, node in enumerate(instance.inputs):
        if _returned(node):
            yield f"its input {node.name} comes back from the GPU"
        if position >= spec.NumRegularInput():
            if node.device != "cpu":
                yield f"its argument {node.name} is on the {node.device}"
        elif node.device != (wanted := _accepted(schema, position, node.device, device)):
            yield f"its input {node.name} is on the {node.device}, not on the {wanted}"


def _accepted(schema: Any, position: int, actual: str, device: str) -> str:
    """Where an input may be: its actual device, if the operator accepts that."""
    accepted = schema.GetInputDevice(position, actual, device)
    return "cpu" if accepted == "mixed" else str(accepted)


def _returned(node: DataNode) -> bool:
    """Whether the node is the CPU copy of an output made on the GPU."""
    return bool(node.device == "cpu" and node.source._op.device in ("gpu", "mixed"))
