"""Stage: mixing alone, on images already on the device.

This project with every method, a DALI pipeline that passes the images through, PyTorch's copy on the device
(the lower bound: every byte read and written once), and the peers on the same tensors. All take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
# What "auto" chooses on a GPU, with and without Numba.
BACKENDS = ("hybrid", "graph")


class Case(NamedTuple):
    """One kind of images."""

    batch_size: int
    dtype: str
    layout: str
    size: int = 224


def cases(job: Job) -> list[Case]:
    """The kinds of images, most important first."""
    if job.quick:
        return [Case(4, "uint8", "HWC", 32), Case(4, "float16", "CHW", 32)]
    found = [Case(256, "uint8", "HWC"), Case(256, "float16", "CHW"), Case(256, "float32", "HWC")]
    found += [Case(batch_size, "uint8", "HWC") for batch_size in (64, 512, 128)]
    return [*found, Case(256, "uint8", "CHW"), Case(256, "float16", "HWC"), Case(256, "float32", "CHW")]


def _pipeline(job: Job, method: str, backend: str, images: torch.Tensor, case: Case) -> Pipeline:
    """Build a pipeline that mixes the same images repeatedly; "none" passes them through."""
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


def peers(images: torch.Tensor, labels: torch.Tensor, case: Case) -> Iterator[tuple[Record, Any]]:
    """Other libraries that mix PyTorch batches, N x C x H x W; an ImportError for one not installed."""

    def fields(library: str, mix: str, mode: str | None = None) -> Record:
        return {"library": library, "mix": mix, "mode": mode}

    floats = case.dtype != "uint8"  # torchvision's Mixup and timm's tensor Mixup accept only floats
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        yield fields("torchvision", "cutmix"), error
    else:
        yield fields("torchvision", "cutmix"), partial(v2.CutMix(num_classes=CLASSES), images, labels)
        if floats:
            yield fields("torchvision", "mixup"), partial(v2.MixUp(num_classes=CLASSES), images, labels)
    if not floats:
        return
    try:
        from timm.data.mixup import Mixup
    except ImportError as error:
        yield fields("timm", "mixup"), error
        return
    for method, alphas in (("mixup", (1.0, 0.0)), ("cutmix", (0.0, 1.0))):
        for mode in ("batch", "elem"):
            mix = Mixup(*alphas, mode=mode, num_classes=CLASSES, label_smoothing=0.0)
            yield fields("timm", method, mode), partial(mix, images, labels)


def _dali_peak(job: Job, build: Callable[[], Pipeline]) -> int | None:
    """MiB used by a pipeline running alone; None without a GPU.

    DALI keeps memory once allocated, so this is the peak. Pipelines that take turns would not show it:
    one reuses what another releases.
    """
    if job.device == "cpu":
        return None
    release_memory(job)
    before = used_memory(job)
    pipeline = build()
    for _ in range(3):
        pipeline.run()
    job.synchronize()
    after = used_memory(job)
    assert before is not None
    assert after is not None
    return (after - before) >> 20


def _torch_peak(job: Job, run: Callable[[], Any]) -> int | None:
    """Peak MiB that PyTorch allocates during one call; None without a GPU."""
    if job.device == "cpu":
        run()
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    job.synchronize()
    return (torch.cuda.max_memory_allocated() - before) >> 20


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
    peaks: list[int | None] = [None]
    for method, backend in [("none", "auto"), *product(mixing(), BACKENDS)]:
        fields = {"library": "dali-msda", "mix": method, "mode": backend}
        with job.part(**fields, **where):
            build = partial(_pipeline, job, method, backend, images, case)
            peak = _dali_peak(job, build) if case.batch_size == 256 else None
            pipeline = build()
            pipeline.run()
            peaks.append(peak)
            timed.append(Timed(fields, pipeline.run, repeat))
    # The same pixels for the peers, in the layout of a training loop.
    planes = (images.permute(0, 3, 1, 2) if case.layout == "HWC" else images).contiguous()
    for fields, run in peers(planes, labels, case):
        with job.part(**fields, **where):
            if isinstance(run, ImportError):
                raise run
            peaks.append(_torch_peak(job, run))
            timed.append(Timed(fields, run, repeat))
    rounds = 2 if job.quick else 7
    seconds = in_turns(job, timed, rounds)
    works: list[Record] = [
        device_work(job, contender.run, 5) if case.batch_size == 256 else {"gpu_ms": None, "kernels": None}
        for contender in timed
    ]
    # All at once, so that on a restart a case has either all its records or none.
    for contender, spread, peak, work in zip(timed, seconds, peaks, works, strict=True):
        job.add(**contender.fields, **where, seconds=spread, peak_MiB=peak, **work)


def run(job: Job) -> None:
    """Measure every case."""
    for case in cases(job):
        if job.has(library="torch", mix="copy", **case._asdict()):
            continue
        with job.part(**case._asdict()):
            _measure(job, case)
