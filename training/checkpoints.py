"""Checkpoints that are whole or not there: written aside, synced, renamed, and checksummed.

A checkpoint is a file of ``torch.save``, which is a ZIP archive. The SHA-256 of its bytes stands in the
archive's comment, the place that the format has for notes: so the checksum comes into being in the same
rename as the content, it stays with the file when that is copied, linked or renamed, and
``torch.load(path, weights_only=True)`` reads the file as it is. (ZIP's own CRC32 is not checked by PyTorch.)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import pickle
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines import files

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})\.pt")
_MARK = b"sha256="
_DIGEST_LENGTH = 64  # hexadecimal digits
# The end of every ZIP archive: its signature stands 22 bytes before the end, the length of the comment in
# the last two of them.
_END_SIGNATURE, _END_LENGTH = b"PK\x05\x06", 22
# File systems without hard links say one of these.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class DamagedError(ValueError):
    """A file is not the whole checkpoint that was written."""


class SaveError(OSError):
    """Something could not be written to the output folder."""


def pack(content: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    if archive[-_END_LENGTH:][:4] != _END_SIGNATURE:
        raise RuntimeError("torch.save made no ZIP archive that ends without a comment")
    comment = _MARK + hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + struct.pack("<H", len(comment)) + comment


def verify(data: bytes, name: object) -> None:
    """Raise DamagedError, which calls the file `name`, unless its bytes are those that :func:`pack` made."""
    length = len(_MARK) + _DIGEST_LENGTH
    view, comment = memoryview(data)[:-length], data[-length:]
    if not comment.startswith(_MARK):
        raise DamagedError(f"{name} is damaged: it does not end with a checksum ({len(data)} bytes)")
    digest = hashlib.sha256(view[:-2])
    digest.update(b"\0\0")  # without a comment its length is 0
    digest_fits = digest.hexdigest().encode() == comment[len(_MARK) :]
    if not digest_fits or view[-2:] != struct.pack("<H", length):
        raise DamagedError(f"{name} is damaged: its content does not have the checksum that it ends with")


def unpack(data: bytes) -> dict[str, Any]:
    """The content of a checkpoint file that was verified, on the CPU; runs no code that it might hold.

    Raises
    ------
    DamagedError
        It holds other things than tensors, numbers, strings and containers of those.
    """
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedError(f"the checkpoint holds what none should: {error}") from error
    return content


def write_whole(path: Path, data: bytes) -> None:
    """:func:`pipelines.files.write_whole` whose error says what was to be written.

    Raises
    ------
    SaveError
        It cannot be written; the old content is still there.
    """
    with _save_errors(path):
        files.write_whole(path, data)


@contextlib.contextmanager
def _save_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


class Checkpoints:
    """The checkpoints of one run: ``checkpoints/step-00001000.pt`` and so on, ``last.pt``, ``best.pt``.

    Parameters
    ----------
    folder : Path
        The output folder of the run.
    keep : int
        How many numbered files stay.

    Notes
    -----
    ``last.pt`` and ``best.pt`` are hard links to numbered files (copies where the file system has no links):
    they take no space of their own, and the best one stays when its numbered name goes.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / FOLDER / f"step-{step:08d}.pt"

    def numbered(self) -> dict[int, Path]:
        """The numbered files by step, oldest first."""
        folder = self.folder / FOLDER
        found = {
            int(match[1]): entry
            for entry in (folder.iterdir() if folder.is_dir() else ())
            if (match := _NAME.fullmatch(entry.name))
        }
        return dict(sorted(found.items()))

    def newest(self) -> tuple[Path | None, bytes, list[DamagedError]]:
        """Find the newest checkpoint that is whole.

        Returns
        -------
        path : Path or None
            None where there is none.
        data : bytes
            Its bytes, for :func:`unpack`.
        damaged : list of DamagedError
            One for every newer file, which cannot be used; each names its file.
        """
        damaged: list[DamagedError] = []
        best = self.folder / "best.pt"  # outlives its numbered name
        for path in (*reversed(self.numbered().values()), *([best] if best.exists() else [])):
            data = path.read_bytes()
            try:
                verify(data, path)
            except DamagedError as error:
                damaged.append(error)
            else:
                return path, data, damaged
        return None, b"", damaged

    def start(self) -> None:
        """Make the folder ready for a run that starts."""
        self._clear(-1)

    def go_on(self, step: int, data: bytes, *, is_best: bool, source: Path) -> None:
        """Make the folder ready for a run that goes on after `step`, with that step's checkpoint in it.

        ``last.pt`` and ``best.pt`` are made anew as well: the run may have been killed between two of those.

        Parameters
        ----------
        step : int
        data : bytes
            The checkpoint.
        is_best : bool
            Whether it is the best one.
        source : Path
            The folder of the run that the checkpoint is of; the best one comes along.
        """
        self._clear(step)
        if not self.path(step).exists():
            write_whole(self.path(step), data)
        best = source / "best.pt"
        if source != self.folder and best.exists():
            write_whole(self.folder / "best.pt", best.read_bytes())
        self._name(step, is_best)

    def _clear(self, step: int) -> None:
        """Remove what killed processes were writing; rename files of later steps, which are damaged."""
        try:
            (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
            for unfinished in (*self.folder.glob(".*.tmp"), *(self.folder / FOLDER).glob(".*.tmp")):
                unfinished.unlink(missing_ok=True)
            for number, path in self.numbered().items():
                if number > step:
                    path.replace(path.with_name(path.name + ".damaged"))
        except OSError as error:
            raise SaveError(error.errno, f"cannot write to {self.folder}: {error}") from error

    def save(self, step: int, content: dict[str, Any], *, is_best: bool) -> None:
        """Write the checkpoint of a step and remove what is older than the last `keep`.

        Raises
        ------
        SaveError
            It cannot be written; those before are as they were, and the message names the newest.
        """
        path = self.path(step)
        data = pack(content)
        before = [old for number, old in self.numbered().items() if number < step]
        try:
            write_whole(path, data)
            self._name(step, is_best)
        except SaveError as error:
            kept = f"the newest good checkpoint is {before[-1]}" if before else "there is no checkpoint yet"
            raise SaveError(error.errno, f"{error.strerror}; {kept}") from error
        for old in list(self.numbered().values())[: -self.keep]:
            old.unlink(missing_ok=True)

    def _name(self, step: int, is_best: bool) -> None:
        for name in ("last.pt", "best.pt") if is_best else ("last.pt",):
            self._link(self.path(step), self.folder / name)

    @staticmethod
    def _link(source: Path, name: Path) -> None:
        if name.exists() and name.samefile(source):
            return  # renaming a file over another name of itself does nothing, and leaves both

        def make(temporary: Path) -> None:
            try:
                temporary.hardlink_to(source)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                files.write_synced(temporary, source.read_bytes())

        with _save_errors(name):
            files.replace_whole(name, make)
