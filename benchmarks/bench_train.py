"""Images per second of training with real loading, compared with the same model on one batch in memory.

    python -m benchmarks.bench_train --data DIR [--arch resnet50] [--image-size 224] [--batch-size 64]

Times the trainer's own step: forward, backward, optimiser. ``memory`` repeats one batch; each method loads,
mixes and trains with its own loader. All take turns on the same model. The share lost to loading and mixing
is 1 - (images/s of the method) / (images/s from memory).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.amp.grad_scaler import GradScaler

from benchmarks.common import save, spread
from benchmarks.tables import show
from dali_msda import Mixing
from dali_msda.methods import TABLE
from training.bad_files import GuardedLoader, Quarantine
from training.config import Config, resolve
from training.distributed import Processes
from training.hardware import choose_hardware, start_device
from training.inputs import list_dataset
from training.learner import Learner, create_model, create_schedule
from training.loaders import Loaders
from training.mixers import create_mixer
from training.optimizers import create_optimizer
from training.progress import Progress

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    data: Path
    """Folder with train/ and val/."""

    arch: str = "resnet50"
    """Any classification model of torchvision."""

    image_size: int = 224
    """Side of the images in pixels."""

    batch_size: int = 64
    """Images per step."""

    steps: int = 4
    """Steps per turn."""

    rounds: int = 7
    """Turns of every contender, after one for warm-up."""


def repeat_epochs(loader: GuardedLoader) -> Iterator[Batch]:
    """The batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def create_learner(config: Config, num_classes: int, batches: int) -> Learner:
    """Create the trainer's own model and step."""
    processes, progress = Processes(), Progress()
    device = start_device(config, processes)
    model = create_model(config, [str(label) for label in range(num_classes)], device, processes, None)
    progress.plan(config, batches)
    optimizer = create_optimizer(config, model, processes)
    scaler = GradScaler(device.type, enabled=config.amp == "fp16")
    schedule = create_schedule(config, optimizer, progress)
    mixer = create_mixer(config, processes, model, scaler, batches)
    return Learner(config, processes, model, optimizer, scaler, schedule, mixer=mixer)


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    common = Config(
        data=settings.data,
        arch=settings.arch,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        epochs=1000,
    )
    loaders: dict[str, GuardedLoader] = {}
    for method in TABLE:
        config = choose_hardware(resolve(dataclasses.replace(common, mixing=Mixing(method))), Processes())
        images = list_dataset(config, settings.data, Processes())["train"]
        quarantine = Quarantine(Path(os.devnull), skip=False)
        loaders[method] = Loaders(config, Processes(), quarantine, dict).train(images)
    learner = create_learner(config, len(images.classes), len(loaders["none"]))
    first = next(repeat_epochs(loaders["none"]))
    batch = first[0].clone(memory_format=torch.preserve_format), first[1].clone()
    sources: dict[str, Iterator[Batch]] = {"memory": itertools.repeat(batch)}
    sources |= {method: repeat_epochs(loader) for method, loader in loaders.items()}
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(settings.rounds + 1):
        for name, batches in sources.items():
            began = time.perf_counter()
            for _ in range(settings.steps):
                loss = learner.train_step(batches)
            float(loss)  # wait for the device
            if number:
                rates[name].append(settings.steps * settings.batch_size / (time.perf_counter() - began))
    records = [
        {
            "batches_from": "memory" if name == "memory" else "loader",
            "mix": "none" if name == "memory" else name,
            "arch": settings.arch,
            "image_size": settings.image_size,
            "batch_size": settings.batch_size,
            "images_per_s": spread(values),
        }
        for name, values in rates.items()
    ]
    path = save("bench_train", vars(settings), records)
    print(f"{show('train', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
