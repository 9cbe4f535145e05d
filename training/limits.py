"""Refuses what this machine is too small for, which would kill the process without a message, or hang it.

Estimates are lower bounds: what they refuse cannot run. Imports nothing heavy.
"""

from __future__ import annotations

import os

from dali_msda.processors import cgroup_folders, read_text

# More threads than processors can help with a slow disk, but not without limit: DALI allocates memory for
# each, and aborts the process if the system refuses another thread.
_WORKERS, _WORKERS_PER_PROCESSOR = 64, 4
# Batches that DALI makes ahead (see `pipelines.records.Execution`); bytes of a float32 RGB pixel.
_BATCHES, _PIXEL_BYTES = 2, 12


def most_workers() -> int:
    """The most DALI threads that a process may have."""
    return max(_WORKERS, _WORKERS_PER_PROCESSOR * (os.cpu_count() or 1))


def free_memory() -> int | None:
    """Free bytes on this machine and in this process's control groups, swap included; None if unknown.

    Nothing is subtracted from a control group's limit: its usage may be cached files.
    """
    lines = (line.partition(":") for line in (read_text("/proc/meminfo") or "").splitlines())
    sizes = {
        name: 1024 * int(rest.split()[0]) for name, _, rest in lines if name in ("MemAvailable", "SwapFree")
    }
    limits = [sum(sizes.values())] if "MemAvailable" in sizes else []
    for folder in cgroup_folders():
        # Version 2 and version 1; "max" means no limit.
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
    """Raise ValueError if the images of a pass do not fit into free memory.

    Parameters
    ----------
    needed : int
        Bytes per image.
    images : int
        Per pass of one process.
    processes : int
        On this machine.
    sized, batch : tuple of str and int
        The options that set the size and the number of images, with their values.
    purpose : str
        What takes the memory.
    """
    free = free_memory()
    if free is None or needed * images * processes <= free:
        return
    memory = f"but {free / 2**30:.1f} GiB of memory are free"
    # If not even two images fit, the size is wrong.
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
