"""The arguments of all mixing operators and the checks on them.

Everything that can be known when the graph is built is checked there, with one error that names the
argument, what came and what was expected. The checks are those of :mod:`.validation`; here nodes are taken as
well, whose numbers only show at run time.
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
    """What was drawn for a batch; the third result of an operator with ``return_params=True``."""

    lam: DataNode
    """Label weight of the own image, the mean of its mask: float32 scalar, CPU."""
    partner: DataNode
    """Index of the partner within the batch: int32 scalar, CPU."""
    mask: DataNode
    """Weight of the own image: float32 HxWx1 (1xHxW for layout CHW), on the device of the images."""


def is_node(name: str, value: object) -> bool:
    """Whether `value` is a node; raise for one on the GPU, because random draws are made on the CPU."""
    if isinstance(value, DataNode) and value.device != "cpu":
        raise ArgumentValueError(name, "a CPU node (random draws are made there)", "one on the GPU")
    return isinstance(value, DataNode)


def check_number(name: str, value: Any, expected: str = "a number") -> None:
    """Raise unless `value` is a finite number."""
    if not is_number(value):
        raise ArgumentTypeError(name, f"{expected} or a DALI node", value)
    if not math.isfinite(value):
        raise ArgumentValueError(name, expected, value)


def _check_own(argument: Argument, value: Any) -> None:
    """A method's own argument."""
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
            raise ArgumentTypeError(name, "a sequence with one number per channel", values)
        for value in values:
            check_number(name, value, "one number per channel")
            if name == "std" and value <= 0:
                raise ArgumentValueError("std", "above 0 in every channel", values)
    if isinstance(mean, Sequence) and isinstance(std, Sequence) and len(mean) != len(std):
        raise ValueError(f"mean and std must be equally long; got {len(mean)} and {len(std)} numbers")


@dataclass(frozen=True, kw_only=True)
class BlendArguments:
    """The checked arguments of :func:`dali_msda.blend`, which describes them; without the mask."""

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
    """The checked arguments of :func:`dali_msda.mix`, which describes them."""

    method: str
    values: Mapping[str, float | DataNode]
    """The method's own, by name; once the record is made all of them, those not given with their defaults."""
    probability: float | DataNode
    convention: str
    granularity: str
    lam: float | DataNode | None
    center: Sequence[int] | DataNode | None

    def __post_init__(self) -> None:
        check_choice("method", self.method, tuple(TABLE))
        object.__setattr__(self, "values", method_arguments(self.entry, self.values, _check_own))
        super().__post_init__()
        for name, value in (("probability", self.probability), ("lam", self.lam)):
            if value is not None and not is_node(name, value):
                check_fraction(name, value)
        check_choice("convention", self.convention, get_args(Convention))
        check_choice("granularity", self.granularity, get_args(Granularity))
        _check_center(self.center)

    @property
    def entry(self) -> Method:
        """The method, as the table has it."""
        return TABLE[self.method]


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
        raise ValueError(
            "backend='kernel' runs on the CPU; got images on the GPU: use 'auto', 'hybrid' or 'graph'"
        )
