"""The cost of a training step with PuzzleMix, compared with HMix.

    python -m benchmarks.bench_puzzlemix --data DIR [--arch preact_resnet18] [--image-size 32]

The trainer's own step with its own loader: HMix is mixed in the pipeline, PuzzleMix in the step, with and
without the transport of patches. All take turns, each on the same model and on the same images in every
round. Times of the process's cores (``cpu_s``) say more than those of the clock (``step_s``) where other
processes use the machine.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.bench_train import create_learner, repeat_epochs
from benchmarks.common import Record, save, spread
from benchmarks.tables import show
from dali_msda import Mixing
from training.bad_files import Quarantine
from training.config import Config, resolve
from training.distributed import Processes
from training.hardware import choose_hardware
from training.inputs import list_dataset
from training.loaders import Loaders
from training.methods import mixing_of


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    data: Path
    """Folder with train/ and val/."""

    arch: str = "preact_resnet18"
    """Any model of the trainer."""

    image_size: int = 32
    """Side of the images in pixels."""

    batch_size: int = 100
    """Images per step."""

    threads: int | None = None
    """PyTorch's threads. Default: its own choice."""

    steps: int = 4
    """Steps per turn: PuzzleMix draws its number of blocks for each."""

    rounds: int = 5
    """Turns of every contender, after one for warm-up."""


CONTENDERS: dict[str, Mixing] = {
    "hmix": Mixing("hmix"),
    "puzzlemix, nothing moved": mixing_of("puzzlemix", transport_size=0),
    "puzzlemix": mixing_of("puzzlemix"),
}


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    common = Config(
        data=settings.data,
        arch=settings.arch,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        epochs=1000,
    )
    contenders = {}
    for name, mixing in CONTENDERS.items():
        config = choose_hardware(resolve(dataclasses.replace(common, mixing=mixing)), Processes())
        images = list_dataset(config, settings.data, Processes())["train"]
        loader = Loaders(config, Processes(), Quarantine(Path(os.devnull), skip=False), dict).train(images)
        contenders[name] = create_learner(config, len(images.classes), len(loader)), repeat_epochs(loader)
    clock: dict[str, list[float]] = {name: [] for name in contenders}
    cores: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(settings.rounds + 1):
        for name, (learner, batches) in contenders.items():
            if learner.mixer is not None:  # the same draws in every round
                learner.mixer.load_state_dict({"batch": 0})
            began, began_cores = time.perf_counter(), time.process_time()
            for _ in range(settings.steps):
                loss = learner.train_step(batches)
            float(loss)  # wait for the device
            if number:
                clock[name].append((time.perf_counter() - began) / settings.steps)
                cores[name].append((time.process_time() - began_cores) / settings.steps)
    records: list[Record] = [
        {
            "contender": name,
            "arch": settings.arch,
            "image_size": settings.image_size,
            "batch_size": settings.batch_size,
            "precision": config.amp,
            "step_s": spread(clock[name]),
            "cpu_s": spread(cores[name]),
            # Round by round, so that a slow phase of the machine counts on both sides.
            "ratio": spread([mine / hmix for mine, hmix in zip(clock[name], clock["hmix"], strict=True)]),
            "cpu_ratio": spread([mine / hmix for mine, hmix in zip(cores[name], cores["hmix"], strict=True)]),
        }
        for name in contenders
    ]
    path = save("bench_puzzlemix", vars(settings), records)
    print(f"{show('puzzlemix', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
