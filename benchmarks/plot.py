"""Draws the picture of docs/performance.md from the results that its tables link.

python -m benchmarks.plot
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.common import Record, load, select
from benchmarks.documents import ROOT, linked_results
from benchmarks.tables import is_ours, title
from pipelines.files import replace_whole

DOCUMENT, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.png"
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


def main() -> None:
    """Draw docs/performance.png."""
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


if __name__ == "__main__":
    main()
