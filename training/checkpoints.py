"""Checkpoints that are whole or not there: written aside, synced, renamed, and checked when they are read.

A checkpoint is a file of ``torch.save``: a ZIP archive, which holds a CRC32 of each of its members. PyTorch
checks none of them, so :func:`unpack` lets the standard library read the members. Its content is
``{"version": 4, "model": ..., ...}``: the ``state_dict()`` of every part of a run (`training.state`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines import files

from .config import plain
from .inputs import FOLDER
from .window import EMPTY

VERSION = 4
_NAME = re.compile(r"step-(\d{8,})\.pt")
# File systems without hard links say one of these.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class DamagedError(ValueError):
    """A file is not the whole checkpoint that was written."""


class SaveError(OSError):
    """Something could not be written to the output folder."""


def pack(content: dict[str, Any]) -> bytes:
    """The bytes of a file of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpack(data: bytes, name: object = "the checkpoint") -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, in the layout of today; runs no code that it might hold.

    Parameters
    ----------
    data : bytes
        The file.
    name : object
        What errors call it.

    Raises
    ------
    DamagedError
        It is not what was written, or holds other things than tensors, numbers, strings and containers of
        those, or is no checkpoint of the trainer.
    ValueError
        A newer version of the trainer wrote it.
    """
    try:
        whole = _checked(data)
    except MemoryError:
        raise
    except Exception as error:  # the parsers of zipfile raise a dozen kinds for bytes that make no sense
        raise DamagedError(f"{name} is damaged: {plain(error)}") from error
    try:
        content = torch.load(whole, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DamagedError(
            f"{name} is damaged, or not a checkpoint of this trainer: {_refusal(error)}"
        ) from error
    return upgrade(content, name)


def _checked(data: bytes) -> io.BytesIO:
    """A new archive with the members of the one in `data`, after a check of their CRC32.

    PyTorch is not given `data` itself: it believes fields that no CRC covers. One bit among the attributes of
    a member makes it a folder, and PyTorch fills that tensor with whatever the memory held.
    """
    whole = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as found, zipfile.ZipFile(whole, "w") as archive:
        for member in found.infolist():
            archive.writestr(member.filename, found.read(member))
    whole.seek(0)
    return whole


def _refusal(error: Exception) -> str:
    """Why PyTorch takes no content; its advice, how to read it all the same, is not for a checkpoint."""
    text = plain(error)
    if named := re.search(r"GLOBAL (\S+) ", text):
        return f"it holds {named[1]}, which is neither tensor, number, text nor a container of those"
    return text.rpartition("WeightsUnpickler error: ")[2]


def upgrade(content: Any, name: object = "the checkpoint") -> dict[str, Any]:
    """The content of a checkpoint in the layout of today, whichever version of the trainer wrote it.

    Version 1 has no number: its entries lay side by side, the counters among them, and the average of the
    weights had a count of its updates. Neither it nor version 2 names the classes. Up to version 3 lines of
    metrics.jsonl had the loss of one step, and there were no sums; --max-steps was what the learning rate was
    planned over, which the progress says as ``squeezed_to``.
    """
    version = content.get("version", 1) if isinstance(content, dict) else None
    if version == VERSION:
        return content  # type: ignore[no-any-return]
    kinds = {"run": dict, "progress": dict, "ranks": list}
    if version in (2, 3) and all(isinstance(content.get(part), kind) for part, kind in kinds.items()):
        run = content["run"] if version == 3 else content["run"] | {"classes": None}
        parts = {"run": run, "progress": _squeezed(content["progress"], run.get("settings", {}))}
        return content | {"version": VERSION, **parts, "ranks": _with_window(content["ranks"])}  # type: ignore[no-any-return]
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{name} has checkpoint version {version}; this trainer reads 1 to {VERSION}")
    if version != 1:
        raise DamagedError(f"{name} is not a checkpoint of this trainer")
    try:
        parts = {
            "run": {key: content[key] for key in ("settings", "images", "processes")} | {"classes": None},
            "progress": _squeezed(
                {key: content[key] for key in ("epoch", "step", "evaluation", "best")}, content["settings"]
            ),
            **{key: content[key] for key in ("model", "optimizer", "scaler")},
            "ranks": _with_window(content["ranks"]),
            "output": {"metrics_bytes": content["metrics_bytes"]},
        }
    except KeyError as error:
        raise DamagedError(f"{name} is not a checkpoint of this trainer: it has no {error}") from error
    if "ema" in content:
        parts["ema"] = content["ema"] if content["ema_updates"] else {}
    return {"version": VERSION, **parts}


def _squeezed(progress: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    steps = settings.get("max_steps")
    return progress if steps is None else progress | {"squeezed_to": steps}


def _with_window(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rank | {"window": dict(EMPTY)} for rank in ranks]


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
                unpack(data, path)
            except DamagedError as error:
                damaged.append(error)
            else:
                return path, data, damaged
        return None, b"", damaged

    def start(self) -> None:
        """Make the folder ready for a run that starts."""
        self._clear(-1)

    def prepare_resume(self, step: int, data: bytes, *, is_best: bool, source: Path) -> None:
        """Make the folder ready for a run that resumes after `step`, with that step's checkpoint in it.

        ``last.pt`` and ``best.pt`` are made again as well: the run may have been killed between two of those.

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
        """Remove what killed processes were writing; rename files of later steps, if they are damaged.

        Raises
        ------
        ValueError
            One is whole: it was written since the run chose where to begin.
        """
        try:
            (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
            for unfinished in (*self.folder.glob(".*.tmp"), *(self.folder / FOLDER).glob(".*.tmp")):
                unfinished.unlink(missing_ok=True)
            for number, path in self.numbered().items():
                if number > step:
                    self._require_damaged(path)
                    path.replace(path.with_name(path.name + ".damaged"))
        except OSError as error:
            raise SaveError(error.errno, f"cannot write to {self.folder}: {error}") from error

    @staticmethod
    def _require_damaged(path: Path) -> None:
        try:
            unpack(path.read_bytes(), path)
        except DamagedError:
            return
        raise ValueError(f"{path} was written by another process since this one started")

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
