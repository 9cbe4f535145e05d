"""The output folder of a run: settings, metrics, TensorBoard."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
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
from torch.utils.tensorboard import SummaryWriter

from .checkpoints import SaveError, write_whole
from .inputs import METRICS
from .revision import git

_PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "numba", "numpy")


class Output:
    """Settings and measurements of a run.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    metrics : bytes
        What metrics.jsonl begins with: the lines up to the checkpoint that the run goes on from.
    step : int
        The step of that checkpoint: TensorBoard drops what an earlier process logged after it.

    Raises
    ------
    ValueError
        Another process writes to the folder.
    OSError
        The folder cannot be written to.

    Notes
    -----
    metrics.jsonl stays locked (flock) as long as the object lives or the process does, so that a job and its
    requeued self never write to one folder.
    """

    def __init__(self, folder: Path, *, metrics: bytes = b"", step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._metrics = (folder / METRICS).open("ab", buffering=0)
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._metrics.close()
            raise ValueError(
                f"--output must be a folder of this run alone; another process writes to {folder}"
            ) from None
        # Lines that agree stay untouched: a process killed here leaves nothing worse than it found.
        if (folder / METRICS).read_bytes().startswith(metrics):
            self._metrics.truncate(len(metrics))
        else:
            self._metrics.truncate(0)
            self._append(metrics)
        self._tensorboard = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def _append(self, data: bytes) -> None:
        while data:
            data = data[self._metrics.write(data) :]

    def log(self, at_step: int, event: str, **values: float) -> None:
        """Add a line to metrics.jsonl and the values to TensorBoard."""
        with self._errors():
            self._append((json.dumps({"event": event, **values}) + "\n").encode())
            for name, value in values.items():
                if name not in ("epoch", "step"):
                    self._tensorboard.add_scalar(f"{event}/{name}", value, at_step)

    def picture(self, name: str, png: bytes) -> None:
        """Write a PNG to the folder and show it in TensorBoard."""
        with self._errors():
            write_whole(self.folder / f"{name}.png", png)
            pixels = np.array(Image.open(io.BytesIO(png)))
            self._tensorboard.add_image(name, pixels, dataformats="HWC")

    def sync(self) -> int:
        """Put all lines on the disk; the length of metrics.jsonl in bytes."""
        with self._errors():
            self._tensorboard.flush()
            os.fsync(self._metrics.fileno())
            return os.fstat(self._metrics.fileno()).st_size

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Write `content` to a file of the folder."""
        write_whole(self.folder / name, (json.dumps(content, indent=2, default=str) + "\n").encode())

    def close(self) -> None:
        """Flush and close the files."""
        with self._errors():
            self._tensorboard.close()
            self._metrics.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SaveError(
                error.errno, f"cannot write to {self.folder}: {error.strerror or error}"
            ) from error


def describe_software(root: Path) -> dict[str, Any]:
    """Versions, the commit of the code in `root`, the image, the command and the time, for config.json."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        # An image has no git, and is told its commit when it is built.
        "commit": git(root, "rev-parse", "HEAD") or os.environ.get("DALI_MSDA_COMMIT") or None,
        "image": os.environ.get("DALI_MSDA_IMAGE") or None,
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def metrics_until(folder: Path, length: int) -> bytes:
    """The first `length` bytes of the folder's metrics.jsonl, as far as there are so many."""
    path = folder / METRICS
    return path.read_bytes()[:length] if path.is_file() else b""
