"""What a soak finds in the output folder of a run, and what should be there."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import torch

from training.checkpoints import Checkpoints, DamagedError, unpack

_CLOCK = ("images_per_s", "data_wait")
# What may differ between a run and its undisturbed twin.
_FREE = [f"/run/settings/{name}" for name in ("output", "resume", "storage_patience")]
_FREE.append("/output/metrics_bytes")  # the figures of a clock have more or fewer digits


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def lines_of(folder: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The whole lines of metrics.jsonl without what a clock measured, and what is behind the last one.

    Raises
    ------
    ValueError
        One is no JSON, or holds a number that is not finite.
    """
    path = folder / "metrics.jsonl"
    *whole, rest = (path.read_bytes() if path.exists() else b"").split(b"\n")
    found = [json.loads(line, parse_constant=_no_number) for line in whole]
    return [{key: value for key, value in line.items() if key not in _CLOCK} for line in found], rest


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in items for path, leaf in flat(part, f"{name}/{key}").items()}
    return {name: value}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The leaves of two checkpoints that are not equal, bit for bit."""
    ours, theirs = flat(one), flat(other)

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, float) and isinstance(b, float):
            return a == b or (math.isnan(a) and math.isnan(b))
        return type(a) is type(b) and bool(a == b)

    found = sorted(ours.keys() ^ theirs.keys())
    return found + [path for path in ours if path in theirs and not same(ours[path], theirs[path])]


class RunFolder:
    """The output folder of a run that is disturbed, and what is known of it.

    Parameters
    ----------
    folder : Path
    calm : Path
        That of the same run, undisturbed and complete.

    Attributes
    ----------
    lost_lines : list of dict
        Lines of metrics.jsonl that this program cut off and that no step will write again.
    """

    def __init__(self, folder: Path, calm: Path) -> None:
        self.folder = folder
        self.calm = calm
        self.calm_lines, _ = lines_of(calm)
        self.last_step: int = unpack((calm / "last.pt").read_bytes())["progress"]["step"]
        self.lost_lines: list[dict[str, Any]] = []
        self._damaged: set[bytes] = set()  # digests of what `damage` left

    def size(self) -> int:
        """Bytes of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def stamp(self) -> object:
        """Changes whenever metrics.jsonl does."""
        try:
            state = (self.folder / "metrics.jsonl").stat()
        except FileNotFoundError:
            return None
        return state.st_size, state.st_mtime_ns, state.st_ino

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        try:
            return any((self.folder / "checkpoints").glob(".*.tmp"))
        except FileNotFoundError:
            return False

    def good(self) -> list[Path]:
        """The checkpoints that were not damaged by this program, in the order in which a run tries them."""
        best = self.folder / "best.pt"
        numbered = list(Checkpoints(self.folder, 1).numbered().values())
        return [
            path
            for path in (*reversed(numbered), *([best] if best.exists() else []))
            if _digest(path) not in self._damaged
        ]

    def step(self) -> int:
        """That of the newest good checkpoint."""
        good = self.good()
        return 0 if not good else int(unpack(good[0].read_bytes(), good[0])["progress"]["step"])

    def saved_bytes(self) -> int:
        """How much of metrics.jsonl the newest good checkpoint knows."""
        good = self.good()
        return 0 if not good else int(unpack(good[0].read_bytes(), good[0])["output"]["metrics_bytes"])

    def damage(self, rng: random.Random, *, cut: bool) -> str | None:
        """Cut the newest checkpoint short, or flip a byte; what is wrong with how it is read then."""
        good = self.good()
        if not good:
            return None
        path = good[0]
        data = path.read_bytes()
        position = rng.randrange(len(data))
        spoilt = data[:position] if cut else bytearray(data)
        if isinstance(spoilt, bytearray):
            spoilt[position] ^= rng.randrange(1, 256)
        with path.open("r+b") as file:  # in place: last.pt is another name of it
            file.write(spoilt)
            file.truncate()
        try:
            content = unpack(bytes(spoilt), path)
        except DamagedError:
            self._damaged.add(_digest(path))
            return None
        if differing(content, unpack(data)):
            return f"{path} with byte {position} flipped is read as another one"
        return None  # a byte that no reader looks at, of which a ZIP archive has some

    def cut_metrics(self, rng: random.Random) -> None:
        """Cut metrics.jsonl within its last line."""
        path = self.folder / "metrics.jsonl"
        data = path.read_bytes() if path.exists() else b""
        if not data:
            return
        begin = data.rstrip(b"\n").rfind(b"\n") + 1
        end = rng.randrange(begin, len(data))
        if end < self.saved_bytes() and data.endswith(b"\n"):
            self.lost_lines.append(lines_of(self.folder)[0][-1])
        with path.open("r+b") as file:
            file.truncate(end)

    def faults(self, *, torn: bool) -> list[str]:
        """What is wrong with the folder, whatever the run has come to.

        Parameters
        ----------
        torn : bool
            Whether a process may have been killed while it wrote.
        """
        found = []
        checkpoints = Checkpoints(self.folder, 1).numbered().values()
        for path in (*checkpoints, self.folder / "last.pt", self.folder / "best.pt"):
            if path.exists() and _digest(path) not in self._damaged:
                try:
                    unpack(path.read_bytes(), path)
                except DamagedError as error:
                    found.append(f"lost: {error}")
        try:
            lines, rest = lines_of(self.folder)
        except ValueError as error:
            return [*found, f"metrics.jsonl: {error}"]
        if rest and not torn:
            found.append(f"metrics.jsonl ends in the middle of a line: {rest!r}")
        if not torn and (unfinished := [path.name for path in self.folder.rglob(".*.tmp")]):
            found.append(f"left behind: {unfinished}")
        return found + self._wrong_lines(lines, complete=False)

    def _wrong_lines(self, lines: list[dict[str, Any]], *, complete: bool) -> list[str]:
        expected = iter(self.calm_lines)
        for line in lines:
            for wanted in expected:
                if wanted == line:
                    break
                if wanted not in self.lost_lines:
                    return [f"metrics.jsonl has {line} where {wanted} was expected"]
            else:
                return [f"metrics.jsonl has {line} more"]
        missing = [wanted for wanted in expected if wanted not in self.lost_lines]
        return [f"metrics.jsonl ends before {missing[0]}"] if complete and missing else []

    def differences(self) -> list[str]:
        """How the complete run differs from the undisturbed one."""
        lines, _ = lines_of(self.folder)
        found = self._wrong_lines(lines, complete=True)
        # A checkpoint of the step at which a signal came may be kept in the place of one before it.
        kept, wanted = (
            {str(path.relative_to(folder)) for path in folder.rglob("*.pt")}
            for folder in (self.folder, self.calm)
        )
        newest = str(Checkpoints(self.calm, 1).path(self.last_step).relative_to(self.calm))
        found += [f"{name} is missing" for name in ("best.pt", "last.pt", newest) if name not in kept]
        if len(kept) != len(wanted):
            found.append(f"there are {len(kept)} checkpoints, not {len(wanted)}")
        for name in sorted(wanted):
            if name in kept:
                both = (unpack((folder / name).read_bytes(), name) for folder in (self.calm, self.folder))
                found += [f"{name}: {path} differs" for path in differing(*both) if path not in _FREE]
        json.loads((self.folder / "config.json").read_text())
        if (self.folder / "quarantine.jsonl").exists():
            found.append("an image was called bad")
        return found


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
