"""The form of files of results: every file has it, and faults are errors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import load, save
from benchmarks.schema import check_content
from tests.trainer_process import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
MEASURED = sorted((ROOT / "docs" / "measured").glob("*/*.json"))


@pytest.mark.parametrize("path", [*RESULTS, *MEASURED], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_has_the_form(path: Path) -> None:
    check_content(load(path))


LOADER = next(path for path in reversed(RESULTS) if path.name.endswith("-bench_loader.json"))


def change(*keys: Any, to: Any) -> Callable[[Any], None]:
    def fault(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return fault


def remove(*keys: Any) -> Callable[[Any], None]:
    def fault(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return fault


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (remove("commit"), r"commit\n.*required"),
        (change("commit", to="main"), r"commit\S*\n.*match pattern"),
        (change("date", to="2026-11-27T10:00:00"), r"date\n.*timezone"),
        (change("command", to="make bench"), r"command\n.*match pattern"),
        (change("note", to="quiet"), r"note\n.*not permitted"),
        (change("machine", "cores", to=0), r"machine.cores\n.*greater than 0"),
        (change("results", to=[]), r"results\n.*at least 1 item"),
        (change("results", 0, "images/s", to=3.0), "names must be identifiers; got 'images/s'"),
        (change("results", 0, "peak_MiB", to=float("inf")), "peak_MiB must be finite; got inf"),
        (change("results", 0, "images_per_s", "median", to=0.0), "median must be from q1 to q3; got 0.0"),
        (remove("results", 0, "images_per_s", "q1"), r"q1\n.*required"),
        (remove("results", 0, "rates", -1), "images_per_s must be the spread of rates"),
        (change("results", 0, "rates", 0, to="fast"), r"rates.0\n.*valid number"),
        (change("results", 0, "source_size", to="large"), r"source_size\S*\n.*match pattern"),
        (change("results", 0, "speed", to=3.0), r"speed\n.*not permitted"),
        (remove("results", 0, "workers"), r"workers\n.*required"),
    ],
)
def test_faults(fault: Callable[[Any], None], message: str) -> None:
    content = copy.deepcopy(load(LOADER))
    fault(content)
    with pytest.raises(ValueError, match="results of bench_loader must have the form of") as raised:
        check_content(content)
    raised.match(message)


def test_other_benchmarks_have_fields_of_their_own(tmp_path: Path) -> None:
    written = save("bench_x", {}, [{"what": "x", "ms": 1.0}], tmp_path)
    assert json.loads(written.read_text())["results"] == [{"what": "x", "ms": 1.0}]


def test_nothing_wrong_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have the form"):
        save("bench_x", {}, [{"seconds": {"median": 2.0, "q1": 3.0, "q3": 4.0, "rounds": 1}}], tmp_path)
    with pytest.raises(ValueError, match="must have the form"):
        save("bench_loader", {}, [{"loader": "dali"}], tmp_path)
    assert list(tmp_path.iterdir()) == []
