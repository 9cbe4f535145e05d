"""Reports: the file, its schema, and comparing two; :mod:`.page` renders one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import Content, Record, table

SCHEMA = 1
"""Increased when a field changes meaning or is removed."""

STATUSES = ("done", "out of time", "failed", "missing", "not started")

_HEADER = {
    "schema": int,
    "benchmark": str,
    "date": str,
    "command": str,
    "commit": (str, type(None)),
    "dirty": (bool, type(None)),
    "calculated": bool,
    "machine": dict,
    "device": (dict, type(None)),
    "settings": dict,
    "stages": list,
}
_STAGE = {
    "name": str,
    "title": str,
    "status": str,
    "box_s": float,
    "seconds": float,
    "error": (str, type(None)),
    "records": list,
}


def problems(report: Any) -> list[str]:
    """How a report breaks the schema; empty if it does not."""
    if not isinstance(report, dict):
        return [f"a report must be an object; got {type(report).__name__}"]
    found = _fields("report", report, _HEADER)
    if found:
        return found
    if report["schema"] != SCHEMA:
        return [f"schema must be {SCHEMA}; got {report['schema']}"]
    for stage in report["stages"]:
        found += _fields(f"stage {stage.get('name')}", stage, _STAGE)
        if stage.get("status") not in STATUSES:
            found.append(f"status must be one of {', '.join(STATUSES)}; got {stage.get('status')!r}")
        if stage.get("status") == "failed" and not stage.get("error"):
            found.append(f"stage {stage.get('name')}: a failed stage must say how")
        for record in stage.get("records", ()):
            found += [f"{key!r} must be an identifier" for key in record if not key.isidentifier()]
            for value in record.values():
                if isinstance(value, dict) and "median" in value and not value["q1"] <= value["q3"]:
                    found.append(f"stage {stage['name']}: quartiles out of order")
    return found


def _fields(what: str, values: dict[str, Any], types: dict[str, Any]) -> list[str]:
    found = [f"{what} must have {key}" for key in types if key not in values]
    found += [f"{what} has an unknown field {key}" for key in values if key not in types]
    return found + [
        f"{what}: {key} is a {type(values[key]).__name__}"
        for key, kind in types.items()
        if key in values and not isinstance(values[key], kind)
    ]


def read(path: Path) -> Content:
    """Read and check a report from its file or folder.

    Raises
    ------
    ValueError
        It is not a valid report.
    """
    path = path / "report.json" if path.is_dir() else path
    try:
        report: Content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be a report of the GPU day; it is not JSON: {error}") from None
    if found := problems(report):
        raise ValueError(f"{path} must be a report of the GPU day: {found[0]}")
    return report


def stage(report: Content, name: str) -> list[Record]:
    """The records of a stage; none if it did not run."""
    return next((entry["records"] for entry in report["stages"] if entry["name"] == name), [])


def compare(one: Content, other: Content) -> str:
    """Show two reports side by side: every figure they share, and the ratio."""
    names = [
        (report["device"] or {}).get("name", "no GPU") + ", " + report["date"][:10] for report in (one, other)
    ]
    parts = []
    for entry in one["stages"]:
        figures = [_figures(stage(report, entry["name"])) for report in (one, other)]
        rows = [
            [key, _short(value), _short(figures[1][key]), _ratio(value, figures[1][key])]
            for key, value in figures[0].items()
            if key in figures[1]
        ]
        if rows:
            parts += [f"## {entry['title']}", "", table(["", *names, "second / first"], rows), ""]
    return "\n".join(parts) or "the two reports have no figure in common\n"


def _figures(records: list[Record]) -> dict[str, float]:
    """Medians and single numbers, by the fields that identify them."""
    found = {}
    for record in records:
        texts = [str(v) for v in record.values() if isinstance(v, str | bool | int) and v not in ("", None)]
        for key, value in record.items():
            if isinstance(value, dict) and "median" in value:
                found[" ".join([*texts, key])] = value["median"]
            elif isinstance(value, float):
                found[" ".join([*texts, key])] = value
    return found


def _short(value: float) -> str:
    return f"{value:.4g}"


def _ratio(one: float, other: float) -> str:
    return f"{other / one:.3f}" if one else ""
