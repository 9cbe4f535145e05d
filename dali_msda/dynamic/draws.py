"""The random draws of a batch in dynamic mode: NumPy's distributions, seeded by a generator of DALI.

All methods take the same numbers in the same order: uniform ones, the permutation, then the Beta draws, those
of random arguments last. So what the caller gives, or a random argument, does not change the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
from nvidia.dali.experimental.dynamic import Batch

from ..arguments import DrawArguments
from ..methods import Beta, Method, Uniform
from ..validation import ArgumentTypeError
from .batches import Array, as_batch

# 32-bit words of the caller's generator per batch: always the same number, as DALI's capture mode demands.
_WORDS = 4


@dataclass(frozen=True)
class Drawing:
    """How masks and partners are drawn: checked arguments, with numbers or one value per sample."""

    checked: DrawArguments
    """With the first value of each argument that is given per sample."""
    given: Mapping[str, Array]
    """Those, by name."""

    @property
    def entry(self) -> Method:
        """The method's entry in the table."""
        return self.checked.entry

    @property
    def convention(self) -> str:
        """The convention of the masks."""
        return self.checked.convention

    @property
    def center(self) -> object:
        """The caller's centre, if any."""
        return self.value("center")

    @property
    def mixes_all(self) -> bool:
        """Whether it is known that every sample is mixed."""
        return not self.given and self.checked.mixes_all

    def value(self, name: str) -> Any:
        """An argument: a number, or [N]."""
        if name in self.given:
            return self.given[name]
        values = self.checked.values
        return values[name] if name in values else getattr(self.checked, name)


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch or given by the caller."""

    numbers: Array
    """float64 [N, D]."""
    slots: dict[str, int]
    """The columns of the numbers; see :attr:`dali_msda.draws.Draws.slots`."""
    partner: Array
    """The partner's index, int32 [N]."""

    def pick(self, name: str) -> Batch:
        """One of the numbers, as a batch of [1]."""
        return as_batch(self.column(name)[:, None])

    def column(self, name: str) -> Array:
        """One of the numbers, [N]."""
        return np.ascontiguousarray(self.numbers[:, self.slots[name]])


def check_rng(rng: Any) -> Any:
    """The generator; raise unless it is one of dynamic mode. None is this thread's default one."""
    if rng is None:
        return ndd.random.get_default_rng()
    if not isinstance(rng, ndd.random.RNG):
        raise ArgumentTypeError("rng", "an ndd.random.RNG or None", rng)
    return rng


def _derangement(random: np.random.Generator, count: int) -> Array:
    """A random permutation without fixed points, if there is one."""
    while True:
        found = random.permutation(count)
        if count == 1 or not (found == np.arange(count)).any():
            return found


def draw_numbers(drawing: Drawing, count: int, rng: Any) -> Draws:
    """Draw everything that the masks and partners of a batch depend on, except what the caller gave."""
    method, checked = drawing.entry, drawing.checked
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([rng() for _ in range(_WORDS)])))
    shared = checked.granularity == "batch"

    def share(values: Array) -> Array:
        return np.broadcast_to(values[:1], values.shape) if shared else values

    own = [name for name, kind in method.draws.items() if isinstance(kind, Uniform)]
    uniforms = share(random.random((count, 3 + len(own))))
    permutation = random.permutation(count) if checked.allow_self else _derangement(random, count)
    columns: dict[str, Any] = dict(zip(("_row", "_column", "_coin", *own), uniforms.T, strict=True))
    for name, kind in method.draws.items():
        if isinstance(kind, Beta):
            alpha = np.broadcast_to(np.asarray(drawing.value(str(kind.alpha)), np.float64), count)
            positive = np.where(alpha > 0, alpha, 1.0)  # an alpha of 0 draws 1
            columns[name] = np.where(alpha > 0, share(random.beta(positive, positive)), 1.0)
            if drawing.value("lam") is not None:
                columns[name] = drawing.value("lam")
    for argument in method.arguments:
        if argument.name in (*method.values, *method.lam_values):
            value = drawing.value(argument.name)
            if isinstance(value, Beta):
                value = share(random.beta(float(value.alpha), float(value.alpha), count))
            columns[argument.name] = value
    center = drawing.center
    if center is not None:
        columns["_row"], columns["_column"] = np.asarray(center, np.float64).T
    columns["_probability"] = _probability(drawing)
    columns["_paper"], columns["_given"] = drawing.convention == "paper", center is not None
    numbers = np.empty((count, len(columns)), np.float64)
    for place, values in enumerate(columns.values()):
        numbers[:, place] = values
    partner = permutation if drawing.value("partner") is None else drawing.value("partner")
    slots = {name: place for place, name in enumerate(columns)}
    return Draws(numbers, slots, np.broadcast_to(np.asarray(partner, np.int32), count).copy())


def _probability(drawing: Drawing) -> Any:
    """The probability that a sample is mixed at all: 0 where the only alpha is 0, as in a pipeline."""
    alphas = drawing.entry.alphas
    probability = drawing.value("probability")
    if drawing.value("lam") is not None or len(alphas) != 1:
        return probability
    return np.where(np.asarray(drawing.value(alphas[0])) > 0, probability, 0.0)
