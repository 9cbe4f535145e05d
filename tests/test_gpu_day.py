"""The GPU day: its report, its time limits, and how it resumes."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import Content
from benchmarks.documents import PLACE
from benchmarks.gpu_day import docs, mixing
from benchmarks.gpu_day import report as reports
from benchmarks.gpu_day.__main__ import Day, Settings
from benchmarks.gpu_day.page import markdown, write
from benchmarks.gpu_day.stage import Job, Timed, device_work, in_turns
from benchmarks.gpu_day.stages import STAGES
from pipelines.demo_data import make_demo_dataset

ROOT = Path(__file__).parent.parent


def day(out: Path, *arguments: str) -> tuple[int, str]:
    """Run the GPU day; return the exit status and the output."""
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--out", str(out), *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def statuses(out: Path) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in reports.read(out / "report.json")["stages"]}


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]], Content]:
    """A day whose images cannot be decoded at first, and are then repaired."""
    folder = tmp_path_factory.mktemp("day")
    out, data = folder / "out", make_demo_dataset(folder / "data", train_per_class=2, val_per_class=1)
    whole = {path: path.read_bytes() for path in data.glob("train/*/*.jpg")}
    for path in whole:
        path.write_bytes(b"no image")
    options = ("--device", "cpu", "--quick", "--stages", "tests", "decoder", "--data", str(data))
    first = day(out, *options)
    report = reports.read(out / "report.json")
    for path, content in whole.items():
        path.write_bytes(content)
    return out, [first, day(out, *options)], report


def test_a_stage_that_fails_leaves_its_error(gone_on: Any) -> None:
    _, (first, _), report = gone_on
    assert first[0] == 1
    assert {entry["name"]: entry["status"] for entry in report["stages"]} == {
        "tests": "done",
        "decoder": "failed",
    }
    records = reports.stage(report, "decoder")
    assert records
    assert all("error" in record for record in records)
    assert "- device cpu" in markdown(report)


def test_a_day_goes_on_where_it_stopped(gone_on: Any) -> None:
    out, (_, second), before = gone_on
    assert second[0] == 0, second[1]
    assert statuses(out) == {"tests": "done", "decoder": "done"}
    after = reports.read(out / "report.json")
    # Completed stages are not repeated; stages that only gave errors are.
    assert reports.stage(after, "tests") == reports.stage(before, "tests")
    assert [r for r in reports.stage(after, "decoder") if "images_per_s" in r]
    assert not [r for r in reports.stage(after, "decoder") if "error" in r]
    assert not reports.problems(after)


def test_a_stage_that_runs_over_its_box_is_stopped(tmp_path: Path) -> None:
    today = Day(Settings(out=tmp_path, device="cpu", quick=True), tmp_path)
    stage = next(stage for stage in STAGES if stage.name == "resume")
    entry = today.run_stage(stage, 0.2, tmp_path)  # importing takes longer
    assert (entry["status"], entry["box_s"], entry["records"]) == ("out of time", 0.2, [])
    report = _report()
    report["stages"] = [entry]
    assert reports.problems(report) == []
    assert "out of time" in markdown(report)


def test_a_stage_says_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['xdist'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    today = Day(Settings(out=tmp_path, device="cpu", quick=True), tmp_path)
    entry = today.run_stage(next(stage for stage in STAGES if stage.name == "tests"), 60.0, tmp_path)
    assert (entry["status"], entry["records"]) == ("missing", [])
    assert "xdist is not installed" in entry["error"]


@pytest.mark.parametrize(
    ("module", "left"), [("timm.data.mixup", "torchvision"), ("torchvision.transforms", "timm")]
)
def test_mixing_goes_on_without_a_peer(module: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("timm.data.mixup")  # loads its own imports first
    monkeypatch.setitem(sys.modules, module, None)
    case = mixing.Case(2, "float32", "CHW", 8)
    images, labels = torch.zeros(2, 3, 8, 8), torch.arange(2)
    peers = list(mixing.peers(images, labels, case))
    assert {fields["library"] for fields, run in peers if not isinstance(run, ImportError)} == {left}
    (missing,) = [(fields, run) for fields, run in peers if isinstance(run, ImportError)]
    assert missing[0]["library"] == module.split(".")[0]
    assert module in str(missing[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stages", "mix"), "--stages must be among doctor, tests, .*; got mix"),
        (("--data", "no such folder"), "--data must be a folder with train/ and val/"),
        (("--compare", "a.json", "b.json"), "a.json"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    status, text = day(tmp_path, *arguments)
    assert status == 1
    assert re.search(message, text)
    assert "Traceback" not in text


def _report() -> Content:
    spread = {"median": 2.0, "q1": 1.0, "q3": 3.0, "rounds": 5}
    stages: list[Any] = [
        {
            "name": stage.name,
            "title": stage.title,
            "status": "not started",
            "box_s": 0.0,
            "seconds": 0.0,
            "error": None,
            "records": [],
        }
        for stage in STAGES
    ]
    decoder = stages[[stage.name for stage in STAGES].index("decoder")]
    decoder["status"] = "done"
    setting = {"device": "mixed", "threads": 8, "load": 0.5, "preallocated": True, "padded": True}
    decoder["records"] = [setting | {"images_per_s": spread}]
    return {
        "schema": reports.SCHEMA,
        "benchmark": "gpu_day",
        "date": "2026-11-26T12:00:00+00:00",
        "command": "python -m benchmarks.gpu_day",
        "commit": "0" * 40,
        "dirty": False,
        "calculated": False,
        "machine": {"processor": "P", "cores": 2, "memory_GiB": 1.0, "gpu": "none", "versions": {}},
        "device": None,
        "settings": {},
        "stages": stages,
    }


def _broken(change: str) -> Any:
    report: Any = copy.deepcopy(_report())
    if change == "no stages":
        del report["stages"]
    elif change == "unknown field":
        report["stages"][0]["notes"] = ""
    elif change == "status":
        report["stages"][0]["status"] = "good"
    elif change == "silent failure":
        report["stages"][0]["status"] = "failed"
    elif change == "schema":
        report["schema"] += 1
    elif change == "text as seconds":
        report["stages"][0]["seconds"] = "3"
    return report


def test_a_report_fits_its_schema() -> None:
    assert reports.problems(_report()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no stages", "must have stages"),
        ("unknown field", "unknown field notes"),
        ("status", "status must be one of done, out of time"),
        ("silent failure", "must say how"),
        ("schema", "schema must be"),
        ("text as seconds", "seconds is a str"),
    ],
)
def test_what_the_schema_refuses(change: str, message: str, tmp_path: Path) -> None:
    assert message in reports.problems(_broken(change))[0]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(_broken(change)))
    with pytest.raises(ValueError, match="must be a report of the GPU day"):
        reports.read(path)


def test_two_reports_side_by_side() -> None:
    other = _report()
    spread = other["stages"][-1]["records"][0]["images_per_s"]
    other["stages"][-1]["records"][0]["images_per_s"] = spread | {"median": 5.0}
    (row,) = [line for line in reports.compare(_report(), other).splitlines() if "images_per_s" in line]
    assert [cell.strip() for cell in row.split("|")][2:5] == ["2", "5", "2.500"]


def places(document: Path) -> dict[str, str]:
    return {place["name"]: place["files"] for place in PLACE.finditer(document.read_text())}


def test_the_documents_tables_are_of_the_reports_that_are_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # docs link to calculated results there
    document, new = tmp_path / "docs" / "gpu.md", tmp_path / "docs" / "measured" / "new"
    assert not docs.write([], document)  # as committed
    report = reports.read(ROOT / "docs" / "measured" / "h200-2026-11-26")
    kept = [entry for entry in report["stages"] if entry["name"] in ("mixing", "decoder")]
    kept[0]["records"][0]["seconds"] |= {"median": 0.1234, "q1": 0.1, "q3": 0.2}
    write(new, report | {"stages": kept})
    before = places(document)
    assert docs.write([new], document)
    assert not docs.write([], document)
    named = {"gpu_mixing", "gpu_decoder", "gpu_buffers"}
    assert places(document) == before | dict.fromkeys(named, "measured/new/report.json")
    assert "123.40 (100.00-200.00)" in document.read_text()
    # Tables of one report take the last one given.
    other = ROOT / "docs" / "measured" / "h200-2026-11-26"
    shutil.copytree(other, tmp_path / "docs" / "measured" / "other")
    assert docs.write([new, tmp_path / "docs" / "measured" / "other"], document)
    files = places(document)
    assert files["gpu_decoder"] == "measured/new/report.json measured/other/report.json"
    assert files["gpu_mixing"] == "measured/other/report.json"


@pytest.mark.parametrize(
    ("where", "device", "message"),
    [
        ("docs/measured/new", None, "--write-docs must be reports of a GPU"),
        ("elsewhere", {"name": "G"}, "--write-docs must be reports below docs/measured"),
        ("docs/measured/none", {"name": "G"}, "No such file"),
    ],
)
def test_documents_take_reports_of_gpus(tmp_path: Path, where: str, device: Any, message: str) -> None:
    document = tmp_path / "docs" / "gpu.md"
    if not where.endswith("none"):
        write(tmp_path / where, _report() | {"device": device})
    with pytest.raises((ValueError, OSError), match=message):
        docs.write([tmp_path / where], document)
    assert not document.exists()


def test_contenders_take_turns(tmp_path: Path) -> None:
    calls: list[str] = []
    job = Job(tmp_path / "r", tmp_path, tmp_path, "cpu", quick=True, seconds=1.0)
    timed = [Timed({}, lambda name=name: calls.append(name)) for name in "ab"]  # type: ignore[misc]
    found = in_turns(job, timed, rounds=3, warm_up=1)
    assert calls == list("abababab")
    assert [spread["rounds"] for spread in found] == [3, 3]
    assert device_work(job, lambda: None, 1) == {"gpu_ms": None, "kernels": None}


def test_every_outcome_is_written_as_it_is_known(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='GPU')\n"
        "def test_skipped(): pass\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError('no device')\n"
        "def test_error(broken): pass\n"
        "def test_that_ends_all(): os._exit(7)\n"
    )
    outcomes = tmp_path / "outcomes.jsonl"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    command += ["-p", "benchmarks.gpu_day.recorder", str(tmp_path)]
    environment = os.environ | {"GPU_DAY_OUTCOMES": str(outcomes)}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 7
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    found = {line["test"].split("::")[1]: (line["outcome"], line["text"]) for line in lines}
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_error": "error",
    }
    assert "assert 1 == 2" in found["test_bad"][1]
    assert "no device" in found["test_error"][1]


def test_no_path_of_a_machine_is_published(tmp_path: Path) -> None:
    report = _report()
    words = "File {}x.py, https://a.org/b/c, images/s"
    report["stages"][0] |= {"status": "failed", "error": "status 1\n" + words.format("/opt/some/venv/")}
    write(tmp_path, report)
    assert reports.read(tmp_path / "report.json")["stages"][0]["error"] == "status 1\n" + words.format("")
    assert words.format("") in (tmp_path / "report.md").read_text()
