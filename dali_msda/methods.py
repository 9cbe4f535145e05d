"""The mixing methods, one entry each: name, arguments, draws and mask.

Everything that lists methods or their arguments is derived from :data:`TABLE`: the functions of the library,
the checks, the backends, the trainer's options, the figures, the tests. :func:`register` adds an entry at
run time. Imports nothing heavy.

The paper is Park, Yun and Chun, "A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function
Perspective", NeurIPS 2022.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from .masks import (
    TINY,
    Dense,
    Functions,
    Grid,
    Separable,
    Value,
    box_span,
    chosen,
    drawn_center,
    fixed_base_and_scale,
    inside,
    mask_of_one_pixel,
)
from .validation import ArgumentValueError, check_choice


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A number that a method takes in addition to the common arguments.

    Attributes
    ----------
    name : str
    default : float
        For the paper's methods, its value for ImageNet (section 5).
    cifar100 : float, optional
        The paper's value for CIFAR-100.
    fraction : bool
        Whether the number is in [0, 1]; otherwise it is above 0.
    zero : bool
        Whether 0 is allowed as well: an alpha of 0 means no mixing.
    whole_from : int, optional
        If given, the number is an integer of at least this.
    help : str
        One sentence.
    """

    name: str
    default: float
    cifar100: float | None = None
    fraction: bool = False
    zero: bool = False
    whole_from: int | None = None
    help: str

    @property
    def expected(self) -> str:
        """The numbers it takes, for messages."""
        if self.fraction:
            return "in [0, 1]"
        if self.whole_from is not None:
            return f"an integer of at least {self.whole_from}"
        return "at least 0" if self.zero else "above 0"

    @property
    def expected_number(self) -> str:
        """The same, for messages about something that is no number."""
        if self.whole_from is not None:
            return self.expected
        return f"a number {'of ' if self.zero else ''}{self.expected}"

    def takes(self, number: float) -> bool:
        """Whether `number` is one of them."""
        if self.fraction:
            return 0.0 <= number <= 1.0
        if self.whole_from is not None:
            return isinstance(number, Integral) and number >= self.whole_from
        return 0.0 < number < math.inf or (self.zero and number == 0.0)


@dataclass(frozen=True)
class Beta:
    """A number drawn from Beta(a, a) for every sample.

    As a draw of a method, the caller's ``lam`` replaces it. As the value of an argument in [0, 1] of a mixing
    function, it makes the argument random: ``ratio=Beta(0.5)`` (section 4: r ~ Beta(gamma, gamma) of HMix).

    Attributes
    ----------
    alpha : str or float
        As a draw of a method, the argument that holds a; as a value, a itself, above 0.
    """

    alpha: str | float


