"""Check a data set before training on it: decode every file, count, look for duplicates.

    python -m pipelines.check DIR

DIR is a folder of class folders, or a data set with two such folders, train/ and val/. A file that DALI
cannot decode ends a training run; this finds all of them, decoding whole images on the CPU.

The output folder holds report.json, the file lists train.txt and val.txt without the files that do not
decode (for train_imagenet.py --file-list), and state.jsonl, from which an interrupted check goes on and by
which a later one decodes only what has changed.

Exit status: 0 if nothing was found; 1 if a file cannot be used, train/ and val/ share an image, or a class
has no images or is missing in one of them; 2 if the check could not be made, for bad input as a rule; 128 +
the signal's number if interrupted (130 for Ctrl-C). Warnings, and duplicates within train/ or val/, leave it
at 0.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any, Self

import numpy as np
import nvidia.dali
import tyro
from tqdm import tqdm

from dali_msda import require_dali
from dali_msda.processors import usable_processors

from ._decoding import BATCH, UNREADABLE, UNSURE, Result
from ._findings import Split, find_splits, make_report, report_lines
from .examine import decode
from .files import expanded, write_whole
from .names import json_text, shown
from .screen import keep_printing

require_dali()

_STATE_VERSION = 1
# More files than this, and this share of all, are rarely unreadable one by one.
_FEW, _SHARE = 10, 0.01


@dataclass(frozen=True)
class Options:
    """What to check, and where to write what was found."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A folder of class folders, or one with train/ and val/, which hold class folders."""

    val_labels: Path | None = None
    """Labels of a val/ without class folders, as train_imagenet.py takes them."""

    allow_empty_classes: bool = False
    """Class folders without images are no finding."""

    output: Path | None = None
    """Folder for the report, the file lists and the state. Default: checks/ and the name of the folder."""

    workers: int = field(default_factory=usable_processors)
    """Processes that decode. Default: the number of cores that this process may use."""

    timeout: float = 300.0
    """Seconds after which a file counts as one that cannot be decoded."""


# -- The state -------------------------------------------------------------------------------------------


