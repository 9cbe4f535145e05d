"""The doctor's findings: one kind of record, printed as a page of text or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_WIDTH, _INDENT = 100, 10


@dataclass(frozen=True)
class Finding:
    """One fact about this machine."""

    status: str
    """`OK`, `NOTE` (works, with a caveat) or `PROBLEM` (something will not work)."""

    name: str
    """What was examined; the same on every machine."""

    text: str
    """The result, in a line or two."""

    todo: str = ""
    """The remedy; required for a problem."""

    data: dict[str, Any] = field(default_factory=dict)
    """The same facts for JSON."""

    def __post_init__(self) -> None:
        if self.status not in (OK, NOTE, PROBLEM):
            raise ValueError(f"status must be one of {OK!r}, {NOTE!r}, {PROBLEM!r}; got {self.status!r}")
        if self.status == PROBLEM and not self.todo:
            raise ValueError(f"todo must be given with a problem, as its remedy; got none for {self.name!r}")


Sections = dict[str, list[Finding]]


def run_probe(name: str, probe: Callable[[], Finding]) -> Finding:
    """Run `probe`; if it raises, on a machine it was not made for, return a note with the error."""
    try:
        return probe()
    except Exception as error:  # of any type: the rest of the page is still wanted
        return Finding(NOTE, name, f"cannot be examined: {error!r}", "please file an issue with this line")


def lines(finding: Finding) -> list[str]:
    """Format a finding as lines of the page."""
    indent = " " * _INDENT

    def wrap(text: str, first: str) -> list[str]:
        found: list[str] = []
        for part in text.split("\n"):
            wrapper = textwrap.TextWrapper(
                _WIDTH, first, indent, break_on_hyphens=False, break_long_words=False
            )
            found += wrapper.wrap(part)
            first = indent
        return found

    found = wrap(f"{finding.name}: {finding.text}", f"  {finding.status:<{_INDENT - 2}}")
    return found + (wrap(f"-> {finding.todo}", indent) if finding.todo else [])


def summary(findings: Iterable[Finding]) -> str:
    """The last line of the page."""
    statuses = [finding.status for finding in findings]
    problems, notes = statuses.count(PROBLEM), statuses.count(NOTE)
    if not problems:
        return f"No problem found, {notes} note{'s' * (notes != 1)}."
    return f"{problems} problem{'s' * (problems != 1)}, {notes} note{'s' * (notes != 1)}."


def as_json(sections: Sections) -> dict[str, Any]:
    """Everything as one JSON object."""
    findings = [finding for section in sections.values() for finding in section]
    return {
        "format": 1,
        "problems": sum(finding.status == PROBLEM for finding in findings),
        "notes": sum(finding.status == NOTE for finding in findings),
        "sections": {
            title: {
                finding.name: {
                    "status": finding.status,
                    "text": finding.text,
                    "todo": finding.todo,
                    **finding.data,
                }
                for finding in section
            }
            for title, section in sections.items()
        },
    }
