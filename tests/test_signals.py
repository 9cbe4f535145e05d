"""Signals that ask to stop, in a separate process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.signals import STOP_SIGNALS

ROOT = Path(__file__).resolve().parent.parent
# Waits like a library that holds its own lock: Python runs no handlers meanwhile.
HANG = """
import ctypes
mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)
"""
STOP_AND_TELL = """
import time
while not stop.number:
    time.sleep(0.01)
time.sleep(REST)
print(stop.received.name, flush=True)
"""
PROGRAM = """
import signal, sys
from training.signals import StopSignals
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background
with StopSignals() as stop:
    with stop.finishing_steps():
        print("ready", flush=True)
        exec(sys.argv[1])
sys.exit(128 + stop.number)
"""


def start(body: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, body],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", list(STOP_SIGNALS))
def test_first_signal_asks(number: signal.Signals) -> None:
    process = start(STOP_AND_TELL.replace("REST", "0"))
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == (f"{number.name}\n", 128 + number)
    assert f"{number.name}: finishing the step, then saving" in err


def test_the_same_wish_twice() -> None:
    """torchrun and the terminal may both pass on one Ctrl-C."""
    process = start(STOP_AND_TELL.replace("REST", "1"))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("SIGINT\n", 130)


@pytest.mark.parametrize("body", [HANG, STOP_AND_TELL.replace("REST", "60")])
def test_second_signal_leaves_at_once(body: str) -> None:
    process = start(body)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 128 + signal.SIGINT)
    assert "quitting without saving" in err
    assert time.monotonic() - began < 20


def test_handlers_come_back() -> None:
    process = start("pass")
    assert process.wait(timeout=30) == 128
    program = "import signal, os\nfrom training.signals import *\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "before = [signal.getsignal(number) for number in STOP_SIGNALS]\nwith StopSignals():\n"
    program += "    assert signal.getsignal(signal.SIGINT) not in before\n"
    program += "assert [signal.getsignal(number) for number in STOP_SIGNALS] == before\n"
    program += "assert signal.set_wakeup_fd(-1) == -1\nos.kill(os.getpid(), signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30).returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_ignored_signals_stay_ignored(number: signal.Signals) -> None:
    """nohup ignores SIGHUP; a shell ignores Ctrl-C in background jobs."""
    program = "import os, signal\nfrom training.signals import StopSignals\n"
    program += f"signal.signal({int(number)}, signal.SIG_IGN)\n"
    program += "with StopSignals() as stop:\n"
    program += f"    os.kill(os.getpid(), {int(number)})\n"
    program += "    with stop.finishing_steps():\n"
    program += f"        os.kill(os.getpid(), {int(number)})\n"
    program += f"assert signal.getsignal({int(number)}) is signal.SIG_IGN and stop.number == 0"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")
