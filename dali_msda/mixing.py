"""The settings of mixing, as one record that checks itself. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from .methods import TABLE, Argument, Beta, Entry, check_method
from .validation import ArgumentTypeError, ArgumentValueError, check_choice, check_fraction, is_number

Convention = Literal["reference", "paper"]
Granularity = Literal["sample", "batch"]

# A number, or a function that returns it for a batch, counted from 0 through all epochs.
Scheduled = float | Callable[[int], float]


@dataclass(frozen=True, init=False)
class Mixing:
    """A mixing method with its arguments.

    ``Mixing("hmix", alpha=1.0, ratio=0.5)`` takes the method's own arguments by name; the others have the
    defaults of :data:`dali_msda.methods.TABLE`. ``alpha`` sets all alphas of a method ("stochastic" has
    two). All arguments of the method and the probability may be functions of the batch number, such as
    :class:`pipelines.ramps.Ramp`.

    Raises
    ------
    ValueError, TypeError
        A field or an argument is not valid; the message has its name, what it must be and what came.
    """

    method: str
    """Mixing method."""

    # Not hashed, because a dict has no hash.
    arguments: Mapping[str, Scheduled] = field(hash=False)
    """All arguments of the method, by name."""

    probability: Scheduled
    """Probability that an image is mixed."""

    label_smoothing: float
    """Label smoothing of the training targets, in [0, 1]."""

    convention: Convention
    """Masks as in the authors' code, or by the formulas of the paper."""

    granularity: Granularity
    """Separate draws for every image, or one draw for all images of a batch."""

    @classmethod
    def methods(cls) -> Mapping[str, Entry]:
        """The methods that it can name."""
        # The table is read here, not at import, because users add methods to it.
        return TABLE

    def __init__(
        self,
        method: str = "hmix",
        *,
        probability: Scheduled = 1.0,
        label_smoothing: float = 0.0,
        convention: Convention = "reference",
        granularity: Granularity = "sample",
        arguments: Mapping[str, Scheduled] | None = None,
        **own: Scheduled,
    ) -> None:
        """Takes the method's own arguments as keywords, or by name in `arguments`."""
        check_method(method, self.methods())
        values = {
            "method": method,
            "arguments": method_arguments(self.methods()[method], {**(arguments or {}), **own}),
            "probability": probability,
            "label_smoothing": label_smoothing,
            "convention": convention,
            "granularity": granularity,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not callable(probability):
            check_fraction("probability", probability)
        check_fraction("label_smoothing", label_smoothing)
        check_choice("convention", convention, get_args(Convention))
        check_choice("granularity", granularity, get_args(Granularity))

    def check_number(self, name: str, number: object) -> None:
        """Raise unless `number` is valid for the probability or the method's argument of that name."""
        if name == "probability":
            check_fraction(name, number)
        else:
            check_argument(argument_of(self.entry, name), number)

    @property
    def entry(self) -> Entry:
        """The method's entry."""
        return self.methods()[self.method]


def argument_of(method: Entry, name: str) -> Argument:
    """The method's argument with that name."""
    return next(argument for argument in method.arguments if argument.name == name)


def check_argument(argument: Argument, value: Any) -> None:
    """Raise unless `value` is a number in the argument's range."""
    if not is_number(value):
        raise ArgumentTypeError(argument.name, argument.expected_number, value)
    if not argument.takes(value):
        raise ArgumentValueError(argument.name, argument.expected, value)


def check_random(argument: Argument, value: Beta) -> None:
    """Raise unless the argument can be drawn from the distribution `value`."""
    if not argument.fraction:
        raise ArgumentTypeError(argument.name, argument.expected_number, value)
    if isinstance(value.alpha, str) or not is_number(value.alpha) or not 0.0 < value.alpha < math.inf:
        raise ArgumentValueError(argument.name, "Beta(a) with a number a above 0", value)


def _check_scheduled(argument: Argument, value: Any) -> None:
    """Check a number; the values of a function are checked when they come."""
    if not callable(value):
        check_argument(argument, value)


def method_arguments(
    method: Entry, given: Mapping[str, Any], check: Callable[[Argument, Any], None] = _check_scheduled
) -> dict[str, Any]:
    """All arguments of a method by name: those given, and the table's defaults for the others.

    Parameters
    ----------
    method : Entry
    given : mapping
        Some of the arguments; ``alpha`` sets all alphas.
    check : callable
        Raises if a value is not valid for an argument.

    Raises
    ------
    ArgumentTypeError
        The method does not take one of them; the message lists those it takes.
    """
    given = dict(given)
    if "alpha" in given and "alpha" not in method.defaults and (method.alphas or method.name == "none"):
        alpha = given.pop("alpha")
        # "none" accepts and ignores it, so that one alpha can be given to any method.
        owner, name = (method, method.alphas[0]) if method.alphas else (TABLE["mixup"], "alpha")
        check(replace(argument_of(owner, name), name="alpha"), alpha)
        given = dict.fromkeys(method.alphas, alpha) | given
    for name, value in given.items():
        if name not in method.defaults:
            own = f"{', '.join(method.defaults)} and " if method.arguments else ""
            others = [repr(other.name) for other in TABLE.values() if name in other.defaults]
            where = f" (it belongs to {', '.join(others)})" if others else ""
            expected = f"left out with {method.name!r}, which takes {own}the common arguments{where}"
            raise ArgumentTypeError(name, expected, value)
        check(argument_of(method, name), value)
    return method.defaults | given
