"""Stage: ``pytest -m gpu``, the suite's own tests with the GPU as device."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter

from benchmarks.common import Record
from benchmarks.documents import ROOT
from benchmarks.gpu_day.stage import Job, Missing
from dali_msda.processors import usable_processors

# Time reserved for writing the outcomes if the tests have to be stopped.
_TO_END_S = 5.0


def run(job: Job) -> None:
    """Run them; record the counts, and each failure."""
    if job.has(section="counts"):
        return
    for package in ("pytest", "xdist"):
        if importlib.util.find_spec(package) is None:
            raise Missing(f"{package} is not installed")
    outcomes = job.scratch / "outcomes.jsonl"
    outcomes.unlink(missing_ok=True)
    # Most of the time goes into building pipelines, on the CPU.
    side_by_side = 0 if job.quick else min(12, usable_processors() * 3 // 4)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", str(side_by_side), "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu_day.recorder", "--maxfail=30"]
    if job.quick:
        command += ["tests/test_operators.py"]
    began = time.perf_counter()
    log = job.scratch / "pytest.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | {"GPU_DAY_OUTCOMES": str(outcomes)}
        )
        try:
            process.wait(timeout=max(1.0, job.seconds - _TO_END_S))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    whole = process.returncode in (0, 1)  # all passed, or some failed
    if not outcomes.exists():
        raise RuntimeError(f"no test ended (exit status {process.returncode}): {log.read_text()[-2000:]}")
    found: list[Record] = [json.loads(line) for line in outcomes.read_text().splitlines()]
    for record in found:
        if record["outcome"] in ("failed", "error"):
            job.add(section=record["outcome"], test=record["test"], text=record["text"])
    counts = Counter(record["outcome"] for record in found)
    reasons = Counter(record["text"] for record in found if record["outcome"] == "skipped")
    job.add(
        section="counts",
        passed=counts["passed"],
        failed=counts["failed"],
        errors=counts["error"],
        skipped=counts["skipped"],
        skipped_because=[{"reason": reason, "count": count} for reason, count in reasons.items()],
        test_seconds=time.perf_counter() - began,
        exit_status=process.returncode,
        whole=whole,
    )
