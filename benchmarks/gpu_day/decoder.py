"""Stage: a sweep of decoder settings over one folder of JPEGs.

It reads, decodes a random crop and resizes it, as the training pipeline does; nothing is mixed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nvidia.dali import fn, pipeline_def, types

from benchmarks.common import Record, spread
from benchmarks.gpu_day.stage import Job, release_memory, used_memory
from dali_msda.processors import usable_processors
from pipelines.crops import decoder_arguments

# Arguments that replace the pipelines' own in some settings.
_SMALL = {"preallocate_width_hint": 0, "preallocate_height_hint": 0}
_NO_PADDING = {"device_memory_padding": 0, "host_memory_padding": 0}


@dataclass(frozen=True)
class Setting:
    """Decoder settings."""

    device: str
    threads: int
    load: float | None = None
    preallocated: bool = True
    padded: bool = True

    def arguments(self) -> dict[str, Any]:
        """The decoder's arguments."""
        if self.device == "cpu":
            return decoder_arguments("cpu", 0.0)
        assert self.load is not None
        found = decoder_arguments("gpu", self.load)
        found |= {} if self.preallocated else _SMALL
        return found | ({} if self.padded else _NO_PADDING)


def settings(job: Job) -> list[Setting]:
    """The settings to measure, most important first."""
    cores = usable_processors()
    if job.device == "cpu":
        return [Setting("cpu", threads) for threads in sorted({1, cores})]
    threads = min(8, cores)
    bare = {"preallocated": False, "padded": False}
    found = [Setting("mixed", threads, 0.65), Setting("mixed", threads, 0.8)]
    found += [Setting("mixed", threads, 0.8, **bare), Setting("mixed", 2, 0.65), Setting("mixed", 2, 0.8)]
    found += [Setting("mixed", 2, 0.9), Setting("cpu", threads)]
    found += [Setting("mixed", threads, load) for load in (0.0, 0.9, 0.35, 0.5, 1.0)]
    found += [Setting("mixed", threads, 0.8, preallocated=False), Setting("mixed", threads, 0.65, **bare)]
    found += [Setting("mixed", other, load) for other in (4, cores) for load in (0.65, 0.8)]
    return [*found, Setting("cpu", cores)]


def _measure(job: Job, setting: Setting, batch_size: int, rounds: int) -> tuple[list[float], Record]:
    """Images/s of every round; start-up time, slowest batch, and memory while it runs."""
    batches = 3 if job.quick else 8

    @pipeline_def
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(file_root=str(job.data / "train"), random_shuffle=True, name="Reader")
        images = fn.decoders.image_random_crop(encoded, **setting.arguments(), random_area=[0.08, 1.0])
        images = images.gpu() if setting.device == "cpu" and job.device == "gpu" else images
        return fn.resize(images, size=[224, 224], interp_type=types.INTERP_LINEAR, antialias=True)

    built = pipeline(
        batch_size=batch_size,
        num_threads=setting.threads,
        device_id=job.device_id,
        seed=1,
        prefetch_queue_depth=2,
    )
    began = time.perf_counter()
    built.build()
    built.run()
    job.synchronize()
    first, slowest = time.perf_counter() - began, 0.0
    rates = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(batches):
            before = time.perf_counter()
            built.run()
            slowest = max(slowest, time.perf_counter() - before)
        job.synchronize()
        if number:
            rates.append(batches * batch_size / (time.perf_counter() - began))
    return rates, {"used": used_memory(job), "first_batch_s": first, "slowest_batch_s": slowest}


def run(job: Job) -> None:
    """Measure each setting in its own pipeline; the first again at the end, to see the machine's drift."""
    batch_size, rounds = (8, 2) if job.quick else (256, 4)
    every = settings(job)
    for again, setting in [*((False, setting) for setting in every), (True, every[0])]:
        fields = vars(setting) | {"batch_size": batch_size, "repeated": again}
        if job.has(**fields):
            continue
        release_memory(job)
        before = used_memory(job)
        with job.part(**fields):
            rates, found = _measure(job, setting, batch_size, rounds)
            after = found.pop("used")
            memory = None if before is None or after is None else round((after - before) / 2**20)
            job.add(**fields, images_per_s=spread(rates), memory_MiB=memory, **found)
