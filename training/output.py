"""The output folder of a run: settings, metrics, TensorBoard."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.names import json_text, shown
from pipelines.screen import screen_log

from .appending import Appended, Events
from .checkpoints import SaveError, write_whole
from .figures import rounded
from .inputs import FOLDER as CHECKPOINTS
from .inputs import METRICS
from .revision import DALI_PACKAGES, commit, installed_versions
from .storage import Patience

LOG = "log.txt"

_PACKAGES = ("torch", "torchvision", "timm", *DALI_PACKAGES, "numba", "numpy", "simplejpeg")


class Claim:
    """The right to write to a folder: its metrics.jsonl, locked (flock) before the folder is read.

    So a job and its requeued copy never write to the same folder, and a run never resumes from an old
    checkpoint while another process is about to write a newer one.
    """

    def __init__(self) -> None:
        self._metrics: Appended | None = None

    def take(self, folder: Path) -> None:
        """Lock a folder that holds a run; do nothing in one that doesn't.

        Raises
        ------
        ValueError
            Another process writes to it.
        """
        if (folder / METRICS).exists() or (folder / CHECKPOINTS).is_dir():
            self._metrics = _lock(folder)

    def metrics(self, folder: Path) -> Appended:
        """The metrics.jsonl of the locked folder; creates and locks the folder if none was taken.

        Raises
        ------
        ValueError
            Another process writes to it, or has written to it since it was checked.
        """
        if self._metrics is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._metrics = _lock(folder)
            if self._metrics.length > 0:
                raise ValueError(f"another process has written to {folder} since this one started")
        return self._metrics

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # the error that ended the run was already reported
                self._metrics.close()


def _lock(folder: Path) -> Appended:
    try:
        return Appended(folder / METRICS)
    except BlockingIOError:
        raise ValueError(
            f"--output must be a folder of this run alone; another process writes to {folder}"
        ) from None


class Output:
    """Settings and measurements of a run. Only the main process opens it; the others write nothing.

    Parameters
    ----------
    folder : Path
    source : Path or None
        The folder of the resumed run; this run continues its metrics.jsonl.
    claim : Claim
        The folder's, if it held a run when it was checked.
    patience : Patience, optional
        How long to wait if a running training cannot write. Default: not at all.
    """

    def __init__(
        self, folder: Path, source: Path | None, claim: Claim, patience: Patience | None = None
    ) -> None:
        self.folder = folder
        self._source = source
        self._claim = claim
        self._patience = patience or Patience(0.0)
        self._length = 0  # of metrics.jsonl, when the checkpoint was written
        self._metrics: Appended | None = None
        self._tensorboard: Events | None = None

    def state_dict(self) -> dict[str, Any]:
        """The length of metrics.jsonl, after syncing it to disk."""
        assert self._metrics is not None
        assert self._tensorboard is not None
        with self._errors():
            self._patience.keep_trying(self._tensorboard.file.sync)
            self._patience.keep_trying(self._metrics.sync)
            return {"metrics_bytes": self._metrics.length}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Start, once opened, with this much of the source's metrics.jsonl."""
        self._length = state_dict["metrics_bytes"]

    def open(self, step: int) -> None:
        """Create the folder if needed, and drop what an earlier process logged after the checkpoint.

        Parameters
        ----------
        step : int
            The step of the checkpoint, 0 without one.

        Raises
        ------
        ValueError
            Another process writes to the folder, or has written to it since it was checked.
        OSError
            The folder cannot be written to.
        """
        before = b""
        if self._source is not None:
            before = metrics_until(self._source, self._length)
            if missing := self._length - len(before):
                path = shown(self._source / METRICS)
                line = f"{path} lacks {missing} bytes of lines from before the checkpoint; those are lost"
                print(line, file=sys.stderr, flush=True)
        metrics = self._claim.metrics(self.folder)
        # Lines that match stay untouched, so a process killed here does no damage.
        if (self.folder / METRICS).read_bytes().startswith(before):
            metrics.cut(len(before))
        else:
            metrics.cut(0)
            self._write(metrics, before)
        self._metrics = metrics
        self._tensorboard = Events(self.folder)
        self._write(self._tensorboard.file, self._tensorboard.beginning(step + 1 if step else None))
        screen_log().open(self.folder / LOG)

    def log(self, at_step: int, event: str, **values: float) -> None:
        """Add a line to metrics.jsonl and the (finite) values to TensorBoard."""
        if self._metrics is None or self._tensorboard is None:
            return
        values = rounded(values)
        self._write(self._metrics, (json.dumps({"event": event, **values}, allow_nan=False) + "\n").encode())
        scalars = {f"{event}/{name}": it for name, it in values.items() if name not in ("epoch", "step")}
        self._write(self._tensorboard.file, self._tensorboard.scalars(scalars, at_step))

    def picture(self, name: str, png: bytes) -> None:
        """Write a PNG to the folder and show it in TensorBoard."""
        assert self._tensorboard is not None
        self._patience.keep_trying(lambda: write_whole(self.folder / f"{name}.png", png))
        pixels = np.array(Image.open(io.BytesIO(png)))
        self._write(self._tensorboard.file, self._tensorboard.image(name, pixels))

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Write `content` to a file of the folder."""
        data = (json_text(content, indent=2, default=str) + "\n").encode()
        self._patience.keep_trying(lambda: write_whole(self.folder / name, data))

    def close(self) -> None:
        """Flush and close the files."""
        if self._metrics is None or self._tensorboard is None:
            return
        with self._errors():
            self._tensorboard.file.close()
            self._metrics.close()

    def release(self) -> None:
        """Close the files and release the lock, whatever happened before."""
        with contextlib.suppress(SaveError):  # the error that ended the run was already reported
            self.close()

    def _write(self, file: Appended, data: bytes) -> None:
        with self._errors():
            self._patience.keep_trying(lambda: file.append(data))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            words = f"cannot write to {self.folder}: {error.strerror or error}"
            raise SaveError(error.errno, words) from error


def describe_software(root: Path) -> dict[str, Any]:
    """Versions, the commit of the code in `root`, the image, the command and the time, for config.json."""
    return {
        "versions": {"python": platform.python_version()} | installed_versions(_PACKAGES),
        "commit": commit(root),
        "image": os.environ.get("DALI_MSDA_IMAGE") or None,
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def metrics_until(folder: Path, length: int) -> bytes:
    """The first `length` bytes of the folder's metrics.jsonl; if it is shorter, its complete lines."""
    path = folder / METRICS
    found = path.read_bytes()[:length] if path.is_file() else b""
    return found[: found.rfind(b"\n") + 1]
