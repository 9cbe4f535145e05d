"""Files that are written whole or not at all. Imports nothing heavy.

By hand, because the standard library has no function for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it has its old content or the new one, also after a crash of the machine.

    Raises
    ------
    OSError
        It cannot be written; the old content is still there.
    """
    replace_whole(path, lambda temporary: write_synced(temporary, data))


def replace_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Put the file that `make` makes under the name it is given in the place of `path`, in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        make(temporary)
        temporary.replace(path)
        # A rename is on the disk when its folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        with contextlib.suppress(OSError):  # the folder may be gone; the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of a leading ``~``.

    A shell does it for ``--output ~/runs``, most do not for ``--output=~/runs``, and no job description does.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user: it is a name like any other
        return Path(path)


def is_gone(error: OSError) -> bool:
    """Whether an error says that a file was removed: it is not there, and its folder is, with others in it.

    Where a folder is missing or empty, storage has probably gone away, and the files with it.
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
