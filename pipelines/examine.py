"""Decode images in separate processes, which may crash, and find out what is wrong with each image."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from ._decoding import BATCH, UNSURE, Item, Read, Result, clean_message, read_content, serve, unreadable
from ._workers import Failure, run
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
    """Decode batches of at most ``BATCH`` images in `count` processes; see :func:`._workers.run`."""
    for items, positions, answer in run(batches, count, timeout, stop, serve):
        if isinstance(answer, Failure):
            answer = [_failed_result(items.item(positions[0]), answer)]
        yield items, positions, answer


def _failed_result(item: Item, failure: Failure) -> Result:
    if isinstance(item, Read):
        return item.result._replace(error=failure.reason)
    try:
        status = os.stat(item)
    except OSError as error:
        return unreadable(item, error).result
    size, mtime_ns = (status.st_size, status.st_mtime_ns) if failure.certain else (UNSURE, UNSURE)
    return Result(size, mtime_ns, "", failure.reason)
