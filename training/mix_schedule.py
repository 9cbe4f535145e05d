"""How the mixing changes during a run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from dali_msda.methods import TABLE, Entry
from dali_msda.mixing import Mixing, Scheduled, argument_of, check_argument
from dali_msda.validation import ArgumentValueError, check_fraction, check_integer
from pipelines.ramps import Ramp


@dataclass(frozen=True, kw_only=True)
class MixSchedule:
    """Ramps of alpha and of the probability, and when mixing ends. By default nothing changes.

    Raises
    ------
    ValueError, TypeError
        Naming the field, what was expected and what came.
    """

    ramp_epochs: float = 0.0
    """Epochs over which alpha and the probability change linearly from their start values to those above."""

    alpha_start: float | None = None
    """Alpha in the first batch, with --mix-ramp-epochs. Default: alpha does not change."""

    probability_start: float | None = None
    """Probability in the first batch, with --mix-ramp-epochs. Default: it does not change."""

    off_epoch: int | None = None
    """Stop mixing at this epoch, counted from 0. Default: mix to the end."""

    def __post_init__(self) -> None:
        if not 0 <= self.ramp_epochs < math.inf:
            raise ArgumentValueError("ramp_epochs", "a number of at least 0", self.ramp_epochs)
        if self.alpha_start is not None:
            alpha = argument_of(TABLE["mixup"], "alpha")
            check_argument(dataclasses.replace(alpha, name="alpha_start"), self.alpha_start)
        if self.probability_start is not None:
            check_fraction("probability_start", self.probability_start)
        if self.off_epoch is not None:
            check_integer("off_epoch", self.off_epoch, 0)
        starts = self.alpha_start is not None or self.probability_start is not None
        if starts != (self.ramp_epochs > 0):
            raise ArgumentValueError(
                "ramp_epochs",
                "above 0 with --mix-alpha-start or --mix-probability-start, and 0 without",
                self.ramp_epochs,
            )

    def for_method(self, method: Entry) -> MixSchedule:
        """This schedule without the parts that `method` cannot use."""
        if method.name == "none":
            return MixSchedule()
        if method.alphas or self.alpha_start is None:
            return self
        ramp_epochs = 0.0 if self.probability_start is None else self.ramp_epochs
        return dataclasses.replace(self, alpha_start=None, ramp_epochs=ramp_epochs)

    def apply_to(self, mixing: Mixing, batches: int) -> Mixing:
        """Replace the numbers of `mixing` that change by ramps; an epoch has `batches` batches."""
        arguments = dict(mixing.arguments)
        length = self.ramp_epochs * batches
        if self.alpha_start is not None:
            for name in mixing.entry.alphas:
                arguments[name] = Ramp(self.alpha_start, _number(arguments[name]), length)
        probability = mixing.probability
        if self.probability_start is not None or self.off_epoch is not None:
            end = _number(probability)
            probability = Ramp(
                end if self.probability_start is None else self.probability_start,
                end,
                0.0 if self.probability_start is None else length,
                None if self.off_epoch is None else self.off_epoch * batches,
            )
        return dataclasses.replace(mixing, arguments=arguments, probability=probability)


def _number(value: Scheduled) -> float:
    if callable(value):
        raise TypeError(f"a mixing with a schedule must hold numbers; got {value!r}")
    return value
