"""A pytest plugin that writes each test's outcome as it ends, so none is lost if the run is stopped.

``GPU_DAY_OUTCOMES`` names the file. With several processes, the collecting one writes.
"""

from __future__ import annotations

import json
import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Record in the collecting process, or in the only one."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder())


class _Recorder:
    @staticmethod
    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        """Write a line for a finished test, and for failures of set-up and tear-down."""
        if report.when != "call" and report.passed:
            return
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        line = {"test": report.nodeid, "outcome": outcome, "seconds": report.duration, "text": reason[-2500:]}
        with open(os.environ["GPU_DAY_OUTCOMES"], "a") as file:
            file.write(json.dumps(line) + "\n")
