"""The arguments of all mixing operators, and their checks.

Whatever is known when the graph is built is checked then, with one error: the argument, what it must be and
what came. The checks are those of :mod:`.validation`, except that a node is accepted too: its values are
known only at run time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, get_args

from nvidia.dali import types
from nvidia.dali.pipeline import DataNode

from .common_arguments import (
    check_given_together,
    check_known,
    check_partner_labels,
    check_same_length,
    check_scale_and_shift,
    per_channel,
)
from .layouts import LAYOUTS, output_layouts, picture_layout
from .methods import TABLE, Argument, Beta, Method, check_method, methods_with
from .mixing import Convention, Granularity, check_argument, check_random, method_arguments
from .signatures import BackendName, PerChannel
from .validation import (
    ArgumentTypeError,
    ArgumentValueError,
    check_choice,
    check_flag,
    check_fraction,
    check_integer,
    is_number,
)

BACKENDS: tuple[str, ...] = get_args(BackendName)
# What ``fn.crop_mirror_normalize`` can make.
OUTPUT_DTYPES = {kind.name: kind for kind in (types.FLOAT, types.FLOAT16, types.UINT8, types.INT8)}


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
    """Raise unless a method's own argument takes `value`, a number, a node or a Beta."""
    if isinstance(value, Beta):
        check_random(argument, value)
    elif not is_node(argument.name, value):
        if not is_number(value):
            raise ArgumentTypeError(argument.name, f"{argument.expected_number} or a DALI node", value)
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


def _check_normalization(arguments: ImageArguments) -> None:
    """Raise unless the arguments are valid; without `mean` and `std` all must be left out."""
    mean, std = arguments.mean, arguments.std
    if arguments.output_layout is not None:
        check_choice("output_layout", arguments.output_layout, output_layouts(arguments.layout))
    if arguments.output_dtype not in OUTPUT_DTYPES.values():
        expected = f"one of {', '.join(f'types.{name}' for name in OUTPUT_DTYPES)}"
        raise ArgumentValueError("output_dtype", expected, arguments.output_dtype)
    check_scale_and_shift(arguments.scale, arguments.shift)
    if not is_node("mirror", arguments.mirror) and arguments.mirror not in (0, 1):
        raise ArgumentValueError("mirror", "0, 1 or a DALI node", arguments.mirror)
    check_flag("pad_output", arguments.pad_output)
    if mean is None:
        for field in fields(arguments):
            value = getattr(arguments, field.name)
            if field.name != "layout" and (isinstance(value, DataNode) or value != field.default):
                raise ArgumentValueError(field.name, "left out without mean= and std=", value)
    check_same_length(mean, std)


# The records below hold the checked arguments of the public functions; :func:`dali_msda.mix` describes them.


@dataclass(frozen=True, kw_only=True)
class ImageArguments:
    """How images are laid out, and normalised once they are mixed."""

    layout: str
    mean: PerChannel | None = None
    """As a float or a tuple; `std` too."""
    std: PerChannel | None = None
    scale: float = 1.0
    shift: float = 0.0
    mirror: int | DataNode = 0
    output_layout: str | None = None
    output_dtype: types.DALIDataType = types.FLOAT
    pad_output: bool = False

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, LAYOUTS)
        check_given_together(self.mean, self.std)
        for name in ("mean", "std"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, per_channel(name, given))
        _check_normalization(self)

    @property
    def normalizes(self) -> bool:
        """Whether the mixed images are normalised."""
        return self.mean is not None

    @property
    def result_layout(self) -> str:
        """The layout of the mixed images."""
        return self.output_layout or self.layout

    @property
    def of_pictures(self) -> ImageArguments:
        """The same for the form of :func:`.layouts.as_pictures`."""
        output = None if self.output_layout == self.layout else self.output_layout
        return replace(self, layout=picture_layout(self.layout), output_layout=output)


