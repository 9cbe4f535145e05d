"""Decode whole image files in a process of their own, and say what is wrong with each.

Damage can do more to a decoder than make it raise: DALI 2.4 dies of some headers, and there may be more than
those that are known and kept from it (`.headers`). And why a file does not decode stands on the standard
error of the process, written there by compiled code, not in the exception. A process of its own serves both:
it may die, and all that appears on its standard error belongs to the file that it decodes.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import DataNode, Pipeline

from .formats import format_of, known_obstacle
from .headers import REFUSES, checked

# What is said of a header that reads and must not be decoded.
REFUSED = "its header is damaged, or of no type that DALI decodes"
BATCH = 32
DIGEST_BYTES = 16
# The size and time of a file of which nothing is certain: it is looked at again by the next check.
UNSURE = -1
# How the reason begins for a file whose content is not known, good or bad.
UNREADABLE = "cannot be read: "
# What the training and validation pipelines give their decoder on the CPU.
DECODER: dict[str, Any] = {"output_type": types.RGB, "device": "cpu"}

# Decoded, this much compressed data is some hundred megabytes.
_BATCH_BYTES = 8 << 20
_SMALL, _LONG = 16, 10
_LONGEST_MESSAGE = 300

# Colours, levels, time stamps and places in the source of libraries.
_NOISE = re.compile(
    r"\x1b\[[\d;]*m|\[(?:ERROR|WARNING|INFO)\] ?|\[\s*(?:ERROR|WARN|INFO):\d+@[\d.]+\]"
    r"|\bglobal \S+:\d+ \S+|OpenCV\([\d.]+\) \S+:\d+: "
)
_UNTOLD = re.compile(r"Failed to decode sample #\d+ :")


class Result(NamedTuple):
    """What there is to say about one file.

    Attributes
    ----------
    size, mtime_ns : int
        Of the file whose content was read; `UNSURE` where it could not be.
    digest : str
        BLAKE2b of the content, hexadecimal; empty where it could not be read.
    error : str or None
        Why it cannot be decoded.
    warnings : tuple of str
        What is odd about a file that decodes.
    """

    size: int
    mtime_ns: int
    digest: str
    error: str | None
    warnings: tuple[str, ...] = ()


class Read(NamedTuple):
    """An image that was read: its name, the content, and what is known already."""

    name: str
    data: bytes
    result: Result


# What is to be decoded: the path of a file, or what was read.
Item = str | Read
# The shape of the image, None if it does not decode, and what the decoder said.
_Verdict = tuple[tuple[int, ...] | None, str]


class Fault(NamedTuple):
    """A fault of this code, not of a file: the traceback."""

    traceback: str


def serve(connection: Connection) -> None:
    """Answer lists of :data:`Item` with lists of :class:`Result`, until the other end is closed.

    The first message, None, says that the process is ready; what follows is the files' doing.
    """
    # Ctrl-C goes to every process of the terminal, SIGTERM to all of a Slurm step; the process that asks
    # decides when to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    decoder = _Decoder()
    connection.send(None)
    try:
        with tempfile.TemporaryFile() as log:
            os.dup2(log.fileno(), 2)
            while True:
                items: list[Item] = connection.recv()
                try:
                    answer: list[Result] | Fault = _check_files(items, decoder, log.fileno())
                except Exception:
                    answer = Fault(traceback.format_exc())
                connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the other end has gone


class _Undecodable(Exception):
    """What DALI raised over a batch."""


class _Decoder:
    """The decoder of the pipelines, over whole images; made anew after a failure, which ends a pipeline."""

    def __init__(self) -> None:
        self._pipeline = _build()

    def __call__(self, encoded: list[np.ndarray]) -> list[tuple[int, ...]]:
        """Shapes of the decoded images; raises _Undecodable if one of them does not decode."""
        self._pipeline.feed_input("encoded", encoded)
        try:
            (images,) = self._pipeline.run()
        except Exception as error:
            # Of many types: DALI's errors, and those of C++ that have a fellow in Python. It calls the
            # pipeline "no longer valid", although it goes on (2.4), and building one takes 2 ms.
            self._pipeline = _build()
            raise _Undecodable(REFUSED if REFUSES in str(error) else str(error)) from error
        shapes: list[tuple[int, ...]] = images.shape()
        return shapes


def _build() -> Pipeline:
    @pipeline_def
    def pipeline() -> DataNode:
        return fn.decoders.image(checked(fn.external_source(name="encoded", batch=True)), **DECODER)

    # One thread: the other cores have processes of their own, which never wait for each other.
    built = pipeline(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    built.build()
    assert isinstance(built, Pipeline)
    return built


def _check_files(items: Sequence[Item], decoder: _Decoder, log: int) -> list[Result]:
    results: list[Result] = []
    names: list[str] = []
    group: list[tuple[int, np.ndarray]] = []

    def finish_group() -> None:
        for (position, content), verdict in zip(group, _decode(decoder, group, log), strict=True):
            results[position] = _judge(results[position], names[position], content, *verdict)
        group.clear()

    for position, item in enumerate(items):
        name, data, result = _read_file(item) if isinstance(item, str) else item
        names.append(name)
        results.append(result)
        if result.error is not None:
            continue
        if len(group) == BATCH or sum(content.size for _, content in group) + len(data) > _BATCH_BYTES:
            finish_group()
        group.append((position, np.frombuffer(data, np.uint8)))
    finish_group()
    return results


def _decode(decoder: _Decoder, group: list[tuple[int, np.ndarray]], log: int) -> list[_Verdict]:
    """What comes of each file of a group; every file is decoded twice at most, however many are bad."""
    if not group:
        return []
    try:
        shapes = decoder([content for _, content in group])
    except _Undecodable as error:
        said = _drain(log) or str(error)
        if len(group) == 1:
            return [(None, said)]
    else:
        said = _drain(log)
        if not said or len(group) == 1:
            return [(shape, said) for shape in shapes]
    # Which of them it was is not said.
    return [verdict for entry in group for verdict in _decode(decoder, [entry], log)]


def _read_file(path: str) -> Read:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        return unreadable(path, error)
    return read_content(path, data, status.st_size, status.st_mtime_ns)


def read_content(name: str, data: bytes, size: int = UNSURE, mtime_ns: int = UNSURE) -> Read:
    """An image that could be read."""
    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
    return Read(name, data, Result(size, mtime_ns, digest, None if data else "empty file"))


def unreadable(name: str, error: OSError) -> Read:
    """An image that could not be read."""
    return Read(name, b"", Result(UNSURE, UNSURE, "", f"{UNREADABLE}{error.strerror or error}"))


def _drain(log: int) -> str:
    """What has been written to the standard error since the last call."""
    text = os.pread(log, 1 << 16, 0).decode(errors="replace")
    os.ftruncate(log, 0)
    os.lseek(log, 0, os.SEEK_SET)
    return text


def _judge(
    result: Result, name: str, content: np.ndarray, shape: tuple[int, ...] | None, messages: str
) -> Result:
    form = format_of(content[:64].tobytes())
    said = clean(messages)
    if shape is None:
        if obstacle := known_obstacle(content.tobytes()):
            return result._replace(error=obstacle)
        what = form.name if form else f"unknown content, {content[:8].tobytes()!r}"
        if form and not form.extensions:
            what += ", which DALI does not read"
        return result._replace(error=f"{what}: {said}")
    warnings = [f"the decoder says: {said}"] if said else []
    if form and os.path.splitext(name)[1].lower() not in form.extensions:
        warnings.append(f"{form.name} by its content")
    height, width = shape[:2]
    if min(height, width) < _SMALL:
        warnings.append(f"only {width} x {height} pixels")
    elif max(height, width) > _LONG * min(height, width):
        warnings.append(f"{width} x {height} pixels, a strip")
    return result._replace(warnings=tuple(warnings))


def clean(messages: str) -> str:
    """What libraries wrote, or DALI raised, in one line and without what differs from run to run."""
    # The part of DALI's exception that tells of the file; a traceback into this module goes before it.
    messages = messages.rpartition("encountered:")[2]
    messages = messages.replace("Current pipeline object is no longer valid.", "")
    lines = (_NOISE.sub("", line).strip() for line in messages.splitlines())
    text = "; ".join(dict.fromkeys(line for line in lines if line))
    if _UNTOLD.fullmatch(text):
        return "DALI cannot decode it and does not say why"
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."
