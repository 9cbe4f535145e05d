"""The paper's figure 1: training with the loss of mixing, and with its approximation (Theorem 1).

    python -m experiments.figure1 [OUTPUT.png] [--quick]

Logistic regression on two moons, lam ~ Beta(1, 1), Mixup and the variant of CutMix whose two inputs are each
the own one with probability lam. The loss of mixing is exact: a sum over all pairs and masks, and a
quadrature over lam. Below are two panels that the paper does not have: the gap between both losses, and how
it grows with 1 - lam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dali_msda.theory.losses import (
    LOGISTIC,
    Expansion,
    Masks,
    RatioDistribution,
    approximate_loss,
    coefficients_of,
    constant_masks,
    independent_masks,
    mix_all,
)

from .figures import DARK, MIDDLE, Claim, Options, compute_cells, forget_cells, parse, save

Floats = npt.NDArray[np.float64]

COUNT, NOISE, RATE = 100, 0.1, 1.0
# "Fairly close" (section 3), in our numbers.
SAME_MODEL, BOTH_TRAININGS, EXCESS = 0.15, 0.25, 0.25
METHODS: dict[str, Masks] = {"Mixup": constant_masks(2), "CutMix variant": independent_masks(2)}
RATIO = RatioDistribution(1.0, 1.0)
STEPS_OF_LAM = [2.0**-k for k in range(1, 10)]
"""1 - lam in the last panel."""


def make_moons(seed: int, count: int = COUNT) -> tuple[Floats, Floats]:
    """Two interleaved half circles of evenly spaced points, as scikit-learn's, with noise, centred.

    Returns inputs [count, 2] and labels 0 and 1.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) // ((count + 1) // 2)
    angle = np.concatenate([np.linspace(0, np.pi, (labels == label).sum()) for label in (0, 1)])
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)
    points += rng.normal(0, NOISE, points.shape)
    return points - points.mean(axis=0), labels.astype(np.float64)


class Original:
    """The loss of mixing, equation 4, of a linear model; parameters are the weights and the bias, [3]."""

    def __init__(self, inputs: Floats, targets: Floats, method: str) -> None:
        # The loss of the variant is a polynomial in lam of degree 3, for which two nodes are exact.
        nodes = 8 if method == "Mixup" else 2
        self._mixed = mix_all(inputs, targets, METHODS[method], RATIO.alpha, RATIO.beta, nodes)

    def __call__(self, parameters: Floats) -> float:
        return self._mixed.loss(lambda x: x @ parameters[:2] + parameters[2], LOGISTIC)

    def gradient(self, parameters: Floats) -> Floats:
        x, y, weights = self._mixed
        residual = weights * (LOGISTIC.slope(x @ parameters[:2] + parameters[2]) - y)
        return np.append(residual @ x, residual.sum())


class Approximate:
    """The approximate loss of Theorem 1 of the same model."""

    def __init__(self, inputs: Floats, targets: Floats, method: str) -> None:
        self._inputs, self._targets = inputs, targets
        self._coefficients = RATIO.mean_coefficients(coefficients_of(METHODS[method]))

    def __call__(self, parameters: Floats) -> float:
        expansion = expand(parameters, self._inputs)
        return approximate_loss(
            self._inputs, self._targets, expansion, LOGISTIC, RATIO.mean(), self._coefficients
        )

    def gradient(self, parameters: Floats) -> Floats:
        x, y, a = self._inputs, self._targets, self._coefficients
        theta, count = parameters[:2], len(self._inputs)
        offset, share = x - x.mean(axis=0), 1 - RATIO.mean()
        output = x @ theta + parameters[2]
        slope, curvature = LOGISTIC.slope(output), LOGISTIC.curvature(output)
        third = curvature * (1 - 2 * slope)
        spread, along = a * (offset.T @ offset / count), theta * offset
        g = theta @ spread @ theta + ((along @ a) * along).sum(axis=1)
        # By the output, then by the weights directly.
        by_output = slope - y - share * curvature * (offset @ theta) + third * g / 2
        direct = share * (y - slope) @ offset + curvature @ (spread @ theta + offset * (along @ a))
        return np.append(by_output @ x + direct, by_output.sum()) / count


