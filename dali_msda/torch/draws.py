"""The random draws of a batch, on the device of its images and without waiting for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..masks import chosen
from ..methods import Beta, Uniform
from ..validation import ArgumentValueError
from .arguments import DrawArguments
from .checks import check_range


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch or given by the caller.

    Attributes
    ----------
    values : mapping of str to Tensor
        float64, [N] or for all samples [1]: what the method's formula takes, by name, and "_row", "_column",
        "_coin" and "_probability", as :class:`dali_msda.draws.Draws` has them.
    paper, given : bool
        Whether the convention is the paper's, and whether the caller gave the centre.
    """

    values: Mapping[str, Tensor]
    paper: bool
    given: bool

    def with_center(self, row: Tensor, column: Tensor) -> Draws:
        """The same with another centre."""
        return replace(self, values={**self.values, "_row": row, "_column": column})


def beta(alpha: float, radius: Tensor, angle: Tensor) -> Tensor:
    """Draws from Beta(alpha, alpha) for two uniform draws each, both in [0, 1); float64.

    Without rejection or a search, so that it runs on any device without waiting, and compiles. A Student t
    with 2 alpha degrees of freedom comes from a radius and an angle (R. W. Bailey, "Polar generation of
    random variates with the t-distribution", Mathematics of Computation 62, 1994), and
    1/2 + t / (2 sqrt(2 alpha + t^2)) is Beta(alpha, alpha).
    """
    share = -torch.expm1(torch.log(radius) / alpha)  # 1 - radius^(1 / alpha)
    cosine = torch.cos(2.0 * math.pi * angle)
    half = cosine * torch.sqrt(share / (1.0 - share + share * cosine * cosine))
    return (0.5 + 0.5 * half).clamp(0.0, 1.0)


def draw_numbers(
    arguments: DrawArguments, count: int, device: torch.device, lam: Tensor | None, center: Tensor | None
) -> Draws:
    """Draw everything the masks of `count` samples depend on, except `lam` and `center` if given."""
    method = arguments.entry
    kinds: dict[str, Beta | Uniform] = {"_row": Uniform(), "_column": Uniform(), "_coin": Uniform()}
    kinds |= method.draws
    # Random arguments come last, so that the other draws are the same as without them.
    kinds |= {name: value for name, value in arguments.values.items() if isinstance(value, Beta)}
    lines = sum(2 if isinstance(kind, Beta) else 1 for kind in kinds.values())
    shared = arguments.granularity == "batch"
    uniform = torch.rand(
        (lines, 1 if shared else count), dtype=torch.float64, device=device, generator=arguments.generator
    )
    taken = (*method.values, *method.lam_values)
    values = {
        name: torch.full((1,), value, dtype=torch.float64, device=device)
        for name, value in arguments.values.items()
        if not isinstance(value, Beta) and name in taken
    }
    line = 0
    for name, kind in kinds.items():
        if isinstance(kind, Uniform):
            values[name] = uniform[line]
            line += 1
            continue
        alpha = arguments.values[kind.alpha] if isinstance(kind.alpha, str) else kind.alpha
        if name in method.draws and lam is not None:
            values[name] = lam
        else:
            values[name] = _draw_beta(float(alpha), uniform[line], uniform[line + 1])
        line += 2
    if center is not None:
        values["_row"], values["_column"] = center[:, 0], center[:, 1]
    probability = torch.full((1,), _probability(arguments, lam), dtype=torch.float64, device=device)
    return Draws({**values, "_probability": probability}, arguments.convention == "paper", center is not None)


def _draw_beta(alpha: float, radius: Tensor, angle: Tensor) -> Tensor:
    return torch.ones_like(radius) if alpha == 0.0 else beta(alpha, radius, angle)


def _probability(arguments: DrawArguments, lam: Tensor | None) -> float:
    """Probability that a sample is mixed at all: 0 where the only alpha is 0.

    A lam of 1 would not do: GMix has a blob of one pixel then.
    """
    alphas = arguments.entry.alphas
    if lam is None and len(alphas) == 1 and arguments.values[alphas[0]] == 0:
        return 0.0
    return float(arguments.probability)


def draw_partner(
    arguments: DrawArguments, count: int, device: torch.device, partner: Tensor | None
) -> Tensor:
    """Index of every sample's partner, int64 [N]: the caller's, or a random permutation of the batch."""
    if partner is not None:
        return check_range("partner", partner, count)
    order = torch.randperm(count, device=device, generator=arguments.generator)
    if arguments.allow_self:
        return order
    # One cycle through all samples: each has a uniform partner, and none itself.
    return torch.empty_like(order).scatter(0, order, order.roll(1))


def drawn_lam(arguments: DrawArguments, draws: Draws, functions: object) -> Tensor:
    """The lam that was drawn, whatever the mask made of it; 1 where a sample is not mixed: float32.

    Raises
    ------
    ArgumentValueError
        The method draws no lam.
    """
    method = arguments.entry
    if method.drawn_lam is not None:
        lam = method.drawn_lam(functions, *(draws.values[name] for name in method.lam_values))
    elif "lam" in method.draws:
        lam = draws.values["lam"]
    else:
        raise ArgumentValueError("correct_lam", f"True with {method.name!r}, which draws no lam", False)
    found: Tensor = chosen(lam, 1.0, draws.values["_coin"], draws.values["_probability"])
    return found.to(torch.float32)
