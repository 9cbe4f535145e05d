"""Check a data set before training on it: decode every file, count, look for duplicates.

    python -m pipelines.check DIR

DIR is a folder of class folders, or a data set with two of them, train/ and val/; or it has CIFAR's binary
files. The check decodes every image in full, on the CPU, and reports the files that DALI cannot decode.

At the end it says if the images are much larger than the training needs. A short measurement on this machine
then shows how much faster smaller copies would load, which python -m pipelines.pack makes.

The output folder gets report.json, the file lists train.txt and val.txt without the bad files (for
train_imagenet.py --file-list; not for CIFAR's files), and state.jsonl. With state.jsonl an interrupted check
resumes, and a later one decodes only the files that changed.

Exit status: 0 if nothing was found; 1 if a file cannot be used, train/ and val/ share an image, or a class is
empty or missing in one of them; 2 if the check failed, usually because of bad input; 128 + the signal number
if interrupted (130 for Ctrl-C). It stays 0 for warnings and for duplicates within train/ or val/.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import nvidia.dali
import tyro
from tqdm import tqdm

from dali_msda import require_dali
from dali_msda.processors import usable_processors

from ._decoding import BATCH, UNSURE, Result, require_readable
from ._findings import Split, find_splits, make_report, report_lines
from ._journal import Journal
from ._workers import catch_signals
from .examine import decode
from .files import expand_home, write_whole
from .large_images import LargeImages, find_large_images
from .names import json_text, shown
from .records import Output
from .screen import keep_printing

require_dali()

_STATE_VERSION = 1


@dataclass(frozen=True)
class Options:
    """What to check, and where to write the findings."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A folder of class folders, a data set with train/ and val/, or CIFAR's binary files."""

    val_labels: Path | None = None
    """Labels for a val/ without class folders; see train_imagenet.py --help."""

    allow_empty_classes: bool = False
    """Do not report class folders without images."""

    output: Path | None = None
    """Folder for the report, the file lists and the state. Default: checks/NAME for the folder NAME."""

    workers: int = field(default_factory=usable_processors)
    """Number of decoding processes. Default: the number of cores that this process may use."""

    image_size: int = 224
    """Size of the training images in pixels. The check says if those in DIR are much larger."""

    timeout: float = 300.0
    """Seconds after which a file counts as undecodable."""


# -- The state -------------------------------------------------------------------------------------------


