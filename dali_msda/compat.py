"""Everything that uses private names of DALI's pipelines and dynamic mode, which a new version may remove.

Checked with DALI 2.4. For the compiled operators see ``backends/numba/compat.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali.pipeline import Pipeline


def outputs_of(pipeline: Pipeline) -> Any:
    """The outputs of a pipeline not yet built.

    Returns
    -------
    tuple, list or node
        As passed to ``set_outputs`` or returned by ``define_graph``.

    Raises
    ------
    ValueError
        The pipeline is already built, or has no outputs.
    """
    if pipeline._py_graph_built:
        raise ValueError("pipeline must not be built yet; got one that is: mix before build() and run()")
    outputs = pipeline._graph_out
    if outputs is None and type(pipeline).define_graph is not Pipeline.define_graph:
        with pipeline:
            outputs = pipeline.define_graph()
    if outputs is None and type(pipeline).__name__ == "_PipelineDebug":
        raise ValueError("debug must be False, because a pipeline in debug mode has no graph; got True")
    if outputs is None:
        raise ValueError(
            "pipeline must have outputs: call set_outputs or write define_graph; got a"
            f" {type(pipeline).__name__} without"
        )
    return outputs


def declared_dtype(pipeline: Pipeline, place: int) -> Any:
    """The `output_dtype` that a pipeline was made with, for one output; None without."""
    declared = pipeline._output_dtype
    return declared[place] if isinstance(declared, list | tuple) else declared


def origin_of(node: Any) -> tuple[str, int]:
    """The operator class that made a node, and the index of the output."""
    return type(getattr(node.source, "_op", None)).__name__, node.index or 0


def samples_of(batch: Any) -> Any:
    """The memory of a batch of dynamic mode on the CPU: an array [N, ...], or a list of arrays.

    The public way makes a tensor object for every sample, which takes as long as mixing small images.
    """
    storage = batch.evaluate()._storage
    if storage.is_dense_tensor():
        return np.asarray(storage.as_tensor())
    return [np.asarray(storage[i]) for i in range(len(storage))]
