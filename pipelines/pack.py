"""Make a smaller copy of a data set once, so that every epoch decodes fewer pixels.

    python -m pipelines.pack SRC DST --max-side 512 --quality 90

SRC is a folder of class folders, or a data set with two of them, train/ and val/; images without class
folders are packed too. DST gets the same folders with the same names. An image whose longer side is above
--max-side becomes a JPEG file of that size, upright and without metadata; any other is copied byte for byte.
A .png file that becomes JPEG keeps its name: DALI goes by the content, and file lists and labels still fit.

Each file is read back from the disk and decoded with DALI. Files that DALI cannot decode are copied as they
are, and listed. After an interruption the same command resumes, with what is in DST/.packing. The report is
DST/packing.json.

Exit status: 0 if all is well; 1 if a file cannot be decoded, or a link is broken; 2 if packing failed,
usually because of bad input or a full disk; 128 + the signal number if interrupted (130 for Ctrl-C).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from dali_msda import require_dali
from dali_msda.processors import usable_processors

from ._decoding import UNSURE, require_readable
from ._journal import Journal
from ._packing import BATCH, Packed, copy, packing
from ._packing_parts import Part, find_parts, format_bytes, make_report, report_lines
from ._workers import Failure, catch_signals, run
from .files import expand_home, write_whole
from .names import json_text, shown
from .screen import keep_printing
from .shrinking import QUALITY

require_dali()

_STATE_VERSION = 1
_STATE_FOLDER = ".packing"  # listings skip names that start with a dot
_REPORT = "packing.json"
# Images, from all parts of the set, after which the space needed is estimated.
_SAMPLE = 64
_SPACE_MARGIN = 1.05


@dataclass(frozen=True)
class Options:
    """What to pack, and how small."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A folder of class folders, or a data set with train/ and val/."""

    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """A new or empty folder, or that of an earlier run of the same command."""

    max_side: int = 512
    """Longer side of the images, in pixels, at most."""

    quality: int = QUALITY
    """JPEG quality, 1 to 100."""

    workers: int = field(default_factory=usable_processors)
    """Number of processes. Default: the number of cores that this process may use."""

    timeout: float = 300.0
    """Seconds after which a file counts as undecodable."""


# -- The state -------------------------------------------------------------------------------------------


def _settings(options: Options) -> dict[str, Any]:
    """What the result depends on."""
    return {
        "source": shown(options.source.resolve()),
        "max_side": options.max_side,
        "quality": options.quality,
    }


