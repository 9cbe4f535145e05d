"""Leave in good order when a scheduler, a shell or a person says so."""

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
# Ctrl-C goes to all processes of a terminal, and torchrun passes on what it gets as well; `timeout` signals
# its child and then its group: the same wish arrives twice. Nobody decides anew within this time.
_SAME_WISH_SECONDS = 0.5


class StopSignals:
    """While entered, SIGTERM, SIGINT, SIGUSR1 and SIGHUP end the process, with 128 + signal and no traceback.

    They do so at once; within :meth:`finishing_steps` the first one asks to stop, and the second ends the
    process. A signal that was ignored before stays ignored: nohup and a shell's ``&`` mean it.

    Parameters
    ----------
    quiet : bool
        Say nothing on stderr when a signal comes.

    Attributes
    ----------
    received : signal.Signals or None
        The first signal that came. 128 plus its number is the exit status that shells and schedulers know.

    Notes
    -----
    To be entered in the main thread. Signals are read by a thread of its own: Python runs handlers between
    two steps of the main thread only, which may hang in a call of a library, a collective operation with a
    dead peer for instance, when the second signal has to work.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._quiet = quiet
        self._first_at = 0.0
        # What a first signal is answered with, before it ends the process; None where it only asks.
        self._leave: str | None = "exiting; there is nothing to save"
        self._before: dict[signal.Signals, Any] = {}

    @property
    def number(self) -> int:
        """Number of the signal that has come, 0 before."""
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
        """Let the block look for signals at :attr:`number`; after it all is saved and told."""
        self._leave = None
        try:
            yield
        finally:
            self._leave = ""

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
        """Nothing: that there is a handler keeps the signal from ending the process."""

    def _watch(self) -> None:
        while number := os.read(self._read_end, 1):
            if number[0] in STOP_SIGNALS:
                self._note(signal.Signals(number[0]))

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.received is not None and now - self._first_at <= _SAME_WISH_SECONDS:
            return
        if self._leave is not None:
            self._say(self._leave and f"{number.name}: {self._leave}")
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
            with contextlib.suppress(OSError):  # nobody reads: the second signal has to work all the same
                os.write(2, f"\n{text}\n".encode())
