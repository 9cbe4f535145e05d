"""Where a run begins: anew, or at a checkpoint of the same configuration."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoints import Checkpoints, unpack, verify
from .inputs import METRICS, require_new


class Start(NamedTuple):
    """Where a run begins.

    Attributes
    ----------
    folder : Path
        Its output folder.
    source : Path or None
        The output folder of the run that is resumed, None for a run that starts.
    data : bytes
        The checkpoint, verified; empty for a run that starts.
    """

    folder: Path
    source: Path | None
    data: bytes


def find_start(resume: str | None, output: Path | None, new_folder: Path) -> Start:
    """What ``--resume`` and ``--output`` ask for; says which checkpoints are passed over.

    Parameters
    ----------
    resume : str or None
        "auto": the newest good checkpoint of `output`, or none; the path of a checkpoint; None: none.
    output : Path or None
        The output folder as asked for.
    new_folder : Path
        The one of a new run without `output`.

    Raises
    ------
    ValueError
        The checkpoint is damaged, or the output folder holds what would be written over.
    """
    if resume is None:
        require_new(output or new_folder)
        return Start(output or new_folder, None, b"")
    if resume == "auto":
        assert output is not None  # checked with the settings
        path, data, damaged = Checkpoints(output, 1).newest()
        for error in damaged:
            print(f"--resume auto: {error}; passing it over", file=sys.stderr, flush=True)
        print(
            f"--resume auto: {f'going on from {path}' if path else 'no checkpoint yet, starting'}", flush=True
        )
        return Start(output, output if path else None, data)
    path = Path(resume)
    data = path.read_bytes()
    verify(data, path)
    source = path.parent if (path.parent / METRICS).exists() else path.parent.parent
    folder = output or source
    if not folder.exists() or not folder.samefile(source):
        require_new(folder)
        return Start(folder, source, data)
    step = unpack(data)["step"]
    if later := [other for number, other in Checkpoints(folder, 1).numbered().items() if number > step]:
        raise ValueError(
            f"--resume {path} would write over {later[-1]}, which is later; give a new folder as --output"
        )
    return Start(source, source, data)


def check_same(
    then: dict[str, Any], now: dict[str, Any], *, free: Collection[str], may_grow: Collection[str]
) -> None:
    """Raise ValueError, which lists the differing settings, unless a run with `now` may go on from `then`.

    Parameters
    ----------
    then, now : dict
        Settings by name, those of the checkpoint and those that are asked for.
    free : collection of str
        Settings that may differ.
    may_grow : collection of str
        Numbers that may be higher.
    """
    differing = [
        f"{name} {then[name]} there, {now[name]} here"
        for name in now
        if name not in free and then[name] != now[name]
        if name not in may_grow or now[name] < then[name]
    ]
    if differing:
        higher = ", ".join(may_grow)
        raise ValueError(
            f"--resume needs a checkpoint of the same configuration ({higher} may be higher); this one has "
            + "; ".join(differing)
        )
