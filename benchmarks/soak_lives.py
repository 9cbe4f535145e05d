"""One start of the trainer after the other: processes that a soak can signal, watch and wait for."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_POLL = 0.005
# What torchrun does when one of its processes has died: SIGTERM to the others, SIGKILL 30 seconds later.
_LAST_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a life begins.

    Attributes
    ----------
    arguments : tuple of str
        Of the trainer.
    processes : int
    warm : bool
        Fork it from a process that has imported all; otherwise the command that a user gives, seconds slower.
    log : Path
        Takes standard error.
    screen : Path or None
        Takes standard output, and is opened for it; None: closed.
    ignored : tuple of signal.Signals
        Signals that are ignored from the beginning, as nohup does.
    """

    arguments: tuple[str, ...]
    processes: int
    warm: bool
    log: Path
    screen: Path | None
    ignored: tuple[signal.Signals, ...] = ()


@dataclass
class Life:
    """The processes of one start.

    Attributes
    ----------
    start : Start
    ranks : list
        The processes, in the order of their ranks.
    signals : list of signal.Signals
        Those that were sent.
    ended_others : bool
        One process had ended before the others, so they got SIGTERM, as from torchrun.
    """

    start: Start
    ranks: list[subprocess.Popen[bytes] | BaseProcess]
    signals: list[signal.Signals] = field(default_factory=list)
    ended_others: bool = False

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    @staticmethod
    def _status(rank: subprocess.Popen[bytes] | BaseProcess) -> int | None:
        return rank.poll() if isinstance(rank, subprocess.Popen) else rank.exitcode

    @property
    def statuses(self) -> list[int | None]:
        """Exit statuses; -9: killed by signal 9; None: still running."""
        return [self._status(rank) for rank in self.ranks]

    @property
    def has_ended(self) -> bool:
        """Whether any of the processes has ended."""
        return any(status is not None for status in self.statuses)

    def send(self, number: signal.Signals, ranks: Sequence[int]) -> None:
        """Send a signal to the processes with these ranks that still run."""
        self.signals.append(number)
        for rank in ranks:
            process = self.ranks[rank]
            if self._status(process) is None:
                assert process.pid is not None
                os.kill(process.pid, number)

    def catches(self, number: signal.Signals) -> bool:
        """Whether all processes have a handler for a signal: they have come to the trainer's `main`."""
        return all(_catches(rank.pid, number) for rank in self.ranks)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for something, as long as all processes run; whether it came within the time."""
        end = time.monotonic() + seconds
        while not self.has_ended and time.monotonic() < end:
            if condition():
                return True
            time.sleep(_POLL)
        return False

    def wait(self, seconds: float) -> list[int] | None:
        """The exit statuses; None if they do not end in time: they are killed then."""
        end = time.monotonic() + seconds
        while None in self.statuses and time.monotonic() < end:
            if self.has_ended and not self.ended_others:
                time.sleep(0.1)  # torchrun looks as often
                self.ended_others = None in self.statuses
                if self.ended_others:
                    self._send_others(signal.SIGTERM)
                    end = min(end, time.monotonic() + _LAST_SECONDS)
            time.sleep(_POLL)
        hung = None in self.statuses
        self._send_others(signal.SIGKILL)
        for rank in self.ranks:
            rank.wait() if isinstance(rank, subprocess.Popen) else rank.join()
        return None if hung else [status for status in self.statuses if status is not None]

    def _send_others(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            if self._status(rank) is None:
                assert rank.pid is not None
                os.kill(rank.pid, number)

    def said(self) -> str:
        """What it printed to standard error, and to standard output if that went to the same file."""
        return self.start.log.read_text(errors="replace").replace("\r", "\n")


def begin(start: Start) -> Life:
    """Start the trainer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks: list[subprocess.Popen[bytes] | BaseProcess] = []
    for rank in range(start.processes):
        environment = {}
        if start.processes > 1:
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            environment |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(start.processes))
            environment["MASTER_ADDR"] = "127.0.0.1"
        ranks.append((_begin_warm if start.warm else _begin_cold)(start, environment))
    return Life(start, ranks)


def _begin_cold(start: Start, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "train_imagenet.py", *start.arguments]
    prepare = functools.partial(_prepare, start)
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, preexec_fn=prepare)


def _begin_warm(start: Start, environment: dict[str, str]) -> BaseProcess:
    # One process imports all, without starting a thread, and forks the others.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.commands"])
    process = context.Process(target=_train, args=(start, environment))
    process.start()
    return process


def _prepare(start: Start) -> None:
    """The standard streams and signals of a process, as its start has them."""
    opened = [(0, Path(os.devnull), os.O_RDONLY), (2, start.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)]
    if start.screen is not None:
        opened.append((1, start.screen, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    for number, path, flags in opened:
        file = os.open(path, flags, 0o666)
        os.dup2(file, number)
        os.close(file)
    if start.screen is None:
        os.close(1)
    # As in a terminal, also where the soak itself runs in the background.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number in start.ignored else signal.SIG_DFL)


def _train(start: Start, environment: dict[str, str]) -> None:
    """What a process does that is forked."""
    os.environ |= environment
    _prepare(start)
    import train_imagenet

    sys.exit(train_imagenet.main(list(start.arguments)))


def _catches(pid: Any, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
