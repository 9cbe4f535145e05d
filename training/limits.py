"""What this machine is too small for, which would end the process in the middle of a line, or never.

Estimates are lower bounds: what they refuse cannot run. Imports nothing heavy.
"""

from __future__ import annotations

import os

from dali_msda.processors import cgroup_folders, read_text

# Threads that wait for a slow disk may be more than there are processors, but not by any factor: DALI
# allocates for each, and aborts the process where the system gives it no more of them.
_WORKERS, _WORKERS_PER_PROCESSOR = 64, 4
# DALI makes so many batches ahead (see `pipelines.records.Execution`), of float32 with three channels.
_BATCHES, _PIXEL_BYTES = 2, 12


def most_workers() -> int:
    """How many threads of DALI a process may have."""
    return max(_WORKERS, _WORKERS_PER_PROCESSOR * (os.cpu_count() or 1))


def free_memory() -> int | None:
    """Bytes that this machine and the control groups of this process can give, swap included; None: unknown.

    Of a control group's limit nothing is subtracted: what counts against it may be files that were read.
    """
    lines = (line.partition(":") for line in (read_text("/proc/meminfo") or "").splitlines())
    sizes = {
        name: 1024 * int(rest.split()[0]) for name, _, rest in lines if name in ("MemAvailable", "SwapFree")
    }
    limits = [sum(sizes.values())] if "MemAvailable" in sizes else []
    for folder in cgroup_folders():
        # Version 2 and version 1; "max" stands for no limit.
        content = read_text(f"{folder}/memory.max") or read_text(f"{folder}/memory.limit_in_bytes") or ""
        if content.strip().isdigit():
            limits.append(int(content))
    return min(limits, default=None)


def batch_bytes(image_size: int) -> int:
    """Bytes of memory per image of a batch, in the loader alone."""
    return _BATCHES * _PIXEL_BYTES * image_size**2


def require_memory(
    needed: int,
    images: int,
    processes: int,
    *,
    sized: tuple[str, int],
    batch: tuple[str, int],
    purpose: str,
) -> None:
    """Raise ValueError where the images of a pass do not fit into the memory that is free.

    Parameters
    ----------
    needed : int
        Bytes per image.
    images : int
        Of a pass of one process.
    processes : int
        On this machine.
    sized, batch : tuple of str and int
        The option with the size of the images and the one with their number, and their values.
    purpose : str
        What takes the memory.
    """
    free = free_memory()
    if free is None or needed * images * processes <= free:
        return
    memory = f"but {free / 2**30:.1f} GiB of memory are free"
    # Of a single image it is the size that is wrong.
    if needed * processes * 2 > free:
        name, value = sized
        raise ValueError(
            f"{name} must be smaller: {purpose} takes at least {needed / 2**30:.1f} GiB per image, {memory};"
            f" got {value}"
        )
    name, value = batch
    raise ValueError(
        f"{name} must be smaller: {purpose} takes at least {needed * images / 2**30:.1f} GiB for the {images}"
        f" images of a pass, {memory}; got {value}"
    )
