"""Named runs: ``train_imagenet.py --config NAME --data DIR``.

Each is a file with its settings in ``CONFIG`` and result, time and hardware in its docstring.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from training.config import Config


def names() -> list[str]:
    """List the named runs, sorted."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(path.stem for path in files if not path.stem.startswith("_"))


def named_run(name: str) -> Config:
    """Load the settings of a named run.

    Raises
    ------
    ValueError
        The name is unknown; the message lists all names.
    """
    if name not in names():
        raise ValueError(f"--config must be one of {', '.join(names())}; got {name}")
    config = importlib.import_module(f".{name}", __name__).CONFIG
    assert isinstance(config, Config)
    return config


def option_from_argv(arguments: Sequence[str], *options: str) -> str | None:
    """Find the value of an option, under any of these names, on a command line; the last one counts."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in options:
            found = value if equals else next(iter(arguments[position + 1 :]), "")
    return found
