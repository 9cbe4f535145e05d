"""The arguments of all mixing operators, and their checks.

Whatever is known when the graph is built is checked then, with one error: the argument, what it must be and
what came. The checks are those of :mod:`.validation`, except that a node is accepted too: its values are
known only at run time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from nvidia.dali.pipeline import DataNode

from .methods import TABLE, Argument, Method
from .mixing import Convention, Granularity, check_argument, method_arguments
from .validation import (
    ArgumentTypeError,
    ArgumentValueError,
    check_choice,
    check_fraction,
    check_integer,
    is_number,
)

LAYOUTS: tuple[str, ...] = ("HWC", "CHW")
BACKENDS: tuple[str, ...] = ("auto", "kernel", "hybrid", "graph")


class MixParams(NamedTuple):
    """The draws of a batch: the third result of an operator with ``return_params=True``."""

    lam: DataNode
    """Label weight of the own image, the mean of its mask: float32 scalar, CPU."""
    partner: DataNode
    """Index of the partner within the batch: int32 scalar, CPU."""
    mask: DataNode
    """Weight of the own image: float32 HxWx1 (1xHxW for layout CHW), on the device of the images."""


def is_node(name: str, value: object) -> bool:
    """Whether `value` is a node; raise for a GPU node, because random draws are made on the CPU."""
    if isinstance(value, DataNode) and value.device != "cpu":
        raise ArgumentValueError(name, "a CPU node (random draws are made there)", "a GPU node")
    return isinstance(value, DataNode)


def check_number(name: str, value: Any, expected: str = "a number") -> None:
    """Raise unless `value` is a finite number."""
    if not is_number(value):
        raise ArgumentTypeError(name, f"{expected} or a DALI node", value)
    if not math.isfinite(value):
        raise ArgumentValueError(name, expected, value)


def _check_method_argument(argument: Argument, value: Any) -> None:
    """Raise unless a method's own argument takes `value`, a number or a node."""
    if not is_node(argument.name, value):
        if not is_number(value):
            raise ArgumentTypeError(argument.name, f"a number {argument.expected} or a DALI node", value)
        check_argument(argument, value)


def _check_center(center: object) -> None:
    if center is None:
        return
    if is_node("center", center):
        return
    if isinstance(center, str) or not isinstance(center, Sequence) or len(center) != 2:
        raise ArgumentTypeError("center", "(row, column) in pixels or a DALI node of shape [2]", center)
    for name, value in zip(("center row", "center column"), center, strict=True):
        check_number(name, value, "a pixel index of at least 0")
        if value < 0 or value != int(value):
            raise ArgumentValueError(name, "a pixel index of at least 0", value)


def _check_normalization(mean: object, std: object, output_layout: object) -> None:
    """Raise unless `mean` and `std` come together, one finite number per channel; a layout needs both."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together; got mean={mean!r}, std={std!r}")
    if output_layout is not None:
        check_choice("output_layout", output_layout, LAYOUTS)
        if mean is None:
            raise ArgumentValueError("output_layout", "left out without mean= and std=", output_layout)
    if mean is None:
        return
    for name, values in (("mean", mean), ("std", std)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ArgumentTypeError(name, "a sequence with one number per channel", values)
        for value in values:
            check_number(name, value, "one number per channel")
            if name == "std" and value <= 0:
                raise ArgumentValueError("std", "above 0 in every channel", values)
    if isinstance(mean, Sequence) and isinstance(std, Sequence) and len(mean) != len(std):
        raise ValueError(f"mean and std must have the same length; got {len(mean)} and {len(std)}")


@dataclass(frozen=True, kw_only=True)
class BlendArguments:
    """The checked arguments of :func:`dali_msda.blend`, except the mask; described there."""

    num_classes: int
    label_smoothing: float
    layout: str
    seed: int | None
    partner: int | DataNode | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    output_layout: str | None
    return_params: bool
    backend: str

    def __post_init__(self) -> None:
        check_integer("num_classes", self.num_classes, 1)
        check_fraction("label_smoothing", self.label_smoothing)
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("backend", self.backend, BACKENDS)
        if self.seed is not None:
            check_integer("seed", self.seed, 0)
        if self.partner is not None and not is_node("partner", self.partner):
            check_integer("partner", self.partner, 0)
        _check_normalization(self.mean, self.std, self.output_layout)
        if not isinstance(self.return_params, bool):
            raise ArgumentTypeError("return_params", "True or False", self.return_params)


@dataclass(frozen=True, kw_only=True)
class MixArguments(BlendArguments):
    """The checked arguments of :func:`dali_msda.mix`; described there."""

    method: str
    values: Mapping[str, float | DataNode]
    """The method's own arguments by name; the record adds the defaults of those not given."""
    probability: float | DataNode
    convention: str
    granularity: str
    lam: float | DataNode | None
    center: Sequence[int] | DataNode | None

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(TABLE))
        object.__setattr__(self, "values", method_arguments(self.entry, self.values, _check_method_argument))
        super().__post_init__()
        for name, value in (("probability", self.probability), ("lam", self.lam)):
            if value is not None and not is_node(name, value):
                check_fraction(name, value)
        check_choice("convention", self.convention, get_args(Convention))
        check_choice("granularity", self.granularity, get_args(Granularity))
        _check_center(self.center)

    @property
    def entry(self) -> Method:
        """The method's entry in the table."""
        return TABLE[self.method]


def check_inputs(images: Any, labels: Any, backend: str) -> None:
    """Raise unless `images` and `labels` are nodes on devices that the operators accept."""
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, DataNode):
            raise TypeError(
                f"{name} must be a DALI node of a pipeline definition; got {type(value).__name__}"
            )
    if labels.device != "cpu":
        raise ValueError(
            "labels must be on the CPU, where they are checked against num_classes; got a GPU node: mix"
            " before labels.gpu() (targets come back on the images' device)"
        )
    if backend == "kernel" and images.device != "cpu":
        raise ValueError(
            "images must be on the CPU with backend='kernel'; got a GPU node: use 'auto', 'hybrid' or 'graph'"
        )
