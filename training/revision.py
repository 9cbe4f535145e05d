"""The versions a run uses: the git commit of the code, and its packages."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Each is built for one CUDA version; one of them is installed.
DALI_PACKAGES = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")


def git(root: Path, *arguments: str) -> str | None:
    """The output of a git command in the checkout `root`; None without git or a checkout."""
    try:
        run = subprocess.run(
            ["git", "-C", str(root.resolve()), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def commit(root: Path) -> str | None:
    """The commit of the code in `root`, or DALI_MSDA_COMMIT, for images and copies without git."""
    return git(root, "rev-parse", "HEAD") or os.environ.get("DALI_MSDA_COMMIT") or None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
