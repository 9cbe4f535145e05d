"""Disturb training runs at random, continue them each time, and compare them with runs that were left alone.

    nice python -m benchmarks.soak [--minutes 60] [--seed 0]

A run is started, and killed, signalled, started a second time in the same folder, robbed of its images, its
disk or its screen; between two of its lives checkpoints and metrics.jsonl are cut short or changed. It is
continued with --resume auto until it is complete; the next run has another seed, method and number of
processes. Whatever happened:

- every life leaves with a status that docs/training.md gives for what happened to it, and with one line
  for an error, never a traceback;
- it begins at the newest checkpoint that is whole, and no checkpoint is lost;
- after every life metrics.jsonl has the lines of the undisturbed run, none twice and none missing;
- the complete run has its weights, states and best checkpoint, bit for bit.

The exit status is 1 where that was not so. Models are small and have one thread, so that other work can run
beside it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.common import Record, mixing, save
from benchmarks.soak_disk import Disk
from benchmarks.soak_folder import RunFolder
from benchmarks.soak_happenings import DISTURBANCES, SHARES, Happening
from benchmarks.soak_lives import Life, Start, begin
from pipelines.demo_data import make_demo_dataset

ALL = tuple(name for names in DISTURBANCES.values() for name in names)
_LIFE_SECONDS = 900.0  # on a busy machine


@dataclass(frozen=True)
class Settings:
    """What is done."""

    minutes: float = 60.0
    """For how long; the run that is under way then comes to its end undisturbed."""

    lives: int | None = None
    """After how many disturbed lives the time is up at the latest."""

    seed: int = 0
    """Of all that is random."""

    disturbances: tuple[str, ...] = ALL
    """What happens."""

    processes: tuple[int, ...] = (1, 1, 2)
    """Of a run: one of these numbers."""

    cold: float = 0.25
    """Share of the lives that begin with the imports; the others are forked after them."""

    epochs: int = 6
    """Of 20 steps each, with 16 images a step."""

    arch: str = "shufflenet_v2_x0_5"
    """Any classification model of torchvision."""

    seconds: float = 3.0
    """A life is disturbed at most this long after its training has begun."""

    save: bool = True
    """Write a file of results."""

    def __post_init__(self) -> None:
        if unknown := set(self.disturbances) - set(ALL):
            raise ValueError(f"--disturbances must be of {', '.join(ALL)}; got {', '.join(sorted(unknown))}")


class Soak:
    """One run after the other, until the time is up.

    Attributes
    ----------
    counts : Counter
        How often each disturbance happened.
    statuses : Counter
        How many processes left with each status.
    faults : list of str
        What was not as it should be.
    """

    def __init__(self, settings: Settings, folder: Path, disk: Disk) -> None:
        self.settings = settings
        self.folder = folder
        self.disk = disk
        self.data = make_demo_dataset(folder / "data", train_per_class=33, val_per_class=4)
        self.rng = random.Random(settings.seed)
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.runs = self.lives = self.starts = self.steps = 0
        self.started = time.monotonic()
        self._told = 0
        self._seconds_to_start = {True: 1.0, False: 5.0}  # of late, warm and cold

    @property
    def minutes(self) -> float:
        """Since it began."""
        return (time.monotonic() - self.started) / 60

    @property
    def is_over(self) -> bool:
        """Whether nothing more is disturbed."""
        lives = self.settings.lives
        return self.minutes >= self.settings.minutes or (lives is not None and self.lives >= lives)

    def tell(self) -> None:
        """One line a minute."""
        if int(self.minutes) > self._told or self.is_over:
            self._told = int(self.minutes)
            print(
                f"{self.minutes:.0f} of {self.settings.minutes:g} minutes: {self.runs} runs,"
                f" {self.lives} lives, {self.counts.total()} disturbances, {len(self.faults)} faults",
                flush=True,
            )

    def note(self, fault: str, life: Life | None = None) -> None:
        """Take down a fault, and show what the process said."""
        self.faults.append(fault)
        print(f"fault: {fault}", flush=True)
        if life is not None:
            print("\n".join(f"    {line}" for line in life.said().splitlines()[-60:]), flush=True)

    def start(self, output: Path, run: tuple[str, ...], processes: int, **more: object) -> Start:
        """The start of a life, with `more` of its attributes, and the option ``patience``."""
        self.starts += 1
        log = self.folder / "logs" / f"{self.starts}"
        log.parent.mkdir(exist_ok=True)
        patience = str(more.pop("patience", 60.0))
        arguments = ("--output", str(output), *run, "--storage-patience", patience)
        rest = {"warm": True, "screen": log} | more
        return Start(arguments=arguments, processes=processes, log=log, **rest)  # type: ignore[arg-type]

    def arguments(self, seed: int, mix: str) -> tuple[str, ...]:
        """Those of a run."""
        settings = self.settings
        command = ["--data", str(self.data), "--seed", str(seed), "--mix", mix, "--arch", settings.arch]
        command += ["--epochs", str(settings.epochs), "--image-size", "32", "--batch-size", "16"]
        command += ["--warmup-epochs", "1", "--lr", "0.01", "--log-every", "2", "--checkpoint-every", "3"]
        command += ["--device", "cpu", "--amp", "none", "--workers", "1", "--resume", "auto"]
        # Whatever has a state: an average of the weights, gradients that are added up, mixing that changes.
        command += ["--ema-decay", "0.9", "--accumulate", "2", "--mix-probability-start", "0.5"]
        command += ["--mix-ramp-epochs", "2", "--mix-off-epoch", str(settings.epochs - 1)]
        return tuple(command)

    def one_run(self, seed: int) -> None:
        """Disturb and continue a run until it is complete, then compare."""
        mix, processes = self.rng.choice(mixing()), self.rng.choice(self.settings.processes)
        arguments = self.arguments(seed, mix)
        calm = self.folder / "calm"
        life = begin(self.start(calm, arguments, processes))
        if (statuses := life.wait(_LIFE_SECONDS)) != [0] * processes:
            raise SystemExit(f"the undisturbed run left with {statuses}:\n{life.said()}")
        run = RunFolder(self.disk.folder / "run", calm)
        before, torn = len(self.faults), False
        while True:
            happening = self._happening(run, arguments, processes)
            happening.torn = torn
            happening.live(_LIFE_SECONDS)
            torn = happening.torn
            self.statuses.update(happening.statuses)
            for fault in happening.faults:
                self.note(f"{fault} ({mix}, seed {seed}, {processes} processes; {happening})", happening.life)
            self.tell()
            if happening.is_complete or happening.is_stuck:
                break
        again = begin(self.start(run.folder, arguments, processes))
        if (statuses := again.wait(_LIFE_SECONDS)) != [0] * processes:
            self.note(f"the complete run, started once more, left with {statuses}", again)
        for difference in run.differences():
            self.note(f"{difference} ({mix}, seed {seed}, {processes} processes)")
        self.runs += 1
        self.steps += run.last_step
        if len(self.faults) > before and self.settings.save:
            kept = Path(tempfile.mkdtemp(prefix="soak-"))
            shutil.copytree(run.folder, kept / "run")
            shutil.copytree(calm, kept / "calm")
            print(f"kept: {kept}", flush=True)
        for folder in (calm, run.folder):
            shutil.rmtree(folder)

    def _happening(self, run: RunFolder, arguments: tuple[str, ...], processes: int) -> Happening:
        """What happens in the next life."""

        def some(of: tuple[str, ...], share: float) -> str | None:
            offered = [name for name in of if name in self.settings.disturbances]
            return self.rng.choice(offered) if offered and self.rng.random() < share else None

        plan = [] if self.is_over else [some(DISTURBANCES[when], share) for when, share in SHARES.items()]
        names = [name for name in plan if name is not None]
        self.counts.update(names)
        self.lives += 1

        def start(**more: object) -> Start:
            warm = self.rng.random() >= self.settings.cold
            return self.start(run.folder, arguments, processes, warm=warm, **more)

        return Happening(
            *(names, run, self.disk, self.data, start, self.rng),
            *(self._seconds_to_start, self.settings.seconds),
        )

    def records(self) -> list[Record]:
        """What came out: one for all, one for each disturbance and for each exit status."""
        total: Record = {"minutes": round(self.minutes, 1), "runs": self.runs, "lives": self.lives}
        total |= {"starts": self.starts, "steps": self.steps, "faults": len(self.faults)}
        return [
            total,
            *(
                {"when": when, "disturbance": name, "times": self.counts[name]}
                for when, names in DISTURBANCES.items()
                for name in names
                if name in self.settings.disturbances
            ),
            *({"status": status, "processes": times} for status, times in sorted(self.statuses.items())),
        ]


def main() -> int:
    """Soak, say what came out, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # no disk stays mounted
    with tempfile.TemporaryDirectory(prefix="soak-") as name, Disk(Path(name) / "disk") as disk:
        soak = Soak(settings, Path(name), disk)
        while not soak.is_over:
            soak.one_run(settings.seed + soak.runs)
    records = soak.records()
    for record in records:
        print(", ".join(f"{key} {value}" for key, value in record.items()))
    if settings.save:
        print(f"wrote {save('soak', vars(settings), records)}")
    return int(bool(soak.faults))


if __name__ == "__main__":
    sys.exit(main())
