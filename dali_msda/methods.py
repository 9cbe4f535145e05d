"""The mixing methods, one entry each: what they are called, what they take, and where the paper has them.

Everything that lists methods or their arguments derives from :data:`TABLE`: the operators, the checks, the
kernel's codes, the trainer's options, the figures, the tests. Imports nothing heavy.

The paper is Park, Yun and Chun, "A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function
Perspective", NeurIPS 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A number that a method takes beyond what all of them take.

    Attributes
    ----------
    name : str
    default : float
        The paper's value for ImageNet (section 5), everywhere the default.
    cifar100 : float
        The paper's value for CIFAR-100.
    fraction : bool
        Whether the number is in [0, 1]; otherwise it is above 0.
    help : str
        What it is, in a sentence.
    """

    name: str
    default: float
    cifar100: float
    fraction: bool = False
    help: str

    @property
    def expected(self) -> str:
        """The numbers it takes, for messages."""
        return "in [0, 1]" if self.fraction else "above 0"

    def takes(self, number: float) -> bool:
        """Whether `number` is one of them."""
        return 0.0 <= number <= 1.0 if self.fraction else 0.0 < number < math.inf


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to choose the mask of a sample.

    Attributes
    ----------
    name, title : str
        What it is called in code, and by people.
    paper : str
        Where it is defined.
    mask : str
        Its mask, for tables.
    arguments : tuple of Argument
    """

    name: str
    title: str
    paper: str
    mask: str
    arguments: tuple[Argument, ...]

    @property
    def defaults(self) -> dict[str, float]:
        """The arguments and their defaults, by name."""
        return {argument.name: argument.default for argument in self.arguments}

    @property
    def alphas(self) -> tuple[str, ...]:
        """The arguments that one ``alpha`` for all of them stands for."""
        return tuple(name for name in self.defaults if name == "alpha" or name.endswith("_alpha"))


def _alpha(default: float, cifar100: float, name: str = "alpha", of: str = "lam") -> Argument:
    return Argument(name=name, default=default, cifar100=cifar100, help=f"{of} ~ Beta(alpha, alpha).")


TABLE: dict[str, Method] = {
    method.name: method
    for method in (
        Method(name="none", title="no mixing", paper="", mask="1 everywhere", arguments=()),
        Method(
            name="mixup",
            title="Mixup",
            paper="equation 2",
            mask="`lam` everywhere",
            arguments=(_alpha(0.8, 1.0),),
        ),
        Method(
            name="cutmix",
            title="CutMix",
            paper="equation 3",
            mask="0 in a box with the share `1 - lam` of the image, 1 outside",
            arguments=(_alpha(1.0, 1.0),),
        ),
        Method(
            name="stochastic",
            title="Stochastic Mixup & CutMix",
            paper="section 4",
            mask="Mixup with probability q, CutMix otherwise",
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
        ),
        Method(
            name="hmix",
            title="HMix",
            paper="section 4, HMix",
            mask="0 in a box with the share `(1 - lam) r`, `lam / (share outside)` outside",
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
        ),
        Method(
            name="gmix",
            title="GMix",
            paper="section 4, GMix",
            mask="`1 - exp(-pi d^2 / ((1 - lam) H W))` around a random point (for `lam < 0.5`:"
            " `exp(-pi d^2 / (lam H W))`)",
            arguments=(_alpha(1.0, 0.5),),
        ),
    )
}

METHODS: tuple[str, ...] = tuple(TABLE)
# Those that mix, which is all of them but "none".
MIXING: tuple[str, ...] = tuple(name for name in METHODS if name != "none")
# Every argument of any method, by name. Those of one name have the same range.
ARGUMENTS: dict[str, Argument] = {
    argument.name: argument for method in TABLE.values() for argument in method.arguments
}


def takers(argument: str) -> tuple[str, ...]:
    """The methods that take an argument."""
    return tuple(name for name, method in TABLE.items() if argument in method.defaults)
