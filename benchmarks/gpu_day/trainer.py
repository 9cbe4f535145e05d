"""Stage: the trainer's own ResNet-50 step, fed by the loader and by one batch kept in memory.

bf16 if the device supports it, channels_last. ``memory`` is the upper bound: nothing is loaded or mixed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.bench_train import Batch, create_learner, repeat_epochs
from benchmarks.common import Record, spread
from benchmarks.gpu_day.stage import Job, device_work, used_memory
from dali_msda import Mixing
from training.bad_files import Quarantine
from training.config import Config, resolve
from training.distributed import Processes
from training.hardware import choose_hardware
from training.inputs import list_dataset
from training.learner import Learner
from training.loaders import Loaders, Timed


def _config(job: Job, *, compile: bool) -> Config:
    """The trainer's configuration for this device."""
    return Config(
        data=job.data,
        arch="resnet18" if job.quick else "resnet50",
        image_size=32 if job.quick else 224,
        batch_size=8 if job.quick else 256,
        epochs=1000,
        device=job.torch_device,  # type: ignore[arg-type]
        compile=compile,
    )


def _in_memory(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def _turn(job: Job, learner: Learner, source: Timed, steps: int) -> tuple[float, float]:
    """Time some steps, in seconds; also the share of time they waited for batches."""
    source.reset()
    job.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        learner.train_step(source)
    job.synchronize()
    taken = time.perf_counter() - began
    return taken, source.waited_s / taken


def _measure(job: Job, *, compile: bool) -> None:
    common = _config(job, compile=compile)
    sources: dict[str, Timed] = {}
    classes = 0
    batch: Batch | None = None
    for method in ("none", "hmix"):
        config = choose_hardware(resolve(dataclasses.replace(common, mixing=Mixing(method))), Processes())
        images = list_dataset(config, job.data, Processes())["train"]
        loader = Loaders(config, Processes(), Quarantine(Path(os.devnull), skip=False), dict).train(images)
        batches = repeat_epochs(loader)
        images_, targets = next(batches)
        batch = images_.clone(memory_format=torch.preserve_format), targets.clone()
        classes = len(images.classes)
        sources[method] = Timed(batches)
    assert batch is not None
    sources = {"memory": Timed(_in_memory(batch)), **sources}
    learner = create_learner(config, classes, 1000)
    if job.device == "gpu":
        torch.cuda.reset_peak_memory_stats()
    steps, rounds = (2, 2) if job.quick else (8, 7)
    began = time.perf_counter()
    for source in sources.values():
        _turn(job, learner, source, 2)
    first = time.perf_counter() - began
    rates: dict[str, list[float]] = {name: [] for name in sources}
    waits: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            taken, waited = _turn(job, learner, source, steps)
            rates[name].append(steps * config.batch_size / taken)
            waits[name].append(waited)
    peak = torch.cuda.max_memory_allocated() / 2**20 if job.device == "gpu" else None
    used = used_memory(job)
    for name, source in sources.items():
        work = device_work(job, lambda source=source: learner.train_step(source), 3)  # type: ignore[misc]
        record: Record = {
            "batches_from": "memory" if name == "memory" else "loader",
            "mix": "none" if name == "memory" else name,
            "compile": compile,
            "arch": config.arch,
            "amp": config.amp,
            "image_size": config.image_size,
            "batch_size": config.batch_size,
            "workers": config.workers,
            "images_per_s": spread(rates[name]),
            "data_wait": spread(waits[name]),
            "torch_peak_MiB": peak,
            "all_memory_MiB": None if used is None else used / 2**20,
            "first_steps_s": first,
        }
        job.add(**record, **work)


def run(job: Job) -> None:
    """Measure without and with compilation."""
    for compile in (False, True):
        if job.quick and compile:
            continue  # minutes of compiling, for the same code
        if not job.has(compile=compile, batches_from="loader", mix="hmix"):
            with job.part(compile=compile):
                _measure(job, compile=compile)