def expand(parameters: Floats, inputs: Floats) -> Expansion:
    """The linear model at the inputs."""
    gradient = np.broadcast_to(parameters[:2], inputs.shape)
    return Expansion(inputs @ parameters[:2] + parameters[2], gradient)


def train(loss: Original | Approximate, steps: int) -> list[Floats]:
    """Gradient descent from zero: the parameters after every step."""
    path = [np.zeros(3)]
    for _ in range(steps):
        path.append(path[-1] - RATE * loss.gradient(path[-1]))
    return path


def remainder(parameters: Floats, inputs: Floats, targets: Floats, masks: Masks, step: float) -> float:
    """How far the expansion is from the loss for one lam = 1 - step, with the label of the own image."""
    probabilities, found = masks(1 - step)
    mixed = found * inputs[:, None, None] + (1 - found) * inputs[None, :, None]
    losses = LOGISTIC(mixed @ parameters[:2] + parameters[2], targets[:, None, None])
    approximate = approximate_loss(
        inputs, targets, expand(parameters, inputs), LOGISTIC, 1 - step, coefficients_of(masks)(1 - step)
    )
    return abs(approximate - float((losses.mean(axis=(0, 1)) * probabilities).sum()))


def compute(method: str, seed: int, steps: int, every: int) -> dict[str, list[float]]:
    """Train twice on one draw of the moons."""
    inputs, targets = make_moons(seed)
    original, approximate = Original(inputs, targets, method), Approximate(inputs, targets, method)
    path, approximate_path = train(original, steps), train(approximate, steps)
    curves = {
        "original": [original(point) for point in path[::every]],
        "approximate": [approximate(point) for point in approximate_path[::every]],
        # The approximation for the model trained with the original loss, and the reverse.
        "approximate_after_original": [approximate(point) for point in path[::every]],
        "original_after_approximate": [original(approximate_path[-1])],
        "remainders": [remainder(path[-1], inputs, targets, METHODS[method], step) for step in STEPS_OF_LAM],
    }
    return {name: [float(f"{value:.7g}") for value in values] for name, values in curves.items()}


Curves = dict[str, dict[str, Floats]]
"""Method -> name -> [seeds, ...]."""


def slopes(curves: Curves) -> dict[str, float]:
    """The order of the remainder in 1 - lam, between the two smallest steps; median over the seeds."""
    found = {}
    for method, values in curves.items():
        last = values["remainders"][:, -2:]
        found[method] = float(np.median(np.log2(last[:, 0] / last[:, 1])))
    return found


def relative_gap(values: dict[str, Floats], name: str) -> Floats:
    """Approximate minus original loss over training, as a share of the original: [seeds, points]."""
    return np.asarray(values[name] / values["original"] - 1)


def check(curves: Curves) -> list[Claim]:
    """The paper's claim, and what we add about the remainder."""
    claims = []
    for method, values in curves.items():
        excess = values["original_after_approximate"][:, 0] / values["original"][:, -1] - 1
        for text, found, bound in (
            (
                "both losses of the same model are close at any time of training",
                np.abs(relative_gap(values, "approximate_after_original")).max(),
                SAME_MODEL,
            ),
            (
                "the losses of both trainings are close",
                np.abs(relative_gap(values, "approximate")).max(),
                BOTH_TRAININGS,
            ),
            ("training with the approximation reduces the original loss about as far", excess.max(), EXCESS),
        ):
            claims.append(
                Claim(f"{method}: {text}, within {bound:.0%}", f"{found:.1%}", bool(found <= bound))
            )
    orders = slopes(curves)
    for method, order in (("Mixup", 3), ("CutMix variant", 1)):
        claims.append(
            Claim(
                f"{method}: the remainder is of order {order} in 1 - lam, within 0.15",
                f"{orders[method]:.2f}",
                abs(orders[method] - order) <= 0.15,
            )
        )
    return claims


