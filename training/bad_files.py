"""Training goes on when a file cannot be decoded.

DALI cannot skip a sample: it raises, and the pipeline is lost. Here the file is found, written down in
quarantine.jsonl, and the next good one stands in for it in the list, so that the order of all others stays.
The pipeline is built anew where it was, with its random state, and the stand-in is left out of the batch.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.examine import examine
from pipelines.loader import DALILoader
from pipelines.sources import Order, Source

# An error shows up when DALI makes a batch, which is some batches before it is asked for it.
LOOK_AHEAD = 6


class BadFileError(RuntimeError):
    """A file cannot be decoded; the message names it."""


class Quarantine:
    """The bad files of a run: a line in ``quarantine.jsonl`` for each that was found.

    Parameters
    ----------
    path : Path
        The file; lines are added, by every process of the run.
    skip : bool
        Go on without bad files; otherwise the first one is an error.
    """

    def __init__(self, path: Path, *, skip: bool) -> None:
        self._path = path
        self._skip = skip

    def add(self, name: str, reason: str, **where: Any) -> None:
        """Write a line; :class:`BadFileError` where bad files are not to be skipped."""
        if not self._skip:
            raise BadFileError(f"{name} cannot be decoded ({reason}); --bad-files skip goes on without it")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"path": name, "reason": reason, **where}) + "\n"
        # One write at the end of the file: lines of several processes do not mix.
        with open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), "wb", 0) as file:
            file.write(line.encode())


class GuardedLoader:
    """A loader that survives files that cannot be decoded.

    Its pipeline is built when it is first needed, so that there is time for :meth:`load_state_dict`.

    Parameters
    ----------
    images : Source
        Without stand-ins.
    make : callable
        Builds a loader from the source with stand-ins and a state (None for the beginning).
    order : Order
        In which the loaders read.
    quarantine : Quarantine
        Where bad files are written down.
    where : callable
        What to write beside them: epoch and step.
    resumable : bool
        Whether the loaders have a state; otherwise a new one is asked for the batches that were taken, again.
    """

    def __init__(
        self,
        images: Source,
        make: Callable[[Source, dict[str, Any] | None], DALILoader],
        order: Order,
        quarantine: Quarantine,
        where: Callable[[], dict[str, Any]],
        *,
        resumable: bool = True,
    ) -> None:
        self._source = self._images = images
        self._make = make
        self._order = order
        self._quarantine = quarantine
        self._where = where
        self._resumable = resumable
        self._state: dict[str, Any] | None = None
        self._taken = 0  # batches of this epoch, of loaders without a state

    @functools.cached_property
    def _loader(self) -> DALILoader:
        return self._built()

    def __len__(self) -> int:
        """Batches of this epoch."""
        return len(self._loader)

    @property
    def longest(self) -> int:
        """See :attr:`.loader.DALILoader.longest`."""
        return self._loader.longest

    @property
    def images(self) -> Source:
        """The source, with stand-ins for what cannot be decoded, as far as that was found."""
        return self._images

    @property
    def left_out(self) -> set[str]:
        """The names of the samples that cannot be decoded, as far as that was found."""
        return {self._source.name(position) for position in self._images.stand_ins}

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`.loader.DALILoader.state`; with the positions of the stand-ins."""
        return {**(self._state or self._loader.state()), "stand_ins": sorted(self._images.stand_ins)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Continue after the batch that came last before :meth:`state_dict`."""
        self._images = self._source.without(state_dict["stand_ins"])
        self._state = state_dict
        self.__dict__.pop("_loader", None)  # one that was built stands elsewhere

    def another(self, state_dict: dict[str, Any]) -> GuardedLoader:
        """A second loader of the same images, which continues from a state of this one."""
        loader = copy.copy(self)
        loader.load_state_dict(state_dict)
        return loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch; a loop that was left early goes on where it stopped."""
        if self._loader.position >= len(self._loader):
            self._finish_epoch()
        while self._loader.position < len(self._loader):
            batch = self._guarded(lambda: self._loader.next_batch())
            if len(batch[0]) > 0:
                yield batch
        self._finish_epoch()

    def _finish_epoch(self) -> None:
        self._guarded(lambda: self._loader.finish_epoch())
        self._taken = 0

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """Do it; where a file cannot be decoded, again without that file."""
        while True:
            try:
                result = action()
            except (RuntimeError, OSError) as error:
                self._set_aside(error)
                self._loader = self._built()
                continue
            if self._resumable:
                self._state = self._loader.state()
            self._taken += 1
            return result

    def _built(self) -> DALILoader:
        """A loader that stands where the last one was."""
        while True:
            try:
                loader = self._make(self._images, self._state)
                for _ in range(0 if self._resumable else self._taken):
                    loader.next_batch()
                return loader
            except (RuntimeError, OSError) as error:
                self._set_aside(error)

    def _set_aside(self, error: RuntimeError | OSError) -> None:
        """Find the bad files among those that come next, else among all; raise if there are none."""
        if isinstance(error, BadFileError):
            raise error
        state = self._state or {"epoch": 0, "position": self._taken, "pipeline": None}
        nearby = self._source.upcoming(
            self._order,
            batches=LOOK_AHEAD,
            epoch=state["epoch"],
            taken=state["position"],
            checkpoint=state["pipeline"],
        )
        known = self._images.stand_ins
        for positions in (nearby, range(len(self._source))):
            bad = examine(self._source, [position for position in positions if position not in known])
            if bad:
                for position, reason in bad.items():
                    self._quarantine.add(self._source.name(position), reason, **self._where())
                self._images = self._source.without(known.union(bad))
                return
        raise error
