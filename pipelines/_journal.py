"""Results of a long job in a file: a header, then a line of JSON for each result, appended at once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from .names import json_text, shown


class Journal:
    """A file of records that one process at a time writes.

    Parameters
    ----------
    path : Path
    option : str
        The option or argument that the path is from, for the error.
    other : str
        Who else may be writing the file, for the error.

    Raises
    ------
    ValueError
        Another process is writing the file.
    """

    def __init__(self, path: Path, option: str, other: str) -> None:
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"{option} must not be in use; got {shown(path)}, which {other} is writing"
            ) from None

    def close(self) -> None:
        """Close the file, for other processes to write."""
        self._file.close()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the header and the records; then cut off a damaged line and all lines after it."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            record = _parse(line)
            if record is None:
                break  # the process was killed while it wrote this line
            end += len(line)
            yield record
        self._cut(end)

    def start(self, header: dict[str, Any]) -> None:
        """Remove everything and write a header."""
        self._cut(0)
        self.append([header])

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write records, so that they outlive this process."""
        self._file.write(b"".join(json_text(record).encode() + b"\n" for record in records))
        self._file.flush()

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record, or None for an incomplete line."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
