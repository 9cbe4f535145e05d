"""Stage: complete training loaders that put normalised, mixed batches on the device.

This project with every method, DALI followed by mixing in PyTorch (as in NVIDIA's examples), torchvision and
timm, on the same JPEGs with the same number of threads or worker processes. Each has its own process and
takes turns with the others.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.bench_loader import serve
from benchmarks.common import spread
from benchmarks.gpu_day.stage import Job, device_work, release_memory, used_memory
from benchmarks.loaders import Contender, Settings, contenders
from dali_msda.processors import usable_processors

# Groups that run side by side, most important first; each begins with the reference for the others.
# If the GPU's memory is too small for a group, its last loaders are left out.
GROUPS = (
    *(("dali-none", "dali-hmix", "dali-then-torch-mixup", "timm-mixup", "torchvision-mixup", "dali-plain"),),
    *(("dali-none", "dali-mixup", "dali-cutmix", "dali-stochastic", "dali-gmix", "dali-then-torch-cutmix"),),
)
# Batches made ahead: of this project's pipelines without mixing and with HMix, in a group of their own.
DEPTHS = (2, 3, 4)
QUICK = ("dali-none", "dali-hmix", "dali-then-torch-mixup", "timm-mixup")
_PASS_S = 1.0
_REFILL_S = 0.3
# Memory of a process's CUDA context.
_CONTEXT_MIB = 700


def _answer(pipe: Connection, seconds: float) -> Any:
    """Receive from a loader's process; raise if it has died, or sends nothing for `seconds`."""
    if not pipe.poll(seconds):
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("its process died") from None


def _settings(job: Job, prefetch_queue_depth: int | None = None) -> Settings:
    return Settings(
        prefetch_queue_depth=prefetch_queue_depth,
        data=job.data / "train",
        batch_size=8 if job.quick else 256,
        image_size=32 if job.quick else 224,
        workers=min(8, usable_processors()),
        device=job.device,
    )


def _fields(name: str, settings: Settings) -> dict[str, Any]:
    contender: Contender = contenders()[name]
    return {
        "loader": contender.loader,
        "mix": contender.mix,
        "device": settings.device,
        "batch_size": settings.batch_size,
        "image_size": settings.image_size,
        "workers": settings.workers,
        "prefetch_queue_depth": settings.prefetch_queue_depth,
    }


def _rates(job: Job, turns: Sequence[tuple[str, Settings]], group: int) -> None:
    """Measure images per second, in turns."""
    context = multiprocessing.get_context("spawn")
    servers: dict[int, tuple[Any, Connection]] = {}
    for turn, (name, settings) in enumerate(turns):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, settings, theirs))
        process.start()
        theirs.close()
        servers[turn] = process, ours
    answers: dict[int, Any] = {}

    def ask(turn: int, action: Callable[[Connection], Any]) -> bool:
        """Run an action on a loader; drop the loader if it fails."""
        try:
            answers[turn] = action(servers[turn][1])
        except (RuntimeError, TimeoutError, OSError) as error:
            job.add(**_fields(*turns[turn]), error=str(error))
            servers.pop(turn)[0].kill()
            return False
        return True

    def timed_pass(images: int, pipe: Connection) -> Any:
        pipe.send(images)
        return _answer(pipe, 60)

    try:
        first: dict[int, float] = {}
        for turn in range(len(turns)):
            if ask(turn, lambda pipe: _answer(pipe, 90)):
                first[turn] = answers[turn]
        few = 2 * turns[0][1].batch_size
        images: dict[int, int] = {}
        for turn in list(servers):
            if ask(turn, partial(timed_pass, 4 * few)) and ask(turn, partial(timed_pass, 4 * few)):
                images[turn] = max(few, 0 if job.quick else int(answers[turn][0] * _PASS_S))
        rates: dict[int, list[float]] = {turn: [] for turn in servers}
        for _ in range(2 if job.quick else 5):
            for turn in list(servers):
                if ask(turn, partial(timed_pass, images[turn])):
                    rates[turn].append(answers[turn][0])
                time.sleep(0.0 if job.quick else _REFILL_S)
        for turn in servers:
            job.add(
                **_fields(*turns[turn]),
                group=group,
                images_per_s=spread(rates[turn]),
                first_batch_s=first[turn],
                host_peak_MiB=answers[turn][1],
            )
    finally:
        for process, _ in servers.values():
            process.kill()


def _measure_gpu(job: Job, name: str, settings: Settings) -> None:
    """Measure how long the GPU works per batch, and the pipeline's memory."""
    before = used_memory(job)
    batches = contenders()[name].batches(settings)
    for _ in range(4):
        next(batches)
    found = device_work(job, lambda: next(batches), 2 if job.quick else 8)
    after = used_memory(job)
    memory = None if before is None or after is None else (after - before) >> 20
    job.add(section="gpu work", **_fields(name, settings), memory_MiB=memory, **found)


def _fit_in_memory(job: Job, names: tuple[str, ...]) -> tuple[str, ...]:
    """As many loaders as fit into the GPU's memory, assuming each DALI loader needs as much as the first."""
    each = next(record["memory_MiB"] for record in job.found() if record.get("section") == "gpu work")
    if each is None:
        return names
    import torch

    room = int(0.85 * torch.cuda.mem_get_info()[0]) >> 20
    of_dali = [name for name in names if name.startswith("dali")]
    left_out = of_dali[max(1, room // (each + _CONTEXT_MIB)) :]
    for name in left_out:
        job.add(section="left out", loader=name, error=f"{each} MiB each: no room beside the others")
    return tuple(name for name in names if name not in left_out)


def run(job: Job) -> None:
    """Measure the rates of all, then with other numbers of batches made ahead, then the GPU work."""
    groups = (QUICK,) if job.quick else GROUPS
    names = tuple(dict.fromkeys(name for group in groups for name in group))
    settings = _settings(job)
    if not job.has(section="gpu work", **_fields(names[0], settings)):
        _measure_gpu(job, names[0], settings)
        release_memory(job)
    for number, group in enumerate(groups):
        if not job.has(loader="dali", mix="none", section=None, group=number):
            _rates(job, [(name, settings) for name in _fit_in_memory(job, group)], number)
    number = len(groups)
    if not job.quick and not job.has(loader="dali", mix="none", section=None, group=number):
        turns = [(name, _settings(job, depth)) for depth in DEPTHS for name in ("dali-none", "dali-hmix")]
        _rates(job, turns, number)
    for name in names:
        if name.startswith("dali") and not job.has(section="gpu work", **_fields(name, settings)):
            with job.part(section="gpu work", **_fields(name, settings)):
                release_memory(job)
                _measure_gpu(job, name, settings)
