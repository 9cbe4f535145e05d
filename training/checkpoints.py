"""Checkpoints, whole or absent: written to a temporary file, synced, renamed, and verified when read.

A checkpoint is a file of ``torch.save``: a ZIP archive with a CRC32 of each member. PyTorch checks none of
them, so :func:`unpack` reads the members with the standard library, which does. Its content is
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
# The errors of file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class DamagedError(ValueError):
    """A file is not the whole checkpoint that was written."""


class SaveError(OSError):
    """Something could not be written to the output folder."""


def pack(content: dict[str, Any]) -> bytes:
    """The content as the bytes of a ``torch.save`` file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpack(data: bytes, name: object = "the checkpoint") -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, in the current layout; runs no code from the file.

    Parameters
    ----------
    data : bytes
        The file.
    name : object
        Its name in errors.

    Raises
    ------
    DamagedError
        It is not what was written, or holds anything except tensors, numbers, strings and containers of
        those, or is not a checkpoint of the trainer.
    ValueError
        A newer version of the trainer wrote it.
    """
    return upgrade(load_verified(data, name), name)


def load_verified(data: bytes, name: object) -> Any:
    """What ``torch.save`` wrote, on the CPU; runs no code from the file.

    Raises
    ------
    DamagedError
        It is not what was written, or holds anything except tensors, numbers, strings and containers
        of those.
    """
    try:
        whole = _verify_members(data)
    except MemoryError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for invalid bytes
        raise DamagedError(f"{name} is damaged: {plain(error)}") from error
    try:
        return torch.load(whole, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DamagedError(
            f"{name} is damaged, or not a checkpoint of this trainer: {_explain_refusal(error)}"
        ) from error


def _verify_members(data: bytes) -> io.BytesIO:
    """A new archive with the members of the one in `data`, after checking their CRC32.

    PyTorch does not get `data` itself: it trusts fields that no CRC covers. One bit in a member's attributes
    makes it a folder, and PyTorch fills that tensor with whatever the memory held.
    """
    whole = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as found, zipfile.ZipFile(whole, "w") as archive:
        for member in found.infolist():
            archive.writestr(member.filename, found.read(member))
    whole.seek(0)
    return whole


def _explain_refusal(error: Exception) -> str:
    """Why PyTorch refuses the content, without its advice to read it anyway, which is unsafe here."""
    text = plain(error)
    if named := re.search(r"GLOBAL (\S+) ", text):
        return f"it holds {named[1]}, which is neither tensor, number, text nor a container of those"
    return text.rpartition("WeightsUnpickler error: ")[2]


def upgrade(content: Any, name: object = "the checkpoint") -> dict[str, Any]:
    """The content of a checkpoint in the current layout, whichever version of the trainer wrote it.

    Version 1 has no version number: its entries and the counters are all at the top level, and it counts the
    updates of the average. Versions 1 and 2 do not name the classes. Up to version 3 lines of metrics.jsonl
    had the loss of one step, so there are no sums, and the learning rate was planned over --max-steps, which
    the progress records as ``squeezed_to``.
    """
    version = content.get("version", 1) if isinstance(content, dict) else None
    if version == VERSION:
        return content  # type: ignore[no-any-return]
    kinds = {"run": dict, "progress": dict, "ranks": list}
    if version in (2, 3) and all(isinstance(content.get(part), kind) for part, kind in kinds.items()):
        run = content["run"] if version == 3 else content["run"] | {"classes": None}
        parts = {"run": run, "progress": _add_squeezed_to(content["progress"], run.get("settings", {}))}
        return content | {"version": VERSION, **parts, "ranks": _add_window(content["ranks"])}  # type: ignore[no-any-return]
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{name} has checkpoint version {version}; this trainer reads 1 to {VERSION}")
    if version != 1:
        raise DamagedError(f"{name} is not a checkpoint of this trainer")
    try:
        parts = {
            "run": {key: content[key] for key in ("settings", "images", "processes")} | {"classes": None},
            "progress": _add_squeezed_to(
                {key: content[key] for key in ("epoch", "step", "evaluation", "best")}, content["settings"]
            ),
            **{key: content[key] for key in ("model", "optimizer", "scaler")},
            "ranks": _add_window(content["ranks"]),
            "output": {"metrics_bytes": content["metrics_bytes"]},
        }
    except KeyError as error:
        raise DamagedError(f"{name} is not a checkpoint of this trainer: it has no {error}") from error
    if "ema" in content:
        parts["ema"] = content["ema"] if content["ema_updates"] else {}
    return {"version": VERSION, **parts}


def _add_squeezed_to(progress: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    steps = settings.get("max_steps")
    return progress if steps is None else progress | {"squeezed_to": steps}


def _add_window(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rank | {"window": dict(EMPTY)} for rank in ranks]


def write_whole(path: Path, data: bytes) -> None:
    """:func:`pipelines.files.write_whole`, with an error that names the file.

    Raises
    ------
    SaveError
        It cannot be written; the old content remains.
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
        How many numbered files to keep.

    Notes
    -----
    ``last.pt`` and ``best.pt`` are hard links to numbered files (copies where the file system has no links):
    they take no extra space, and the best one remains when its numbered file is removed.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> Path:
        """The path of a step's checkpoint."""
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
            One for every newer file, none of which can be used; each names its file.
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
        """Prepare the folder for a run that starts."""
        self._clear(-1)

    def prepare_resume(self, step: int, data: bytes, *, is_best: bool, source: Path) -> None:
        """Prepare the folder for a run that resumes after `step`, with that step's checkpoint in it.

        This also renews ``last.pt`` and ``best.pt``: the run may have been killed between two of these files.

        Parameters
        ----------
        step : int
        data : bytes
            The checkpoint.
        is_best : bool
            Whether it is the best one.
        source : Path
            The folder of the run that wrote the checkpoint; its best checkpoint is copied too.
        """
        self._clear(step)
        if not self.path(step).exists():
            write_whole(self.path(step), data)
        best = source / "best.pt"
        if source != self.folder and best.exists():
            write_whole(self.folder / "best.pt", best.read_bytes())
        self._link_names(step, is_best)

    def _clear(self, step: int) -> None:
        """Remove what killed processes left unfinished; rename later steps' files, if they are damaged.

        Raises
        ------
        ValueError
            One is whole: it was written after this run chose where to start.
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
        """Write the checkpoint of a step and remove those older than the last `keep`.

        Raises
        ------
        SaveError
            It cannot be written; earlier ones are unchanged, and the message names the newest.
        """
        path = self.path(step)
        data = pack(content)
        before = [old for number, old in self.numbered().items() if number < step]
        try:
            write_whole(path, data)
            self._link_names(step, is_best)
        except SaveError as error:
            kept = f"the newest good checkpoint is {before[-1]}" if before else "there is no checkpoint yet"
            raise SaveError(error.errno, f"{error.strerror}; {kept}") from error
        for old in list(self.numbered().values())[: -self.keep]:
            old.unlink(missing_ok=True)

    def _link_names(self, step: int, is_best: bool) -> None:
        for name in ("last.pt", "best.pt") if is_best else ("last.pt",):
            self._link(self.path(step), self.folder / name)

    @staticmethod
    def _link(source: Path, name: Path) -> None:
        if name.exists() and name.samefile(source):
            return  # renaming a file over another hard link to it does nothing, and both names remain

        def make(temporary: Path) -> None:
            try:
                temporary.hardlink_to(source)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                files.write_synced(temporary, source.read_bytes())

        with _save_errors(name):
            files.replace_whole(name, make)
