"""The picture of docs/performance.md, from the newest files in benchmarks/results.

python -m benchmarks.plot
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from pipelines.files import replace_whole

OURS, PEERS = "#2a6f97", "#b8b8b8"


def newest(name: str, folder: Path = Path("benchmarks/results"), holding: str = "") -> dict[str, Any]:
    """The newest results of a benchmark, of those that mention `holding`."""
    for path in sorted(folder.glob(f"*-{name}.json"), reverse=True):
        text = path.read_text()
        if holding in text:
            content: dict[str, Any] = json.loads(text)
            return content
    raise SystemExit(f"no results of {name} in {folder}: run python -m benchmarks.{name} first")


def bars(axes: Any, values: dict[str, tuple[float, float, float]], ours: set[str], label: str) -> None:
    """Horizontal bars with quartiles, the first on top."""
    names = list(values)
    medians = [values[name][1] for name in names]
    errors = [[m - values[n][0] for n, m in zip(names, medians, strict=True)]]
    errors.append([values[n][2] - m for n, m in zip(names, medians, strict=True)])
    colors = [OURS if name in ours else PEERS for name in names]
    axes.barh(names, medians, xerr=errors, color=colors, height=0.7, error_kw={"lw": 0.8})
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    for place, (name, median) in enumerate(zip(names, medians, strict=True)):
        axes.text(
            values[name][2], place, f"  {median:.3g}" if median < 1000 else f"  {median:.0f}", va="center"
        )
    axes.margins(x=0.18)


def main() -> None:
    """Draw docs/performance.png."""
    loader = newest("bench_loader", holding="ffcv-mixup")
    rates = {
        name: (rate["q1"], rate["median"], rate["q3"])
        for name, rate in ((n, r["images_per_s"]) for n, r in loader["results"]["loaders"].items())
    }
    seconds = newest("bench_mix")["results"]["seconds"]["batch 64, cpu, 1 cores"]
    # Of timm the faster of its two modes.
    slower = [
        name
        for name in seconds
        if name.endswith(("-batch", "-elem"))
        and seconds[name]["median"]
        > min(seconds[f"{name.rsplit('-', 1)[0]}-{mode}"]["median"] for mode in ("batch", "elem"))
    ]
    times = {
        name: (1e3 * value["q1"], 1e3 * value["median"], 1e3 * value["q3"])
        for name, value in seconds.items()
        if name not in slower
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    bars(
        left, rates, {name for name in rates if name.startswith("dali") and name != "dali-plain"}, "images/s"
    )
    left.set_title("Training loaders, 500-pixel JPEGs, two cores: higher is better")
    bars(right, times, {name for name in times if name.startswith("ours")}, "ms, logarithmic")
    right.set_xscale("log")
    right.set_title("Mixing 64 images of 224 x 224, one core: lower is better")
    replace_whole(
        Path("docs/performance.png"), lambda temporary: figure.savefig(temporary, dpi=110, format="png")
    )
    print("wrote docs/performance.png")


if __name__ == "__main__":
    main()
