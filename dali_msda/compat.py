"""What the library needs of DALI's pipelines beyond their public names; a new version may take it away.

Seen in DALI 2.4. The compiled operators have a file of their own: ``backends/numba/compat.py``.
"""

from __future__ import annotations

from typing import Any

from nvidia.dali.pipeline import Pipeline


def outputs_of(pipeline: Pipeline) -> Any:
    """What the definition of a pipeline returned, before it is built.

    Returns
    -------
    tuple, list or node
        As ``set_outputs`` was given it or as ``define_graph`` returns it.

    Raises
    ------
    ValueError
        The pipeline is built, or has no outputs.
    """
    if pipeline._py_graph_built:
        raise ValueError("pipeline must not be built yet; got one that is: mix before build() and run()")
    outputs = pipeline._graph_out
    if outputs is None and type(pipeline).define_graph is not Pipeline.define_graph:
        with pipeline:
            outputs = pipeline.define_graph()
    if outputs is None:
        raise ValueError(
            "pipeline must have outputs: call set_outputs or write define_graph; got a"
            f" {type(pipeline).__name__} without"
        )
    return outputs
