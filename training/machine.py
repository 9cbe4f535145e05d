"""What a published result is of: command, date, code and machine. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dali_msda.processors import usable_processors

from .revision import DALI_PACKAGES, commit, git, installed_versions

_PACKAGES = (
    *DALI_PACKAGES,
    "numba",
    "numpy",
    "torch",
    "triton",
    "torchvision",
    "timm",
    "kornia",
    "ffcv",
    "pillow",
    "simplejpeg",
)


def describe_machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, cores in use, memory, GPU and versions; `packages` are named beside the usual ones."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    names = (*_PACKAGES, *packages)
    installed = installed_versions(names)
    versions = {"python": platform.python_version()}
    versions |= {name: installed.get(name, "not installed") for name in names}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": usable_processors(),
        "memory_GiB": round(pages / 2**30, 1),
        "gpu": _gpu(),
        "versions": versions,
    }


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def describe_code(root: Path = Path(__file__).parent.parent) -> dict[str, Any]:
    """The commit of the code, and whether there are uncommitted changes; None if unknown.

    New results do not count as changes.
    """
    changes = git(root, "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return {"commit": commit(root), "dirty": None if changes is None else changes != ""}


def describe_command(
    module: str, now: datetime | None = None, arguments: Sequence[str] | None = None
) -> dict[str, Any]:
    """The date and the command of a result: ``python -m MODULE ARGUMENTS``, by default this process's.

    Of paths only the last part is kept, because results are published.
    """
    now = datetime.now().astimezone() if now is None else now
    arguments = sys.argv[1:] if arguments is None else arguments
    command = ["python", "-m", module, *map(_without_folders, arguments)]
    return {"date": now.isoformat(timespec="seconds"), "command": " ".join(command)}


def _without_folders(argument: str) -> str:
    if "/" not in argument:
        return argument
    option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{Path(value).name}"
