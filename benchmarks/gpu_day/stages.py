"""The stages, most important first, and their shares of the time."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """A stage."""

    name: str
    """The name of its module."""
    title: str
    share: float
    """Its time box, as a share of the budget. Later stages get unused time."""


STAGES = (
    Stage("doctor", "The doctor", 0.12),
    Stage("tests", "The tests with the GPU as device", 0.19),
    Stage("mixing", "Mixing alone", 0.08),
    Stage("pipeline", "The training pipeline", 0.19),
    Stage("trainer", "The trainer, ResNet-50", 0.18),
    Stage("resume", "Killed and resumed in the middle of an epoch", 0.14),
    Stage("rounding", "Rounding: the GPU's graph, the CPU's graph, the kernel", 0.04),
    Stage("decoder", "Settings of the decoder", 0.06),
)
