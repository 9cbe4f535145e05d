"""Print without ever ending a run, whatever the characters and the terminal, and log it to a file.

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
    """The printed lines, kept until a file for them is opened, then written to it.

    Errors of the file are ignored: unwritten lines are retried with the next one. Of overwritten text, such
    as a progress bar, only the last state is kept.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        # Lines to write while the storage is away. Older lines are dropped.
        self._waiting: deque[bytes] = deque(maxlen=10_000)
        self._begun: dict[int, bytes] = {}  # the incomplete line of each descriptor

    def add(self, descriptor: int, data: bytes) -> None:
        """Add printed text."""
        *lines, begun = (self._begun.get(descriptor, b"") + data).split(b"\n")
        self._begun[descriptor] = begun[begun.rfind(b"\r") + 1 :]
        for line in lines:
            shown = line.rstrip(b"\r")
            self.note(shown[shown.rfind(b"\r") + 1 :])
        if lines:
            self._write()

    def note(self, line: bytes) -> None:
        """Add a line without writing it yet, because the file may be out of reach."""
        self._waiting.append(line.rstrip() + b"\n")

    def open(self, path: Path) -> None:
        """Append all lines, including earlier ones, to a file."""
        with contextlib.suppress(OSError):
            path.touch()
        self._path = path
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            # Opened by name each time, and never created again: see `training.appending`.
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
    """The log of what this process has printed since :func:`keep_printing`."""
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
