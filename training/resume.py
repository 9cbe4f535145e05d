"""Where a run begins: at step 0, or at a checkpoint of the same configuration."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoints import Checkpoints, unpack
from .classes import require_same_classes
from .config import FREE_OPTIONS, OWN_OPTIONS, Config, option
from .distributed import Processes
from .inputs import METRICS, Listing, require_new, require_usable
from .options import saved_settings, settings
from .output import Claim


class Start(NamedTuple):
    """Where a run begins.

    Attributes
    ----------
    folder : Path
        Its output folder.
    source : Path or None
        The output folder of the resumed run, None for a new run.
    data : bytes
        The checkpoint, verified; empty for a new run.
    """

    folder: Path
    source: Path | None
    data: bytes

    def content(self) -> dict[str, Any] | None:
        """The content of the checkpoint; None for a new run."""
        return unpack(self.data) if self.data else None


def find_start(resume: str | None, output: Path | None, new_folder: Path, claim: Claim) -> Start:
    """Find the start that ``--resume`` and ``--output`` ask for; prints which checkpoints it skips.

    Parameters
    ----------
    resume : str or None
        "auto": the newest good checkpoint of `output`, or none; the path of a checkpoint; None: none.
    output : Path or None
        The output folder as given.
    new_folder : Path
        The output folder of a new run without `output`.
    claim : Claim
        Locks the output folder, if it holds a run, before anything in it is read.

    Raises
    ------
    ValueError
        The checkpoint is damaged, the output folder holds files that would be overwritten, or another process
        writes to it.
    """
    if resume is None:
        require_new(output or new_folder)
        return Start(output or new_folder, None, b"")
    if resume == "auto":
        assert output is not None  # checked with the settings
        require_usable(output)
        claim.take(output)
        path, data, damaged = Checkpoints(output, 1).newest()
        for error in damaged:
            print(f"--resume auto: skipping a damaged checkpoint: {error}", file=sys.stderr, flush=True)
        print(
            f"--resume auto: {f'resuming from {path}' if path else 'no checkpoint yet, starting'}", flush=True
        )
        return Start(output, output if path else None, data)
    path = Path(resume)
    source = path.parent if (path.parent / METRICS).exists() else path.parent.parent
    folder = output or source
    require_usable(folder)
    continues = folder.exists() and folder.samefile(source)
    if continues:
        claim.take(source)
    data = path.read_bytes()
    step = unpack(data, path)["progress"]["step"]
    if not continues:
        require_new(folder)
        return Start(folder, source, data)
    if later := [other for number, other in Checkpoints(folder, 1).numbered().items() if number > step]:
        raise ValueError(
            f"--resume {path} would overwrite {later[-1]}, which is later; choose a new folder as --output"
        )
    return Start(source, source, data)


@dataclass(frozen=True)
class Identity:
    """What identifies a run. It is saved, and a checkpoint with another identity is refused.

    Attributes
    ----------
    config : Config
    images : dict
        SHA-256 of the list of images, by split.
    classes : tuple of str
        Class names, in the order of the model's outputs.
    processes : Processes
    """

    config: Config
    images: dict[str, str]
    classes: tuple[str, ...]
    processes: Processes

    @classmethod
    def of(cls, config: Config, images: Listing, processes: Processes) -> Identity:
        """The identity of a run on these images."""
        digests = {split: listed.digest() for split, listed in images.items()}
        return cls(config, digests, images["train"].classes, processes)

    def require_same(self) -> None:
        """Raise ValueError, in all processes, unless it is the same in all; paths may differ."""
        named = _named(settings(self.config), self.images)
        self.processes.require_same({name: it for name, it in named.items() if name not in OWN_OPTIONS})

    def state_dict(self) -> dict[str, Any]:
        """Settings, images, classes and number of processes."""
        return {
            "settings": settings(self.config),
            "images": self.images,
            "classes": list(self.classes),
            "processes": self.processes.size,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Raise ValueError unless this run may continue from the checkpoint; nothing is loaded."""
        if state_dict["processes"] != self.processes.size:
            raise ValueError(
                "--resume needs as many processes as the run began with,"
                f" {state_dict['processes']}; got {self.processes.size}: another number would change the"
                " shards, and with them the run"
            )
        if (classes := state_dict["classes"]) is None:
            self.processes.say(
                "The checkpoint is from an earlier version and names no classes: only the lists of images"
                " are compared"
            )
        else:
            require_same_classes(self.classes, classes, "--resume needs a checkpoint of these classes;")
        then = _named(saved_settings(state_dict["settings"]), state_dict["images"])
        now = _named(settings(self.config), self.images)
        check_same(then, now, free=FREE_OPTIONS, may_grow=("--epochs",))


def _named(options: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    named = {option(name): value for name, value in options.items()}
    return named | {f"images in {split}/ (SHA-256 of the list)": it for split, it in images.items()}


def check_same(
    then: dict[str, Any], now: dict[str, Any], *, free: Collection[str], may_grow: Collection[str]
) -> None:
    """Raise ValueError, listing the differing settings, unless a run with `now` may continue from `then`.

    Parameters
    ----------
    then, now : dict
        Settings by name, in the checkpoint and in this run.
    free : collection of str
        Settings that may differ.
    may_grow : collection of str
        Numeric settings that may be higher.
    """
    differing = [
        f"{name} {then[name]} in the checkpoint, {now[name]} here"
        for name in now
        if name not in free and then[name] != now[name]
        if name not in may_grow or now[name] < then[name]
    ]
    if differing:
        higher = ", ".join(may_grow)
        raise ValueError(
            f"--resume needs a checkpoint of the same configuration ({higher} may be higher); got "
            + "; ".join(differing)
        )
