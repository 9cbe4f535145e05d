"""Writes the tables of the documents from the results that they link.

    python -m benchmarks.documents            write the tables of README.md and docs/*.md
    python -m benchmarks.documents --check    exit with 1 if one differs from its results

A document has ``<!-- table: NAME FILE ... -->`` on a line of its own, with a name from :data:`TABLES` and
results files relative to the document, and ``<!-- end of table -->`` below. This module writes the text
between the two. To show a new run, change the file there.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import gpu_tables, loader_tables, study_tables, tables
from benchmarks.common import Content, load
from benchmarks.tables import show
from pipelines.files import write_whole

TABLES = tables.TABLES | loader_tables.TABLES | gpu_tables.TABLES | study_tables.TABLES
ROOT = Path(__file__).resolve().parent.parent

_START = re.compile(r"^<!-- table: ", re.MULTILINE)
PLACE = re.compile(
    r"^<!-- table: (?P<name>\S+) (?P<files>[^\n]+) -->\n(?P<body>.*?)^<!-- end of table -->$",
    re.MULTILINE | re.DOTALL,
)


def _origin(file: str, content: Content) -> str:
    """Where a table comes from: the link, the machine, the commit."""
    machine, commit = content["machine"], content["commit"]
    where = "calculated" if content["calculated"] else f"{machine['processor']}, {machine['cores']} cores"
    if device := content.get("device"):
        where = f"{device['name']}, {where}"
    code = "commit not recorded" if commit is None else f"commit {commit[:10]}"
    code += " with changes" if content["dirty"] else ""
    name = f"{content['benchmark']}, {content['date'][:10]}"
    return f"[{name}]({file}), {where}, {code}"


def fill_tables(document: Path, text: str | None = None) -> str:
    """The text of a document (by default its own) with its tables filled from their results.

    Raises
    ------
    ValueError
        A table has no end, or there is no table or file with that name.
    """
    text = document.read_text() if text is None else text
    if len(_START.findall(text)) != len(PLACE.findall(text)):
        raise ValueError(f"{document}: every table must be <!-- table: NAME FILE ... --> and have an end")

    def fill(place: re.Match[str]) -> str:
        name, files = place["name"], place["files"].split()
        if name not in TABLES:
            raise ValueError(f"{document}: table must be one of {', '.join(TABLES)}; got {name!r}")
        paths = [document.parent / file for file in files]
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{document}: table {name} must name results files; got {path}")
        origins = "; ".join(_origin(file, load(path)) for file, path in zip(files, paths, strict=True))
        start = place[0].splitlines()[0]
        return (
            f"{start}\n\n{show(name, *paths, tables=TABLES)}\n\nResults: {origins}.\n\n<!-- end of table -->"
        )

    return PLACE.sub(fill, text)


def linked_results(document: Path, name: str) -> list[Path]:
    """The results files of the table `name` in a document."""
    for place in PLACE.finditer(document.read_text()):
        if place["name"] == name:
            return [document.parent / file for file in place["files"].split()]
    raise LookupError(f"{document} must have a table {name!r}; got none")


def documents() -> list[Path]:
    """The documents that may have tables."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Settings:
    """What to do."""

    check: bool = False
    """Do not write; list the documents that differ from their results, and exit with 1 if any does."""


def main() -> int:
    """Write the tables, or compare them."""
    settings = tyro.cli(Settings, description=__doc__)
    try:
        texts = {document: fill_tables(document) for document in documents()}
    except ValueError as error:
        raise SystemExit(str(error)) from None
    stale = {document: text for document, text in texts.items() if text != document.read_text()}
    for document, text in stale.items():
        if not settings.check:
            write_whole(document, text.encode())
        print(f"{document}: {'differs from its results' if settings.check else 'written'}")
    return int(settings.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
