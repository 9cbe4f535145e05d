"""Waits for storage that is away, with growing pauses, up to a limit. Imports nothing heavy."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# The exit status if the storage does not come back: EX_TEMPFAIL of sysexits.h, "try again later".
STATUS = os.EX_TEMPFAIL
# Errors that a wrong path or a missing permission never causes: worth waiting for at the start, too.
TRANSIENT = frozenset(
    (
        *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EAGAIN),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT),
        *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    )
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_POLL_SECONDS = 0.1  # seconds between checks for a signal


class StorageError(OSError):
    """A folder was out of reach for longer than the run waits; the message names it."""


@dataclass
class Patience:
    """How long to wait for storage that is away.

    Attributes
    ----------
    seconds : float
        Limit for each outage; 0 never waits.
    interrupted : callable
        Checked while waiting: True ends the wait.
    """

    seconds: float
    interrupted: Callable[[], bool] = lambda: False

    def keep_trying(self, action: Callable[[], T], *, at_once: Callable[[OSError], bool] | None = None) -> T:
        """Call `action` until it raises no OSError, and return its result.

        Parameters
        ----------
        action : callable
        at_once : callable, optional
            Selects errors to raise at once, because waiting will not help.

        Raises
        ------
        StorageError
            It took too long, or a signal came.
        """
        outage = Outage(self)
        while True:
            try:
                result = action()
            except StorageError:
                raise
            except OSError as error:
                if at_once is not None and at_once(error):
                    raise
                outage.wait(error)
            else:
                outage.end()
                return result


class Outage:
    """One outage of the storage, if it occurs.

    Parameters
    ----------
    patience : Patience
    doing : str
        What failed, for the printed lines; "" if the errors say it.
    """

    def __init__(self, patience: Patience, doing: str = "") -> None:
        self._patience = patience
        self._doing = doing
        self._began = math.inf
        self._pause = _FIRST_PAUSE

    def wait(self, error: OSError) -> None:
        """Print the error and pause, longer each time.

        Raises
        ------
        StorageError
            The time is up, or a signal came before the attempt that failed.
        """
        now = time.monotonic()
        self._began = min(self._began, now)
        reason, seconds = self._describe(error), self._patience.seconds
        if self._patience.interrupted():
            raise StorageError(error.errno, f"{reason} (a signal ended the wait)") from error
        left = self._began + seconds - now
        if left <= 0:
            waited = f"waited {seconds:g} s; " if seconds else ""
            raise StorageError(error.errno, f"{reason} ({waited}--storage-patience {seconds:g})") from error
        pause = min(self._pause, left)
        _say(f"{reason}; retrying in {pause:.1f} s, for at most {left:.0f} s")
        self._sleep(pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def end(self) -> None:
        """Print that the storage is back, if it was away."""
        if self._began < math.inf:
            _say(f"back after {time.monotonic() - self._began:.1f} s")
        self._began, self._pause = math.inf, _FIRST_PAUSE

    def _sleep(self, seconds: float) -> None:
        """A signal ends the pause; one more attempt follows, because the storage may be back."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._patience.interrupted():
            time.sleep(min(left, _POLL_SECONDS))

    def _describe(self, error: OSError) -> str:
        text = f"{self._doing}: " if self._doing else ""
        text += error.strerror or str(error)
        return text if error.filename is None else f"{text} ({error.filename})"


def _say(text: str) -> None:
    print(f"storage: {text}", file=sys.stderr, flush=True)
