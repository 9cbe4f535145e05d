"""What git knows of the code."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(root: Path, *arguments: str) -> str | None:
    """What a command of git prints in the checkout `root`; None where there is no git, or no checkout."""
    try:
        run = subprocess.run(
            ["git", "-C", str(root.resolve()), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None
