"""How far a run has come, and the best result so far."""

from __future__ import annotations

from typing import Any

from .config import Config


class Progress:
    """Counters and results of a run.

    Attributes
    ----------
    step : int
        Optimiser steps completed.
    epoch : int
        The epoch of the next step, or the one whose evaluation is due.
    evaluation : dict or None
        Result of the last evaluation; None from the start of the next epoch.
    best : dict
        The best ``top1`` in percent (of the averaged weights, if any), its ``epoch``, ``step``.
    steps_per_epoch, total_steps : int
        Of the whole run; the learning rate depends on them. Set by :meth:`plan`.
    last_step : int
        Where the run stops: `total_steps` or --max-steps. Set by :meth:`plan`.
    squeezed_to : int or None
        In a checkpoint from an earlier version: the --max-steps that its learning rate was planned over.
    """

    def __init__(self) -> None:
        self.step = 0
        self.epoch = 0
        self.evaluation: dict[str, float] | None = None
        self.best: dict[str, float] = {"top1": -1.0, "epoch": -1, "step": -1}
        self.steps_per_epoch = self.total_steps = self.last_step = 0
        self.squeezed_to: int | None = None

    def plan(self, config: Config, batches: int) -> None:
        """Count the steps of the run, from the number of batches in an epoch.

        A resumed run whose epoch is complete, evaluation included, continues in the next one.
        """
        self.steps_per_epoch = batches // config.accumulate
        self.total_steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)
        if self.evaluation is not None and self.step >= (self.epoch + 1) * self.steps_per_epoch:
            self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """The position of the run; with an evaluation, only saving is left of the epoch."""
        return {name: getattr(self, name) for name in ("epoch", "step", "evaluation", "best")}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Continue from a saved position."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def describe_new_schedule(self) -> str | None:
        """A note if the learning rate continues on another curve, else None; after :meth:`plan`."""
        if self.squeezed_to is None or self.squeezed_to >= self.total_steps:
            return None
        return (
            f"The checkpoint is from an earlier version, which planned the learning rate over --max-steps"
            f" {self.squeezed_to}: from now on it is planned over --epochs, {self.total_steps} steps"
        )

    @property
    def position(self) -> dict[str, int]:
        """Epoch and step."""
        return {"epoch": self.epoch, "step": self.step}

    @property
    def end_of_epoch(self) -> int:
        """The last step of the epoch, or of the run if it stops earlier."""
        return min((self.epoch + 1) * self.steps_per_epoch, self.last_step)

    @property
    def is_complete(self) -> bool:
        """Whether no step and no evaluation is left."""
        return self.step >= self.last_step and self.evaluation is not None

    @property
    def epochs_begun(self) -> int:
        """Epochs that have steps."""
        return -(-self.step // self.steps_per_epoch)

    @property
    def is_best(self) -> bool:
        """Whether the last step has the best result."""
        return self.best["step"] == self.step

    def record(self, evaluation: dict[str, float], top1: float) -> None:
        """Record the evaluation of this epoch; `top1` decides which epoch is best."""
        self.evaluation = evaluation
        if top1 > self.best["top1"]:
            self.best = {"top1": top1, "epoch": self.epoch, "step": self.step}
