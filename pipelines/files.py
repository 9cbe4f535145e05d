"""Files that are written completely or not at all. Imports nothing heavy.

Our own code, because the standard library has no function for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: it has its old or its new content, even after a crash of the machine.

    Raises
    ------
    OSError
        It cannot be written; the old content remains.
    """
    replace_whole(path, lambda temporary: write_synced(temporary, data))


def replace_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Replace `path` atomically by the file that `make` writes to the path it is given."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        make(temporary)
        temporary.replace(path)
        # The rename reaches the disk with the folder.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        with contextlib.suppress(OSError):  # the folder may be gone; report the first error
            temporary.unlink(missing_ok=True)
        raise


def expand_home(path: str | Path) -> Path:
    """Replace a leading ``~`` by the home folder.

    Shells do it in ``--output ~/runs``, but most not in ``--output=~/runs``, and job files never do.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user: an ordinary name
        return Path(path)


def is_gone(error: OSError) -> bool:
    """Whether an error means that a file was removed: it is missing, but its folder has other entries.

    If the folder is missing or empty, the storage has probably gone away.
    """
    if not isinstance(error, FileNotFoundError) or error.filename is None:
        return False
    path = Path(os.fsdecode(error.filename))
    try:
        with os.scandir(path.parent) as others:
            return not os.path.lexists(path) and any(others)
    except OSError:
        return False


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
