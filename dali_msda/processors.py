"""How many processors this process may use: where it may run, and the quota of its control group.

By hand, because neither the standard library nor psutil looks at the quota. Imports nothing heavy.
"""

from __future__ import annotations

import os
from pathlib import Path


def text_of(path: str) -> str | None:
    """The content of a file of the system, None where it cannot be read."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def cgroup_folders() -> list[Path]:
    """Folders of this process's control groups, from its own to the root, of both versions."""
    found = []
    for line in (text_of("/proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        for mount in (controllers, *controllers.split(",")):
            # In a container the path is the host's; what it sees at the root is its own group.
            parts = [part for part in path.split("/") if part and part != ".."]
            folder = Path("/sys/fs/cgroup", mount)
            found += [folder.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return list(dict.fromkeys(found))


def cpu_quota() -> float | None:
    """Processors' worth of time that the control groups allow, None without a limit."""
    limits = []
    for folder in cgroup_folders():
        # Version 2: "max 100000" or "200000 100000". Version 1 has two files, and -1 for no limit.
        content = text_of(f"{folder}/cpu.max") or (
            f"{text_of(f'{folder}/cpu.cfs_quota_us') or ''} {text_of(f'{folder}/cpu.cfs_period_us') or ''}"
        )
        numbers = content.split()
        if len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
            limits.append(int(numbers[0]) / int(numbers[1]))
    return min(limits, default=None)


def allowed_processors() -> int:
    """Processors that the system lets this process run on, which is what programs count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_processors() -> int:
    """Processors that this process may use, the quota included; at least 1."""
    count, quota = allowed_processors(), cpu_quota()
    return max(1, count if quota is None else min(count, int(quota)))
