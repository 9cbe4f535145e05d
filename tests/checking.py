"""Runs the data set check on small sets, some with damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines import check
from tests.damage import kinds
from tests.image_sets import plain

KINDS = {kind.name: kind for kind in kinds()}
BAD = {name for name, kind in KINDS.items() if kind.outcome in ("raises", "kills")}
TRUNCATED = KINDS["cut at half.JPEG"].data


def run(folder: Path, output: Path, *extra: str) -> tuple[int, dict[str, Any]]:
    """Check a folder in one process; returns exit status and report."""
    status = check.main([str(folder), "--output", str(output), "--workers", "1", *extra])
    return status, json.loads((output / "report.json").read_text())


def state(output: Path) -> list[dict[str, Any]]:
    """The records of the state file, one for each image."""
    return [json.loads(line) for line in (output / "state.jsonl").read_text().splitlines()[1:]]


def images(root: Path, count: int, bad: set[int] = frozenset()) -> Path:  # type: ignore[assignment]
    """A class folder ``root/a`` with images 000.png to count - 1, truncated JPEG data where `bad` says so."""
    (root / "a").mkdir(parents=True)
    for index in range(count):
        plain(index).save(root / "a" / f"{index:03d}.png")
        if index in bad:
            # A different end for each, so that no two are the same.
            (root / "a" / f"{index:03d}.png").write_bytes(TRUNCATED + bytes([index]))
    return root
