"""Write smaller copies of images in a separate process, and read each one back."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import DataNode, Pipeline

from ._decoding import DIGEST_BYTES, UNREADABLE, UNSURE, prepare_decoding
from ._workers import Program, Work, answer, drain
from .headers import check_headers
from .shrinking import CannotShrink, shrink

# So few that little is lost when the process is killed; a batch of large photos takes a quarter of a second.
BATCH = 8


class Task(NamedTuple):
    """An image to pack.

    Attributes
    ----------
    source, target : str
        Paths of the image and of its smaller copy.
    replace : bool
        Whether the target may be replaced, because packing wrote it earlier.
    """

    source: str
    target: str
    replace: bool


class Packed(NamedTuple):
    """What became of an image.

    Attributes
    ----------
    size, mtime_ns : int
        Size in bytes and modification time of the source; `UNSURE` if packing should be tried again.
    packed_size : int
        Size of the target in bytes; `UNSURE` if there is none.
    shrunk : bool
        Whether it was made smaller; otherwise its bytes were copied.
    error : str or None
        Why it cannot be decoded, or read.
    whole : str or None
        Why a good image was not made smaller, except that it is small enough.
    """

    size: int
    mtime_ns: int
    packed_size: int
    shrunk: bool
    error: str | None = None
    whole: str | None = None


def packing(max_side: int, quality: int, scratch: Path) -> Program:
    """The program of a packing process: it answers lists of :class:`Task` with lists of :class:`Packed`.

    Parameters
    ----------
    max_side, quality : int
        See :func:`.shrinking.shrink`.
    scratch : path
        A folder for incomplete files, on the file system of the targets.
    """
    return partial(_serve, max_side, quality, scratch)


def _serve(max_side: int, quality: int, scratch: Path, connection: Connection) -> None:
    answer(connection, partial(_prepare, max_side, quality, scratch))


def _prepare(max_side: int, quality: int, scratch: Path) -> Work:
    warnings.simplefilter("ignore")  # Pillow's, about images
    packer = _Packer(max_side, quality, scratch)
    return packer.pack


def copy(task: Task, reason: str, *, certain: bool, scratch: Path) -> Packed:
    """Copy an image that ended its process."""
    content = _read(task.source)
    if isinstance(content, Packed):
        return content
    encoded, size, mtime_ns = content
    path = str(scratch / "copy")
    _write(path, encoded)
    if Path(path).read_bytes() != encoded:
        raise _changed_on_disk(task)
    _place(path, task, encoded)
    return Packed(
        size if certain else UNSURE, mtime_ns if certain else UNSURE, len(encoded), False, error=reason
    )


class _Packer:
    """Packs images; see :func:`packing`."""

    def __init__(self, max_side: int, quality: int, scratch: Path) -> None:
        self._max_side, self._quality = max_side, quality
        self._scratch = scratch
        self._check = prepare_decoding()
        self._headers = _build_header_check()

    def pack(self, tasks: Sequence[Task], log: int) -> list[Packed]:
        results: list[Packed] = []
        written: list[tuple[int, str, bytes]] = []  # position, incomplete file, its content
        for position, task in enumerate(tasks):
            content = _read(task.source)
            if isinstance(content, Packed):
                results.append(content)
                continue
            encoded, size, mtime_ns = content
            shrunk, whole = self._shrink(encoded)
            kept = encoded if shrunk is None else shrunk
            path = str(self._scratch / f"{os.getpid()}-{position}")
            _write(path, kept)
            written.append((position, path, kept))
            results.append(Packed(size, mtime_ns, len(kept), shrunk is not None, whole=whole))
        drain(log)  # messages so far are not about the files that were written
        for (position, path, kept), read in zip(
            written, self._check([path for _, path, _ in written], log), strict=True
        ):
            if read.digest != hashlib.blake2b(kept, digest_size=DIGEST_BYTES).hexdigest():
                raise _changed_on_disk(tasks[position])
            if read.error is not None:
                if results[position].shrunk:
                    source = tasks[position].source
                    raise RuntimeError(f"{source} does not decode after it was made smaller: {read.error}")
                results[position] = results[position]._replace(error=read.error, whole=None)
            _place(path, tasks[position], kept)
        return results

    def _shrink(self, encoded: bytes) -> tuple[bytes | None, str | None]:
        """The smaller file or None, and why a large image has none."""
        try:
            shrunk = shrink(encoded, self._max_side, self._quality)
        except CannotShrink as error:
            return None, str(error)
        if shrunk is not None and not self._has_good_header(encoded):
            return None, None  # decoding the copy gives the reason
        return shrunk, None

    def _has_good_header(self, encoded: bytes) -> bool:
        """Whether DALI's parser accepts the image: Pillow finds images in some files that it rejects."""
        self._headers.feed_input("encoded", [np.frombuffer(encoded, np.uint8)])
        try:
            self._headers.run()
        except Exception:  # see ._decoding
            self._headers = _build_header_check()
            return False
        return True


def _build_header_check() -> Pipeline:
    @pipeline_def
    def pipeline() -> DataNode:
        return check_headers(fn.external_source(name="encoded", batch=True))

    built: Any = pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    built.build()
    assert isinstance(built, Pipeline)
    return built


def _read(path: str) -> tuple[bytes, int, int] | Packed:
    """Content, size and modification time."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            return file.read(), status.st_size, status.st_mtime_ns
    except OSError as error:
        reason = f"{UNREADABLE}{error.strerror or error}"
        return Packed(UNSURE, UNSURE, UNSURE, False, error=reason)


def _write(path: str, content: bytes) -> None:
    """Write a file to the disk, so that reading it reads the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _place(path: str, task: Task, content: bytes) -> None:
    """Move a complete file to its place, but not over a file that packing did not write."""
    os.makedirs(os.path.dirname(task.target), exist_ok=True)
    if os.path.lexists(task.target) and not task.replace:
        # A process that was killed may have placed it already, before the result was noted.
        if os.path.isfile(task.target) and Path(task.target).read_bytes() == content:
            os.unlink(path)
            return
        raise FileExistsError(
            f"DST must not have files of others; got {task.target}, which was not written by this command"
        )
    os.replace(path, task.target)


def _changed_on_disk(task: Task) -> OSError:
    return OSError(f"{task.target}: the content read back is not what was written; check the disk")
