"""Stage: what ``python -m dali_msda.doctor`` says about the machine."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.gpu_day.stage import Job


def run(job: Job) -> None:
    """Run it, and record its report."""
    if job.has(section="doctor"):
        return
    command = [sys.executable, "-m", "dali_msda.doctor", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=job.seconds)
    report = json.loads(ended.stdout)
    job.add(section="doctor", exit_status=ended.returncode, report=report)