def draw_band(axis: Axes, x: Any, values: Floats, color: str, label: str, style: str) -> None:
    """A curve of medians, and a band from the lowest to the highest seed."""
    axis.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.18, lw=0)
    axis.plot(x, np.median(values, axis=0), style, color=color, label=label, lw=1.6, ms=4)


def draw(curves: Curves, points: Sequence[int], seeds: int) -> Figure:
    """Losses of both methods, their gap, and the remainder."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, (method, values) in zip(axes[0], curves.items(), strict=True):
        draw_band(axis, points, values["original"], DARK, "trained with the original loss", "-")
        draw_band(axis, points, values["approximate"], MIDDLE, "trained with the approximation", "--")
        same = np.median(values["approximate_after_original"], axis=0)
        axis.plot(points, same, ":", color="0.35", lw=1.6, label="approximation for the first model")
        axis.set(title=method, xlabel="step", ylabel="loss")
        axis.legend(frameon=False)
    low = min(axis.get_ylim()[0] for axis in axes[0])
    high = max(axis.get_ylim()[1] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(low, high)
    for (method, values), color, style in zip(curves.items(), (DARK, MIDDLE), ("-", "--"), strict=True):
        for name, label, form in (
            ("approximate", "both trainings", style),
            ("approximate_after_original", "same model", ":" if style == "-" else "-."),
        ):
            gap = 100 * relative_gap(values, name)
            draw_band(axes[1, 0], points, gap, color, f"{method}, {label}", form)
        marked = "o-" if style == "-" else "s--"
        draw_band(axes[1, 1], STEPS_OF_LAM, values["remainders"], color, method, marked)
    axes[1, 0].axhline(0, color="0.6", lw=0.8)
    axes[1, 0].set_ylim(bottom=1.75 * axes[1, 0].get_ylim()[0])  # room for the legend
    axes[1, 0].set(title="Gap", xlabel="step", ylabel="approximate - original, % of original")
    axes[1, 1].set(title="Error of the expansion for one λ", xlabel="1 - λ", ylabel="absolute error")
    axes[1, 1].set_xscale("log", base=2)
    axes[1, 1].set_yscale("log")
    axes[1, 0].legend(frameon=False, loc="lower left", fontsize="small")
    axes[1, 1].legend(frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"medians and ranges of {seeds} draws of the moons", fontsize="small", color="0.3")
    return figure


def make(options: Options) -> None:
    """Train, draw, check."""
    seeds, steps, every = (3, 100, 5) if options.quick else (20, 200, 5)
    keys = [f"{method}/{seed}" for method in METHODS for seed in range(seeds)]
    settings = {"count": COUNT, "noise": NOISE, "rate": RATE, "steps": steps, "every": every}
    cells = compute_cells(
        options,
        keys,
        settings,
        lambda key: compute(key.split("/")[0], int(key.split("/")[1]), steps, every),
    )
    curves: Curves = {
        method: {
            name: np.array([cells[f"{method}/{seed}"][name] for seed in range(seeds)])
            for name in cells[keys[0]]
        }
        for method in METHODS
    }
    points = range(0, steps + 1, every)
    data = {
        "settings": {**settings, "seeds": seeds, "alpha": RATIO.alpha, "beta": RATIO.beta},
        "steps": list(points),
        "one_minus_lam": STEPS_OF_LAM,
        "remainder_orders": slopes(curves),
        "curves": {method: {name: v.tolist() for name, v in c.items()} for method, c in curves.items()},
    }
    save(draw(curves, points, seeds), data, check(curves), options)
    forget_cells(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the figure."""
    make(parse("figure1", __doc__, arguments))


if __name__ == "__main__":
    main()
