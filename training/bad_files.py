"""Training survives files that cannot be decoded, and files that cannot be read for a while.

DALI cannot skip a sample: it raises, and the pipeline is lost. This module finds the file, logs it to
quarantine.jsonl, and lets the next good one stand in for it in the list, which keeps the order of all others.
It rebuilds the pipeline at the same place, with its random state, and drops the stand-in from the batch.

A file that cannot be read is not a bad file: the loader waits for the storage (`training.storage`).
"""

from __future__ import annotations

import copy
import errno
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

import dali_msda as msda
from pipelines.examine import describe_error, examine
from pipelines.loader import DALILoader
from pipelines.names import json_text
from pipelines.sources import Order, Source, find_substitutes

from .storage import Outage, Patience, StorageError

T = TypeVar("T")

# DALI makes batches ahead, so an error may come from a file that is needed only some batches later.
LOOK_AHEAD = 6
# Up to this number, bad files are never too many.
FEW = 10
# Unexplained failures of the pipeline before giving up, and the seconds between attempts.
_ATTEMPTS, _PAUSE = 3, 0.5


class BadFileError(RuntimeError):
    """A file cannot be decoded and may not be skipped, or too many cannot; the message says which."""


class PipelineError(RuntimeError):
    """DALI failed, and no file is to blame; the message quotes DALI."""


class Quarantine:
    """The bad files of a run, each a line in ``quarantine.jsonl``.

    Parameters
    ----------
    path : Path
        The file; every process of the run appends lines.
    skip : bool
        Skip bad files; otherwise the first one is an error.
    limit : float
        More than ``FEW`` bad files are an error from this share of the files on; at 1 they never are.
    patience : Patience, optional
        How long to wait until the file can be written and the images read. Default: do not wait.
    """

    def __init__(
        self, path: Path, *, skip: bool, limit: float = 1.0, patience: Patience | None = None
    ) -> None:
        self._path = path
        self._skip = skip
        self._limit = limit
        self.patience = patience or Patience(0.0)
        self._held: list[str] | None = None

    def hold(self) -> None:
        """Keep lines until :meth:`release`: the folder may not exist yet."""
        self._held = []

    def release(self) -> None:
        """Write the lines kept, and from now on write at once."""
        held, self._held = self._held, None
        if held:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(held)

    def check_share(self, bad: int, files: int, newest: str, source: Source) -> None:
        """Raise :class:`BadFileError` if `bad` of `files` files are too many."""
        if bad > FEW and self._limit < 1 and bad >= self._limit * files:
            raise BadFileError(
                f"{bad} of {files} files in {source} cannot be decoded, {newest} among them; that many"
                " usually have one cause: check the storage and the data set with python -m pipelines.check"
                f" (a run stops at --bad-files-limit, here {self._limit:g})"
            )

    def add(self, bad: dict[str, str], **where: Any) -> None:
        """Write a line for each name and reason; raise :class:`BadFileError` if none may be skipped."""
        if not self._skip:
            name, reason = next(iter(bad.items()))
            raise BadFileError(f"{name} cannot be decoded ({reason}); use --bad-files skip to skip it")
        lines = [json_text({"path": name, "reason": reason, **where}) for name, reason in bad.items()]
        if self._held is None:
            self._write(lines)
        else:
            self._held += lines

    def _write(self, lines: list[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        self.patience.keep_trying(lambda: self._append(data))

    def _append(self, data: bytes) -> None:
        # One write at the end of the file, so that lines of several processes do not mix.
        with open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), "wb", 0) as file:
            before = os.fstat(file.fileno()).st_size
            written = file.write(data)
            if written < len(data):  # the disk is full: the next attempt writes all lines
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


