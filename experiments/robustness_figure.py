"""The picture of the robustness table: accuracy over the radius of attacks, and after every other change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Readable in grey: they differ in lightness, marker and line style.
STYLES: list[dict[str, Any]] = [
    {"color": "#000000", "marker": "o", "linestyle": ":"},
    {"color": "#7f1d2b", "marker": "s", "linestyle": "-"},
    {"color": "#c8553d", "marker": "^", "linestyle": "--"},
    {"color": "#2a6f97", "marker": "D", "linestyle": "-."},
    {"color": "#6aa9d8", "marker": "v", "linestyle": (0, (6, 1, 1, 1, 1, 1))},
    {"color": "#8a8a8a", "marker": "P", "linestyle": (0, (4, 2))},
]
Records = Sequence[dict[str, Any]]
_CORRUPTION = "corruption: "


def draw(records: Records, radii: Sequence[float]) -> Figure:
    """The rows of the table that are accuracies; bands and bars are the intervals."""
    found = [record for record in records if record["measure"] == "accuracy"]
    rows = list(dict.fromkeys(record["row"] for record in found))
    corruptions = [row for row in rows if row.startswith(_CORRUPTION) or row == "all corruptions"]
    attacks = [name for name in ("FGSM", "PGD") if any(row.startswith(name) for row in rows)]
    others = [row for row in rows if not row.startswith(tuple(attacks)) and row not in corruptions]
    upper = [*attacks, "others"]
    panels_by_row: list[Any] = [upper, ["corruptions"] * len(upper)] if corruptions else [upper]
    figure: Figure
    figure, axes = plt.subplot_mosaic(
        panels_by_row,
        figsize=(11, 8 if corruptions else 4.6),
        layout="constrained",
        width_ratios=[1] * len(attacks) + [1.6],
    )
    groups = list(dict.fromkeys(record["group"] for record in found))
    by_place = {(record["group"], record["row"]): record for record in found}
    for name in attacks:
        of_radii = ["no change", *(f"{name} {radius:g}/255" for radius in radii)]
        for number, group in enumerate(groups):
            _draw_line(axes[name], [by_place[group, row] for row in of_radii], number)
        axes[name].set_xticks(range(len(of_radii)), [f"{radius:g}" for radius in (0, *radii)])
        axes[name].set(title=name, xlabel="radius, 1/255")
        axes[name].sharey(axes[attacks[0]])
    panels = [("others", others, "no change, noise, blur, occlusion")]
    panels += [("corruptions", corruptions, "common corruptions, mean over the severities")] * bool(
        corruptions
    )
    for panel, own, title in panels:
        axis = axes[panel]
        for number, group in enumerate(groups):
            shift = 0.6 * ((number + 0.5) / len(groups) - 0.5)
            _draw_points(axis, shift, [by_place[group, row] for row in own], number, group)
        names = [row.removeprefix(_CORRUPTION) for row in own]
        axis.set_xticks(np.arange(len(own)), names, rotation=50, ha="right", rotation_mode="anchor")
        axis.set_title(title)
    for axis in axes.values():
        axis.grid(axis="y", color="0.9", lw=0.8)
    for panel in {upper[0], panels[-1][0]}:
        axes[panel].set_ylabel("accuracy, %")
    handles, labels = axes["others"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=3)
    return figure


def _style(number: int) -> dict[str, Any]:
    """Of a group; the second half of many has hollow markers."""
    style = STYLES[number % len(STYLES)]
    return style if number < len(STYLES) else style | {"markerfacecolor": "white"}


def _draw_line(axis: Axes, found: Records, number: int) -> None:
    style = _style(number)
    values, reach = _values(found)
    places = np.arange(len(found))
    axis.plot(places, values, ms=4, **style)
    axis.fill_between(places, values - reach[0], values + reach[1], color=style["color"], alpha=0.12, lw=0)


def _draw_points(axis: Axes, shift: float, found: Records, number: int, label: str) -> None:
    style = _style(number) | {"linestyle": "none"}
    values, reach = _values(found)
    places = np.arange(len(found)) + shift
    axis.errorbar(places, values, reach, ms=4, elinewidth=0.8, label=label, **style)


def _values(found: Records) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies in percent, and how far their intervals reach below and above, 2 x N."""
    values, low, high = (
        np.array([100 * record[name] for record in found]) for name in ("value", "low", "high")
    )
    return values, np.maximum([values - low, high - values], 0)
