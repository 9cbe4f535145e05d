"""The run without ``--data``: how much of it there is depends on how fast the machine is."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from pipelines.demo_data import make_demo_dataset

from .config import Config
from .distributed import Processes
from .hardware import autocast
from .inputs import Listing
from .model import build_model, outputs_of
from .trial import refusals


class Size(NamedTuple):
    """What is scaled: pixels and passes over the images."""

    image_size: int
    epochs: int


# The largest that fits into SECONDS is taken, else the last. docs/training.md states their top-1.
SIZES = (Size(64, 8), Size(64, 4), Size(48, 3))
# For steps and evaluations. Before them images are made and kernels compiled, once.
SECONDS = 200.0
# A forward pass takes about this much of a step.
_FORWARD = 0.35
_CLASSES = 10  # those of the made images


def data_folder(config: Config, processes: Processes) -> Path:
    """The data set; the made images are made by one process of a machine."""
    if config.data is not None:
        return config.data
    processes.say(
        "No --data given: training on a small generated data set, with settings scaled to this"
        f" machine.\nImages: {config.demo_data}. For your own: --data DIR, where DIR holds train/ and"
        " val/ with one folder of images per class."
    )
    if processes.local_rank > 0:
        processes.barrier()
    data = make_demo_dataset(config.demo_data, workers=config.workers)
    if processes.local_rank == 0:
        processes.barrier()
    return data


def choose_size(
    config: Config, processes: Processes, images: Listing, saved: dict[str, Any] | None
) -> tuple[Config, float]:
    """The settings with a size for this machine, or with that of the checkpoint `saved`; minutes it takes."""
    if saved is not None:
        return with_size(config, Size(*(saved["run"]["settings"][name] for name in Size._fields))), 0.0
    config, seconds = fit_to_machine(config, processes, len(images["train"]), len(images["val"]))
    return config, seconds / 60


def fit_to_machine(
    config: Config, processes: Processes, images: int, val_images: int
) -> tuple[Config, float]:
    """Measure steps and choose the size of the run, in all processes alike.

    Parameters
    ----------
    config : Config
        With the device and precision of the run.
    processes : Processes
    images, val_images : int
        How many there are to train on and to evaluate.

    Returns
    -------
    config : Config
        With the chosen image size and epochs.
    seconds : float
        How long the training should take.
    """
    steps = images // config.batch_size + val_images / config.batch_size * _FORWARD  # in an epoch

    @functools.cache
    def step_seconds(image_size: int) -> float:
        mine = measured_step(config, image_size, config.batch_size // processes.size)
        # The slowest process decides; over the CPU, as a whole number.
        return processes.max_over_ranks(round(mine * 1e6)) / 1e6

    for size in SIZES:
        seconds = size.epochs * steps * step_seconds(size.image_size)
        if seconds <= SECONDS:
            break
    return with_size(config, size), seconds


def with_size(config: Config, size: Size) -> Config:
    """The settings with another size; images to evaluate stay as large as those to train on, if they were.

    The last pass is without mixing, which so short a run gains most from.
    """
    schedule = config.mix_schedule
    if config.mixing.method != "none" and schedule.off_epoch is None:
        schedule = dataclasses.replace(schedule, off_epoch=size.epochs - 1)
    follows = config.val_image_size in (None, config.image_size)
    return dataclasses.replace(
        config,
        image_size=size.image_size,
        val_image_size=size.image_size if follows else config.val_image_size,
        epochs=size.epochs,
        mix_schedule=schedule,
    )


def measured_step(config: Config, image_size: int, batch_size: int, steps: int = 3) -> float:
    """Seconds that a step of this process takes, on random images: the median, without the first one."""
    device, sized = torch.device(config.device), dataclasses.replace(config, image_size=image_size)
    model = build_model(config.arch, _CLASSES, aux_heads=bool(config.aux_loss_weight)).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, fused=True)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with refusals(sized, "image_size"), autocast(config, device):
            found = outputs_of(model(images))
        sum(functional.cross_entropy(logits.float(), labels) for logits in found).backward()  # type: ignore[union-attr]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[steps // 2]
