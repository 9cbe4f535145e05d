"""What the figures share: their command line, files, claims, and cells that a second run does not repeat."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from pipelines.files import replace_whole, write_whole

FOLDER = Path("outputs/figures")
# Readable in grey: they differ in lightness, and every line in style too.
DARK, MIDDLE, LIGHT = "#1b3a57", "#c8553d", "#8fb8de"


@dataclass(frozen=True)
class Options:
    """The options of a figure."""

    output: Path
    """The picture; its data are in a JSON file of the same name."""
    quick: bool
    dpi: int
    own: dict[str, Any] = field(default_factory=dict)
    """The figure's own options, by name."""

    @property
    def data(self) -> Path:
        return self.output.with_suffix(".json")


class Claim(NamedTuple):
    """A statement of the paper, or ours about it, and what was seen."""

    text: str
    seen: str
    holds: bool


class ClaimError(AssertionError):
    """A figure does not show what the paper says."""


def parse(
    name: str,
    about: str | None,
    arguments: Sequence[str] | None,
    *,
    default: Path | None = None,
    dpi: int = 300,
    own: Mapping[str, dict[str, Any]] | None = None,
) -> Options:
    """Read the options of a figure from the command line.

    `own` are options of this figure alone: names without dashes, and what ``add_argument`` takes.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = FOLDER / f"{name}.png" if default is None else default
    parser.add_argument("output", nargs="?", type=Path, default=default, help=f"default: {default}")
    parser.add_argument("--quick", action="store_true", help="less of everything, in seconds")
    parser.add_argument("--dpi", type=int, default=dpi, help=f"dots per inch; default: {dpi}")
    for option, settings in (own or {}).items():
        parser.add_argument(f"--{option}", **settings)
    found = parser.parse_args(arguments)
    if found.output.suffix == ".json":
        parser.error(f"output must be a picture; got {found.output}")
    if found.dpi < 1:
        parser.error(f"--dpi must be positive; got {found.dpi}")
    return Options(
        found.output, found.quick, found.dpi, {option: getattr(found, option) for option in own or {}}
    )


def save(figure: Figure, data: dict[str, Any], claims: Sequence[Claim], options: Options) -> None:
    """Write a figure and its data, then check its claims.

    Raises
    ------
    ClaimError
        A claim does not hold. The files are there, to see why.
    """
    options.output.parent.mkdir(parents=True, exist_ok=True)
    kind = options.output.suffix[1:] or "png"
    replace_whole(options.output, lambda temporary: figure.savefig(temporary, dpi=options.dpi, format=kind))
    record = {"quick": options.quick, "claims": [claim._asdict() for claim in claims], **data}
    write_whole(options.data, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    print(f"wrote {options.output} and {options.data}")
    for claim in claims:
        print(f"  {'holds' if claim.holds else 'FAILS'}: {claim.text}: {claim.seen}")
    failed = [f"{claim.text}; got {claim.seen}" for claim in claims if not claim.holds]
    if failed:
        raise ClaimError("; ".join(failed))


def average_rings(by_offset: np.ndarray) -> np.ndarray:
    """Mean over the offsets whose rounded length is 0, 1, ..., n - 1, of a map [2 n - 1, 2 n - 1]."""
    n = (len(by_offset) + 1) // 2
    steps = np.arange(1 - n, n)
    ring = np.rint(np.hypot(steps[:, None], steps)).astype(int).ravel()
    sums, counts = np.bincount(ring, by_offset.ravel()), np.bincount(ring)
    return np.asarray((sums / counts)[:n])


def compute_cells(
    options: Options,
    keys: Sequence[str],
    settings: dict[str, Any],
    compute: Callable[[str], Any],
    *,
    workers: int = 1,
) -> dict[str, Any]:
    """Compute the cells of a figure with a progress bar, except those of an interrupted run.

    Each result (JSON) is in a file beside the output as soon as it is there. Remove the file with
    :func:`forget_cells` when the figure is complete. Cells with other settings are not used.

    With several `workers`, as many processes compute; `compute` is then pickled once for each.
    """
    path = _cells_path(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps(settings, sort_keys=True)
    lines = path.read_text().splitlines() if path.is_file() else []
    found = {}
    if lines[:1] == [header]:
        for line in lines[1:]:
            try:
                found.update(json.loads(line))
            except json.JSONDecodeError:  # the last line of a killed run
                break
    # Without a cut line.
    kept = [header, *(json.dumps({key: found[key]}) for key in found)]
    write_whole(path, "".join(f"{line}\n" for line in kept).encode())
    missing = [key for key in keys if key not in found]
    with (
        path.open("a") as file,
        tqdm(total=len(missing), desc=options.output.stem, file=sys.stderr) as bar,
        contextlib.closing(_compute_all(missing, compute, workers)) as results,
    ):
        for key, result in results:
            found[key] = result
            file.write(json.dumps({key: result}) + "\n")
            file.flush()
            bar.update()
    return {key: found[key] for key in keys}


def _compute_all(
    keys: Sequence[str], compute: Callable[[str], Any], workers: int
) -> Generator[tuple[str, Any]]:
    """Results in any order; close it to cancel the others."""
    workers = min(workers, len(keys))
    if workers <= 1:
        yield from ((key, compute(key)) for key in keys)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (compute,))
    try:
        futures = {pool.submit(_compute_in_worker, key): key for key in keys}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_compute: Callable[[str], Any] | None = None


def _start_worker(compute: Callable[[str], Any]) -> None:
    global _compute
    _compute = compute
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent leaves its processes waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _compute_in_worker(key: str) -> Any:
    assert _compute is not None
    return _compute(key)


def forget_cells(options: Options) -> None:
    """Remove the file of :func:`compute_cells`."""
    _cells_path(options).unlink(missing_ok=True)


def _cells_path(options: Options) -> Path:
    return options.output.with_name(f"{options.output.stem}.cells.jsonl")