class _State:
    """What is known of each file: a line of JSON for each, appended as it becomes known.

    Raises
    ------
    ValueError
        The file belongs to the check of another folder, or another process is writing it.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._header = {
            "version": _STATE_VERSION,
            "dali": nvidia.dali.__version__,
            "folder": shown(folder.resolve()),
        }
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"--output must not be in use; another check is writing {shown(path)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def load(self, splits: list[Split]) -> None:
        """Give the splits what is known of files that have not changed since."""
        self._file.seek(0)
        header = self._parse(self._file.readline())
        if header is None or {**header, "folder": ""} != {**self._header, "folder": ""}:
            # Nothing, or of another version of DALI, which may decode what this one does not.
            self._cut(0)
            self._write([self._header])
            return
        if header["folder"] != self._header["folder"]:
            raise ValueError(
                f"--output must be new or of the same DIR; {shown(self._path)} is of {header['folder']},"
                f" not of {self._header['folder']}"
            )
        positions = {
            split.name: (split, {split.shown(position): position for position in range(len(split.files))})
            for split in splits
        }
        end = self._file.tell()
        for line in self._file:
            record = self._parse(line)
            if record is None:
                break  # the line at which a process was killed
            end += len(line)
            split, known = positions[record["split"]]
            position = known.get(record["file"])
            if position is None:
                continue
            try:
                status = os.stat(split.item(position))
            except OSError:
                continue
            if (status.st_size, status.st_mtime_ns) != (record["size"], record["mtime_ns"]):
                continue
            error, warnings = record.get("error"), tuple(record.get("warnings", ()))
            split.store(position, Result(UNSURE, UNSURE, record["digest"], error, warnings))
        self._cut(end)

    def append(self, split: Split, positions: list[int], results: list[Result]) -> None:
        """Write down what has become known, and tell the split."""
        records = []
        for position, result in zip(positions, results, strict=True):
            record = {"split": split.name, "file": split.shown(position), **result._asdict()}
            records.append({key: value for key, value in record.items() if value not in (None, ())})
        self._write(records)
        for position, result in zip(positions, results, strict=True):
            split.store(position, result)

    def _write(self, records: list[dict[str, Any]]) -> None:
        self._file.write(b"".join(json_text(record).encode() + b"\n" for record in records))
        self._file.flush()

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    @staticmethod
    def _parse(line: bytes) -> dict[str, Any] | None:
        """The record, None for a line that was not written to its end."""
        if not line.endswith(b"\n"):
            return None
        try:
            record = json.loads(line)
        except ValueError:
            return None
        return record if isinstance(record, dict) else None


def _batches(splits: list[Split]) -> Iterator[tuple[Split, list[int]]]:
    """What is not known yet."""
    for split in splits:
        left = np.flatnonzero(~split.done)
        for start in range(0, len(left), BATCH):
            yield split, left[start : start + BATCH].tolist()


@contextmanager
def _stopping() -> Iterator[tuple[threading.Event, list[int]]]:
    """An event that SIGINT and SIGTERM set, and the signals that came; a second one acts as usual."""
    stop, came = threading.Event(), list[int]()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: object) -> None:
        came.append(number)
        stop.set()
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop, came
    finally:
        restore()


def _done(splits: list[Split]) -> int:
    return sum(int(split.done.sum()) for split in splits)


def _require_readable(splits: list[Split]) -> None:
    """Raise OSError where so many files cannot be read that it is the storage, and not the files."""
    unread = [
        f"{split.item(position)} {error}"
        for split in splits
        for position, error in split.errors.items()
        if error.startswith(UNREADABLE)
    ]
    if len(unread) > _FEW and len(unread) >= _SHARE * _done(splits):
        raise OSError(
            f"{len(unread)} files could not be read, which says nothing about them; the first: {unread[0]}."
            " The same command goes on when the storage is there again"
        )


# -- Command ---------------------------------------------------------------------------------------------


def check(options: Options) -> int:
    """Check a data set; the exit status.

    Raises
    ------
    ValueError
        Naming the option, what came and what is expected.
    """
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1; got {options.workers}")
    if not options.timeout > 0:
        raise ValueError(f"--timeout must be above 0; got {options.timeout:g}")
    splits = find_splits(options.folder, options.val_labels)
    output = options.output or Path("checks") / options.folder.resolve().name
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder; {shown(output)} is a file")
    output.mkdir(parents=True, exist_ok=True)
    total = sum(len(split.files) for split in splits)
    with _State(output / "state.jsonl", options.folder) as state, _stopping() as (stop, came):
        state.load(splits)
        known = _done(splits)
        if known:
            print(f"{known} of {total} files are known from an earlier check.", flush=True)
        count = min(options.workers, -(-(total - known) // BATCH))
        with tqdm(total=total, initial=known, unit="file", dynamic_ncols=True, mininterval=0.5) as progress:
            for split, positions, results in decode(_batches(splits), count, options.timeout, stop):
                state.append(split, positions, results)
                progress.update(len(positions))
                bad = sum(len(split.errors) for split in splits)
                progress.set_postfix_str(f"{bad} bad", refresh=False)
    if came:
        print(f"Interrupted: {_done(splits)} of {total} files done; the same command goes on from there.")
        return 128 + came[0]
    _require_readable(splits)
    report = make_report(splits, options.folder, allow_empty_classes=options.allow_empty_classes)
    for split in splits:
        lines = (f"{split.files[position]} {split.labels[position]}\n" for position in split.usable())
        write_whole(output / f"{split.name}.txt", os.fsencode("".join(lines)))
    write_whole(output / "report.json", (json_text(report, indent=1) + "\n").encode())
    print("\n".join(report_lines(report, output)))
    return 1 if report["found"] else 0


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    keep_printing()
    options = tyro.cli(Options, args=arguments, prog="python -m pipelines.check", description=__doc__)
    paths: dict[str, Any] = {name: expanded(it) for name, it in vars(options).items() if isinstance(it, Path)}
    options = replace(options, **paths)
    try:
        return check(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"pipelines.check: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
