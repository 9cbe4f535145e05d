"""Named runs: ``train_imagenet.py --config NAME --data DIR``.

A file holds one run, ``CONFIG``, named as the file; or several, in a dict ``CONFIGS``, whose names begin with
the file's: ``CONFIGS["hmix"]`` of ``imagenet.py`` is ``imagenet_hmix``. Results, time and hardware are in the
file's docstring. A new file in this folder needs no other change.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.config import Config


def names() -> list[str]:
    """List the named runs, sorted."""
    return sorted(name for file in _files() for name in _runs(file))


def named_run(name: str) -> Config:
    """Load the settings of a named run.

    Raises
    ------
    ValueError
        The name is unknown; the message lists all names.
    """
    for file in _files():
        # Other files are not imported: a mistake in one of them does not matter here.
        if f"{name}_".startswith(f"{file}_") and name in (runs := _runs(file)):
            return runs[name]
    close = difflib.get_close_matches(name, names(), n=2)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise ValueError(f"--config must be one of {', '.join(names())}; got {name}{hint}")


def _files() -> list[str]:
    """The files with runs, without their extension."""
    files = (path for folder in __path__ for path in Path(folder).glob("*.py"))
    return sorted(path.stem for path in files if not path.stem.startswith("_"))


def _runs(file: str) -> Mapping[str, Config]:
    """The runs in a file by their full names."""
    module = importlib.import_module(f".{file}", __name__)
    if hasattr(module, "CONFIG"):
        return {file: module.CONFIG}
    return {f"{file}_{name}": config for name, config in module.CONFIGS.items()}


def option_from_argv(arguments: Sequence[str], *options: str) -> str | None:
    """Find the value of an option, under any of these names, on a command line; the last one counts."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in options:
            found = value if equals else next(iter(arguments[position + 1 :]), "")
    return found
