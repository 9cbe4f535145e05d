"""Draws the pictures of docs/performance.md from the results that its tables link.

python -m benchmarks.plot
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.common import Record, load, select
from benchmarks.documents import ROOT, linked_results
from benchmarks.loader_tables import source_title
from benchmarks.photos import parse_size
from benchmarks.tables import is_ours, title
from pipelines.files import replace_whole

DOCUMENT, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.png"
SIZES_PICTURE = ROOT / "docs" / "image-sizes.png"
OURS, PEERS = "#2a6f97", "#b8b8b8"


def bars(axes: Any, records: list[Record], field: str, label: str, unit: float = 1.0) -> None:
    """Draw horizontal bars with quartiles, the first on top."""
    low, medians, high = ([record[field][key] / unit for record in records] for key in ("q1", "median", "q3"))
    errors = [
        [median - end for median, end in zip(medians, low, strict=True)],
        [end - median for median, end in zip(medians, high, strict=True)],
    ]
    colors = [OURS if is_ours(record) else PEERS for record in records]
    names = [title(record) for record in records]
    axes.barh(names, medians, xerr=errors, color=colors, height=0.7, error_kw={"lw": 0.8})
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    for place, (end, median) in enumerate(zip(high, medians, strict=True)):
        axes.text(end, place, f"  {median:.3g}" if median < 1000 else f"  {median:.0f}", va="center")
    axes.margins(x=0.18)


def lines(axes: Any, records: list[Record]) -> None:
    """Draw images/s over the longest side of the images, with quartiles; a line for each loader."""
    sides = {}
    for record in records:
        if sizes := parse_size(record["source_size"]):
            sides[record["source_size"]] = max(sizes)
    peers = iter(f"C{number}" for number in range(1, 10))
    records = [record for record in records if record["source_size"] in sides]
    for name in dict.fromkeys(title(record) for record in records):
        found = sorted(
            (record for record in records if title(record) == name), key=lambda it: sides[it["source_size"]]
        )
        spreads = [record["images_per_s"] for record in found]
        low, medians, high = ([spread[key] for spread in spreads] for key in ("q1", "median", "q3"))
        ours = is_ours(found[0])
        axes.errorbar(
            [sides[record["source_size"]] for record in found],
            medians,
            yerr=[
                [median - end for median, end in zip(medians, low, strict=True)],
                [end - median for median, end in zip(medians, high, strict=True)],
            ],
            color=OURS if ours else next(peers),
            lw=2.5 if ours else 1.2,
            ls="--" if found[0]["loader"] == "dali-unscaled" else "-",
            marker="o" if ours else ".",
            elinewidth=0.8,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(sides.values()), [source_title(size) for size in sides], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("images/s")
    axes.grid(axis="y", lw=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    last = [handle.lines[0].get_ydata()[-1] for handle in handles]
    order = sorted(range(len(labels)), key=lambda number: -last[number])
    axes.legend(
        [handles[number] for number in order],
        [labels[number] for number in order],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
    )


def draw_sizes() -> None:
    """Draw docs/image-sizes.png."""
    contents = [load(path) for path in linked_results(DOCUMENT, "loader_sizes")]
    figure, axes = plt.subplots(figsize=(9, 4.8), layout="constrained")
    lines(axes, [record for content in contents for record in content["results"]])
    axes.set_title("Training loaders over the size of the JPEGs, two cores: higher is better")
    replace_whole(SIZES_PICTURE, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    print(f"wrote {SIZES_PICTURE}")


def main() -> None:
    """Draw docs/performance.png and docs/image-sizes.png."""
    loaders = load(linked_results(DOCUMENT, "loader")[0])["results"]
    mixers = select(load(linked_results(DOCUMENT, "mix_short")[0])["results"], batch_size=64, cores=1)
    # The faster of two modes.
    fastest: dict[str, Record] = {}
    for record in mixers:
        best = fastest.setdefault(title(record), record)
        if record["seconds"]["median"] < best["seconds"]["median"]:
            fastest[title(record)] = record
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.2), layout="constrained")
    bars(left, loaders, "images_per_s", "images/s")
    left.set_title("Training loaders, 500-pixel JPEGs, two cores: higher is better")
    bars(right, list(fastest.values()), "seconds", "ms, logarithmic", unit=1e-3)
    right.set_xscale("log")
    right.set_title("Mixing 64 images of 224 x 224, one core: lower is better")
    replace_whole(PICTURE, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    print(f"wrote {PICTURE}")
    draw_sizes()


if __name__ == "__main__":
    main()
