"""Stop cleanly on a signal from a scheduler, a shell or a person."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from pipelines.screen import screen_log

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Ctrl-C reaches all processes of a terminal, and torchrun forwards it too; `timeout` signals its child and
# then its group: one request arrives twice. Signals within this time count as one.
_SAME_REQUEST_SECONDS = 0.5


class StopSignals:
    """While entered, SIGTERM, SIGINT, SIGUSR1 and SIGHUP end the process with 128 + signal and no traceback.

    They do so at once; within :meth:`finishing_steps` the first only asks to stop, and the second ends the
    process. A signal that was ignored before, as by nohup or a shell's ``&``, stays ignored.

    Parameters
    ----------
    quiet : bool
        Print nothing on stderr when a signal comes.

    Attributes
    ----------
    received : signal.Signals or None
        The first signal. By convention the exit status is 128 plus its number.

    Notes
    -----
    Enter it in the main thread. A separate thread reads the signals: Python runs handlers only between two
    instructions of the main thread, which may hang in a library call, such as a collective operation with a
    dead peer, when the second signal must work.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._quiet = quiet
        self._first_at = 0.0
        # What a first signal prints before it ends the process; None if it only asks to stop.
        self._exit_note: str | None = "exiting; there is nothing to save"
        self._before: dict[signal.Signals, Any] = {}

    @property
    def number(self) -> int:
        """Number of the first signal, 0 if none has come."""
        return 0 if self.received is None else int(self.received)

    def __enter__(self) -> StopSignals:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="stop signals", daemon=True)
        self._thread.start()
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    @contextlib.contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Let the block check :attr:`number` itself; after it, everything is saved and printed."""
        self._exit_note = None
        try:
            yield
        finally:
            self._exit_note = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write_end)  # ends the thread
        self._thread.join()
        os.close(self._read_end)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Do nothing: having a handler keeps the signal from ending the process."""

    def _watch(self) -> None:
        while number := os.read(self._read_end, 1):
            if number[0] in STOP_SIGNALS:
                self._note(signal.Signals(number[0]))

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.received is not None and now - self._first_at <= _SAME_REQUEST_SECONDS:
            return
        if self._exit_note is not None:
            self._say(self._exit_note and f"{number.name}: {self._exit_note}")
            os._exit(128 + number)
        if self.received is None:
            self.received, self._first_at = number, now
            self._say(f"{number.name}: finishing the step, then saving; signal again to quit without saving")
        else:
            self._say(f"{number.name} again: quitting without saving")
            os._exit(128 + number)

    def _say(self, text: str) -> None:
        if text and not self._quiet:
            screen_log().note(text.encode())
            with contextlib.suppress(OSError):  # nobody reads; the second signal must still work
                os.write(2, f"\n{text}\n".encode())
