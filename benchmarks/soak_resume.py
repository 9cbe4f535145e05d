"""Kill a training run at random times, resume it each time, and compare it with one that was left alone.

    python -m benchmarks.soak_resume [--kills 50] [--mix hmix] [--processes 1]

Each life of the run is a process of its own (with --processes, a torchrun of which a random worker is
killed), ended by SIGKILL after a random time. Checkpoints are written often and are large for the model's
speed, so that many kills come while one is being written. When the run is through before the kills are, the
next run has another seed. Counted are differences: lines of metrics.jsonl (timings left out) and tensors of
last.pt and best.pt that are not equal, bit for bit; and lost files: a checkpoint that cannot be read, or a
life that goes on from an older one than was there before.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.common import save
from pipelines.demo_data import make_demo_dataset
from training.checkpoints import Checkpoints, DamagedError, unpack

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """What is done."""

    kills: int = 50
    """How often the run is killed."""

    mix: str = "hmix"
    """Mixing method."""

    processes: int = 1
    """Processes of the run; above 1 they are started by torchrun."""

    arch: str = "resnet18"
    """Any classification model of torchvision."""

    image_size: int = 32
    """Side of the images in pixels."""

    epochs: int = 12
    """Of 20 steps each, with 16 images a step."""

    checkpoint_every: int = 3
    """Steps between two checkpoints."""

    seconds: float = 4.0
    """A life ends at most this long after its training has begun."""

    seed: int = 0
    """Of the run and the times."""

    save: bool = True
    """Write a file of results."""


class Soak:
    """One run after the other, until there were enough kills."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.data = make_demo_dataset(folder / "data", train_per_class=33, val_per_class=4)
        self.rng = random.Random(settings.seed)
        self.counts = dict.fromkeys(("kills", "kills_while_saving", "runs", "differences", "lost_files"), 0)

    def start(self, output: Path, seed: int) -> subprocess.Popen[bytes]:
        """A process that trains or goes on training."""
        settings = self.settings
        command = [sys.executable]
        if settings.processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(settings.processes)]
        command += ["train_imagenet.py", "--data", str(self.data), "--output", str(output)]
        command += ["--resume", "auto", "--seed", str(seed), "--mix", settings.mix, "--arch", settings.arch]
        command += ["--image-size", str(settings.image_size), "--epochs", str(settings.epochs)]
        command += ["--batch-size", "16", "--warmup-epochs", "1", "--lr", "0.01", "--log-every", "1"]
        command += ["--checkpoint-every", str(settings.checkpoint_every), "--device", "cpu", "--amp", "none"]
        # Whatever has a state: an average of the weights, gradients that are added up, mixing that changes.
        command += ["--ema-decay", "0.9", "--accumulate", "2", "--mix-probability-start", "0.5"]
        command += ["--mix-ramp-epochs", "3", "--mix-off-epoch", "9"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def finish(self, output: Path, seed: int) -> float:
        """Let a run come to its end; the seconds it took."""
        began = time.perf_counter()
        if self.start(output, seed).wait() != 0:
            raise SystemExit(f"the run ended with an error:\n{(self.folder / 'log').read_text()[-3000:]}")
        return time.perf_counter() - began

    def kill(self, life: subprocess.Popen[bytes]) -> bool:
        """SIGKILL the run, or a worker of it; False if it was through."""
        target = life.pid
        if self.settings.processes > 1:
            children = Path(f"/proc/{life.pid}/task/{life.pid}/children").read_text().split()
            if children:
                target = int(self.rng.choice(children))
        if life.poll() is not None:
            return False
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            return False
        life.wait()
        return life.returncode != 0

    def newest_step(self, output: Path) -> int:
        """The newest step on disk; counts what cannot be read."""
        checkpoints = Checkpoints(output, 1)
        self.counts["kills_while_saving"] += any(output.rglob(".*.tmp"))
        for path in (*checkpoints.numbered().values(), output / "last.pt", output / "best.pt"):
            if path.exists():
                try:
                    unpack(path.read_bytes(), path)
                except DamagedError as error:
                    print(f"lost: {error}", flush=True)
                    self.counts["lost_files"] += 1
        found, data, _ = checkpoints.newest()
        return int(unpack(data)["progress"]["step"]) if found is not None else 0

    def one_run(self, seed: int) -> None:
        """Kill and resume a run until it is through or there were enough kills, then compare."""
        calm, cut = self.folder / f"calm-{seed}", self.folder / f"cut-{seed}"
        self.finish(calm, seed)
        step = 0
        while self.counts["kills"] < self.settings.kills:
            life = self.start(cut, seed)
            before = self._lines(cut)
            # Some die while they start: reading a checkpoint, cutting back the metrics.
            early = self.rng.random() < 0.1
            while not early and life.poll() is None and self._lines(cut) == before:
                time.sleep(0.005)
            time.sleep(self.rng.uniform(0, self.settings.seconds))
            if not self.kill(life):
                break
            self.counts["kills"] += 1
            now = self.newest_step(cut)
            if now < step:
                print(f"lost: step {step}, found {now}", flush=True)
                self.counts["lost_files"] += 1
            step = now
            print(f"kill {self.counts['kills']}: newest checkpoint of step {step}", flush=True)
        self.finish(cut, seed)
        self.counts["runs"] += 1
        self.counts["differences"] += self.differences(calm, cut)

    @staticmethod
    def _lines(output: Path) -> bytes:
        path = output / "metrics.jsonl"
        return path.read_bytes() if path.exists() else b""

    @staticmethod
    def differences(calm: Path, cut: Path) -> int:
        """Lines of metrics and tensors of checkpoints that differ."""
        lines: list[list[dict[str, Any]]] = []
        for output in (calm, cut):
            content = (output / "metrics.jsonl").read_text().splitlines()
            lines.append([json.loads(line) | {"images_per_s": 0, "data_wait": 0} for line in content])
        found = [f"{len(lines[0])} and {len(lines[1])} lines"] if len(lines[0]) != len(lines[1]) else []
        found += [f"{a}\n  and {b}" for a, b in zip(*lines, strict=False) if a != b]
        for name in ("last.pt", "best.pt"):
            saved = [torch.load(path / name, weights_only=True) for path in (calm, cut)]
            for kind in ("model", "ema"):
                ours, theirs = (content[kind] for content in saved)
                found += [f"{name}: {kind} {key}" for key in ours.keys() ^ theirs.keys()]
                both = [key for key in ours if key in theirs]
                found += [f"{name}: {kind} {key}" for key in both if not torch.equal(ours[key], theirs[key])]
        for difference in found:
            print(f"different: {difference}", flush=True)
        return len(found)


def main() -> int:
    """Soak, say what came out, write the results; the exit status is 1 where anything was lost."""
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(settings, Path(folder))
        seed = settings.seed
        while soak.counts["kills"] < settings.kills:
            soak.one_run(seed)
            seed += 1
    counts = soak.counts
    print(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items()))
    if settings.save:
        run = {key: getattr(settings, key) for key in ("mix", "processes", "checkpoint_every")}
        print(f"wrote {save('soak_resume', vars(settings), [run | counts])}")
    return int(counts["differences"] + counts["lost_files"] > 0)


if __name__ == "__main__":
    sys.exit(main())