class GuardedLoader:
    """A loader that survives files that cannot be decoded, and storage that goes away for a while.

    It builds its pipeline when first needed, so that :meth:`load_state_dict` can come before.

    Parameters
    ----------
    images : Source
        Without stand-ins.
    make : callable
        Builds a loader from the source with stand-ins and a state (None for the beginning).
    order : Order
        The order in which the loaders read.
    quarantine : Quarantine
        Logs bad files; sets how many are allowed, and how long to wait for the storage.
    where : callable
        What to log with them: epoch and step.
    resumable : bool
        Whether the loaders have a state; otherwise a new loader repeats the batches already taken.
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
        """A loader at the place where the last one was."""
        return self.attempt(self._build)

    def _build(self) -> DALILoader:
        loader = self._make(self._images, self._state)
        for _ in range(0 if self._resumable else self._taken):
            loader.next_batch()
        return loader

    def __len__(self) -> int:
        """Batches of this epoch."""
        return len(self._loader)

    @property
    def longest(self) -> int:
        """See :attr:`.loader.DALILoader.longest`."""
        return self._loader.longest

    @property
    def images(self) -> Source:
        """The source, with stand-ins for the bad files found so far."""
        return self._images

    @property
    def left_out(self) -> set[str]:
        """The names of the bad files found so far."""
        return {self._source.name(position) for position in self._images.stand_ins}

    def state_dict(self) -> dict[str, Any]:
        """The state of :meth:`.loader.DALILoader.state`, with the positions of the stand-ins."""
        return {**(self._state or self._loader.state()), "stand_ins": sorted(self._images.stand_ins)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Continue after the last batch before :meth:`state_dict`."""
        self._images = self._source.without(state_dict["stand_ins"])
        self._state = state_dict
        self.__dict__.pop("_loader", None)  # one that exists is at another place

    def another(self, state_dict: dict[str, Any]) -> GuardedLoader:
        """A second loader of the same images that continues from a state of this one."""
        loader = copy.copy(self)
        loader.load_state_dict(state_dict)
        return loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch; after a loop that ended early, the rest of it."""
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

    def _guarded(self, action: Callable[[], T]) -> T:
        """:meth:`attempt` an action that advances the loader."""
        result = self.attempt(action)
        if self._resumable:
            self._state = self._loader.state()
        self._taken += 1
        return result

    def attempt(self, action: Callable[[], T]) -> T:
        """Run an action that uses the pipeline; if a file is bad, run it again without that file.

        Raises
        ------
        BadFileError
            Bad files may not be skipped, or there are too many.
        StorageError
            Files still cannot be read when the patience is used up.
        PipelineError
            The pipeline fails for another reason, or the mixing cannot use its input.
        """
        outage = Outage(self._quarantine.patience, f"cannot read {self._source}")
        unexplained = 0
        while True:
            try:
                result = action()
            except (BadFileError, PipelineError, StorageError):
                raise
            except (RuntimeError, OSError) as error:
                if words := msda.explain(error):  # no file is to blame
                    raise PipelineError(words) from error
                self.__dict__.pop("_loader", None)  # unusable after an error
                reason = describe_error(error)
                try:
                    explained = self._replace_bad_files()
                except (BadFileError, StorageError):
                    raise
                except OSError as unreadable:
                    outage.wait(unreadable)
                    continue
                except RuntimeError as unknown:  # the search failed: out of memory, or of space in /tmp
                    explained, reason = False, describe_error(unknown)
                unexplained = 0 if explained else unexplained + 1
                if unexplained == _ATTEMPTS:
                    raise PipelineError(
                        f"the pipeline reading {self._source} failed, and none of the next files is to"
                        f" blame: {reason} (python -m pipelines.check tests all files)"
                    ) from error
                if not explained:
                    # The storage may have been away, and back before the check.
                    time.sleep(_PAUSE)
            else:
                outage.end()
                return result

    def _replace_bad_files(self) -> bool:
        """Replace the bad files among the next ones by stand-ins; return whether there were any."""
        state = self._state or {"epoch": 0, "position": self._taken, "pipeline": None}
        nearby = self._source.upcoming(
            self._order,
            batches=LOOK_AHEAD,
            epoch=state["epoch"],
            taken=state["position"],
            checkpoint=state["pipeline"],
        )
        known = self._images.stand_ins
        read = find_substitutes(self._source, known)
        bad = examine(self._source, list(dict.fromkeys(read.get(position, position) for position in nearby)))
        if not bad:
            return False
        names = {self._source.name(position): reason for position, reason in bad.items()}
        # The most files that the shard will have read by the end of this epoch.
        files = min(len(self._source), (state["epoch"] + 1) * len(self._order.part))
        self._quarantine.check_share(len(known) + len(bad), files, next(iter(names)), self._source)
        self._quarantine.add(names, **self._where())
        self._images = self._source.without(known.union(bad))
        return True
