"""How many processors this process may use, by its affinity and the quota of its control group.

Our own code, because neither the standard library nor psutil reads the quota. Imports nothing heavy.
"""

from __future__ import annotations

import os
from pathlib import Path


def read_text(path: str) -> str | None:
    """Read a system file; None if that fails."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def cgroup_folders() -> list[Path]:
    """Folders of this process's control groups, both versions, each from the innermost to the root."""
    found = []
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        for mount in (controllers, *controllers.split(",")):
            # In a container the path is the host's, and the container's own group appears at the root.
            parts = [part for part in path.split("/") if part and part != ".."]
            folder = Path("/sys/fs/cgroup", mount)
            found += [folder.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return list(dict.fromkeys(found))


def cpu_quota() -> float | None:
    """Number of processors' time that the control groups allow, None without a limit."""
    limits = []
    for folder in cgroup_folders():
        # Version 2: "max 100000" or "200000 100000". Version 1: two files, -1 means no limit.
        content = read_text(f"{folder}/cpu.max") or " ".join(
            read_text(f"{folder}/{name}") or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        )
        numbers = content.split()
        if len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
            limits.append(int(numbers[0]) / int(numbers[1]))
    return min(limits, default=None)


def allowed_processors() -> int:
    """Processors that this process may run on by its affinity, which is what programs count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_processors() -> int:
    """Processors that this process may use, considering the quota; at least 1."""
    count, quota = allowed_processors(), cpu_quota()
    return max(1, count if quota is None else min(count, int(quota)))
