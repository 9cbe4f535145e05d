"""Files that grow by appending, even if the disk is full or unavailable for a while."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import socket
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary


class Appended:
    """A file that data is appended to, each piece whole, even if the storage fails in between.

    Data since the last :meth:`sync` stays in memory: after an error the file is opened again by its name,
    cut, and written from there. Neither it nor its folder is ever recreated: under the name of an unmounted
    share that would be another one.

    Parameters
    ----------
    path : Path
        Created if missing, and locked (flock).

    Attributes
    ----------
    length : int
        Bytes, including all that was appended.

    Raises
    ------
    BlockingIOError
        Another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = self._open(os.O_CREAT)
        self.length = os.fstat(self._file.fileno()).st_size
        self._added = b""  # since the last sync

    def _open(self, flags: int = 0) -> io.FileIO:
        file = io.FileIO(os.open(self.path, os.O_WRONLY | os.O_APPEND | flags, 0o666), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        return file

    def cut(self, length: int) -> None:
        """Keep the first `length` bytes."""
        assert self._file is not None
        self._file.truncate(length)
        self.length = os.fstat(self._file.fileno()).st_size

    def append(self, data: bytes) -> None:
        """Append data; after an OSError, call it again."""
        file = self._ensure_open()
        try:
            _write(file, data)
        except OSError as error:
            self._close_after(error)
            raise
        self._added += data
        self.length += len(data)

    def sync(self) -> None:
        """Wait until all data is on the disk, in the file at the path; after an OSError, call it again."""
        file = self._ensure_open()
        try:
            os.fsync(file.fileno())
            if not os.path.samestat(os.stat(self.path), os.fstat(file.fileno())):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))
        except OSError as error:
            self._close_after(error)
            raise
        self._added = b""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _ensure_open(self) -> io.FileIO:
        if self._file is None:
            file = self._open()
            try:
                # Data of a failed sync may be lost, whatever the length of the file.
                file.truncate(self.length - len(self._added))
                _write(file, self._added)
            except OSError:
                file.close()
                raise
            self._file = file
        return self._file

    def _close_after(self, error: OSError) -> None:
        """Close the file, to reopen it next time; add its path to the error, which a write's error lacks."""
        error.filename = str(self.path)
        with contextlib.suppress(OSError):  # the first error is the one to report
            self.close()


def _write(file: io.FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


class Events:
    """A run's TensorBoard file.

    PyTorch's SummaryWriter makes the same records, but writes them in its own thread, which dies with a
    traceback on the screen at the first error.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    file : Appended
        Append to it what the methods return.
    """

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.file = Appended(folder / name)

    def beginning(self, purge_step: int | None = None) -> bytes:
        """The first records; TensorBoard drops what an earlier file has from `purge_step` on."""
        start = self._record(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            session = SessionLog(status=SessionLog.START)
            start += self._record(Event(step=purge_step, session_log=session))
        return start

    def scalars(self, values: dict[str, float], step: int) -> bytes:
        """Records of numbers by name."""
        summaries = (summary.scalar(name, it) for name, it in values.items())  # type: ignore[no-untyped-call]
        return b"".join(self._record(Event(step=step, summary=it)) for it in summaries)

    def image(self, name: str, pixels: np.ndarray) -> bytes:
        """A record of an image, uint8 HxWx3."""
        shown = summary.image(name, pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
        return self._record(Event(summary=shown))

    @staticmethod
    def _record(event: Event) -> bytes:
        event.wall_time = time.time()
        buffer = io.BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        return buffer.getvalue()
