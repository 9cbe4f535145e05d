"""The rows of the robustness table, and what they are made from: values, intervals, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.common import table
from experiments.measuring import Column, unpack_hits
from experiments.perturbations import CORRUPTIONS, SEVERITIES
from experiments.scores import Estimate, estimate_over_images, estimate_over_networks
from experiments.statistics import adjust_holm, compare_pairs

PARTS = ("attacks", "noise", "blur", "occlusion", "corruptions")
RADII = (1.0, 2.0, 4.0, 8.0)  # of 255
NOISE = (0.02, 0.05, 0.1)
BLUR = (0.5, 1.0, 2.0)
OCCLUSION = (0.25, 0.375, 0.5)
_HIGHEST = {"accuracy": 1.0, "ece": 1.0, "brier": 2.0, "nll": math.inf}


class Entry(NamedTuple):
    """A row of the table: one column of cells, or the mean over several."""

    title: str
    columns: tuple[Column, ...]
    measure: str = "accuracy"


@dataclass(frozen=True)
class Amount:
    """What is measured."""

    images: int = 1000
    radii: tuple[float, ...] = RADII
    steps: int = 10
    severities: tuple[int, ...] = SEVERITIES
    parts: tuple[str, ...] = PARTS

    def entries(self) -> list[Entry]:
        """The rows of the table, in order."""
        clean = (Column("clean", 0),)
        found = [Entry("no change", clean)]
        if "attacks" in self.parts:
            for name in ("fgsm", "pgd"):
                found += [Entry(f"{name.upper()} {it:g}/255", (Column(name, it),)) for it in self.radii]
        named = {"noise": ("Gaussian noise {:g}", NOISE), "blur": ("Gaussian blur {:g} px", BLUR)}
        named["occlusion"] = ("occlusion {:g}", OCCLUSION)
        for kind, (title, levels) in named.items():
            if kind in self.parts:
                found += [Entry(title.format(it), (Column(kind, it),)) for it in levels]
        if "corruptions" in self.parts:
            by_name = {name: tuple(Column(name, it) for it in self.severities) for name in CORRUPTIONS}
            found += [Entry(f"corruption: {it.replace('_', ' ')}", of) for it, of in by_name.items()]
            found.append(Entry("all corruptions", sum(by_name.values(), ())))
        calibration = {"ece": "calibration error (ECE)", "brier": "Brier score", "nll": "cross-entropy"}
        return found + [Entry(title, clean, name) for name, title in calibration.items()]


QUICK = Amount(images=50, radii=(8.0,), steps=3, severities=(3,))


def estimate(cells: Sequence[dict[Column, Any]], entry: Entry, count: int) -> tuple[Estimate, list[float]]:
    """The value of a row for the networks of a group, with its interval, and each network's value."""
    if entry.measure != "accuracy":
        values = [own[entry.columns[0]][entry.measure] for own in cells]
        if len(cells) == 1:
            return Estimate(values[0], None, None), values
        return estimate_over_networks(values, _HIGHEST[entry.measure]), values
    # The mean over the columns, for each image.
    scores = [
        np.mean([unpack_hits(own[column]["hits"], count) for column in entry.columns], axis=0)
        for own in cells
    ]
    values = [float(score.mean()) for score in scores]
    if len(cells) == 1:
        return estimate_over_images(scores[0]), values
    return estimate_over_networks(values, _HIGHEST["accuracy"]), values


def summarize(found: dict[str, Any], amount: Amount) -> list[dict[str, Any]]:
    """A record for every group and row."""
    records = []
    for group, names in found["groups"].items():
        for entry in amount.entries():
            cells = [found["cells"][name] for name in names]
            value, values = estimate(cells, entry, found["images"])
            records.append(
                {
                    "group": group,
                    "row": entry.title,
                    "measure": entry.measure,
                    "columns": [str(column) for column in entry.columns],
                    **value._asdict(),
                    "values": values,
                }
            )
    return records


def compare_with_none(found: dict[str, Any], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences to the networks without mixing, of the same seed, architecture and crops.

    For every row and group with at least two pairs: their mean, its interval and the paired t test, with
    Holm's correction over all of them.
    """
    networks, groups = found["networks"], found["groups"]

    def kind(group: str) -> tuple[str, str | None]:
        first = networks[groups[group][0]]
        return first["arch"], first["crop"]

    without = {
        kind(group): group for group, names in groups.items() if networks[names[0]]["method"] == "none"
    }
    by_seed = {
        (record["group"], record["row"]): {
            networks[name]["seed"]: value
            for name, value in zip(groups[record["group"]], record["values"], strict=True)
        }
        for record in records
    }
    differences = []
    for (group, row), own in by_seed.items():
        base = without.get(kind(group), group)
        pairs = [
            (value, by_seed[base, row][seed]) for seed, value in own.items() if seed in by_seed[base, row]
        ]
        if base != group and len(pairs) > 1:
            compared = compare_pairs(*zip(*pairs, strict=True))
            differences.append({"group": group, "base": base, "row": row, **compared})
    adjusted = adjust_holm([each["p"] for each in differences])
    return [each | {"p_holm": p} for each, p in zip(differences, adjusted, strict=True)]


def find_masking(found: dict[str, Any], amount: Amount) -> list[dict[str, Any]]:
    """Networks on which PGD is weaker than FGSM, beyond chance: a sign that gradients are masked.

    By the sign test on the images that only one of them changes the class of, 0.1 % level.
    """
    weaker = []
    for name, cells in found["cells"].items():
        for radius in amount.radii if "attacks" in amount.parts else ():
            fgsm, pgd = (
                unpack_hits(cells[Column(attack, radius)]["hits"], found["images"])
                for attack in ("fgsm", "pgd")
            )
            only_fgsm, only_pgd = int((pgd & ~fgsm).sum()), int((fgsm & ~pgd).sum())
            if only_fgsm > only_pgd:
                chance = float(stats.binomtest(only_fgsm, only_fgsm + only_pgd, alternative="greater").pvalue)
                if chance < 0.001:
                    weaker.append({"network": name, "radius": radius, "p_value": chance})
    return weaker


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: a line per row, a column per group; accuracy and ECE in percent."""
    groups = list(dict.fromkeys(record["group"] for record in records))
    rows = list(dict.fromkeys(record["row"] for record in records))
    by_place = {(record["row"], record["group"]): record for record in records}

    def text(record: dict[str, Any]) -> str:
        scale, digits = (100, 1) if record["measure"] in ("accuracy", "ece") else (1, 3)
        value, low, high = (
            None if it is None else f"{scale * it:.{digits}f}"
            for it in (record["value"], record["low"], record["high"])
        )
        return str(value) if low is None else f"{value} ({low} to {high})"

    lines = [[row, *(text(by_place[row, group]) for group in groups)] for row in rows]
    return table(["", *groups], lines)
