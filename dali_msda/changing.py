"""Arguments that change during training, as nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode, Pipeline

from .validation import ArgumentError, ArgumentValueError


def values_of(name: str, function: Callable[[int], float], check: Callable[[str, object], None]) -> DataNode:
    """The values of a function of the batch's number, in the current pipeline.

    Parameters
    ----------
    name : str
        Of the argument.
    function : callable
        Takes the number of the batch: that of DALI's ``BatchInfo.iteration``. It counts through all epochs of
        a reader, and from 0 in each epoch of an external source that raises StopIteration at its end. With
        DALI's checkpoints it continues.
    check : callable
        Takes the name and a value, and raises for one that the argument does not take.

    Returns
    -------
    DataNode
        float32 scalars, CPU, the same for all samples of a batch.
    """
    batch_size = Pipeline.current().max_batch_size

    def source(info: Any) -> np.ndarray:
        number = function(info.iteration)
        try:
            check(name, number)
        except ArgumentError as error:
            raise ArgumentValueError(name, f"{error.expected} in batch {info.iteration}", number) from None
        return np.full(batch_size, number, np.float32)

    node = fn.external_source(source=source, batch=True, batch_info=True, device="cpu")
    assert isinstance(node, DataNode)
    return node
