"""Work on batches of files in separate processes, which may crash, until all is done or a signal comes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, Protocol, TypeVar


class Items(Protocol):
    """What there is to work on, by position."""

    def item(self, position: int) -> Any:
        """What to send to the process."""
        ...


_Items = TypeVar("_Items", bound=Items)
# What a process runs, until the other end of its pipe is closed.
Program = Callable[[Connection], None]
# Answers a list of items with a list of results. The number is the descriptor of its standard error, a file.
Work = Callable[[list[Any], int], list[Any]]


class Failure(NamedTuple):
    """Why a process gave no answer, and whether the item is certain to be the cause."""

    reason: str
    certain: bool = True


class Fault(NamedTuple):
    """The traceback of a fault in the code of the process, as opposed to a bad file."""

    traceback: str


# -- In the process --------------------------------------------------------------------------------------


def answer(connection: Connection, prepare: Callable[[], Work]) -> None:
    """Answer lists of items, until the other end is closed.

    The first message, None, means that the process is ready; if it dies later, an item was the cause. An
    OSError of the work ends the run: it is about the storage, not about an item.
    """
    # A terminal sends Ctrl-C, and Slurm SIGTERM, to all processes; the parent process decides when to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    work = prepare()
    connection.send(None)
    try:
        with tempfile.TemporaryFile() as log:
            os.dup2(log.fileno(), 2)
            while True:
                items: list[Any] = connection.recv()
                try:
                    results: list[Any] | OSError | Fault = work(items, log.fileno())
                except OSError as error:
                    results = error
                except Exception:
                    results = Fault(traceback.format_exc())
                connection.send(results)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent process closed the pipe or ended


def drain(log: int) -> str:
    """Return and clear what was written to standard error since the last call."""
    text = os.pread(log, 1 << 16, 0).decode(errors="replace")
    os.ftruncate(log, 0)
    os.lseek(log, 0, os.SEEK_SET)
    return text


# -- In the parent process -------------------------------------------------------------------------------


class Worker(Generic[_Items]):
    """A process and its current batch.

    Not a pool of the standard library: when one of its processes dies, a pool breaks or hangs, and does not
    say which batch was lost.
    """

    def __init__(self, program: Program) -> None:
        # A fresh interpreter: a fork would copy DALI's locks without the threads that hold them.
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=program, args=(theirs,), daemon=True)
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


def run(
    batches: Iterator[tuple[_Items, list[int]]],
    count: int,
    timeout: float,
    stop: threading.Event,
    program: Program,
) -> Iterator[tuple[_Items, list[int], list[Any] | Failure]]:
    """Work on batches in `count` processes, and yield the answers as they come.

    A batch is taken from `batches` when a process is idle: with one process, the caller has all earlier
    answers by then. After `stop` is set, current batches are finished and no others start. A
    :class:`Failure` is the answer to a batch of one item, which was tried alone.

    Raises
    ------
    OSError
        The work raised it.
    RuntimeError
        A process did not start, or had a fault.
    """
    # When a process dies, the items of its batch are retried one by one to find the cause.
    retries: deque[tuple[_Items, list[int]]] = deque()
    exhausted = count == 0  # without processes there is nothing to do
    workers: list[Worker[_Items]] = [Worker(program) for _ in range(count)]
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
                failure: Failure | None = None
                if worker.connection in answering:
                    try:
                        results = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        worker.process.join()
                        failure = _explain_exit(worker.process.exitcode)
                elif worker.batch is not None and time.monotonic() > worker.deadline:
                    failure = Failure(f"not decoded within {timeout:g} s", certain=False)
                else:
                    continue
                batch, worker.batch = worker.batch, None
                if failure:
                    worker.end()
                    if batch is None:
                        raise RuntimeError(f"a decoding process did not start: {failure.reason}")
                    workers[workers.index(worker)] = Worker(program)
                    items, positions = batch
                    if len(positions) == 1:
                        yield items, positions, failure
                    else:
                        retries.extend((items, [position]) for position in positions)
                elif isinstance(results, OSError):
                    raise results
                elif isinstance(results, Fault):
                    raise RuntimeError(f"a decoding process failed:\n{results.traceback}")
                elif batch is None:
                    worker.ready = True
                else:
                    yield *batch, results
    finally:
        for worker in workers:
            worker.end()


def _explain_exit(exit_code: int | None) -> Failure:
    if exit_code is None or exit_code >= 0:
        return Failure(f"the decoder ended the process (exit status {exit_code})")
    name = signal.Signals(-exit_code).name
    if -exit_code == signal.SIGKILL:
        return Failure(f"the decoding process was killed ({name}), perhaps out of memory", certain=False)
    return Failure(f"the decoder crashed its process ({name})")


@contextmanager
def catch_signals() -> Iterator[tuple[threading.Event, list[int]]]:
    """An event set by SIGINT and SIGTERM, and the signals received; a second signal acts as usual."""
    stop, received = threading.Event(), list[int]()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request_stop(number: int, _: object) -> None:
        received.append(number)
        stop.set()
        restore()

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield stop, received
    finally:
        restore()
