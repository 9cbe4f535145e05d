"""Seconds of training steps on a CPU beside other busy processes, by how OpenMP's threads wait.

    python -m benchmarks.bench_busy [--image-size 64] [--batch-size 32] [--neighbours 0 1 2 3]

PyTorch's threads spin after each parallel part of a step, for they expect the next one soon: on a core that
somebody else needs. How long they do is GOMP_SPINCOUNT, which libgomp reads when it is loaded, so every
policy has a process of its own: the trainer's step, ResNet-50 and HMix, with its loader. All processes take
turns, and wait for theirs without load. A neighbour is a process that computes all the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.common import save, spread
from benchmarks.tables import show
from pipelines.demo_data import make_demo_dataset

ROOT = Path(__file__).resolve().parent.parent

# A policy: GOMP_SPINCOUNT and OMP_NUM_THREADS, None where the variable is left out.
_POLICIES: tuple[tuple[int | None, int | None], ...] = (
    (None, None),
    (0, None),
    (10000, None),
    (30000, None),
    (None, 1),
)
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    image_size: int = 64
    """Side of the images in pixels."""

    batch_size: int = 32
    """Images per step."""

    neighbours: tuple[int, ...] = (0, 1, 2, 3)
    """Numbers of busy processes beside the training."""

    steps: int = 1
    """Steps per turn."""

    rounds: int = 7
    """Turns of every policy with every number of neighbours."""


class Training:
    """A process that trains when it is asked to, with variables that libgomp reads at its start."""

    def __init__(self, data: Path, settings: Settings, policy: tuple[int | None, int | None]) -> None:
        kept = {name: it for name, it in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        chosen = {name: str(it) for name, it in zip(_VARIABLES, policy, strict=True) if it is not None}
        code = "import sys; from benchmarks.bench_busy import serve; serve(*sys.argv[1:])"
        sizes = (settings.image_size, settings.batch_size, settings.steps)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(data), *map(str, sizes)],
            cwd=ROOT,
            env=kept | chosen,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self) -> float:
        """Seconds per step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def serve(data: str, image_size: str, batch_size: str, steps: str) -> None:
    """Take steps for every line of standard input, and print the seconds of one."""
    from benchmarks.bench_train import create_learner, repeat_epochs
    from dali_msda import Mixing
    from training.bad_files import Quarantine
    from training.config import Config, resolve
    from training.distributed import Processes
    from training.hardware import choose_hardware
    from training.inputs import list_dataset
    from training.loaders import Loaders

    config = Config(
        data=Path(data),
        mixing=Mixing("hmix"),
        image_size=int(image_size),
        batch_size=int(batch_size),
        epochs=1000,
        device="cpu",
    )
    config = choose_hardware(resolve(config), Processes())
    images = list_dataset(config, Path(data), Processes())["train"]
    quarantine = Quarantine(Path(os.devnull), skip=False)
    loader = Loaders(config, Processes(), quarantine, dict).train(images)
    learner = create_learner(config, len(images.classes), len(loader))
    batches = repeat_epochs(loader)
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(steps)):
            learner.train_step(batches)
        print((time.perf_counter() - began) / int(steps), flush=True)


def _busy() -> subprocess.Popen[bytes]:
    """A process that computes all the time."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    found: dict[tuple[int, tuple[int | None, int | None]], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as processes:
        data = make_demo_dataset(Path(temporary) / "set", train_per_class=40, val_per_class=1)
        trainings = {policy: Training(data, settings, policy) for policy in _POLICIES}
        for training in trainings.values():
            processes.callback(training.close)
            training.turn()  # makes everything
        for _ in range(settings.rounds):
            for count in settings.neighbours:
                with ExitStack() as beside:
                    for _ in range(count):
                        neighbour = beside.enter_context(_busy())
                        beside.callback(neighbour.kill)
                    for policy, training in trainings.items():
                        found.setdefault((count, policy), []).append(training.turn())
    records = [
        {
            "neighbours": count,
            "spin_count": spin_count,
            "threads": threads,
            "step_s": spread(values),
        }
        for (count, (spin_count, threads)), values in found.items()
    ]
    path = save("bench_busy", vars(settings), records)
    print(f"{show('busy', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
