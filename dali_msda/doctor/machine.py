"""What this machine offers a data loader: processors, memory, disk, and a place for compiled code.

Every probe works on every machine: what cannot be read is reported as unknown.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import sys
import tempfile
from typing import Any

from ..processors import allowed_processors, cgroup_folders, cpu_quota, read_text, usable_processors
from .report import NOTE, OK, PROBLEM, Finding, run_probe

_GIB = 2**30
# NCCL and PyTorch's DataLoader exchange data there; Docker's default of 64 MiB soon fills up.
_SMALL_SHARED_MEMORY = _GIB
# A checkpoint of ResNet-50 with momentum is 0.2 GB, and several are kept.
_LITTLE_DISK, _NO_DISK = 5 * _GIB, _GIB // 2
_PYTHONS = ((3, 11), (3, 13))


def findings(gpus: int) -> list[Finding]:
    """All findings of this module, for a machine with that number of usable GPUs."""
    return [
        run_probe("Python", check_python),
        run_probe("processors", lambda: check_processors(gpus)),
        run_probe("memory", check_memory),
        run_probe("shared memory", lambda: check_shared_memory(gpus)),
        run_probe("disk", check_disk),
        run_probe("Numba", check_numba),
    ]


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"


def check_python() -> Finding:
    """Interpreter and platform: DALI has wheels for CPython on Linux."""
    version = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    data = {"version": version, "system": system, "executable": sys.executable}
    text = f"{platform.python_implementation()} {version} on {system}"
    if not _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]:
        return Finding(NOTE, "Python", text, "tested on Python 3.11 to 3.13: use one of these", data)
    if system != "Linux x86_64" or struct.calcsize("P") != 8:
        return Finding(NOTE, "Python", text, "tested on Linux x86_64 only", data)
    return Finding(OK, "Python", text, data=data)


def check_processors(gpus: int) -> Finding:
    """Processors of the machine, for this process, and per GPU."""
    total, usable, quota = os.cpu_count() or 1, usable_processors(), cpu_quota()
    allowed = allowed_processors()
    data: dict[str, Any] = {"machine": total, "allowed": allowed, "quota": quota, "usable": usable}
    text = f"{usable} of {total} processors usable"
    if quota is not None and quota < allowed:
        todo = (
            f"the control group allows {quota:g} of the {allowed} processors that programs count: give the"
            f" pipeline num_threads={usable} (the trainer --workers {usable}), or raise the limit (docker run"
            " --cpus, Kubernetes limits.cpu)"
        )
        return Finding(NOTE, "processors", text, todo, data)
    if gpus and usable < 4 * gpus:
        todo = "below 4 per GPU, decoding may be the bottleneck; docs/gpu.md shows what to set"
        return Finding(NOTE, "processors", f"{text}, for {gpus} GPU{'s' * (gpus > 1)}", todo, data)
    return Finding(OK, "processors", text, data=data)


def check_memory() -> Finding:
    """Memory of the machine and of the control group, whose limit psutil does not know."""
    try:
        total: int | None = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        total = None
    contents = [
        read_text(f"{folder}/{name}") or ""
        for folder in cgroup_folders()
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    limits = [int(content) for content in contents if content.strip().isdigit()]
    limit = total if total is None else min([total, *limits])
    data = {"bytes": total, "limit_bytes": limit}
    if total is None or limit is None:
        return Finding(NOTE, "memory", "unknown", "the system does not report it", data)
    text = _gib(total) + (f", of which the control group allows {_gib(limit)}" if limit < total else "")
    if limit < 4 * _GIB:
        return Finding(NOTE, "memory", text, "below 4 GiB, use small batches (batch_size=32)", data)
    return Finding(OK, "memory", text, data=data)


def _size_and_free(path: str) -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return usage.total, usage.free


def check_shared_memory(gpus: int) -> Finding:
    """/dev/shm: processes of one machine exchange data there (NCCL, PyTorch's DataLoader)."""
    space = _size_and_free("/dev/shm")
    if space is None:
        text, todo = "there is no /dev/shm", "mount a tmpfs there: NCCL and PyTorch's DataLoader use it"
        return Finding(PROBLEM if gpus > 1 else NOTE, "shared memory", text, todo, {"bytes": None})
    size, free = space
    data = {"bytes": size, "free_bytes": free}
    text = f"{_gib(size)} in /dev/shm, {_gib(free)} free"
    if free < _SMALL_SHARED_MEMORY:
        todo = (
            "docker run --shm-size=8g, or --ipc=host; in Kubernetes an emptyDir with medium: Memory at"
            " /dev/shm. Only several processes need it"
        )
        return Finding(PROBLEM if gpus > 1 else NOTE, "shared memory", text, todo, data)
    return Finding(OK, "shared memory", text, data=data)


def check_disk() -> Finding:
    """Free disk in the working directory, where results go, and in the temporary folder."""
    spaces = {"here": _size_and_free("."), "temporary": None}
    try:
        spaces["temporary"] = _size_and_free(tempfile.gettempdir())
    except FileNotFoundError:  # no temporary folder is writable
        return Finding(PROBLEM, "disk", "no temporary folder is writable", "set TMPDIR to a writable folder")
    data = {name: space and space[1] for name, space in spaces.items()}
    known = {name: space[1] for name, space in spaces.items() if space}
    text = ", ".join(f"{_gib(free)} free {_PLACES[name]}" for name, free in known.items()) or "unknown"
    least = min(known.values(), default=0)
    if least < _NO_DISK:
        return Finding(PROBLEM, "disk", text, "free some space, or use another disk (TMPDIR)", data)
    if least < _LITTLE_DISK:
        return Finding(
            NOTE, "disk", text, "a checkpoint of ResNet-50 is 0.2 GB; results go to --output", data
        )
    return Finding(OK, "disk", text, data=data)


_PLACES = {"here": "in the working directory", "temporary": "in the temporary folder"}


def check_numba() -> Finding:
    """Numba, and the folder where it caches the compiled kernels."""
    try:
        import numba
    except Exception as error:  # of any type: a broken installation may fail anywhere
        todo = "pip install numba: it compiles the mixing on the CPU (backend='graph' works without it)"
        return Finding(PROBLEM, "Numba", f"cannot be imported: {error}", todo, {"version": None})
    data: dict[str, Any] = {"version": numba.__version__, "cache": None}
    if getattr(numba.config, "DISABLE_JIT", 0):
        todo = "unset NUMBA_DISABLE_JIT: the kernels only exist compiled"
        return Finding(PROBLEM, "Numba", f"{numba.__version__}, switched off", todo, data)
    try:
        # Nothing is compiled here: Numba looks for a folder as soon as it is asked to cache.
        data["cache"] = numba.njit(cache=True)(_gib).stats.cache_path
    except RuntimeError as error:
        todo = "set NUMBA_CACHE_DIR to a writable folder; until then every process recompiles"
        return Finding(NOTE, "Numba", f"{numba.__version__}, cannot cache: {error}", todo, data)
    return Finding(OK, "Numba", f"{numba.__version__}, caches compiled code", data=data)
