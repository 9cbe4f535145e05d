"""Errors about arguments, in one form, and the checks that raise them. Imports nothing heavy.

Every check takes the argument's name first. The error keeps it, so that a caller who knows the argument by
another name, such as a command-line option, can replace it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Self


class ArgumentError(Exception):
    """An argument that is not valid: "NAME must be EXPECTED; got GOT".

    Raised as :class:`ArgumentValueError`, a ValueError, or :class:`ArgumentTypeError`, a TypeError.

    Attributes
    ----------
    name : str
        The argument.
    expected : str
        What it must be.
    got : object
        What came.
    """

    def __init__(self, name: str, expected: str, got: object) -> None:
        super().__init__(name, expected, got)
        self.name, self.expected, self.got = name, expected, got

    def __str__(self) -> str:
        return f"{self.name} must be {self.expected}; got {self.got!r}"

    def renamed(self, name: str) -> Self:
        """The same error with another name for the argument."""
        return type(self)(name, self.expected, self.got)


class ArgumentValueError(ArgumentError, ValueError):
    """The type is right, the value is not."""


class ArgumentTypeError(ArgumentError, TypeError):
    """The type is wrong, or the argument does not belong there."""


def is_number(value: object) -> bool:
    """Whether `value` is a real number; True and False do not count."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ArgumentValueError(name, f"one of {', '.join(map(repr, choices))}", value)


def check_flag(name: str, value: object) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(name, "True or False", value)


def check_type(name: str, value: object, kind: type) -> None:
    """Raise unless `value` is of the type `kind`."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(name, f"of type {kind.__name__}", value)


def check_integer(name: str, value: object, minimum: int) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ArgumentTypeError(name, "an integer", value)
    if value < minimum:
        raise ArgumentValueError(name, f"at least {minimum}", value)


def check_fraction(name: str, value: Any) -> None:
    """Raise unless `value` is a number in [0, 1]."""
    if not is_number(value):
        raise ArgumentTypeError(name, "a number in [0, 1]", value)
    if not 0.0 <= value <= 1.0:
        raise ArgumentValueError(name, "in [0, 1]", value)


def check_interval(name: str, pair: Any, highest: float = math.inf) -> None:
    """Raise unless `pair` is two finite numbers, 0 < a <= b <= `highest`."""
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_number, pair)):
        raise ArgumentTypeError(name, "two numbers", pair)
    if not 0 < pair[0] <= pair[1] <= highest or math.isinf(pair[1]):
        limit = "" if math.isinf(highest) else f" <= {highest:g}"
        raise ArgumentValueError(name, f"two numbers 0 < a <= b{limit}", pair)
