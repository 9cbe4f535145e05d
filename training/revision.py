"""The versions of a run: of the code, as git has it, and of the packages it uses."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

# DALI is built for one version of CUDA: one of them is installed.
DALI_PACKAGES = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")


def git(root: Path, *arguments: str) -> str | None:
    """What a command of git prints in the checkout `root`; None where there is no git, or no checkout."""
    try:
        run = subprocess.run(
            ["git", "-C", str(root.resolve()), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def commit(root: Path) -> str | None:
    """The commit of the code in `root`; an image or a copy has no git, and is told by DALI_MSDA_COMMIT."""
    return git(root, "rev-parse", "HEAD") or os.environ.get("DALI_MSDA_COMMIT") or None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
