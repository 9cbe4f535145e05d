"""Bytes and launches of the GPU graph per batch, counted from the graph itself: calculated, not measured.

    python -m benchmarks.gpu_cost [--batch-size 256] [--image-size 224] [--dtype float32]

The graph form runs on the CPU with every intermediate result as an output, which gives the true shape and
type of each. Only those as large as an image plane count; every input is read once, every output written
once. The launches are the number of GPU operators in the graph as built for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from benchmarks.common import mixing, save, table
from benchmarks.tables import show

_SAMPLES = 2  # enough to run; bytes per sample do not depend on it
# Inputs of the graph, small constants made on the CPU, and operators that only read shapes.
_FREE = ("ExternalSource", "Constant", "Reshape", "Reinterpret", "ExpandDims", "_Shape", "GetProperty")


@dataclass(frozen=True)
class Settings:
    """What to count."""

    batch_size: int = 256
    """Images per batch."""

    image_size: int = 224
    """Side of the images in pixels."""

    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    """Element type of the images."""

    bandwidths: tuple[float, ...] = (2.0, 3.35)
    """Memory bandwidth of a GPU in TB/s."""

    step_ms: float = 90.0
    """Duration of a training step, for comparison, in ms."""


def _operators(outputs: list[Any]) -> list[Any]:
    """The operators that the outputs depend on, each after its inputs."""
    found: dict[int, Any] = {}

    def visit(node: Any) -> None:
        instance = node.source
        if id(instance) in found:
            return
        for source in instance.inputs:
            visit(source)
        found[id(instance)] = instance

    for output in outputs:
        visit(output)
    return list(found.values())


def _graph(method: str, device: str, settings: Settings) -> tuple[Pipeline, list[Any]]:
    """The graph form of a method over given images."""
    image, label = np.zeros((settings.image_size,) * 2 + (3,), settings.dtype), np.zeros(1, np.int32)
    dtype = {"uint8": types.UINT8, "float16": types.FLOAT16, "float32": types.FLOAT}[settings.dtype]
    pipeline = Pipeline(_SAMPLES, 1, 0 if device == "gpu" else None)
    with pipeline:
        images = fn.external_source(
            source=lambda: [image] * _SAMPLES, layout="HWC", dtype=dtype, ndim=3, device=device
        )
        labels = fn.external_source(source=lambda: [label] * _SAMPLES, dtype=types.INT32)
        mixed, targets = msda.mix(images, labels, method=method, num_classes=1000, backend="graph")
    return pipeline, _operators([mixed, targets])


def count(method: str, settings: Settings) -> tuple[list[tuple[str, float, float]], int]:
    """(operator, bytes read, bytes written) of every full-size operator for a batch, and the launches."""
    pipeline, instances = _graph(method, "cpu", settings)
    nodes = {node.name: node for instance in instances for node in instance.outputs}
    pipeline.set_outputs(*nodes.values())
    pipeline.build()
    plane = settings.image_size**2
    sizes: dict[str, float] = {}
    for name, tensors in zip(nodes, pipeline.run(), strict=True):
        array = np.asarray(tensors.as_array())
        on_cpu = nodes[name].source._op.schema.Name() == "Constant"
        large = array.size // _SAMPLES >= plane and not on_cpu
        sizes[name] = array.nbytes / _SAMPLES * settings.batch_size if large else 0.0
    rows = []
    for instance in instances:
        name = instance._op.schema.Name()
        if name in _FREE:
            continue
        # CastLike reads only the type of its second input.
        inputs = instance.inputs[:1] if name == "CastLike" else instance.inputs
        read = sum(sizes[node.name] for node in inputs)
        written = sum(sizes[node.name] for node in instance.outputs)
        if read + written > 0:
            rows.append((name.removeprefix("_").removesuffix("GenericOp"), read, written))
    _, on_gpu = _graph(method, "gpu", settings)
    launches = sum(
        instance._op.device == "gpu" and instance._op.schema.Name() not in _FREE for instance in on_gpu
    )
    return rows, launches


def main() -> None:
    """Print a table per method, write the results, print the totals."""
    settings = tyro.cli(Settings, description=__doc__)
    floor = 2 * settings.batch_size * settings.image_size**2 * 3 * np.dtype(settings.dtype).itemsize
    records = []
    for method in mixing():
        rows, launches = count(method, settings)
        cells = [[name, f"{read / 1e6:.0f}", f"{written / 1e6:.0f}"] for name, read, written in rows]
        print(f"\n{method}\n\n" + table(["operator", "read, MB", "written, MB"], cells))
        records.append(
            {
                "mix": method,
                "batch_size": settings.batch_size,
                "image_size": settings.image_size,
                "dtype": settings.dtype,
                "launches": launches,
                "bytes": sum(read + written for _, read, written in rows),
                "floor_bytes": floor,
                "operators": [
                    {"operator": name, "read_bytes": read, "written_bytes": written}
                    for name, read, written in rows
                ],
            }
        )
    print(f"\nCalculated. Floor (images read once, written once): {floor / 1e6:.0f} MB per batch.\n")
    path = save("gpu_cost", vars(settings), records, calculated=True)
    print(f"{show('gpu_cost', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
