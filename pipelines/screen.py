"""Printing that never ends a run, whatever the characters and the terminal, and that goes to a file as well.

Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections import deque
from pathlib import Path
from typing import Any

_FULL_PIPE_SECONDS = 1.0


class Log:
    """The lines that are printed, for a file that is made when there is a place for it.

    An error of the file ends nothing: its lines are tried again with the next one. Of what is drawn over, as
    a progress bar, what stands there in the end is a line.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        # While the storage is away; more of them is no loss to anybody.
        self._waiting: deque[bytes] = deque(maxlen=10_000)
        self._begun: dict[int, bytes] = {}  # the line of each descriptor that has no end yet

    def add(self, descriptor: int, data: bytes) -> None:
        """Take what is printed."""
        *lines, begun = (self._begun.get(descriptor, b"") + data).split(b"\n")
        self._begun[descriptor] = begun[begun.rfind(b"\r") + 1 :]
        for line in lines:
            shown = line.rstrip(b"\r")
            self.note(shown[shown.rfind(b"\r") + 1 :])
        if lines:
            self._write()

    def note(self, line: bytes) -> None:
        """Take a line, without a look at the file now: it may be out of reach."""
        self._waiting.append(line.rstrip() + b"\n")

    def open(self, path: Path) -> None:
        """Write all lines, those that came before as well, to the end of a file."""
        with contextlib.suppress(OSError):
            path.touch()
        self._path = path
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            # By its name each time, and never made again: see `training.appending`.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        except OSError:
            return
        try:
            while self._waiting:
                written = os.write(descriptor, self._waiting[0])
                if rest := self._waiting[0][written:]:
                    self._waiting[0] = rest
                else:
                    self._waiting.popleft()
        except OSError:
            return
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)


_log = Log()


def screen_log() -> Log:
    """What this process has printed since :func:`keep_printing`."""
    return _log


class _Screen(io.FileIO):
    """A descriptor whose reader may close it or whose disk may be full: text it cannot write is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
            if written is None:  # a full non-blocking pipe
                select.select((), (self,), (), _FULL_PIPE_SECONDS)
                written = super().write(data)
        except OSError:
            written = None
        taken = bytes(data) if written is None else bytes(data)[:written]
        _log.add(self.fileno(), taken)
        return len(taken)


def keep_printing() -> None:
    """Make print() safe: escape characters that the terminal lacks, drop text that nobody reads.

    Standard streams that are closed are opened on /dev/null. Otherwise the next file that the process opens
    would get their descriptor, and the output that libraries print to it.
    """
    global _log
    _log = Log()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # open() returns the lowest free descriptor.
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _open(number, "utf-8"))
        elif type(stream) is io.TextIOWrapper and type(_raw(stream)) is io.FileIO:
            _flush(stream)
            setattr(sys, name, _open(stream.fileno(), stream.encoding))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _open(number: int, encoding: str) -> io.TextIOWrapper:
    screen = io.BufferedWriter(_Screen(number, "w", closefd=False))
    return io.TextIOWrapper(screen, encoding, errors="backslashreplace", line_buffering=True)


def _raw(stream: io.TextIOWrapper) -> object:
    """The raw file of a text stream; with python -u there is no buffer between."""
    return getattr(stream.buffer, "raw", stream.buffer)


def _flush(stream: io.TextIOWrapper) -> None:
    try:
        stream.flush()
    except OSError:
        # Otherwise the unwritten text would raise again when Python exits.
        stream.detach()
