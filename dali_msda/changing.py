"""Turns arguments that change during training into nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode, Pipeline

from .validation import ArgumentError, ArgumentValueError


def values_of(name: str, function: Callable[[int], float], check: Callable[[str, object], None]) -> DataNode:
    """Make a node in the current pipeline with the values of a function of the batch number.

    Parameters
    ----------
    name : str
        The argument's name.
    function : callable
        Takes the batch number, DALI's ``BatchInfo.iteration``. It counts through all epochs of a reader, and
        from 0 in each epoch of an external source that raises StopIteration at its end. It continues
        from DALI's checkpoints.
    check : callable
        Takes the name and a value, and raises if the value is not valid for the argument.

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
