"""The run without ``--data``, scaled to the speed of the machine."""

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
from .methods import needs_model
from .model import build_model, outputs_of
from .trial import refusals


class Size(NamedTuple):
    """What is scaled: image size in pixels, and epochs."""

    image_size: int
    epochs: int


# The largest that fits into SECONDS, else the last. docs/training.md gives their top-1.
SIZES = (Size(64, 8), Size(64, 4), Size(48, 3))
# For steps and evaluations, without generating the images and compiling kernels, which happen once, before.
SECONDS = 200.0
# A forward pass takes about this share of a step.
_FORWARD = 0.35
_CLASSES = 10  # of the generated images


def data_folder(config: Config, processes: Processes) -> Path:
    """The data set; one process per machine generates the images if --data is not given."""
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
    """The settings with a size for this machine, or that of the checkpoint `saved`; expected minutes."""
    if saved is not None:
        return with_size(config, Size(*(saved["run"]["settings"][name] for name in Size._fields))), 0.0
    config, seconds = fit_to_machine(config, processes, len(images["train"]), len(images["val"]))
    return config, seconds / 60


def fit_to_machine(
    config: Config, processes: Processes, images: int, val_images: int
) -> tuple[Config, float]:
    """Measure steps and choose the size of the run, the same in all processes.

    Parameters
    ----------
    config : Config
        With the device and precision of the run.
    processes : Processes
    images, val_images : int
        Numbers of training and validation images.

    Returns
    -------
    config : Config
        With the chosen image size and epochs.
    seconds : float
        Expected time of the training.
    """
    steps = images // config.batch_size + val_images / config.batch_size * _FORWARD  # per epoch

    @functools.cache
    def step_seconds(image_size: int) -> float:
        mine = measured_step(config, image_size, config.batch_size // processes.size)
        # The slowest process decides; processes exchange whole numbers, over the CPU.
        return processes.max_over_ranks(round(mine * 1e6)) / 1e6

    for size in SIZES:
        seconds = size.epochs * steps * step_seconds(size.image_size)
        if seconds <= SECONDS:
            break
    return with_size(config, size), seconds


def with_size(config: Config, size: Size) -> Config:
    """The settings with another size; validation images follow if they had the size of training images.

    The last epoch is without mixing, from which so short a run gains most.
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
    """Median seconds of a step of this process on random images, without the first step."""
    device, sized = torch.device(config.device), dataclasses.replace(config, image_size=image_size)
    model = build_model(config.arch, _CLASSES, aux_heads=bool(config.aux_loss_weight)).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, fused=True)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    passes = 2 if needs_model(config.mixing) else 1  # of the model: the first one for its gradients
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(passes):
            with refusals(sized, "image_size"), autocast(config, device):
                found = outputs_of(model(images))
            sum(functional.cross_entropy(logits.float(), labels) for logits in found).backward()  # type: ignore[union-attr]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[steps // 2]
