"""What is printed never ends a run: no character and no closed terminal. Imports nothing heavy."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

_FULL_PIPE_SECONDS = 1.0


class _Screen(io.FileIO):
    """A descriptor whose reader may go away, and whose disk may be full: what cannot be written is lost."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
            if written is None:  # a full pipe that does not block
                select.select((), (self,), (), _FULL_PIPE_SECONDS)
                written = super().write(data)
        except OSError:
            written = None
        return len(memoryview(data).cast("B")) if written is None else written


def keep_printing() -> None:
    """Let print() write every character as well as the terminal can, and go on where nobody reads.

    Descriptors that were closed at the start are opened: otherwise the next file that the process opens would
    have the number of a standard stream, and would get what libraries print there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Always the lowest free number.
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _opened(number, "utf-8"))
        elif type(stream) is io.TextIOWrapper and type(_raw(stream)) is io.FileIO:
            _flush(stream)
            setattr(sys, name, _opened(stream.fileno(), stream.encoding))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _opened(number: int, encoding: str) -> io.TextIOWrapper:
    screen = io.BufferedWriter(_Screen(number, "w", closefd=False))
    return io.TextIOWrapper(screen, encoding, errors="backslashreplace", line_buffering=True)


def _raw(stream: io.TextIOWrapper) -> object:
    """What it writes to; python -u has nothing between."""
    return getattr(stream.buffer, "raw", stream.buffer)


def _flush(stream: io.TextIOWrapper) -> None:
    try:
        stream.flush()
    except OSError:
        # What it still holds would be an error once more when Python ends.
        stream.detach()
