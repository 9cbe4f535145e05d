"""Shared by all benchmarks: a description of the machine, statistics, and a dated file of results.

A results file has a header (benchmark, date, command, commit and whether there were uncommitted changes,
machine, settings) and a list of records. A record is a dict of fields: what was measured (``"loader": "dali",
"mix": "hmix", "batch_size": 64``) and its figures (``"images_per_s": {"median": ..., "q1": ..., "q3": ...,
"rounds": ...}``). Names of figures end with the unit. :mod:`.schema` has the exact form.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.schema import check_content
from dali_msda.methods import TABLE
from pipelines.files import write_whole
from training.machine import describe_code, describe_command, describe_machine

Record = dict[str, Any]
Content = dict[str, Any]  # of a results file


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of rounds."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": low, "q3": high, "rounds": len(values)}


def mixing() -> list[str]:
    """The names of all methods except "none"."""
    return [name for name in TABLE if name != "none"]


def save(
    name: str,
    settings: dict[str, Any],
    records: Sequence[Record],
    folder: Path = Path("benchmarks/results"),
    *,
    calculated: bool = False,
    packages: Sequence[str] = (),
) -> Path:
    """Write a header and the records to ``folder/DATE-name.json``, never over an older file.

    Only the last part of paths in the settings and on the command line is written, because results are
    published. The versions of `packages` are written beside the usual ones.

    Raises
    ------
    ValueError
        The content does not have the form of :mod:`.schema`.
    """
    now = datetime.now().astimezone()
    content = {
        "benchmark": name,
        **describe_command(f"benchmarks.{name}", now),
        **describe_code(),
        "calculated": calculated,
        "machine": describe_machine(packages),
        "settings": {
            key: value.name if isinstance(value, Path) else value for key, value in settings.items()
        },
        "results": list(records),
    }
    text = json.dumps(content, indent=2) + "\n"
    check_content(json.loads(text))
    folder.mkdir(parents=True, exist_ok=True)
    while (path := folder / f"{now:%Y-%m-%d-%H%M%S}-{name}.json").exists():
        now += timedelta(seconds=1)
    write_whole(path, text.encode())
    return path


def load(path: Path) -> Content:
    """Read a results file: the header, and the records under "results"."""
    content: Content = json.loads(path.read_text())
    return content


def select(records: Iterable[Record], **fields: Any) -> list[Record]:
    """The records with these values in these fields."""
    return [record for record in records if all(record.get(key) == value for key, value in fields.items())]


def only(records: Iterable[Record], **fields: Any) -> Record:
    """The only record with these values in these fields.

    Raises
    ------
    LookupError
        There is none, or there are several.
    """
    found = select(records, **fields)
    if len(found) != 1:
        raise LookupError(f"records with {fields} must be exactly one; got {len(found)}")
    return found[0]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns."""
    cells = [list(header), ["---"] * len(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    )
