"""What can happen to a life of a run, and what has to come of it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.soak_disk import Disk
from benchmarks.soak_folder import RunFolder
from benchmarks.soak_lives import Life, Start, begin

BEFORE = ("checkpoint_cut", "checkpoint_flipped", "metrics_cut", "images_missing", "disk_full_at_start")
SCREENS = ("stdout_closed", "stdout_to_head", "stdout_full")
MEANWHILE = ("overlap", "images_away", "output_away", "disk_full", "ignored_signal")
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
AT_THE_END = ("SIGKILL", *SIGNALS, "second_signal", "images_gone", "disk_full_for_long", "overlap_and_stop")
DISTURBANCES = {
    "before a life": BEFORE,
    "its standard output": SCREENS,
    "what it survives": MEANWHILE,
    "what ends it": AT_THE_END,
}
# Of the lives that have one.
SHARES = {"before a life": 0.4, "its standard output": 0.2, "what it survives": 0.4, "what ends it": 1.0}

_STARTS_REFUSED = ("images_missing", "disk_full_at_start")
_LATER = os.EX_TEMPFAIL


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """A folder has another name within the block."""
    other = folder.with_name(f"{folder.name}-away")
    folder.rename(other)
    try:
        yield
    finally:
        other.rename(folder)


class Happening:
    """One life of a run and the disturbances in it.

    Parameters
    ----------
    names : sequence of str
        The disturbances, at most one of each line of DISTURBANCES.
    run : RunFolder
    disk : Disk
        That the folder lies on.
    data : Path
        The images.
    start : callable
        Makes the start of a life, with `more` of its attributes.
    rng : random.Random
    seconds_to_start : dict
        How long that took lately, by whether the life was warm; it is kept up to date.
    seconds : float
        The end comes at most this long after the training has begun.

    Attributes
    ----------
    statuses : list of int
        With which the processes left.
    faults : list of str
        What was not as it should be.
    torn : bool
        Whether a process may have been killed while it wrote, and none has tidied up since.
    is_complete : bool
        Whether the run is.
    is_stuck : bool
        Whether it cannot be continued.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: RunFolder,
        disk: Disk,
        data: Path,
        start: Callable[..., Start],
        rng: random.Random,
        seconds_to_start: dict[bool, float],
        seconds: float,
    ) -> None:
        self.names = names
        self.run, self.disk, self.data, self.rng, self.seconds = run, disk, data, rng, seconds
        self._start, self._seconds_to_start = start, seconds_to_start
        self.faults: list[str] = []
        self.statuses: list[int] = []
        self.torn = self.is_complete = self.is_stuck = False
        self.life: Life | None = None
        self._allowed: set[int] = set()
        self._of_survivors: set[int] = set()
        self._reached_main = True
        self._nothing_lost = False  # all that was trained has to be in a checkpoint
        self._left_torn = False

    def __str__(self) -> str:
        return ", ".join(self.names) or "nothing"

    def live(self, limit: float) -> None:
        """Begin the life, let it happen, and look at what is left.

        Parameters
        ----------
        limit : float
            Seconds after which a process that has not ended hangs.
        """
        run = self.run
        for name in self.names:
            if name in ("checkpoint_cut", "checkpoint_flipped"):
                if fault := run.damage(self.rng, cut=name == "checkpoint_cut"):
                    self.faults.append(fault)
            elif name == "metrics_cut":
                run.cut_metrics(self.rng)
                self.torn = True
        before, good, stamp = run.step(), run.good()[:1], run.stamp()
        with contextlib.ExitStack() as stack:
            if "images_missing" in self.names:
                stack.enter_context(away(self.data / self.rng.choice(("train", "val"))))
                self._allowed |= {2}
            if "disk_full_at_start" in self.names:
                stack.enter_context(self.disk.full())
                self._allowed |= {_LATER}
            life = self.life = begin(self._start(**self._attributes(stack)))
            if not set(self.names) & set(_STARTS_REFUSED):
                self._happen(life, lambda: run.stamp() != stamp, limit)
            statuses = life.wait(limit)
        if statuses is None:
            self.faults.append(f"hung for {limit:.0f} s")
            self._left_torn = self.is_stuck = True
            return
        self.statuses += statuses
        opened = run.stamp() != stamp
        self.torn = self._left_torn or (self.torn and not opened)
        self._judge_statuses(statuses)
        self._judge_words(life, good, opened=opened)
        self.faults += run.faults(torn=self.torn)
        if (now := run.step()) < before:
            self.faults.append(f"step {before} was saved, and {now} is left")
        known = opened and not life.ended_others
        if self._nothing_lost and known and (lost := run.size() - run.saved_bytes()):
            self.faults.append(f"{lost} bytes of metrics.jsonl are of no checkpoint")

    def _attributes(self, stack: contextlib.ExitStack) -> dict[str, object]:
        """Those of the start that the disturbances need."""
        attributes: dict[str, object] = {}
        if {"images_gone", "disk_full_for_long", *_STARTS_REFUSED} & set(self.names):
            survived = {"images_away", "output_away", "disk_full"} & set(self.names)
            attributes["patience"] = 8.0 if survived else self.rng.choice((0.0, 0.7))
        if "ignored_signal" in self.names:
            attributes["ignored"] = (signal.SIGHUP, signal.SIGINT)
        if "stdout_closed" in self.names:
            attributes["screen"] = None
        if "stdout_full" in self.names:
            attributes["screen"] = Path("/dev/full")
        if "stdout_to_head" in self.names:
            pipe = self.data.parent / "pipe"
            os.mkfifo(pipe)
            stack.callback(pipe.unlink)
            reader = subprocess.Popen(["head", "-1", pipe], stdout=subprocess.DEVNULL)
            stack.callback(reader.kill)
            attributes["screen"] = pipe
        return attributes

    # -- While it runs --------------------------------------------------------------------------------------

    def _happen(self, life: Life, opened: Callable[[], bool], limit: float) -> None:
        trains = False
        for name in self.names:
            if name in MEANWHILE or name in ("images_gone", "disk_full_for_long"):
                trains = trains or self._until_it_trains(life, opened, limit)
                if not trains:
                    return
                life.until(lambda: False, self.rng.uniform(0, self.seconds))
                getattr(self, f"_{name}")(life, limit)
            elif name in AT_THE_END:
                if not self._until_a_moment(life, opened, limit, trains=trains):
                    return
                (self._signal if name in (*SIGNALS, "SIGKILL") else getattr(self, f"_{name}"))(life, name)

    def _until_it_trains(self, life: Life, opened: Callable[[], bool], limit: float) -> bool:
        if not life.until(opened, limit):
            return False
        took, warm = time.monotonic() - life.began, life.start.warm
        self._seconds_to_start[warm] += (took - self._seconds_to_start[warm]) / 4
        return True

    def _until_a_moment(self, life: Life, opened: Callable[[], bool], limit: float, *, trains: bool) -> bool:
        """Wait for a random moment: in start-up, in the training, or while a checkpoint is written."""
        moment = self.rng.choice(("start", "training", "training", "saving"))
        delay = self.rng.random()
        if moment == "start" and not trains:
            life.until(lambda: False, delay * self._seconds_to_start[life.start.warm])
            return not life.has_ended
        if not trains and not self._until_it_trains(life, opened, limit):
            return False
        life.until(lambda: False, delay * self.seconds)
        if moment == "saving":
            life.until(self.run.is_saving, limit)
        return not life.has_ended

    def _signal(self, life: Life, name: str) -> None:
        number = signal.Signals[name]
        ranks = list(range(len(life.ranks)))
        if self.rng.random() < 0.3:
            ranks = [self.rng.choice(ranks)]
        if number in life.start.ignored:
            number = signal.SIGTERM
        # A Ctrl-C before the first line of the trainer is Python's to answer.
        if number == signal.SIGINT and not life.until(lambda: life.catches(signal.SIGTERM), 60):
            return
        if life.has_ended:
            return
        self._reached_main &= life.catches(signal.SIGTERM)
        life.send(number, ranks)
        self._of_survivors |= {1, 128 + signal.SIGTERM, -signal.SIGTERM} if len(life.ranks) > 1 else set()
        if number == signal.SIGKILL:
            self._allowed.add(-number)
            self._left_torn = True
        else:
            self._allowed |= {128 + number, -number}
            self._nothing_lost = True

    def _second_signal(self, life: Life, name: str) -> None:
        self._signal(life, self.rng.choice(SIGNALS))
        life.until(lambda: False, self.rng.uniform(0.6, 1.5))  # sooner it would be the same wish
        self._signal(life, self.rng.choice(SIGNALS))
        self._left_torn = True
        self._nothing_lost = False

    def _ignored_signal(self, life: Life, limit: float) -> None:
        for number in life.start.ignored:
            life.send(number, range(len(life.ranks)))

    def _images_away(self, life: Life, limit: float) -> None:
        with away(self.data / self.rng.choice(("train", "val"))):
            life.until(lambda: False, self.rng.uniform(0.2, 2.5))

    def _output_away(self, life: Life, limit: float) -> None:
        with away(self.run.folder):
            life.until(lambda: False, self.rng.uniform(0.2, 2.5))

    def _disk_full(self, life: Life, limit: float) -> None:
        with self.disk.full():
            life.until(lambda: False, self.rng.uniform(0.2, 2.5))

    def _images_gone(self, life: Life, limit: float) -> None:
        self._allowed.add(_LATER)
        self._nothing_lost = True
        with away(self.data / self.rng.choice(("train", "val"))):
            life.wait(limit)

    def _disk_full_for_long(self, life: Life, limit: float) -> None:
        self._allowed.add(_LATER)
        self._left_torn = True
        with self.disk.full():
            life.wait(limit)

    def _overlap(self, life: Life, limit: float) -> None:
        """A second start in the folder: it leaves, as long as the first one runs."""
        other = begin(self._start())
        other.until(lambda: life.has_ended, limit)
        first_ran = not life.has_ended
        if not first_ran:  # it may have got the folder
            other.send(signal.SIGKILL, range(len(other.ranks)))
            self._left_torn, self._nothing_lost = True, False
        statuses = other.wait(limit)
        if first_ran and statuses != [2] * len(other.ranks):
            self.faults.append(f"the second start left with {statuses}: {other.said()}")
        if first_ran and "another process writes to" not in other.said():
            self.faults.append(f"the second start said {other.said()}")
        if "Traceback" in other.said():
            self.faults.append(f"a traceback of the second start: {other.said()}")

    def _overlap_and_stop(self, life: Life, name: str) -> None:
        """As a job that is requeued: the next start comes before the first one has left."""
        self._signal(life, self.rng.choice((*SIGNALS, "SIGKILL")))
        self._overlap(life, 900)

    # -- Afterwards -----------------------------------------------------------------------------------------

    def _judge_statuses(self, statuses: list[int]) -> None:
        self.is_complete = set(statuses) == {0}
        done = self.run.step() == self.run.last_step
        if self.is_complete and not done:
            self.faults.append(f"left with 0 after step {self.run.step()} of {self.run.last_step}")
        allowed = self._allowed | ({0} if done else set())
        if self._reached_main and not done:
            allowed -= {-number for number in (*map(signal.Signals.__getitem__, SIGNALS),)}
        if self._of_survivors and len(set(statuses)) > 1:
            allowed |= self._of_survivors
        if self.life is not None and self.life.ended_others:
            allowed |= {128 + signal.SIGTERM, -signal.SIGTERM}
        if not set(statuses) <= allowed:
            self.faults.append(f"left with {statuses}; expected of {sorted(allowed)}")
            self.is_stuck = not self.names

    def _judge_words(self, life: Life, good: list[Path], *, opened: bool) -> None:
        said = life.said()
        if "Traceback" in said:
            self.faults.append("a traceback")
        errors = said.count("error: ")
        expected = {int(bool({1, 2, _LATER} & set(self.statuses)))}
        if life.ended_others:  # the process that ended first may be the one to tell it
            expected |= {0, 1}
        if errors not in expected:
            self.faults.append(f"{errors} errors were told")
        begun = f"resuming from {good[0]}\n" if good else "no checkpoint yet, starting\n"
        told = "--resume auto: resuming" in said or "no checkpoint yet" in said
        # Where the lives overlap, the other one may be the one that began.
        has_to = (
            opened and life.start.screen == life.start.log and not any("overlap" in it for it in self.names)
        )
        if (told or has_to) and begun not in said:
            self.faults.append(f"did not say {begun}")