class _State:
    """The results so far: a line of JSON for each file, appended when the file is done.

    Raises
    ------
    ValueError
        The file is from a check of another folder, or another process is writing it.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._header = {
            "version": _STATE_VERSION,
            "dali": nvidia.dali.__version__,
            "folder": shown(folder.resolve()),
        }
        self._journal = Journal(path, "--output", "another check")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def load(self, splits: list[Split]) -> None:
        """Store earlier results in the splits, for files that have not changed since."""
        records = self._journal.read()
        header = next(records, None)
        if header is None or {**header, "folder": ""} != {**self._header, "folder": ""}:
            # Empty, or from another version of DALI, which may decode other files.
            self._journal.start(self._header)
            return
        if header["folder"] != self._header["folder"]:
            raise ValueError(
                f"--output must be new or from a check of {self._header['folder']}; got"
                f" {shown(self._path)}, from a check of {header['folder']}"
            )
        positions = {
            split.name: (split, {split.shown(position): position for position in range(len(split.files))})
            for split in splits
        }
        for record in records:
            split, known = positions[record["split"]]
            position = known.get(record["file"])
            if position is None:
                continue
            try:
                status = split.status(position)
            except OSError:
                continue
            if (status.st_size, status.st_mtime_ns) != (record["size"], record["mtime_ns"]):
                continue
            error, warnings = record.get("error"), tuple(record.get("warnings", ()))
            split.store(position, Result(UNSURE, UNSURE, record["digest"], error, warnings))

    def append(self, split: Split, positions: list[int], results: list[Result]) -> None:
        """Write results to the file, then store them in the split."""
        records = []
        for position, result in zip(positions, results, strict=True):
            record = {"split": split.name, "file": split.shown(position), **result._asdict()}
            records.append({key: value for key, value in record.items() if value not in (None, ())})
        self._journal.append(records)
        for position, result in zip(positions, results, strict=True):
            split.store(position, result)


def _remaining_batches(splits: list[Split]) -> Iterator[tuple[Split, list[int]]]:
    """Batches of the files that are still to be decoded."""
    for split in splits:
        remaining = np.flatnonzero(~split.done)
        for start in range(0, len(remaining), BATCH):
            yield split, remaining[start : start + BATCH].tolist()


def _count_done(splits: list[Split]) -> int:
    return sum(int(split.done.sum()) for split in splits)


def _find_large_images(split: Split, options: Options) -> LargeImages | None:
    """See :mod:`.large_images`; of the files that decode, in batches of the usual size."""
    if (images := split.images()) is None:
        return None
    output = Output(image_size=options.image_size)
    return find_large_images(images, num_threads=options.workers, batch_size=64, output=output)


# -- Command ---------------------------------------------------------------------------------------------


def check(options: Options) -> int:
    """Check a data set; returns the exit status.

    Raises
    ------
    ValueError
        A bad option. The message has its name, what came and what was expected.
    """
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1; got {options.workers}")
    if options.image_size < 1:
        raise ValueError(f"--image-size must be at least 1; got {options.image_size}")
    if not options.timeout > 0:
        raise ValueError(f"--timeout must be above 0; got {options.timeout:g}")
    splits = find_splits(options.folder, options.val_labels)
    output = options.output or Path("checks") / options.folder.resolve().name
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder; got the file {shown(output)}")
    output.mkdir(parents=True, exist_ok=True)
    total = sum(len(split.files) for split in splits)
    with _State(output / "state.jsonl", options.folder) as state, catch_signals() as (stop, received):
        state.load(splits)
        known = _count_done(splits)
        if known:
            print(f"{known} of {total} files were already checked.", flush=True)
        count = min(options.workers, -(-(total - known) // BATCH))
        with tqdm(total=total, initial=known, unit="file", dynamic_ncols=True, mininterval=0.5) as progress:
            for split, positions, results in decode(_remaining_batches(splits), count, options.timeout, stop):
                state.append(split, positions, results)
                progress.update(len(positions))
                bad = sum(len(split.errors) for split in splits)
                progress.set_postfix_str(f"{bad} bad", refresh=False)
    if received:
        print(
            f"Interrupted: {_count_done(splits)} of {total} files done; the same command resumes the check."
        )
        return 128 + received[0]
    errors = [
        f"{split.root / split.files[position]} {error}"
        for split in splits
        for position, error in split.errors.items()
    ]
    require_readable(errors, _count_done(splits), "the check")
    report = make_report(splits, options.folder, allow_empty_classes=options.allow_empty_classes)
    listed = [split for split in splits if split.records is None]
    for split in listed:
        lines = (f"{split.files[position]} {split.labels[position]}\n" for position in split.usable())
        write_whole(output / f"{split.name}.txt", os.fsencode("".join(lines)))
    large = _find_large_images(splits[0], options)
    report["large_images"] = None if large is None else large.report(options.folder)
    write_whole(output / "report.json", (json_text(report, indent=1) + "\n").encode())
    print("\n".join(report_lines(report, output, lists=bool(listed))))
    if large is not None:
        print("\n".join(large.lines(options.folder)))
    return 1 if report["found"] else 0


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    keep_printing()
    options = tyro.cli(Options, args=arguments, prog="python -m pipelines.check", description=__doc__)
    paths: dict[str, Any] = {
        name: expand_home(it) for name, it in vars(options).items() if isinstance(it, Path)
    }
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
