"""The readable form of a report: ``report.md``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Content, Record, select, table
from benchmarks.gpu_tables import best_decoder, mixing_cases, mixing_of
from benchmarks.tables import mix_title
from pipelines.files import write_whole

# The folders of an absolute path, but not of a URL (https://...).
_FOLDERS = re.compile(r"(?<![\w/.:-])/(?:[\w.@+-]+/)+")

Render = Callable[[list[Record]], str]


def write(folder: Path, report: Content) -> None:
    """Write ``report.json`` and ``report.md`` to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    published = _without_folders(report)
    write_whole(folder / "report.json", (json.dumps(published, indent=1) + "\n").encode())
    write_whole(folder / "report.md", markdown(published).encode())


def _without_folders(value: Any) -> Any:
    """Keep only the last part of each path on the machine, because reports are published."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    return [_without_folders(entry) for entry in value] if isinstance(value, list) else value


def markdown(report: Content) -> str:
    """Render a report as Markdown."""
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


def _median(value: Any, unit: float = 1.0, digits: int = 3) -> str:
    """Format a median with its quartiles."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value / unit:.{digits}g}"
    low, middle, high = (value[key] / unit for key in ("q1", "median", "q3"))
    return f"{middle:.{digits}g} ({low:.{digits}g}-{high:.{digits}g})"


def _plain(records: list[Record]) -> str:
    """A table of all fields."""
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
        + ("" if c["whole"] else "; stopped early, out of time")
        for c in counts
    ]
    lines += [
        f"- {r['test']}: {r['text'].strip().splitlines()[-1][:300]}"
        for r in records
        if r["section"] in ("failed", "error")
    ]
    return "\n".join(lines)


def _mixing(records: list[Record]) -> str:
    """One table per case."""
    parts = []
    for case in mixing_cases(records):
        found = select(records, **case)
        parts.append("{batch_size} images of {size} x {size}, {dtype}, {layout}:".format(**case))
        header, *rows = mixing_of(found)
        parts.append(table(header, rows))
    return "\n\n".join(parts)


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
                f"{record['loader']}, {mix_title(record['mix'])}"
                + (f", {depth} batches ahead" if (depth := record.get("prefetch_queue_depth")) else ""),
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


def _decoder(records: list[Record]) -> str:
    best = best_decoder(records)
    where = ", ".join(f"{key} {best[key]}" for key in ("device", "threads", "load", "preallocated", "padded"))
    return f"The best: {where}.\n\n{_plain(records)}"


_RENDER: dict[str, Render] = {
    "doctor": _doctor,
    "tests": _tests,
    "mixing": _mixing,
    "pipeline": _pipeline,
    "trainer": _trainer,
    "decoder": _decoder,
}
