"""Numbers that follow the training: what alpha or a probability is in a certain batch.

The pipeline works ahead of the training loop, so a value that the loop sets would reach batches that were
made long before or after. Here the pipeline itself knows the number of the batch that it makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import DataNode


@dataclass(frozen=True)
class Ramp:
    """A straight line over the first batches, and another value from a certain batch on.

    Attributes
    ----------
    start : float
        The value in batch 0.
    end : float
        The value from batch `batches` on.
    batches : float
        Length of the line; 0: `end` from the start.
    off_from : int or None
        From this batch on the value is `off`.
    off : float
    """

    start: float
    end: float
    batches: float = 0.0
    off_from: int | None = None
    off: float = 0.0

    def __call__(self, batch: int) -> float:
        """The value in a batch, counted from 0 through all epochs."""
        if self.off_from is not None and batch >= self.off_from:
            return self.off
        if batch >= self.batches:
            return self.end
        return self.start + (self.end - self.start) * batch / self.batches


def number_or_node(value: Any, name: str, fits: Callable[[float], bool], batch_size: int) -> Any:
    """A number as it is; a function of the number of the batch as a node with its values (float32 scalars).

    With DALI's checkpoints the count of the batches goes on where it was.
    """
    if not callable(value):
        return value

    def source(info: Any) -> np.ndarray:
        number = value(info.iteration)
        if not isinstance(number, Real) or not math.isfinite(number) or not fits(float(number)):
            raise ValueError(f"{name} must stay in its range; got {number!r} for batch {info.iteration}")
        return np.full(batch_size, number, np.float32)

    node = fn.external_source(source=source, batch=True, batch_info=True, device="cpu")
    assert isinstance(node, DataNode)
    return node
