"""Named runs: ``train_imagenet.py --config NAME --data DIR``.

One file each, with its settings in ``CONFIG``; its docstring tells result, time and hardware.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from training.config import Config


def names() -> list[str]:
    """The named runs, sorted."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(path.stem for path in files if not path.stem.startswith("_"))


def named_run(name: str) -> Config:
    """The settings of a named run.

    Raises
    ------
    ValueError
        There is none of that name; the message lists them.
    """
    if name not in names():
        raise ValueError(f"--config must be one of {', '.join(names())}; got {name}")
    config = importlib.import_module(f".{name}", __name__).CONFIG
    assert isinstance(config, Config)
    return config


def asked_for(arguments: Sequence[str], *options: str) -> str | None:
    """What follows an option, of any of these names, on a command line; the last one counts."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in options:
            found = value if equals else next(iter(arguments[position + 1 :]), "")
    return found
