"""The arguments of all mixing operators and the checks on them.

Everything that can be known when the graph is built is checked there, with one error that names the
argument, what came and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

from nvidia.dali.pipeline import DataNode

from .methods import ARGUMENTS, METHODS, TABLE

CONVENTIONS: tuple[str, ...] = ("reference", "paper")
GRANULARITIES: tuple[str, ...] = ("sample", "batch")
LAYOUTS: tuple[str, ...] = ("HWC", "CHW")
BACKENDS: tuple[str, ...] = ("auto", "kernel", "graph")


class MixParams(NamedTuple):
    """What was drawn for a batch; the third result of an operator with ``return_params=True``."""

    lam: DataNode
    """Label weight of the own image, the mean of its mask: float32 scalar, CPU."""
    partner: DataNode
    """Index of the partner within the batch: int32 scalar, CPU."""
    mask: DataNode
    """Weight of the own image: float32 HxWx1 (1xHxW for layout CHW), on the device of the images."""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def _check_number(name: str, value: object, expected: str, *, node_allowed: bool = True) -> float | None:
    """The finite number `value`, or None for a node whose values only show at run time."""
    if node_allowed and isinstance(value, DataNode):
        if value.device != "cpu":
            raise ValueError(f"{name} must be a CPU node (random draws are made there); got one on the GPU")
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        alternative = " or a DALI node" if node_allowed else ""
        raise TypeError(f"{name} must be {expected}{alternative}; got {value!r} ({type(value).__name__})")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be {expected}; got {value!r}")
    return float(value)


def check_fraction(name: str, value: object, *, node_allowed: bool = True) -> None:
    """Raise unless `value` is a number in [0, 1] (or a CPU node)."""
    number = _check_number(name, value, "a number in [0, 1]", node_allowed=node_allowed)
    if number is not None and not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must be in [0, 1]; got {value!r}")


def check_method_argument(name: str, value: object, called: str | None = None) -> None:
    """Raise unless a method's argument of that name takes the number `value` (or a CPU node).

    `called` is what the caller calls it.
    """
    argument, called = ARGUMENTS[name], called or name
    number = _check_number(called, value, f"a number {argument.expected}")
    if number is not None and not argument.takes(number):
        raise ValueError(f"{called} must be {argument.expected}; got {value!r}")


def check_integer(name: str, value: object, minimum: int) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer; got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value!r}")


def _check_center(center: object) -> None:
    if center is None:
        return
    if isinstance(center, DataNode):
        _check_number("center", center, "")
        return
    if isinstance(center, str) or not isinstance(center, Sequence) or len(center) != 2:
        raise TypeError(f"center must be (row, column) in pixels or a DALI node of shape [2]; got {center!r}")
    for name, value in zip(("center row", "center column"), center, strict=True):
        number = _check_number(name, value, "a pixel index of at least 0", node_allowed=False)
        if number is not None and (number < 0 or number != int(number)):
            raise ValueError(f"{name} must be a pixel index of at least 0; got {value!r}")


def _check_normalization(mean: object, std: object, output_layout: object) -> None:
    """`mean` and `std` come together, one finite number per channel; a layout only goes with them."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together; got mean={mean!r}, std={std!r}")
    if output_layout is not None:
        check_choice("output_layout", output_layout, LAYOUTS)
        if mean is None:
            raise ValueError(f"output_layout is only for mean= and std=; got {output_layout!r} without them")
    if mean is None:
        return
    for name, values in (("mean", mean), ("std", std)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise TypeError(f"{name} must be a sequence with one number per channel; got {values!r}")
        for value in values:
            _check_number(name, value, "one number per channel", node_allowed=False)
            if name == "std" and value <= 0:
                raise ValueError(f"std must be above 0 in every channel; got {values!r}")
    if isinstance(mean, Sequence) and isinstance(std, Sequence) and len(mean) != len(std):
        raise ValueError(f"mean and std must be equally long; got {len(mean)} and {len(std)} numbers")


@dataclass(frozen=True)
class MixArguments:
    """The checked arguments of one mixing operator; see :func:`dali_msda.mix` for their meaning."""

    method: str
    num_classes: int
    # Of the method; what it does not take is None. Those that are not given have its defaults.
    alpha: float | DataNode | None = None
    mixup_alpha: float | DataNode | None = None
    cutmix_alpha: float | DataNode | None = None
    switch_probability: float | DataNode | None = None
    ratio: float | DataNode | None = None
    probability: float | DataNode = 1.0
    label_smoothing: float = 0.0
    convention: str = "reference"
    granularity: str = "sample"
    layout: str = "HWC"
    seed: int | None = None
    lam: float | DataNode | None = None
    center: Sequence[int] | DataNode | None = None
    partner: int | DataNode | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    output_layout: str | None = None
    return_params: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_integer("num_classes", self.num_classes, 1)
        self._settle_method_arguments()
        check_fraction("probability", self.probability)
        check_fraction("label_smoothing", self.label_smoothing, node_allowed=False)
        check_choice("convention", self.convention, CONVENTIONS)
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("backend", self.backend, BACKENDS)
        if self.seed is not None:
            check_integer("seed", self.seed, 0)
        if self.lam is not None:
            check_fraction("lam", self.lam)
        _check_center(self.center)
        if isinstance(self.partner, DataNode):
            _check_number("partner", self.partner, "")
        elif self.partner is not None:
            check_integer("partner", self.partner, 0)
        _check_normalization(self.mean, self.std, self.output_layout)
        if not isinstance(self.return_params, bool):
            raise TypeError(f"return_params must be True or False; got {self.return_params!r}")

    def _settle_method_arguments(self) -> None:
        defaults = TABLE[self.method].defaults
        for name in ARGUMENTS:
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, defaults.get(name))
            elif name in defaults:
                check_method_argument(name, value)
            else:
                own = f"{', '.join(defaults)} and " if defaults else ""
                raise TypeError(
                    f"{name} is not an argument of method {self.method!r}, which takes {own}the common"
                    f" arguments; got {name}={value!r}"
                )

    @property
    def lam_alpha(self) -> float | DataNode | None:
        """Of the distribution of the main lam, which in "stochastic" is that of CutMix."""
        return self.cutmix_alpha if self.method == "stochastic" else self.alpha

    @property
    def method_code(self) -> int:
        """Position of the method in :data:`METHODS`, as the compiled kernel knows it."""
        return METHODS.index(self.method)


def check_inputs(images: Any, labels: Any, backend: str) -> None:
    """Raise unless `images` and `labels` are nodes on devices the operators can take them from."""
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, DataNode):
            raise TypeError(
                f"{name} must be a DALI node made inside a pipeline definition; got {type(value).__name__}"
            )
    if labels.device != "cpu":
        raise ValueError(
            "labels must be on the CPU, where DALI's readers put them and where they are checked against"
            " num_classes; got a GPU node: mix before labels.gpu() (targets come back on the images' device)"
        )
    if backend == "kernel" and images.device != "cpu":
        raise ValueError("backend='kernel' runs on the CPU; got images on the GPU: use 'auto' or 'graph'")