@dataclass(frozen=True)
class Uniform:
    """A number drawn from [0, 1) for every sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """What any mixing method has, wherever it runs.

    Attributes
    ----------
    name, title : str
        Its name in code, and in text.
    summary : str
        Its mask, for tables.
    paper : str
        Where the paper defines it.
    arguments : tuple of Argument
    draws : mapping of str to Beta or Uniform
        What is drawn for every sample, by name.
    """

    name: str
    title: str
    summary: str
    paper: str = ""
    arguments: tuple[Argument, ...] = ()
    draws: Mapping[str, Beta | Uniform] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, float]:
        """The arguments and their defaults, by name."""
        return {argument.name: argument.default for argument in self.arguments}

    @property
    def alphas(self) -> tuple[str, ...]:
        """The arguments that a single ``alpha`` sets."""
        drawn = {str(draw.alpha) for draw in self.draws.values() if isinstance(draw, Beta)}
        return tuple(name for name in self.defaults if name in drawn)


@dataclass(frozen=True, kw_only=True, eq=False)
class Method(Entry):
    """A way to choose the mask of a sample, in a pipeline.

    Besides its draws, every method draws the row and column of a centre.

    Attributes
    ----------
    name, title, summary, paper, arguments, draws
        See :class:`Entry`.
    mask : callable
        ``mask(f, grid, ...)`` returns :class:`.masks.Separable` or :class:`.masks.Dense`. Its further
        parameters are named after draws and arguments.
    binary : bool
        Whether every weight is 0 or 1, so that uint8 pixels can be selected instead of blended.
    drawn_lam : callable, optional
        ``drawn_lam(f, ...)`` is the label weight for ``correct_lam=False``; its further parameters are named
        like those of `mask`. By default the draw called "lam".
    """

    mask: Callable[..., Separable | Dense]
    binary: bool = False
    drawn_lam: Callable[..., Value] | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """The draws and arguments that the formula takes, in its order."""
        return tuple(inspect.signature(self.mask).parameters)[2:]

    @property
    def lam_values(self) -> tuple[str, ...]:
        """The draws and arguments that :attr:`drawn_lam` takes, in its order."""
        return () if self.drawn_lam is None else tuple(inspect.signature(self.drawn_lam).parameters)[1:]

    @functools.cached_property
    def kind(self) -> str:
        """The kind of mask: "constant", "separable" or "dense". Runs the formula, on a single pixel."""
        numbers = {**dict.fromkeys(self.draws, 0.5), **self.defaults}
        mask = mask_of_one_pixel(self.mask, tuple(numbers[name] for name in self.values))
        if isinstance(mask, Dense):
            return "dense"
        return "constant" if mask.rows is None or mask.columns is None else "separable"

    @property
    def cuts(self) -> bool:
        """Whether the mask is always 0 inside a box and 1 outside: `binary`, with base 1 and scale -1."""
        return self.binary and fixed_base_and_scale(self.mask, len(self.values)) == (1.0, -1.0)


# The formulas. lam, ratio and so on are numbers, `grid` has the pixels; see :mod:`.masks`.


def _none(f: Functions, grid: Grid) -> Separable:
    return Separable(1.0)


def _mixup(f: Functions, grid: Grid, lam: Value) -> Separable:
    """Equation 2."""
    return Separable(lam)


def _cutmix(f: Functions, grid: Grid, lam: Value) -> Separable:
    """Equation 3: a box with sides sqrt(1 - lam) of the image's."""
    scale = f.sqrt(1.0 - lam)
    top, bottom = box_span(f, grid, grid.rows, scale)
    left, right = box_span(f, grid, grid.columns, scale)
    return Separable(1.0, -1.0, inside(grid.rows, top, bottom), inside(grid.columns, left, right))


def _stochastic(
    f: Functions, grid: Grid, lam: Value, mixup_lam: Value, coin: Value, switch_probability: Value
) -> Separable:
    """Section 4: `lam` (of CutMix) and `mixup_lam` each have their own distribution."""
    cutmix = _cutmix(f, grid, lam)
    base = chosen(mixup_lam, 1.0, coin, switch_probability)
    scale = chosen(0.0, -1.0, coin, switch_probability)
    return Separable(base, scale, cutmix.rows, cutmix.columns)


def _stochastic_lam(
    f: Functions, lam: Value, mixup_lam: Value, coin: Value, switch_probability: Value
) -> Value:
    return chosen(mixup_lam, lam, coin, switch_probability)


def _hmix(f: Functions, grid: Grid, lam: Value, ratio: Value) -> Separable:
    """Section 4: a box of area (1 - lam) r, and outside it the level that makes the label weight lam.

    The authors' code divides by the actual area outside, so the label weight is the drawn lam; the paper
    divides by the nominal area. If the box covers everything (lam is 0), the level does not matter: 0.
    """
    scale = f.sqrt(1.0 - lam) * f.sqrt(ratio)
    top, bottom = box_span(f, grid, grid.rows, scale)
    left, right = box_span(f, grid, grid.columns, scale)
    if grid.paper:
        outside = 1.0 - (1.0 - lam) * ratio
    else:
        outside = 1.0 - ((bottom - top) / grid.rows.size) * ((right - left) / grid.columns.size)
    level = f.minimum(lam / f.maximum(outside, TINY), 1.0)
    return Separable(level, -level, inside(grid.rows, top, bottom), inside(grid.columns, left, right))


