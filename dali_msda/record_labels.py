"""Class ids that a DALI reader returns as floats."""

from __future__ import annotations

from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode

from .compat import origin_of


def class_ids(labels: DataNode) -> DataNode:
    """Labels ready for mixing: those of RecordIO as integers, all others unchanged.

    MXNet's RecordIO stores labels as float32, and ``fn.readers.mxnet`` returns them so. A label that is not a
    whole number stops the pipeline.
    """
    if origin_of(labels) != ("MXNet", 1):
        return labels
    labels = labels.cpu()
    fault = fn.cast(labels != math.floor(labels), dtype=types.INT32)
    checked = fn.slice(
        labels, start=fault, shape=[1], axes=[0]
    )  # labels must be whole numbers, the class ids
    return fn.cast(checked, dtype=types.INT32)
