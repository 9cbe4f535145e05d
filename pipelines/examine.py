"""Decode images in separate processes, which may crash, and find out what is wrong with each image."""

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

from ._decoding import (
    BATCH,
    UNSURE,
    Fault,
    Item,
    Read,
    Result,
    clean_message,
    read_content,
    serve,
    unreadable,
)
from .files import is_gone
from .sources import Source

# Seconds before a bad sample is read again.
_RETRY_PAUSE = 0.2


class Items(Protocol):
    """Images by position."""

    def item(self, position: int) -> Item:
        """What to send to the decoding process: the path of a file, or the image read."""
        ...


_Items = TypeVar("_Items", bound=Items)


class _Failure(NamedTuple):
    """Why a process gave no answer, and whether the file is certain to be the cause."""

    reason: str
    certain: bool = True


class _Worker(Generic[_Items]):
    """A decoding process and its current batch.

    Not a pool of the standard library: when one of its processes dies, a pool breaks or hangs, and does not
    say which batch was lost.
    """

    def __init__(self) -> None:
        # A fresh interpreter: a fork would copy DALI's locks without the threads that hold them.
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe closes when the process dies
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
            return  # the process has died; the next read from the pipe shows it

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Samples:
    """Samples of a source, read here and sent to a process, which has no copy of the (large) source."""

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
    """Find the samples that cannot be decoded, and why: a dict from their positions to the reasons.

    A sample is bad only if decoding failed twice after a complete read, with a pause in between, because a
    network share may briefly deliver wrong data. A removed file is bad too.

    Parameters
    ----------
    source : Source
    positions : sequence of int
        The samples to decode, in a separate process.
    timeout : float
        Seconds after which a sample counts as undecodable.

    Raises
    ------
    OSError
        A sample cannot be read, so nothing is known about it.
    """
    samples = _Samples(source)
    for position in positions[:BATCH]:
        samples.item(position)  # fail before starting a process if nothing can be read
    errors: dict[int, str | None] = {}

    def batches() -> Iterator[tuple[_Samples, list[int]]]:
        yield from _cut(samples, positions)
        if bad := [position for position, error in errors.items() if error is not None]:
            time.sleep(_RETRY_PAUSE)
            yield from _cut(samples, bad)

    for _, examined, results in decode(batches(), 1, timeout, threading.Event()):
        errors.update(zip(examined, (result.error for result in results), strict=True))
    return {position: error for position in positions if (error := errors[position]) is not None}


def describe_error(error: Exception) -> str:
    """Put an error raised by DALI on one line."""
    return clean_message(str(error)) or type(error).__name__


def _cut(samples: _Samples, positions: Sequence[int]) -> Iterator[tuple[_Samples, list[int]]]:
    """Cut positions into batches."""
    for start in range(0, len(positions), BATCH):
        yield samples, list(positions[start : start + BATCH])


def decode(
    batches: Iterator[tuple[_Items, list[int]]], count: int, timeout: float, stop: threading.Event
) -> Iterator[tuple[_Items, list[int], list[Result]]]:
    """Decode batches in `count` processes, and yield results as they are completed.

    A batch has at most ``BATCH`` positions. It is taken from `batches` when a process is idle: with one
    process, the caller has all earlier results by then. After `stop` is set, current batches are finished
    and no others start.
    """
    # When a process dies, the files of its batch are retried one by one to find the cause.
    retries: deque[tuple[_Items, list[int]]] = deque()
    exhausted = count == 0  # without processes there is nothing to decode
    workers: list[_Worker[_Items]] = [_Worker() for _ in range(count)]
    try:
        while True:
            for worker in workers:
                if stop.is_set() or not worker.ready or worker.batch is not None:
                    continue
                if retries:
                    worker.give(retries.popleft(), timeout)
                elif not exhausted:
                    upcoming = next(batches, None)
                    exhausted = upcoming is None
                    if upcoming is not None:
                        worker.give(upcoming, timeout)
            working = [worker for worker in workers if worker.batch is not None]
            if not working and (stop.is_set() or (not retries and exhausted)):
                return
            busy = working if stop.is_set() else [w for w in workers if w.batch is not None or not w.ready]
            # With a timeout, to check `stop` and the deadlines.
            answering = set(wait([worker.connection for worker in busy], timeout=0.2))
            for worker in busy:
                failure: _Failure | None = None
                if worker.connection in answering:
                    try:
                        answer = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        worker.process.join()
                        failure = _explain_exit(worker.process.exitcode)
                elif worker.batch is not None and time.monotonic() > worker.deadline:
                    failure = _Failure(f"not decoded within {timeout:g} s", certain=False)
                else:
                    continue
                batch, worker.batch = worker.batch, None
                if failure:
                    worker.end()
                    if batch is None:
                        raise RuntimeError(f"a decoding process did not start: {failure.reason}")
                    workers[workers.index(worker)] = _Worker()
                    items, positions = batch
                    if len(positions) == 1:
                        yield items, positions, [_failed_result(items.item(positions[0]), failure)]
                    else:
                        retries.extend((items, [position]) for position in positions)
                elif isinstance(answer, Fault):
                    raise RuntimeError(f"a decoding process failed:\n{answer.traceback}")
                elif batch is None:
                    worker.ready = True
                else:
                    yield *batch, answer
    finally:
        for worker in workers:
            worker.end()


def _explain_exit(exit_code: int | None) -> _Failure:
    if exit_code is None or exit_code >= 0:
        return _Failure(f"the decoder ended the process (exit status {exit_code})")
    name = signal.Signals(-exit_code).name
    if -exit_code == signal.SIGKILL:
        return _Failure(f"the decoding process was killed ({name}), perhaps out of memory", certain=False)
    return _Failure(f"the decoder crashed its process ({name})")


def _failed_result(item: Item, failure: _Failure) -> Result:
    if isinstance(item, Read):
        return item.result._replace(error=failure.reason)
    try:
        status = os.stat(item)
    except OSError as error:
        return unreadable(item, error).result
    size, mtime_ns = (status.st_size, status.st_mtime_ns) if failure.certain else (UNSURE, UNSURE)
    return Result(size, mtime_ns, "", failure.reason)