@dataclass(frozen=True, kw_only=True)
class PartnerArguments:
    """How partners are drawn, and what mixes."""

    seed: int | None
    partner: int | DataNode | None
    allow_self: bool
    backend: str

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, BACKENDS)
        if self.seed is not None:
            check_integer("seed", self.seed, 0)
        if self.partner is not None and not is_node("partner", self.partner):
            check_integer("partner", self.partner, 0)
        check_flag("allow_self", self.allow_self)
        if not self.allow_self and self.partner is not None:
            raise ArgumentValueError("allow_self", "True with partner=, which decides", self.allow_self)


@dataclass(frozen=True, kw_only=True)
class DrawArguments(PartnerArguments):
    """How masks are drawn."""

    method: str
    values: Mapping[str, Any]
    """The method's own arguments by name; the record adds the defaults of those not given."""
    probability: float | DataNode
    convention: str
    granularity: str
    lam: float | DataNode | None
    center: Sequence[int] | DataNode | None

    def __post_init__(self) -> None:
        check_method(self.method)
        object.__setattr__(self, "values", method_arguments(self.entry, self.values, _check_method_argument))
        super().__post_init__()
        for name, value in (("probability", self.probability), ("lam", self.lam)):
            if value is not None and not is_node(name, value):
                check_fraction(name, value)
        check_choice("convention", self.convention, get_args(Convention))
        check_choice("granularity", self.granularity, get_args(Granularity))
        _check_center(self.center)

    @classmethod
    def from_call(
        cls,
        method: str,
        alpha: float | DataNode | None,
        own: Mapping[str, Any],
        others: Iterable[str] = (),
        **common: Any,
    ) -> Self:
        """The arguments of a call, with `own` those of the method; None takes a default.

        `others` are the names of what the call takes as well, for the error about a name that it does not.
        """
        check_method(method)
        unknown = [name for name in own if not methods_with(name)]
        check_known(TABLE[method], unknown, [*common, *others])
        given = {"alpha": alpha, **own}
        return cls(
            method=method,
            values={name: value for name, value in given.items() if value is not None},
            **common,
        )

    @property
    def only_alpha(self) -> float | DataNode | None:
        """The alpha, of a method that has one and draws lam with it; None otherwise."""
        alphas = self.entry.alphas
        return self.values[alphas[0]] if self.lam is None and len(alphas) == 1 else None

    @property
    def mixes_all(self) -> bool:
        """Whether it is known that every sample is mixed."""
        probability, alpha = self.probability, self.only_alpha
        if isinstance(probability, DataNode) or isinstance(alpha, DataNode):
            return False
        return probability == 1.0 and alpha != 0

    @property
    def entry(self) -> Method:
        """The method's entry in the table."""
        return TABLE[self.method]


def check_node(name: str, value: object) -> None:
    """Raise unless `value` is a node."""
    if not isinstance(value, DataNode):
        raise TypeError(f"{name} must be a DALI node of a pipeline definition; got {type(value).__name__}")


def as_views(name: str, images: DataNode | Sequence[DataNode], backend: str) -> tuple[DataNode, ...]:
    """Images, or several views of them, as a tuple; raise unless they are nodes that the backend can mix."""
    views = tuple(images) if isinstance(images, tuple | list) else (images,)
    if not views:
        raise ValueError(f"{name} must be a DALI node or a sequence of them; got an empty one")
    for view in views:
        check_node(name, view)
        if backend == "kernel" and view.device != "cpu":
            raise ValueError(
                f"{name} must be on the CPU with backend='kernel'; got a GPU node: use 'auto', 'hybrid' or"
                " 'graph'"
            )
    return views


def check_labels(labels: Any, partner_labels: Any, second_source: bool) -> None:
    """Raise unless labels are nodes, and those of partners come with a second source and only there."""
    if labels is not None:
        check_node("labels", labels)
    if partner_labels is not None:
        check_node("partner_labels", partner_labels)
    check_partner_labels(labels, partner_labels, second_source, "a node")