def _gmix(f: Functions, grid: Grid, lam: Value) -> Separable:
    """Section 4: a Gaussian blob around a point.

    In the authors' code the blob shows the image with the smaller weight; in the paper it always shows the
    partner and is twice as wide. A width of 0 means no blob.
    """
    if grid.paper:
        width = 2.0 * (1.0 - lam)
        base, sign = 1.0, -1.0
    else:
        own = 1.0 * (lam < 0.5)
        width = own * lam + (1.0 - own) * (1.0 - lam)
        base, sign = 1.0 - own, 2.0 * own - 1.0
    area = f.maximum(width, TINY) * (grid.rows.size * grid.columns.size)
    down = grid.rows.pixels - drawn_center(f, grid, grid.rows, 1.0)
    across = grid.columns.pixels - drawn_center(f, grid, grid.columns, 1.0)
    rows, columns = f.exp(-(f.pi * down * down) / area), f.exp(-(f.pi * across * across) / area)
    return Separable(base, sign * (width > 0.0), rows, columns)


def _alpha(default: float, cifar100: float, name: str = "alpha", of: str = "lam") -> Argument:
    return Argument(
        name=name, default=default, cifar100=cifar100, zero=True, help=f"{of} ~ Beta(alpha, alpha)."
    )


_LAM = {"lam": Beta("alpha")}

TABLE: dict[str, Method] = {
    method.name: method
    for method in (
        Method(name="none", title="no mixing", summary="1 everywhere", mask=_none),
        Method(
            name="mixup",
            title="Mixup",
            summary="`lam` everywhere",
            paper="equation 2",
            arguments=(_alpha(0.8, 1.0),),
            draws=_LAM,
            mask=_mixup,
        ),
        Method(
            name="cutmix",
            title="CutMix",
            summary="0 in a box with the share `1 - lam` of the image, 1 outside",
            paper="equation 3",
            arguments=(_alpha(1.0, 1.0),),
            draws=_LAM,
            mask=_cutmix,
            binary=True,
        ),
        Method(
            name="stochastic",
            title="Stochastic Mixup & CutMix",
            summary="Mixup with probability q, CutMix otherwise",
            paper="section 4",
            arguments=(
                _alpha(1.0, 1.0, "mixup_alpha", "lam of Mixup"),
                _alpha(1.0, 1.0, "cutmix_alpha", "lam of CutMix"),
                Argument(
                    name="switch_probability",
                    default=0.5,
                    cifar100=0.5,
                    fraction=True,
                    help="The probability q of Mixup.",
                ),
            ),
            draws={"lam": Beta("cutmix_alpha"), "mixup_lam": Beta("mixup_alpha"), "coin": Uniform()},
            mask=_stochastic,
            drawn_lam=_stochastic_lam,
        ),
        Method(
            name="hmix",
            title="HMix",
            summary="0 in a box with the share `(1 - lam) r`, `lam / (share outside)` outside",
            paper="section 4, HMix",
            arguments=(
                _alpha(1.0, 1.0),
                Argument(
                    name="ratio",
                    default=0.75,
                    cifar100=0.5,
                    fraction=True,
                    help="r, the share of the box: 0 is Mixup, 1 is CutMix.",
                ),
            ),
            draws=_LAM,
            mask=_hmix,
        ),
        Method(
            name="gmix",
            title="GMix",
            summary="`1 - exp(-pi d^2 / ((1 - lam) H W))` around a random point (for `lam < 0.5`:"
            " `exp(-pi d^2 / (lam H W))`)",
            paper="section 4, GMix",
            arguments=(_alpha(1.0, 0.5),),
            draws=_LAM,
            mask=_gmix,
        ),
    )
}

