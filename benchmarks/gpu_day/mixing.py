"""Stage: mixing alone, on images that lie on the device already.

This project's graph with every method, DALI's pipeline that hands the images through, PyTorch's copy on the
device (the floor: every byte read and written once), and the peers on the same tensors. All take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from benchmarks.common import Record, mixing
from benchmarks.gpu_day.stage import Job, Timed, device_work, in_turns, release_memory, used_memory

DTYPES = {
    "uint8": (torch.uint8, types.UINT8),
    "float16": (torch.float16, types.FLOAT16),
    "float32": (torch.float32, types.FLOAT),
}
CLASSES = 1000
# What "auto" takes on a GPU, and what it takes there without Numba.
BACKENDS = ("hybrid", "graph")


class Case(NamedTuple):
    """Images of one kind."""

    batch_size: int
    dtype: str
    layout: str
    size: int = 224


def cases(job: Job) -> list[Case]:
    """The most telling first."""
    if job.quick:
        return [Case(4, "uint8", "HWC", 32), Case(4, "float16", "CHW", 32)]
    found = [Case(256, "uint8", "HWC"), Case(256, "float16", "CHW"), Case(256, "float32", "HWC")]
    found += [Case(batch_size, "uint8", "HWC") for batch_size in (64, 512, 128)]
    return [*found, Case(256, "uint8", "CHW"), Case(256, "float16", "HWC"), Case(256, "float32", "CHW")]


def _pipeline(job: Job, method: str, backend: str, images: torch.Tensor, case: Case) -> Pipeline:
    """Mixes the same images again and again; with "none" it hands them through."""
    labels = [np.array([i % CLASSES], np.int32) for i in range(case.batch_size)]
    given: Any = images if job.device == "gpu" else images.numpy()
    pipeline = Pipeline(case.batch_size, 4, job.device_id, seed=3, prefetch_queue_depth=2)
    with pipeline:
        data = fn.external_source(
            source=lambda: given,
            device=job.device,
            layout=case.layout,
            dtype=DTYPES[case.dtype][1],
            no_copy=True,
        )
        targets = fn.external_source(source=lambda: labels, dtype=types.INT32)
        mixed = msda.mix(
            data, targets, method=method, num_classes=CLASSES, layout=case.layout, backend=backend
        )
        pipeline.set_outputs(*mixed)
    pipeline.build()
    return pipeline


def _peers(images: torch.Tensor, labels: torch.Tensor, case: Case) -> Iterator[tuple[Record, Any]]:
    """What mixes batches of PyTorch's: N x C x H x W."""
    from torchvision.transforms import v2

    def fields(library: str, mix: str, mode: str | None = None) -> Record:
        return {"library": library, "mix": mix, "mode": mode}

    yield fields("torchvision", "cutmix"), partial(v2.CutMix(num_classes=CLASSES), images, labels)
    if case.dtype == "uint8":
        return  # Mixup of torchvision and timm's of tensors take floats
    yield fields("torchvision", "mixup"), partial(v2.MixUp(num_classes=CLASSES), images, labels)
    try:
        from timm.data.mixup import Mixup
    except ImportError:
        yield fields("timm", "mixup"), None
        return
    for method, alphas in (("mixup", (1.0, 0.0)), ("cutmix", (0.0, 1.0))):
        for mode in ("batch", "elem"):
            mix = Mixup(*alphas, mode=mode, num_classes=CLASSES, label_smoothing=0.0)
            yield fields("timm", method, mode), partial(mix, images, labels)


def _measure(job: Job, case: Case) -> None:
    release_memory(job)
    torch.manual_seed(0)
    side = case.size
    shape = (case.batch_size, side, side, 3) if case.layout == "HWC" else (case.batch_size, 3, side, side)
    numbers = torch.randint(0, 256, shape, device=job.torch_device)
    dtype = DTYPES[case.dtype][0]
    images = numbers.to(torch.uint8) if case.dtype == "uint8" else (numbers / 255).to(dtype)
    del numbers
    labels = torch.arange(case.batch_size, device=job.torch_device) % CLASSES
    out = torch.empty_like(images)
    where = case._asdict() | {"bytes": images.numel() * images.element_size()}
    repeat = 1 if job.quick else 8
    timed = [Timed({"library": "torch", "mix": "copy", "mode": None}, lambda: out.copy_(images), repeat)]
    memory: list[int | None] = [None]
    alive = []
    for method, backend in [("none", "auto"), *product(mixing(), BACKENDS)]:
        fields = {"library": "dali-msda", "mix": method, "mode": backend}
        with job.part(**fields, **where):
            before = used_memory(job)
            pipeline = _pipeline(job, method, backend, images, case)
            for _ in range(3):
                pipeline.run()
            job.synchronize()
            after = used_memory(job)
            memory.append(None if before is None or after is None else (after - before) >> 20)
            alive.append(pipeline)
            timed.append(Timed(fields, pipeline.run, repeat))
    # The peers' view of the same pixels, laid out as a training loop has them.
    planes = images.permute(0, 3, 1, 2) if case.layout == "HWC" else images
    peers = planes.contiguous()
    for fields, run in _peers(peers, labels, case):
        with job.part(**fields, **where):
            if run is None:
                raise ImportError("timm is not installed")
            run()
            timed.append(Timed(fields, run, repeat))
            memory.append(None)
    rounds = 2 if job.quick else 7
    seconds = in_turns(job, timed, rounds)
    for contender, spread, grown in zip(timed, seconds, memory, strict=True):
        work: dict[str, Any] = {"gpu_ms": None, "kernels": None}
        if case.batch_size == 256:
            work = device_work(job, contender.run, 5)
        job.add(**contender.fields, **where, seconds=spread, memory_MiB=grown, **work)


def run(job: Job) -> None:
    """Every case."""
    for case in cases(job):
        if job.has(library="torch", mix="copy", **case._asdict()):
            continue
        with job.part(**case._asdict()):
            _measure(job, case)
