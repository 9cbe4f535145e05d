"""Printing that never ends a run, whatever the characters and the terminal. Imports nothing heavy."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

_FULL_PIPE_SECONDS = 1.0


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
        return len(memoryview(data).cast("B")) if written is None else written


def keep_printing() -> None:
    """Make print() safe: escape characters that the terminal lacks, drop text that nobody reads.

    Standard streams that are closed are opened on /dev/null. Otherwise the next file that the process opens
    would get their descriptor, and the output that libraries print to it.
    """
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
