"""Decode images in processes of their own, which may die of them, and find out what is wrong with each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, NamedTuple, Protocol, TypeVar

from ._decoding import BATCH, UNSURE, Fault, Item, Read, Result, clean, read_content, serve, unreadable
from .files import is_gone
from .sources import Source

# Seconds between the two times that a bad sample is read.
_SECOND_LOOK = 0.2


class Items(Protocol):
    """Images by their positions."""

    def item(self, position: int) -> Item:
        """What the process that decodes is sent: the path of a file, or what was read."""
        ...


_Items = TypeVar("_Items", bound=Items)


class _Death(NamedTuple):
    """Why a process gave no answer, and whether it was the file and will be again."""

    reason: str
    sure: bool = True


class _Worker(Generic[_Items]):
    """A process that decodes, and the batch it has.

    By hand, because a pool of the standard library ends, or waits for ever, when a process of it dies, and
    does not say which batch that one had.
    """

    def __init__(self) -> None:
        # A fresh interpreter: a fork would take over DALI's locks, but not the threads that hold them.
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that its death closes the pipe
        self.ready = False
        self.batch: tuple[_Items, list[int]] | None = None
        self.deadline = 0.0

    def give(self, batch: tuple[_Items, list[int]], timeout: float) -> None:
        """Send a batch."""
        items, positions = batch
        message = [items.item(position) for position in positions]
        self.batch = batch
        self.deadline = time.monotonic() + timeout
        try:
            self.connection.send(message)
        except ConnectionError:
            return  # it has died since; the next read from the pipe tells

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Samples:
    """Samples of a source. They are read here and sent: a process has no source, which may be large."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def item(self, position: int) -> Read:
        name = self._source.name(position)
        try:
            return read_content(name, self._source.encoded(position))
        except OSError as error:
            if not is_gone(error):
                raise
            return unreadable(name, error)


def examine(source: Source, positions: Sequence[int], timeout: float = 300.0) -> dict[int, str]:
    """Why samples of a source cannot be decoded, by position; the others are left out.

    A sample counts only if it was read to its end and not decoded, twice, with a pause in between: what a
    share delivers in bad moments is not what the file holds. One that was removed counts as well.

    Parameters
    ----------
    source : Source
    positions : sequence of int
        The samples to decode, in a process of its own.
    timeout : float
        Seconds after which a sample counts as one that cannot be decoded.

    Raises
    ------
    OSError
        A sample cannot be read, which says nothing about it.
    """
    samples = _Samples(source)
    for position in positions[:BATCH]:
        samples.item(position)  # where nothing can be read, no process is started
    errors: dict[int, str | None] = {}

    def batches() -> Iterator[tuple[_Samples, list[int]]]:
        yield from _cut(samples, positions)
        if bad := [position for position, error in errors.items() if error is not None]:
            time.sleep(_SECOND_LOOK)
            yield from _cut(samples, bad)

    for _, examined, results in decode(batches(), 1, timeout, threading.Event()):
        errors.update(zip(examined, (result.error for result in results), strict=True))
    return {position: error for position in positions if (error := errors[position]) is not None}


def reason_of(error: Exception) -> str:
    """What DALI raised, in one line."""
    return clean(str(error)) or type(error).__name__


def _cut(samples: _Samples, positions: Sequence[int]) -> Iterator[tuple[_Samples, list[int]]]:
    """Batches of some positions."""
    for start in range(0, len(positions), BATCH):
        yield samples, list(positions[start : start + BATCH])


def decode(
    batches: Iterator[tuple[_Items, list[int]]], count: int, timeout: float, stop: threading.Event
) -> Iterator[tuple[_Items, list[int], list[Result]]]:
    """Decode batches in `count` processes; what comes of them, in the order in which they are done.

    A batch is at most ``BATCH`` positions of some items, and asked for when a process has nothing to do: with
    one process, all results of those before have been taken by then. After `stop` is set no batch is begun,
    and those at work are finished.
    """
    # Of batches at which a process died, file by file: the one that it died of is not known.
    again: deque[tuple[_Items, list[int]]] = deque()
    exhausted = count == 0  # no process is there to ask where nothing is left to decode
    workers: list[_Worker[_Items]] = [_Worker() for _ in range(count)]
    try:
        while True:
            for worker in workers:
                if stop.is_set() or not worker.ready or worker.batch is not None:
                    continue
                if again:
                    worker.give(again.popleft(), timeout)
                elif not exhausted:
                    upcoming = next(batches, None)
                    exhausted = upcoming is None
                    if upcoming is not None:
                        worker.give(upcoming, timeout)
            working = [worker for worker in workers if worker.batch is not None]
            if not working and (stop.is_set() or (not again and exhausted)):
                return
            busy = working if stop.is_set() else [w for w in workers if w.batch is not None or not w.ready]
            # Not for ever, to see `stop` and the deadlines.
            answering = set(wait([worker.connection for worker in busy], timeout=0.2))
            for worker in busy:
                death: _Death | None = None
                if worker.connection in answering:
                    try:
                        answer = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        worker.process.join()
                        death = _death(worker.process.exitcode)
                elif worker.batch is not None and time.monotonic() > worker.deadline:
                    death = _Death(f"not decoded within {timeout:g} s", sure=False)
                else:
                    continue
                batch, worker.batch = worker.batch, None
                if death:
                    worker.end()
                    if batch is None:
                        raise RuntimeError(f"a process for decoding did not start: {death.reason}")
                    workers[workers.index(worker)] = _Worker()
                    items, positions = batch
                    if len(positions) == 1:
                        yield items, positions, [_fatal(items.item(positions[0]), death)]
                    else:
                        again.extend((items, [position]) for position in positions)
                elif isinstance(answer, Fault):
                    raise RuntimeError(f"a process for decoding failed:\n{answer.traceback}")
                elif batch is None:
                    worker.ready = True
                else:
                    yield *batch, answer
    finally:
        for worker in workers:
            worker.end()


def _death(exit_code: int | None) -> _Death:
    if exit_code is None or exit_code >= 0:
        return _Death(f"the decoder ends the process (exit status {exit_code})")
    name = signal.Signals(-exit_code).name
    if -exit_code == signal.SIGKILL:
        return _Death(
            f"the process that decoded it was killed ({name}), perhaps for want of memory", sure=False
        )
    return _Death(f"the decoder kills the process ({name})")


def _fatal(item: Item, death: _Death) -> Result:
    if isinstance(item, Read):
        return item.result._replace(error=death.reason)
    try:
        status = os.stat(item)
    except OSError as error:
        return unreadable(item, error).result
    size, mtime_ns = (status.st_size, status.st_mtime_ns) if death.sure else (UNSURE, UNSURE)
    return Result(size, mtime_ns, "", death.reason)
