"""Stage: a run killed in the middle of an epoch and resumed, compared with an uninterrupted one.

With deterministic algorithms the losses must be the same to the bit. Without them, two uninterrupted runs
show how far apart runs get on this device.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.documents import ROOT
from benchmarks.gpu_day.stage import Job
from pipelines.demo_data import make_demo_dataset

_TIMINGS = ("images_per_s", "data_wait")


def _start(job: Job, data: Path, name: str, *, deterministic: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "train_imagenet.py", "--data", str(data), "--output", str(job.scratch / name)]
    command += [
        "--resume",
        "auto",
        "--seed",
        "5",
        "--mix",
        "hmix",
        "--arch",
        "resnet18",
        "--image-size",
        "64",
    ]
    command += ["--epochs", "2", "--batch-size", "16", "--warmup-epochs", "1", "--lr", "0.05"]
    command += ["--log-every", "1", "--checkpoint-every", "4", "--workers", "2", "--device", job.torch_device]
    command += ["--deterministic"] if deterministic else []
    threads = {} if job.device == "gpu" else {"OMP_NUM_THREADS": "1"}
    with (job.scratch / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | threads, stdout=log, stderr=log)


def _lines(job: Job, name: str) -> list[dict[str, Any]]:
    path = job.scratch / name / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append({key: value for key, value in json.loads(line).items() if key not in _TIMINGS})
        except ValueError:
            break  # being written
    return found


def _finish(job: Job, process: subprocess.Popen[bytes], name: str) -> None:
    if process.wait() != 0:
        log = (job.scratch / f"{name}.log").read_text()
        raise RuntimeError(f"the run {name} ended with status {process.returncode}: {log[-1500:]}")


def _compare(job: Job, one: str, other: str) -> dict[str, Any]:
    """Compare the losses of two runs."""
    pair = _lines(job, one), _lines(job, other)
    losses = [[line[key] for line in lines for key in ("loss", "val_loss") if key in line] for lines in pair]
    away = [abs(a - b) for a, b in zip(*losses, strict=False)]
    return {
        "lines": [len(lines) for lines in pair],
        "losses": len(away),
        "equal": pair[0] == pair[1],
        "first_difference": next((place for place, value in enumerate(away) if value), None),
        "max_loss_difference": max(away, default=None),
        "last_losses": [values[-1] for values in losses],
    }


def run(job: Job) -> None:
    """Start all runs side by side: their numbers matter, not their time."""
    if job.has(section="resumed"):
        return
    per_class = 8 if job.quick else 33
    data = make_demo_dataset(job.scratch / f"data{per_class}", train_per_class=per_class, val_per_class=4)
    calm = _start(job, data, "calm", deterministic=True)
    cut = _start(job, data, "cut", deterministic=True)
    loose = {}
    if not job.quick:
        loose = {name: _start(job, data, name, deterministic=False) for name in ("free-1", "free-2")}
    enough = 4 if job.quick else 9
    while cut.poll() is None and len(_lines(job, "cut")) < enough:
        time.sleep(0.01)
    killed = cut.poll() is None
    if killed:
        cut.send_signal(signal.SIGKILL)
    cut.wait()
    at = len(_lines(job, "cut"))
    if not killed:
        raise RuntimeError(f"the run ended before it could be killed (status {cut.returncode})")
    again = _start(job, data, "cut", deterministic=True)
    _finish(job, again, "cut")
    _finish(job, calm, "calm")
    job.add(section="resumed", deterministic=True, killed_after_lines=at, **_compare(job, "calm", "cut"))
    for name, process in loose.items():
        _finish(job, process, name)
    if loose:
        job.add(section="two runs", deterministic=False, **_compare(job, "free-1", "free-2"))
        job.add(section="calm against free", deterministic=None, **_compare(job, "calm", "free-1"))
