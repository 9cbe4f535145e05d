"""Stage: the settings of DALI's decoder, swept over one folder of JPEGs.

Reading, decoding a random crop and resizing it, as the training pipeline does; nothing is mixed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nvidia.dali import fn, pipeline_def, types

from benchmarks.common import spread
from benchmarks.gpu_day.stage import Job, release_memory, used_memory
from dali_msda.processors import usable_processors
from pipelines.imagenet import decoder_arguments

# What the pipelines give the decoder, and what is varied: name, and the arguments in place of theirs.
_SMALL = {"preallocate_width_hint": 0, "preallocate_height_hint": 0}
_NO_PADDING = {"device_memory_padding": 0, "host_memory_padding": 0}


@dataclass(frozen=True)
class Setting:
    """Settings of the decoder."""

    device: str
    threads: int
    load: float | None = None
    preallocated: bool = True
    padded: bool = True

    def arguments(self) -> dict[str, Any]:
        """For the decoder."""
        if self.device == "cpu":
            return decoder_arguments("cpu", 0.0)
        assert self.load is not None
        found = decoder_arguments("gpu", self.load)
        found |= {} if self.preallocated else _SMALL
        return found | ({} if self.padded else _NO_PADDING)


def settings(job: Job) -> list[Setting]:
    """What is measured, the most telling first."""
    cores = usable_processors()
    if job.device == "cpu":
        return [Setting("cpu", threads) for threads in sorted({1, cores})]
    threads = min(8, cores)
    found = [Setting("mixed", threads, load) for load in (0.65, 0.0, 0.9, 0.35, 0.5, 0.8, 1.0)]
    found += [
        Setting("mixed", threads, 0.65, preallocated=False),
        Setting("mixed", threads, 0.65, preallocated=False, padded=False),
        Setting("cpu", threads),
    ]
    found += [Setting("mixed", other, 0.65) for other in (2, 4, cores) if other not in (threads,)]
    return [*found, Setting("mixed", cores, 0.9), Setting("mixed", 2, 0.9), Setting("cpu", cores)]


def _measure(job: Job, setting: Setting, batch_size: int, rounds: int) -> tuple[list[float], int | None]:
    """Images/s of every round, and the GPU's memory in use while the pipeline is there."""
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
    built.build()
    rates = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(batches):
            built.run()
        job.synchronize()
        if number:
            rates.append(batches * batch_size / (time.perf_counter() - began))
    return rates, used_memory(job)


def run(job: Job) -> None:
    """Each setting in a pipeline of its own; the first again at the end, to see how the machine drifts."""
    batch_size, rounds = (8, 2) if job.quick else (256, 4)
    every = settings(job)
    for again, setting in [*((False, setting) for setting in every), (True, every[0])]:
        fields = vars(setting) | {"batch_size": batch_size, "repeated": again}
        if job.has(**fields):
            continue
        release_memory(job)
        before = used_memory(job)
        with job.part(**fields):
            rates, after = _measure(job, setting, batch_size, rounds)
            memory = None if before is None or after is None else round((after - before) / 2**20)
            job.add(**fields, images_per_s=spread(rates), memory_MiB=memory)
