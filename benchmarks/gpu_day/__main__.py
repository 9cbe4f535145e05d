"""Everything to check on a GPU, most important first, within a budget of seconds.

    python -m benchmarks.gpu_day --out DIR [--budget 540] [--data DIR]
    python -m benchmarks.gpu_day --device cpu --quick --out DIR     every stage, small, without a GPU
    python -m benchmarks.gpu_day --compare REPORT REPORT            two reports side by side
    python -m benchmarks.gpu_day --write-docs [REPORT ...]          the measured tables of docs/gpu.md

Each stage has a time box and writes results as it gets them. If a stage fails or runs over, its error goes
into the report and the next one runs. Started again with the same folder, the command runs only what is
missing. DIR gets report.json (schema: report.py), report.md, pictures and a log per stage. The exit status is
0 if all chosen stages are done; a stage says what the machine lacks for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tyro

from benchmarks.common import Content
from benchmarks.documents import ROOT
from benchmarks.gpu_day import docs
from benchmarks.gpu_day import report as reports
from benchmarks.gpu_day.device import facts
from benchmarks.gpu_day.page import write
from benchmarks.gpu_day.stage import MISSING_STATUS, Device, Job
from benchmarks.gpu_day.stages import STAGES, Stage
from benchmarks.photos import prepare_images
from pipelines.demo_data import make_demo_dataset
from training.machine import describe_code, describe_machine


@dataclass(frozen=True)
class Settings:
    """What to run."""

    out: Path | None = None
    """Folder of the report; an existing one is continued."""

    budget: float = 540.0
    """Seconds for all stages."""

    device: Device = "gpu"
    """cpu: every stage without a GPU, to check that it runs."""

    quick: bool = False
    """Small sizes and few rounds."""

    data: Path | None = None
    """Folder with train/ and val/, class folders of JPEGs. Default: generated images."""

    stages: tuple[str, ...] = ()
    """Only these. Default: all."""

    compare: tuple[Path, Path] | None = None
    """Measure nothing; print two reports, given as files or folders, side by side."""

    write_docs: tuple[Path, ...] | None = None
    """Measure nothing; write the measured tables of docs/gpu.md. Each table uses the given reports that have
    its figures, or only the last of them; if there are none, the reports that it already names."""


def main() -> int:
    """Run the missing stages; return 1 if one of them is not done."""
    settings = tyro.cli(Settings, description=__doc__)
    try:
        if settings.compare is not None:
            print(reports.compare(*map(reports.read, settings.compare)))
            return 0
        if settings.write_docs is not None:
            changed = docs.write(settings.write_docs)
            print(f"docs/gpu.md: {'written' if changed else 'already up to date'}")
            return 0
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    if settings.out is None:
        raise SystemExit("--out must be a folder for the report; got none")
    names = [stage.name for stage in STAGES]
    for name in settings.stages:
        if name not in names:
            raise SystemExit(f"--stages must be among {', '.join(names)}; got {name}")
    try:
        day = Day(settings, settings.out)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    day.run()
    print((settings.out / "report.md").read_text() if settings.quick else f"wrote {settings.out}/report.md")
    written = reports.read(settings.out)  # checks the written report
    chosen = settings.stages or names
    return int(any(entry["status"] != "done" for entry in written["stages"] if entry["name"] in chosen))


class Day:
    """Runs the stages one after another and writes the report."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings = settings
        self.out = out
        # Absolute, because stages run in the project's folder.
        self._scratch = out.resolve() / "scratch"
        self._began = time.monotonic()
        self.report = self._header()
        path = out / "report.json"
        if path.exists():
            self._keep_earlier_stages(reports.read(path))

    def _header(self) -> Content:
        settings = self.settings
        chosen = [stage for stage in STAGES if not settings.stages or stage.name in settings.stages]
        return {
            "schema": reports.SCHEMA,
            "benchmark": "gpu_day",
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": "python -m benchmarks.gpu_day"
            + "".join(f" {Path(word).name if '/' in word else word}" for word in sys.argv[1:]),
            **describe_code(),
            "calculated": False,
            "machine": describe_machine(),
            "device": facts() if settings.device == "gpu" else None,
            "settings": {
                "device": settings.device,
                "quick": settings.quick,
                "budget": settings.budget,
                "data": settings.data.name if settings.data else None,
            },
            "stages": [_entry(stage, "not started") for stage in chosen],
        }

    def _keep_earlier_stages(self, before: Content) -> None:
        """Keep the stages done earlier in this folder, if machine, code and settings are the same."""
        for key in ("commit", "machine"):
            if before[key] != self.report[key]:
                raise ValueError(
                    f"--out must be a new folder, or one with the same {key}; got {self.out}, whose"
                    f" report has {before[key]}, not {self.report[key]}"
                )
        for key in ("device", "quick"):
            if before["settings"][key] != self.report["settings"][key]:
                raise ValueError(f"--{key} must be {before['settings'][key]}, as in the report of {self.out}")
        kept = {entry["name"]: entry for entry in before["stages"]}
        ours = [kept.pop(entry["name"], entry) for entry in self.report["stages"]]
        order = [stage.name for stage in STAGES]
        self.report["stages"] = sorted([*ours, *kept.values()], key=lambda entry: order.index(entry["name"]))
        self.report["date"] = before["date"]

    def run(self) -> None:
        """Run every stage that is not done, while time is left."""
        write(self.out, self.report)
        try:
            data = self._data()
        except (OSError, ValueError) as error:
            raise SystemExit(
                f"--data must be a folder with train/ and val/, class folders of JPEGs; {error}"
            ) from None
        for place, entry in enumerate(self.report["stages"]):
            if entry["status"] == "done" or (
                self.settings.stages and entry["name"] not in self.settings.stages
            ):
                continue
            stage = next(stage for stage in STAGES if stage.name == entry["name"])
            left = self.settings.budget - (time.monotonic() - self._began)
            if left < 3:
                break
            # Later stages share the time that earlier ones did not use.
            todo = [e["name"] for e in self.report["stages"][place:] if e["status"] != "done"]
            share = stage.share / sum(other.share for other in STAGES if other.name in todo)
            self.report["stages"][place] = self.run_stage(stage, max(3.0, left * share), data)
            write(self.out, self.report)
            self._draw()
            now = self.report["stages"][place]
            print(
                f"{stage.name}: {now['status']}, {now['seconds']:.0f} s of {now['box_s']:.0f} s", flush=True
            )

    def _draw(self) -> None:
        """Draw the pictures, if Matplotlib is installed."""
        try:
            from benchmarks.gpu_day.plots import draw
        except ImportError as error:
            print(f"no pictures: {error}", flush=True)
        else:
            draw(self.out, self.report)

    def _data(self) -> Path:
        """Prepare the images, with training images linked repeatedly to fill an epoch of 64 batches."""
        settings = self.settings
        count = 8 if settings.quick else 160
        images = (
            make_demo_dataset(self._scratch / f"data-{count}", train_per_class=count, val_per_class=4)
            if settings.data is None
            else settings.data.resolve()
        )
        folder = self._scratch / "linked"
        if not (folder / "val").exists():
            shutil.rmtree(folder, ignore_errors=True)
            made = prepare_images(images / "train", folder, batch_size=8 if settings.quick else 256)
            made.rename(folder / "train")
            (folder / "val").symlink_to(images / "val")
        return folder

    def run_stage(self, stage: Stage, box: float, data: Path) -> dict[str, Any]:
        """Run a stage in its own process; return its entry for the report."""
        settings = self.settings
        folder = self._scratch / stage.name
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(folder / "records.jsonl", folder, data, settings.device, settings.quick, box)
        job.forget_errors()
        job.write(folder / "job.json")
        command = [sys.executable, "-m", "benchmarks.gpu_day.stage", stage.name, str(folder / "job.json")]
        began = time.monotonic()
        with (self.out / f"{stage.name}.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            status = "done"
            try:
                if process.wait(timeout=box) == MISSING_STATUS:
                    status = "missing"
                elif process.returncode != 0:
                    status = "failed"
            except subprocess.TimeoutExpired:
                status = "out of time"
            finally:
                # With its children, which would disturb the next stage.
                _kill(process)
        records = job.found()
        errors = [record["error"] for record in records if "error" in record]
        if status == "done" and errors and len(errors) == len(records):
            status = "failed"
        end = errors[-1] if errors else (self.out / f"{stage.name}.log").read_text(errors="replace")[-3000:]
        error = {
            "done": None,
            "out of time": f"stopped after {box:.0f} s, its time box\n{end}",
        }.get(status, f"exit status {process.returncode}\n{end}")
        found = _entry(stage, status) | {"box_s": box, "seconds": time.monotonic() - began, "error": error}
        return found | {"records": records}


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _entry(stage: Stage, status: str) -> dict[str, Any]:
    return {
        "name": stage.name,
        "title": stage.title,
        "status": status,
        "box_s": 0.0,
        "seconds": 0.0,
        "error": None,
        "records": [],
    }


if __name__ == "__main__":
    sys.exit(main())