def _open_state(options: Options) -> Journal:
    """Open the state of DST, which is new or from the same command.

    Raises
    ------
    ValueError
        DST has other files, or is from another command, or in use.
    """
    target = options.target
    if target.exists() and not target.is_dir():
        raise ValueError(f"DST must be a folder; got the file {shown(target)}")
    folder = target / _STATE_FOLDER
    path = folder / "state.jsonl"
    if target.is_dir() and not path.exists() and (found := sorted({*os.listdir(target)} - {_STATE_FOLDER})):
        raise ValueError(
            f"DST must be new or empty, or from an earlier run; got {shown(target)} with {shown(found[0])}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return Journal(path, "DST", "another run")


def _load_state(journal: Journal, options: Options, parts: list[Part]) -> list[str]:
    """Restore earlier results; returns the files packed earlier that are no longer in SRC."""
    header = {"version": _STATE_VERSION, **_settings(options)}
    records = journal.read()
    found = next(records, None)
    if found is None:
        journal.start(header)
        return []
    if different := [key for key in header if found.get(key) != header[key]]:
        names = {"source": "SRC", "max_side": "--max-side", "quality": "--quality"}
        said = ", ".join(f"{names.get(key, key)} {found.get(key)}, now {header[key]}" for key in different)
        raise ValueError(
            f"DST must be new or from the same command; got {shown(options.target)}, packed with {said}"
        )
    known = {part.shown(i): (part, i) for part in parts for i in range(len(part.images))}
    gone: dict[str, None] = {}
    for record in records:
        name = record.pop("file")
        if name in known:
            part, position = known[name]
            part.restore(position, Packed(**record))
        else:
            gone[name] = None
    return list(gone)


def _note(journal: Journal, part: Part, positions: list[int], results: list[Packed]) -> None:
    """Write results to the state, then store them."""
    journal.append(
        [
            {
                "file": part.shown(position),
                **{key: value for key, value in packed._asdict().items() if value is not None},
            }
            for position, packed in zip(positions, results, strict=True)
            if packed.packed_size != UNSURE
        ]
    )
    for position, packed in zip(positions, results, strict=True):
        part.store(position, packed)


# -- Work ------------------------------------------------------------------------------------------------


def _order(parts: list[Part]) -> tuple[list[tuple[Part, np.ndarray]], int]:
    """What is left to do, beginning with images from everywhere, and the number of these."""
    left = [np.flatnonzero(~part.done) for part in parts]
    total = sum(map(len, left))
    step = -(-total // min(_SAMPLE, max(total // 10, 1))) if total else 1
    first = [(part, todo[::step]) for part, todo in zip(parts, left, strict=True)]
    rest = [(part, np.delete(todo, np.s_[::step])) for part, todo in zip(parts, left, strict=True)]
    return first + rest, sum(len(todo) for _, todo in first)


def _batches(order: list[tuple[Part, np.ndarray]]) -> Iterator[tuple[Part, list[int]]]:
    for part, todo in order:
        for start in range(0, len(todo), BATCH):
            yield part, todo[start : start + BATCH].tolist()


class _Space:
    """Estimates the space that is needed from the first results, and compares it with what there is."""

    def __init__(self, target: Path, left: int, sample: int) -> None:
        self._target, self._left, self._sample = target, left, sample
        self._sizes: list[tuple[int, int]] = []

    def add(self, results: list[Packed]) -> str | None:
        """Count results; returns a line to print when there are just enough of them.

        Raises
        ------
        OSError
            The space is not enough.
        """
        known = len(self._sizes) >= self._sample
        self._sizes += [(max(it.size, 0), max(it.packed_size, 0)) for it in results]
        self._left -= len(results)
        if known or len(self._sizes) < self._sample or not self._left:
            return None
        disk = os.statvfs(self._target)
        before, after = np.mean(self._sizes, axis=0) * self._left
        # On average the last block of a file is half empty.
        needed = (after + self._left * disk.f_frsize / 2) * _SPACE_MARGIN
        free = disk.f_bavail * disk.f_frsize
        said = (
            f"The other {self._left} files need about {format_bytes(needed)} (now {format_bytes(before)});"
            f" {format_bytes(free)} are free."
        )
        if needed > free:
            raise OSError(f"DST must have enough space: {said}")
        if disk.f_files and self._left > disk.f_favail:
            raise OSError(f"DST must have room for {self._left} files; the file system has {disk.f_favail}")
        return said


def _work(options: Options, parts: list[Part], journal: Journal) -> int | None:
    """Pack what is left; returns the signal that interrupted it."""
    total = sum(len(part.images) for part in parts)
    known = _count_done(parts)
    if known:
        print(f"{known} of {total} files were already packed.", flush=True)
    scratch = options.target / _STATE_FOLDER / "incomplete"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    program = packing(options.max_side, options.quality, scratch)
    order, sample = _order(parts)
    space = _Space(options.target, total - known, sample)
    count = min(options.workers, -(-(total - known) // BATCH))
    with (
        catch_signals() as (stop, received),
        tqdm(total=total, initial=known, unit="file", dynamic_ncols=True, mininterval=0.5) as progress,
    ):
        for part, positions, answer in run(_batches(order), count, options.timeout, stop, program):
            if isinstance(answer, Failure):
                task = part.item(positions[0])
                answer = [copy(task, answer.reason, certain=answer.certain, scratch=scratch)]
            _note(journal, part, positions, answer)
            if said := space.add(answer):
                progress.write(said)
            progress.update(len(positions))
            bad = sum(len(part.errors) for part in parts)
            progress.set_postfix_str(f"{bad} bad", refresh=False)
    shutil.rmtree(scratch, ignore_errors=True)
    return received[0] if received else None


def _count_done(parts: list[Part]) -> int:
    return sum(int(part.done.sum()) for part in parts)


# -- Command ---------------------------------------------------------------------------------------------


def pack(options: Options) -> int:
    """Pack a data set; returns the exit status.

    Raises
    ------
    ValueError
        A bad option. The message has its name, what came and what was expected.
    OSError
        The storage failed, or has too little space.
    """
    for name, value, least in (
        ("--max-side", options.max_side, 1),
        ("--quality", options.quality, 1),
        ("--workers", options.workers, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    if options.quality > 100:
        raise ValueError(f"--quality must be at most 100; got {options.quality}")
    if not options.timeout > 0:
        raise ValueError(f"--timeout must be above 0; got {options.timeout:g}")
    parts = find_parts(options.source, options.target)
    journal = _open_state(options)
    try:
        gone = _load_state(journal, options, parts)
        for part in parts:
            part.make_class_folders()
        try:
            received = _work(options, parts, journal)
        except OSError as error:
            raise OSError(f"{error}; the same command resumes packing") from error
        if received:
            total = sum(len(part.images) for part in parts)
            done = _count_done(parts)
            print(f"Interrupted: {done} of {total} files done; the same command resumes packing.")
            return 128 + received
    finally:
        journal.close()
    errors = [f"{part.item(i).source} {error}" for part in parts for i, error in part.errors.items()]
    require_readable(errors, _count_done(parts), "packing")
    report = make_report(parts, gone, _settings(options))
    write_whole(options.target / _REPORT, (json_text(report, indent=1) + "\n").encode())
    print("\n".join(report_lines(report, parts, options.target / _REPORT)))
    return 1 if report["unusable"] or gone else 0


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    keep_printing()
    options = tyro.cli(Options, args=arguments, prog="python -m pipelines.pack", description=__doc__)
    options = replace(options, source=expand_home(options.source), target=expand_home(options.target))
    try:
        return pack(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"pipelines.pack: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
