"""What the study says: its summary in JSON, its tables and its figure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.common import Record, select
from benchmarks.study_tables import TABLES
from benchmarks.tables import mix_title, show
from dali_msda.methods import TABLE
from experiments.figures import DARK, MIDDLE
from experiments.statistics import adjust_holm, compare_pairs, mean_interval
from pipelines.files import replace_whole, write_whole
from training.machine import describe_code, describe_command, describe_machine

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

SUMMARY, PICTURE = "study.json", "study.png"


def report(results: Sequence[Record], settings: dict[str, Any], folder: Path) -> None:
    """Write the summary and the figure to `folder`, and print the tables."""
    content = {
        "benchmark": "study",
        **describe_command("experiments.study"),
        **describe_code(),
        "calculated": False,
        "machine": describe_machine(),
        "settings": settings,
        **summarize(results),
        "results": [
            # The losses of every epoch stay in the files of the runs.
            {key: value for key, value in result.items() if key not in ("settings", "losses")}
            for result in results
        ],
    }
    path = folder / SUMMARY
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    figure = draw(content)
    replace_whole(folder / PICTURE, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    plt.close(figure)
    for name in ("methods", "pairs", "crops"):
        if content[name]:
            print(f"\n{show(f'study_{name}', path, tables=TABLES)}")
    print()


def summarize(results: Sequence[Record]) -> dict[str, list[Record]]:
    """Means over seeds, and comparisons seed by seed.

    Returns
    -------
    dict
        ``methods``: for every method and crop, means of accuracy, loss, training accuracy and seconds.
        ``pairs``: every two methods at large crops; p is corrected for all of them. ``crops``: CutMix - Mixup
        at each crop, and the difference of the two (crop "change"); their p is corrected for the three.
    """
    methods = []
    for crop, method in dict.fromkeys((it["crop"], it["method"]) for it in _in_order(results)):
        own = select(results, crop=crop, method=method)
        methods.append(
            {
                "crop": crop,
                "method": method,
                "accuracy": mean_interval([it["validation"]["accuracy"] for it in own]),
                "loss": mean_interval([it["validation"]["loss"] for it in own]),
                "training_accuracy": mean_interval([it["training"]["accuracy"] for it in own]),
                "epoch_seconds": float(np.median([it["epoch_seconds"] for it in own])),
                "epoch_cpu_seconds": float(np.median([it["epoch_cpu_seconds"] for it in own])),
            }
        )
    large = [it["method"] for it in methods if it["crop"] == "large"]
    pairs = []
    for other, one in itertools.combinations(large, 2):
        found = _compare(_accuracies(results, one, "large"), _accuracies(results, other, "large"))
        pairs += [{"method": one, "other": other, **found}] if found else []
    crops = []
    differences = {}
    for crop in dict.fromkeys(it["crop"] for it in methods):
        cutmix, mixup = (_accuracies(results, method, crop) for method in ("cutmix", "mixup"))
        if found := _compare(cutmix, mixup):
            crops.append({"crop": crop, **found})
            differences[crop] = {seed: cutmix[seed] - mixup[seed] for seed in cutmix.keys() & mixup.keys()}
    if len(differences) == 2 and (found := _compare(differences["small"], differences["large"])):
        crops.append({"crop": "change", **found})
    for rows in (pairs, crops):
        for row, adjusted in zip(rows, adjust_holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = adjusted
    # With one crop there is nothing to set beside it.
    return {"methods": methods, "pairs": pairs, "crops": crops if len(differences) == 2 else []}


def _in_order(results: Sequence[Record]) -> list[Record]:
    methods = list(TABLE)
    return sorted(results, key=lambda it: (it["crop"] != "large", methods.index(it["method"])))


def _accuracies(results: Sequence[Record], method: str, crop: str) -> dict[int, float]:
    """Validation accuracy by seed."""
    return {it["seed"]: it["validation"]["accuracy"] for it in select(results, method=method, crop=crop)}


def _compare(one: dict[int, float], other: dict[int, float]) -> Record | None:
    """:func:`compare_pairs` of the seeds that both have."""
    seeds = sorted(one.keys() & other.keys())
    return compare_pairs([one[seed] for seed in seeds], [other[seed] for seed in seeds]) if seeds else None


def draw(content: dict[str, Any]) -> Figure:
    """Top-1 of every method, and CutMix - Mixup at both crops: every seed, the mean, its interval."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=[2, 1])
    results = content["results"]
    methods = [it["method"] for it in content["methods"] if it["crop"] == "large"]
    _draw_means(
        axes[0],
        [mix_title(method) for method in methods],
        [list(_accuracies(results, method, "large").values()) for method in methods],
    )
    axes[0].set(ylabel="top-1, %", title="random crops of 80-100 %")
    groups, names = [], []
    for crop, name in (("large", "80-100 %"), ("small", "25-40 %")):
        cutmix, mixup = (_accuracies(results, method, crop) for method in ("cutmix", "mixup"))
        if seeds := sorted(cutmix.keys() & mixup.keys()):
            groups.append([cutmix[seed] - mixup[seed] for seed in seeds])
            names.append(name)
    _draw_means(axes[1], names, groups)
    axes[1].axhline(0, color="black", lw=0.8)
    axes[1].set(ylabel="points of top-1", title="CutMix - Mixup, by random crop")
    return figure


def _draw_means(axis: Any, names: Sequence[str], groups: Sequence[Sequence[float]]) -> None:
    for place, values in enumerate(groups):
        points = [100 * value for value in values]
        found = mean_interval(points)
        axis.plot([place] * len(values), points, "o", color=MIDDLE, ms=4, alpha=0.7)
        if found["se"] is not None:
            half = found["high"] - found["mean"]
            axis.errorbar(place + 0.18, found["mean"], half, fmt="s", color=DARK, ms=5, capsize=4)
    axis.set_xticks(range(len(names)), [name.replace(" Mixup & ", "\nMixup & ") for name in names])
    axis.margins(x=0.08)