# Well-known methods that cannot be in the table, and why.
ELSEWHERE = {
    "puzzlemix": "'puzzlemix' needs the model's gradients, which a pipeline does not have:"
    " train_imagenet.py has --mix puzzlemix"
}

# Computed from the table at each look-up (see `__getattr__`), because it can grow.
METHODS: tuple[str, ...]
"""The names of all methods."""
MIXING: tuple[str, ...]
"""The names of all methods except "none"."""
ARGUMENTS: dict[str, Argument]
"""Every argument of any method, by name. Arguments with the same name have the same range."""


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        return tuple(TABLE)
    if name == "MIXING":
        return tuple(method for method in TABLE if method != "none")
    if name == "ARGUMENTS":
        return {argument.name: argument for method in TABLE.values() for argument in method.arguments}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_method(method: object, known: Collection[str] = TABLE) -> None:
    """Raise unless `method` is a name in `known`; for one that runs elsewhere, say where."""
    if method not in known and method in ELSEWHERE:
        expected = f"one of {', '.join(map(repr, known))} ({ELSEWHERE[str(method)]})"
        raise ArgumentValueError("method", expected, method)
    check_choice("method", method, tuple(known))


def methods_with(argument: str) -> tuple[str, ...]:
    """The methods that take an argument."""
    return tuple(name for name, method in TABLE.items() if argument in method.defaults)


# What a function of the library takes besides a method's arguments; a test compares it with the signatures.
COMMON = frozenset(
    (
        "images", "labels", "num_classes", "method", "probability", "label_smoothing", "convention",
        "granularity", "layout", "seed", "rng", "lam", "center", "partner", "mean", "std", "scale", "shift",
        "mirror", "output_layout", "output_dtype", "pad_output", "return_params", "backend", "mask", "output",
        "correct_lam", "allow_self", "partner_images", "partner_labels", "name",
    )
)  # fmt: skip


def register(method: Method) -> Method:
    """Add a method of your own: as a function of the library, in :func:`dali_msda.mix`, and so on.

    Parameters
    ----------
    method : Method

    Returns
    -------
    Method
        The same method.

    Raises
    ------
    TypeError, ValueError
        A name is not usable or already taken; the formula takes something that is neither a draw nor an
        argument, or does not return a mask; an argument has a name that the library uses, or that another
        method uses with another range.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method must be a Method; got {method!r}")
    names = ", ".join((*TABLE, *ELSEWHERE))
    for name in (method.name, *method.draws, *method.defaults):
        usable = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
        if not usable or name in ("mix", "blend"):
            raise ArgumentValueError("name", "a Python name that the library does not use", name)
    if method.name in TABLE or method.name in ELSEWHERE:
        raise ArgumentValueError("name", f"none of {names}", method.name)
    for argument in method.arguments:
        same = __getattr__("ARGUMENTS").get(argument.name, argument)
        if argument.name in COMMON or argument.fraction != same.fraction:
            raise ValueError(
                f"arguments of {method.name} must have unused names, or the range that other methods give"
                f" them; got {argument.name!r}, {argument.expected}"
            )
    for draw, kind in method.draws.items():
        if draw in method.defaults:
            raise ValueError(f"draws of {method.name} must not have the name of an argument; got {draw!r}")
        if isinstance(kind, Beta) and kind.alpha not in method.defaults:
            raise ValueError(
                f"draws of {method.name} must name an argument as alpha; got {kind.alpha!r} for {draw!r}"
            )
    known = [*method.draws, *method.defaults]
    if unknown := [name for name in method.values if name not in known]:
        raise ValueError(
            f"mask of {method.name} must take only f, grid{''.join(f', {name}' for name in known)}; got"
            f" {unknown[0]!r}"
        )
    _ = method.kind  # runs the formula, which must return a mask
    TABLE[method.name] = method
    return method
