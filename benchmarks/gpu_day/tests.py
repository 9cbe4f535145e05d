"""Stage: ``pytest -m gpu``, the suite's own tests with the GPU as device."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

from benchmarks.documents import ROOT
from benchmarks.gpu_day.stage import Job
from dali_msda.processors import usable_processors

# What pytest is given to stop in.
_TO_END_S = 10.0


def run(job: Job) -> None:
    """Run them; a record with the counts, and one for each that failed."""
    if job.has(section="counts"):
        return
    report = job.scratch / "junit.xml"
    # Building a pipeline is the processors' work, and takes most of the time.
    side_by_side = 0 if job.quick else min(8, usable_processors() // 2)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", str(side_by_side), "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", "-o", "junit_logging=no"]
    command += ["--maxfail=30"]
    if job.quick:
        command += ["tests/test_operators.py"]
    began = time.perf_counter()
    log = job.scratch / "pytest.txt"
    with log.open("wb") as file:
        ended = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        try:
            ended.wait(timeout=max(1.0, job.seconds - _TO_END_S))
        except subprocess.TimeoutExpired:
            ended.send_signal(signal.SIGINT)  # it writes its report of the tests that were run
            ended.wait()
    if not report.exists():
        raise RuntimeError(
            f"pytest wrote no report (exit status {ended.returncode}): {log.read_text()[-2000:]}"
        )
    cases = list(ElementTree.parse(report).iter("testcase"))
    kinds = {"failure": 0, "error": 0, "skipped": 0}
    reasons: dict[str, int] = {}
    for case in cases:
        for kind in kinds:
            for found in case.findall(kind):
                kinds[kind] += 1
                message = found.get("message") or ""
                if kind == "skipped":
                    reasons[message] = reasons.get(message, 0) + 1
                else:
                    name = f"{case.get('classname')}::{case.get('name')}"
                    job.add(section=kind, test=name, message=message[:600], text=(found.text or "")[-2500:])
    job.add(
        section="counts",
        passed=len(cases) - sum(kinds.values()),
        failed=kinds["failure"],
        errors=kinds["error"],
        skipped=kinds["skipped"],
        skipped_because=[{"reason": reason, "count": count} for reason, count in reasons.items()],
        test_seconds=time.perf_counter() - began,
        exit_status=ended.returncode,
        whole=time.perf_counter() - began < job.seconds - _TO_END_S,
    )
