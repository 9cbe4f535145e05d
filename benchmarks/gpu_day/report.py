"""The report of a day: its file, its schema, and how it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Content, Record, table
from benchmarks.tables import mix_title
from pipelines.files import write_whole

SCHEMA = 1
"""Raised when a field changes its meaning or goes."""

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
# The folders of an absolute path, but not those of an address (https://...).
_FOLDERS = re.compile(r"(?<![\w/.:-])/(?:[\w.@+-]+/)+")

Render = Callable[[list[Record]], str]


def problems(report: Any) -> list[str]:
    """What a report has that the schema does not allow; empty for a good one."""
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
            found.append(f"stage {stage.get('name')}: a stage that failed must say how")
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
    """A report, whole and by the schema.

    Raises
    ------
    ValueError
        It is none.
    """
    try:
        report: Content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be a report of the GPU day; it is no JSON: {error}") from None
    if found := problems(report):
        raise ValueError(f"{path} must be a report of the GPU day: {found[0]}")
    return report


def write(folder: Path, report: Content) -> None:
    """``report.json`` and ``report.md`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    published = _without_folders(report)
    write_whole(folder / "report.json", (json.dumps(published, indent=1) + "\n").encode())
    write_whole(folder / "report.md", markdown(published).encode())


def _without_folders(value: Any) -> Any:
    """The same; of a path on the machine only the last part stays, because reports are published."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    return [_without_folders(entry) for entry in value] if isinstance(value, list) else value


def stage(report: Content, name: str) -> list[Record]:
    """The records of a stage; none if it was not reached."""
    return next((entry["records"] for entry in report["stages"] if entry["name"] == name), [])


def markdown(report: Content) -> str:
    """A report as a page."""
    machine, device = report["machine"], report["device"] or {}
    lines = [
        f"# GPU day, {device.get('name', 'no GPU')}, {report['date'][:10]}",
        "",
        f"`{report['command']}`, commit {(report['commit'] or 'not recorded')[:10]}"
        f"{' with changes' if report['dirty'] else ''}; {machine['processor']}, {machine['cores']} cores,"
        f" {machine['memory_GiB']} GiB.",
        "",
    ]
    if device:
        lines += [table(["GPU", ""], [[key, str(value)] for key, value in device.items()]), ""]
    versions = {name: version for name, version in machine["versions"].items() if version != "not installed"}
    lines += [", ".join(f"{name} {version}" for name, version in versions.items()) + ".", ""]
    for entry in report["stages"]:
        lines += [f"## {entry['title']}", ""]
        lines += [f"{entry['status']}, {entry['seconds']:.0f} s of {entry['box_s']:.0f} s.", ""]
        if entry["error"]:
            lines += ["```", entry["error"].strip()[-1500:], "```", ""]
        good = [record for record in entry["records"] if "error" not in record]
        bad = [record for record in entry["records"] if "error" in record]
        if good:
            lines += [_RENDER.get(entry["name"], _plain)(good), ""]
        for record in bad:
            where = ", ".join(f"{key} {value}" for key, value in record.items() if key != "error")
            lines += [f"- {where}: {record['error'].splitlines()[0][:300]}"]
        lines += [""] if bad else []
    return "\n".join(lines).rstrip() + "\n"


def compared(one: Content, other: Content) -> str:
    """Two reports side by side: every figure that both have, and the ratio."""
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
    """The medians, and single numbers that end with a unit, by all that says what they are."""
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


def _median(value: Any, unit: float = 1.0, digits: int = 3) -> str:
    """Median and quartiles."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value / unit:.{digits}g}"
    low, middle, high = (value[key] / unit for key in ("q1", "median", "q3"))
    return f"{middle:.{digits}g} ({low:.{digits}g}-{high:.{digits}g})"


def _plain(records: list[Record]) -> str:
    """A table of whatever there is."""
    keys = list(
        dict.fromkeys(key for record in records for key in record if key not in ("kernels", "report"))
    )
    rows = []
    for record in records:
        values = (record.get(key, "") for key in keys)
        rows.append([_median(v, digits=4) if isinstance(v, dict | float) else str(v) for v in values])
    return table(keys, rows)


def _doctor(records: list[Record]) -> str:
    return "```json\n" + json.dumps(records[0]["report"], indent=1)[:12000] + "\n```"


def _tests(records: list[Record]) -> str:
    counts = [record for record in records if record["section"] == "counts"]
    lines = [
        f"{c['passed']} passed, {c['failed']} failed, {c['errors']} errors, {c['skipped']} skipped"
        + ("" if c["whole"] else "; stopped before the others, for want of time")
        for c in counts
    ]
    lines += [
        f"- {r['test']}: {r['text'].strip().splitlines()[-1][:300]}"
        for r in records
        if r["section"] in ("failed", "error")
    ]
    return "\n".join(lines)


def _mixing(records: list[Record]) -> str:
    """A table for each case: time for a batch, against the copy."""
    parts = []
    keys = ("batch_size", "dtype", "layout", "size")
    for case in dict.fromkeys(tuple(record[key] for key in keys) for record in records):
        found = [record for record in records if tuple(record[key] for key in keys) == case]
        copy = next((record for record in found if record["mix"] == "copy"), None)
        rows = []
        for record in found:
            share = record["seconds"]["median"] / copy["seconds"]["median"] if copy else float("nan")
            mode = f", {record['mode']}" if record["mode"] else ""
            name = f"{record['library']}, {mix_title(record['mix'])}{mode}"
            rows.append(
                [
                    name,
                    _median(record["seconds"], 1e-3),
                    f"{share:.1f}",
                    _median(record["gpu_ms"]),
                    str(record["memory_MiB"] if record["memory_MiB"] is not None else ""),
                ]
            )
        batch_size, dtype, layout, size = case
        parts += [f"{batch_size} images of {size} x {size}, {dtype}, {layout}:", ""]
        parts += [
            table(["", "ms per batch (quartiles)", "copies", "GPU at work, ms", "memory, MiB"], rows),
            "",
        ]
    return "\n".join(parts)


def _pipeline(records: list[Record]) -> str:
    work = {(r["loader"], r["mix"]): r for r in records if r.get("section") == "gpu work"}
    plain = work.get(("dali", "none"))
    rows = []
    for record in records:
        if record.get("section") == "gpu work":
            continue
        own = work.get((record["loader"], record["mix"]), {})
        share = ""
        if own.get("gpu_ms") and plain and plain.get("gpu_ms") and record["loader"] == "dali":
            share = f"{(own['gpu_ms'] - plain['gpu_ms']) / own['gpu_ms']:.1%}"
        rows.append(
            [
                f"{record['loader']}, {mix_title(record['mix'])}",
                _median(record["images_per_s"], digits=4),
                _median(own.get("gpu_ms")),
                share,
                str(own.get("memory_MiB") or ""),
                _median(record["first_batch_s"]),
            ]
        )
    header = [
        "",
        "images/s (quartiles)",
        "GPU at work, ms per batch",
        "of it mixing",
        "memory, MiB",
        "first batch, s",
    ]
    return table(header, rows)


def _trainer(records: list[Record]) -> str:
    rows = [
        [
            f"{'memory' if r['batches_from'] == 'memory' else mix_title(r['mix'])}",
            "compiled" if r["compile"] else "",
            _median(r["images_per_s"], digits=4),
            _median(r["data_wait"], digits=2),
            _median(r["gpu_ms"]),
            _median(r["torch_peak_MiB"], digits=5),
            _median(r["all_memory_MiB"], digits=5),
        ]
        for r in records
    ]
    header = ["batches", "", "images/s (quartiles)", "waiting for data", "GPU at work, ms per step"]
    return table([*header, "PyTorch's peak, MiB", "GPU's memory, MiB"], rows)


_RENDER: dict[str, Render] = {
    "doctor": _doctor,
    "tests": _tests,
    "mixing": _mixing,
    "pipeline": _pipeline,
    "trainer": _trainer,
}
