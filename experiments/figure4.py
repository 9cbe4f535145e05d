"""The paper's figure 4: how strongly every method ties pixels together, by their offset and distance.

python -m experiments.figure4 [OUTPUT.png] [--quick]

The mean over all pixels i of a_{i, i + (y, x)} (equation 9) at lam = 0.5 in 64 x 64 pixels. The first row is
by the formulas of the paper, the second by the authors' code, which is the library's default. All maps have
one colour scale. HMix has r = 0.5, as in figure 3. With --quick, 32 x 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np

from dali_msda import methods
from dali_msda.methods import TABLE
from dali_msda.theory import Coefficients, coefficients
from experiments.figures import Claim, average_rings, parse, save

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

LAM = 0.5
ARGUMENTS = {"ratio": 0.5}
BETWEEN = ("stochastic", "hmix", "gmix")
PAPERS = ("mixup", "cutmix", *BETWEEN)
ROWS: dict[str, str] = {"paper": "formulas of the paper", "reference": "the authors' code"}
# They differ in lightness and in style, so that they can be told apart in grey.
STYLES: list[dict[str, Any]] = [
    {"color": "#000000", "linestyle": ":"},
    {"color": "#7f1d2b", "linestyle": "-"},
    {"color": "#c8553d", "linestyle": "--"},
    {"color": "#2a6f97", "linestyle": "-."},
    {"color": "#6aa9d8", "linestyle": (0, (6, 1, 1, 1, 1, 1))},
]


class Panel(NamedTuple):
    """What is drawn of one method."""

    by_offset: np.ndarray
    """[2 n - 1, 2 n - 1]"""
    by_distance: np.ndarray
    """The mean of the above over rings of one pixel, distances 0, 1, ..., n - 1."""
    middle: np.ndarray
    """a_{i, i + (0, x)} of the middle pixel i, to its right."""


def make_panel(found: Coefficients) -> Panel:
    """Everything to draw of a method's coefficients."""
    n, by_offset = found.size[0], found.by_offset()
    return Panel(by_offset, average_rings(by_offset), found.row((n // 2, n // 2))[n // 2, n // 2 :])


def compute(n: int) -> dict[str, dict[str, Panel]]:
    """The panels by convention and method."""
    panels: dict[str, dict[str, Panel]] = {convention: {} for convention in ROWS}
    for convention, row in panels.items():
        for name in methods.MIXING:
            own: dict[str, Any] = {k: v for k, v in ARGUMENTS.items() if k in TABLE[name].defaults}
            row[name] = make_panel(coefficients(name, (n, n), LAM, convention=convention, **own))
    return panels


def check(panels: dict[str, dict[str, Panel]]) -> list[Claim]:
    """What the paper reads from its figure (section 4), and what its factor 2 for GMix does."""
    paper, code = panels["paper"], panels["reference"]
    n = len(paper["mixup"].by_distance)
    side = int(n * (1 - LAM) ** 0.5)
    flat, local = paper["mixup"].by_offset, paper["cutmix"].by_offset
    steps = np.abs(np.arange(1 - n, n))
    beyond = local[np.maximum.outer(steps, steps) >= side]
    near, far = ({name: float(paper[name].by_distance[k]) for name in PAPERS} for k in (0, -1))
    falls = float(np.diff(paper["gmix"].middle).max())
    claims = [
        Claim(
            "Mixup is flat: (1 - lam)^2 at every offset",
            f"{flat.min():.4f} to {flat.max():.4f}",
            bool(np.abs(flat - (1 - LAM) ** 2).max() < 1e-12),
        ),
        Claim(
            "CutMix is local: the highest at distance 0, and 0 from the side of its box on",
            f"{near['cutmix']:.3f}, and at most {beyond.max():.0e} from {side} pixels on",
            near["cutmix"] == max(near.values()) and bool(beyond.max() < 1e-12),
        ),
        Claim(
            "GMix goes down smoothly with the distance from the middle pixel",
            f"steps of at most {falls:.1e}",
            falls < 0,
        ),
    ]
    for name in BETWEEN:
        claims.append(
            Claim(
                f"{TABLE[name].title} is between Mixup and CutMix, near and far",
                f"{near['mixup']:.3f} < {near[name]:.3f} < {near['cutmix']:.3f} at distance 0,"
                f" {far['cutmix']:.3f} < {far[name]:.3f} < {far['mixup']:.3f} at {n - 1}",
                near["mixup"] < near[name] < near["cutmix"] and far["cutmix"] < far[name] < far["mixup"],
            )
        )
    blob, mixup = float(code["gmix"].by_distance[0]), float(code["mixup"].by_distance[0])
    claims.append(
        Claim(
            "ours: without the factor 2, as in the authors' code, GMix is below Mixup at distance 0",
            f"{blob:.3f} < {mixup:.3f}",
            blob < mixup,
        )
    )
    return claims


def draw(panels: dict[str, dict[str, Panel]]) -> Figure:
    """A row of maps and a plot for each convention."""
    names = list(panels["paper"])
    n = len(panels["paper"]["mixup"].by_distance)
    highest = max(panel.by_offset.max() for row in panels.values() for panel in row.values())
    figure, axes = plt.subplots(
        len(ROWS),
        len(names) + 1,
        figsize=(1.75 * len(names) + 3.9, 4.1),
        width_ratios=[1.0] * len(names) + [1.75],
        layout="constrained",
        squeeze=False,
    )
    for row, (convention, title) in enumerate(ROWS.items()):
        for column, name in enumerate(names):
            axis, found = axes[row, column], panels[convention][name].by_offset
            image = axis.imshow(
                found, cmap="viridis", vmin=0, vmax=highest, extent=(-n, n, n, -n), interpolation="nearest"
            )
            level = (1 - LAM) ** 2
            if found.min() < level - 1e-9 and found.max() > level + 1e-9:
                steps = np.arange(1 - n, n)
                axis.contour(steps, steps, found, [level], colors="white", linewidths=0.9, linestyles="--")
            axis.set(xticks=[-n // 2, 0, n // 2], yticks=[-n // 2, 0, n // 2])
            axis.tick_params(labelsize=7, labelleft=column == 0, labelbottom=row == len(ROWS) - 1)
            if row == 0:
                axis.set_title(TABLE[name].title.replace(" Mixup & CutMix", ""), fontsize=10)
        axes[row, 0].set_ylabel(f"{title}\n\noffset y in pixels", fontsize=8)
        plot = axes[row, -1]
        for number, name in enumerate(names):
            style = STYLES[number % len(STYLES)]
            plot.plot(panels[convention][name].by_distance, lw=1.6, label=TABLE[name].title, **style)
        plot.set(xlim=(0, n - 1), ylim=(0, 1.04 * highest))
        plot.spines[["top", "right"]].set_visible(False)
        plot.tick_params(labelsize=7, labelbottom=row == len(ROWS) - 1)
        plot.set_ylabel("mean coefficient", fontsize=8)
    for axis in axes[-1, :-1]:
        axis.set_xlabel("offset x", fontsize=8)
    axes[-1, -1].set_xlabel("distance in pixels", fontsize=8)
    axes[-1, -1].legend(fontsize=7, frameon=False, handlelength=3.2, loc="upper right")  # where there is room
    bar = figure.colorbar(image, ax=axes[:, :-1], shrink=0.8, pad=0.01, aspect=30)
    bar.set_label(f"mean $a_{{i,\\,i+(x,y)}}$ at $\\lambda$ = {LAM}; dashed: Mixup's {level:.2f}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute, check, draw and save."""
    options = parse("figure4", __doc__, arguments)
    n = 32 if options.quick else 64
    panels = compute(n)
    data = {
        "lam": LAM,
        "size": n,
        **ARGUMENTS,
        # Half of every map, from offset y = 0 on: offsets (y, x) and (-y, -x) have the same mean.
        "methods": {
            convention: {
                name: {
                    "by_distance": np.round(panel.by_distance, 5).tolist(),
                    "by_offset": np.round(panel.by_offset[n - 1 :], 5).tolist(),
                }
                for name, panel in row.items()
            }
            for convention, row in panels.items()
        },
    }
    save(draw(panels), data, check(panels), options)


if __name__ == "__main__":
    main()
