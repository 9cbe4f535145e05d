"""Numbers that change during training, such as alpha or a probability.

The pipeline prefetches, so a value set by the training loop would reach the wrong batches. A ramp is
evaluated in the pipeline instead, which knows the number of each batch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """A straight line over the first batches, and optionally another value from some batch on.

    Attributes
    ----------
    start : float
        The value in batch 0.
    end : float
        The value from batch `batches` on.
    batches : float
        Length of the line; 0: `end` from the start.
    off_from : int or None
        From this batch on, the value is `off`.
    off : float
    """

    start: float
    end: float
    batches: float = 0.0
    off_from: int | None = None
    off: float = 0.0

    def __call__(self, batch: int) -> float:
        """The value in a batch; batches count from 0 through all epochs."""
        if self.off_from is not None and batch >= self.off_from:
            return self.off
        if batch >= self.batches:
            return self.end
        return self.start + (self.end - self.start) * batch / self.batches
