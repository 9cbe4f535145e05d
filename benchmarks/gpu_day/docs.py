"""The measured tables of ``docs/gpu.md``, from reports: ``--write-docs``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.documents import PLACE, ROOT, fill_tables
from benchmarks.gpu_day.report import read
from benchmarks.gpu_tables import OF_SEVERAL, STAGE_OF, records_of
from pipelines.files import write_whole

DOCUMENT = ROOT / "docs" / "gpu.md"


def write(reports: Sequence[Path], document: Path = DOCUMENT) -> bool:
    """Write each table from those of `reports` (files or folders) that have its figures, or the last of them.

    Returns whether anything changed.

    Raises
    ------
    ValueError
        One is not a report of a GPU, or is not below docs/measured, where the document links it.
    """
    folder = document.parent.resolve() / "measured"
    contents = {}
    for path in reports:
        content = read(path)
        file = (path / "report.json" if path.is_dir() else path).resolve()
        if not file.is_relative_to(folder):
            raise ValueError(f"--write-docs must be reports below docs/measured; got {path}")
        if content["device"] is None:
            raise ValueError(f"--write-docs must be reports of a GPU; got {path}, which had none")
        contents[file] = content

    def show(place: re.Match[str]) -> str:
        stage = STAGE_OF.get(place["name"])
        files = [
            file.relative_to(folder.parent).as_posix()
            for file, content in contents.items()
            if stage is not None and records_of(content, stage)
        ]
        head, body = place[0].split("\n", 1)
        files = files if place["name"] in OF_SEVERAL else files[-1:]
        return f"<!-- table: {place['name']} {' '.join(files)} -->\n{body}" if files else f"{head}\n{body}"

    before = document.read_text()
    after = fill_tables(document, PLACE.sub(show, before))
    if after != before:
        write_whole(document, after.encode())
    return after != before
