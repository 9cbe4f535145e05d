"""Arguments, and their checks, that are the same wherever mixing runs. Imports nothing heavy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from .methods import Method
from .signatures import TargetForm
from .validation import (
    ArgumentTypeError,
    ArgumentValueError,
    check_choice,
    check_flag,
    check_fraction,
    check_integer,
    is_number,
)


@dataclass(frozen=True, kw_only=True)
class LabelArguments:
    """What becomes of the labels."""

    num_classes: int | None
    label_smoothing: float = 0.0
    output: str = "dense"
    correct_lam: bool = True

    def __post_init__(self) -> None:
        if self.num_classes is not None:
            check_integer("num_classes", self.num_classes, 1)
        check_fraction("label_smoothing", self.label_smoothing)
        check_choice("output", self.output, get_args(TargetForm))
        if self.output == "pair" and self.label_smoothing:
            expected = "0 with output='pair', where smoothing is the loss's own"
            raise ArgumentValueError("label_smoothing", expected, self.label_smoothing)
        check_flag("correct_lam", self.correct_lam)


def check_known(method: Method, unknown: Sequence[str], common: Iterable[str]) -> None:
    """Raise TypeError for the first unknown argument, if any."""
    if unknown:
        known = list(dict.fromkeys([*method.defaults, *common]))
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}? " if close else ""
        raise TypeError(f"{method.name} has no argument {unknown[0]!r}; {hint}it takes {', '.join(known)}")


def check_given_together(mean: object, std: object) -> None:
    """Raise if only one of `mean` and `std` is given."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together; got mean={mean!r}, std={std!r}")


def per_channel(name: str, given: Any) -> float | tuple[float, ...]:
    """A finite number for all channels, or one for each; raise unless `given` is that."""
    values = given.tolist() if isinstance(given, np.ndarray) else given
    single = is_number(values)
    sequence = [values] if single else values
    if isinstance(sequence, str) or not isinstance(sequence, Sequence) or not sequence:
        raise ArgumentTypeError(name, "a number, or one number per channel", given)
    if not all(map(is_number, sequence)):
        raise ArgumentTypeError(name, "a number, or one number per channel", given)
    if not all(map(math.isfinite, sequence)) or (name == "std" and min(sequence) <= 0):
        raise ArgumentValueError(name, "above 0 in every channel" if name == "std" else "finite", given)
    return float(values) if single else tuple(map(float, values))


def check_same_length(mean: object, std: object) -> None:
    """Raise if `mean` and `std`, from :func:`per_channel`, are for different numbers of channels."""
    if isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) != len(std):
        raise ValueError(f"mean and std must have the same length; got {len(mean)} and {len(std)}")


def check_scale_and_shift(scale: Any, shift: Any) -> None:
    """Raise unless both are finite numbers, and `scale` is not 0."""
    for name, value in (("scale", scale), ("shift", shift)):
        if not is_number(value):
            raise ArgumentTypeError(name, "a number", value)
        if not math.isfinite(value) or (name == "scale" and value == 0):
            raise ArgumentValueError(name, "finite and not 0" if name == "scale" else "finite", value)


def check_partner_labels(labels: object, partner_labels: object, second_source: bool, kind: str) -> None:
    """Raise unless those of partners come with a second source and only there; `kind` is what they are."""
    if partner_labels is not None and not second_source:
        raise ArgumentValueError("partner_labels", "left out without partner_images", kind)
    if partner_labels is not None and labels is None:
        raise ArgumentValueError("partner_labels", "left out with labels=None", kind)
    if second_source and labels is not None and partner_labels is None:
        expected = "given with partner_images; labels=None mixes the images alone"
        raise ArgumentValueError("partner_labels", expected, None)
