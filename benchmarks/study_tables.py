"""The tables of docs/study.md, from what :mod:`experiments.study` and :mod:`experiments.robustness` write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.common import Content, Record, only, select
from benchmarks.tables import Rows, mix_title

_ROBUSTNESS = (
    "no change",
    "FGSM 1/255",
    "PGD 0.5/255",
    "PGD 1/255",
    "PGD 2/255",
    "PGD 4/255",
    "PGD 8/255",
    "Gaussian noise 0.1",
    "Gaussian blur 1 px",
    "Gaussian blur 2 px",
    "occlusion 0.25",
    "occlusion 0.5",
    "all corruptions",
    "calibration error (ECE)",
    "cross-entropy",
)
_CROPS = {"large": "80-100 %", "small": "25-40 %", "change": "*25-40 % less 80-100 %*"}


def methods(content: Content) -> Rows:
    """Top-1 of every method at large crops, beside no mixing."""
    rows = [["", "top-1, %", "above no mixing, points", "p, corrected", "loss", "training error, %"]]
    rows[0].append("s per epoch")
    for record in select(content["methods"], crop="large"):
        compared = select(content["pairs"], method=record["method"], other="none")
        rows.append(
            [
                mix_title(record["method"]),
                _mean(record["accuracy"]),
                *([_interval(compared[0]), _p(compared[0]["p_holm"])] if compared else ["", ""]),
                f"{record['loss']['mean']:.3f}",
                f"{100 * (1 - record['training_accuracy']['mean']):.1f}",
                f"{record['epoch_cpu_seconds']:.2f}",
            ]
        )
    return rows


def short(content: Content) -> Rows:
    """Top-1 of every method at large crops, in one row."""
    records = select(content["methods"], crop="large")
    return [
        ["", *(mix_title(record["method"]) for record in records)],
        ["top-1, %", *(_mean(record["accuracy"]) for record in records)],
    ]


def pairs(content: Content) -> Rows:
    """All comparisons of two methods at large crops."""
    rows = [["", "points", "p", "p, corrected"]]
    for record in content["pairs"]:
        name = f"{mix_title(record['method'])} - {mix_title(record['other'])}"
        rows.append([name, _interval(record), _p(record["p"]), _p(record["p_holm"])])
    return rows


def crops(content: Content) -> Rows:
    """Mixup and CutMix at both crops."""
    names = ("none", "mixup", "cutmix")
    header = ["random crop", *(f"{mix_title(name)}, %" for name in names)]
    rows = [[*header, "CutMix - Mixup, points", "p, corrected"]]
    for record in content["crops"]:
        found = [select(content["methods"], crop=record["crop"], method=name) for name in names]
        rows.append(
            [
                _CROPS[record["crop"]],
                *(_mean(it[0]["accuracy"]) if it else "" for it in found),
                _interval(record),
                _p(record["p_holm"]),
            ]
        )
    return rows


def robustness(content: Content) -> Rows:
    """The mean over networks and half its interval, in the rows of :data:`_ROBUSTNESS`."""
    groups = list(content["groups"])
    rows = [["", *groups]]
    for row in _ROBUSTNESS:
        found = [only(content["results"], row=row, group=group) for group in groups]
        rows.append([row, *map(_half_interval, found)])
    return rows


def _half_interval(record: Record) -> str:
    """Accuracy and calibration error in per cent, others as they are."""
    scale, digits = (100, 1) if record["measure"] in ("accuracy", "ece") else (1, 2)
    value = f"{scale * record['value']:.{digits}f}"
    if record["low"] is None:
        return value
    # Symmetric except where the measure ends.
    half = max(record["high"] - record["value"], record["value"] - record["low"])
    return f"{value} ± {scale * half:.{digits}f}"


def _mean(found: dict[str, Any]) -> str:
    """In per cent, with the standard error."""
    error = "" if found["se"] is None else f" ± {100 * found['se']:.2f}"
    return f"{100 * found['mean']:.2f}{error}"


def _interval(found: dict[str, Any]) -> str:
    """In points, with the interval."""
    if found["low"] is None:
        return f"{100 * found['mean']:+.2f}"
    return f"{100 * found['mean']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


TABLES: dict[str, Callable[..., Rows]] = {
    "study_methods": methods,
    "study_short": short,
    "study_pairs": pairs,
    "study_crops": crops,
    "robustness": robustness,
}
