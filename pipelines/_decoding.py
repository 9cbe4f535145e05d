"""Decode whole image files in a separate process, and report what is wrong with each.

A damaged file can do worse than make a decoder raise. Some headers crash DALI 2.4, and there may be more than
those that `.headers` stops. Also, compiled code writes the reason for a failure to standard error, not into
the exception. A separate process solves both: it may crash, and everything on its standard error is about the
file being decoded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import DataNode, Pipeline

from ._workers import Work, answer, drain
from .formats import detect_format, explain_decoder_bug
from .headers import STOPPED_BY, check_headers

# The reason given for an image that `.headers` keeps from the decoder.
BAD_HEADER = "damaged header, or a type that DALI does not decode"
BATCH = 32
DIGEST_BYTES = 16
# Size and time of a file without a certain result: the next check decodes it again.
UNSURE = -1
# How the reason begins for a file that could not be read.
UNREADABLE = "cannot be read: "
# When more files than this, and this share of all, cannot be read, the storage is probably the cause.
_MAX_UNREADABLE, _MAX_UNREADABLE_SHARE = 10, 0.01
# The arguments of the decoder in the training and validation pipelines, on the CPU.
DECODER: dict[str, Any] = {"output_type": types.RGB, "device": "cpu"}

# This much compressed data decodes to a few hundred megabytes.
_BATCH_BYTES = 8 << 20
_MIN_SIDE, _MAX_ASPECT_RATIO = 16, 10
_MAX_MESSAGE = 300

# Colours, levels, time stamps and source locations in messages of libraries.
_NOISE = re.compile(
    r"\x1b\[[\d;]*m|\[(?:ERROR|WARNING|INFO)\] ?|\[\s*(?:ERROR|WARN|INFO):\d+@[\d.]+\]"
    r"|\bglobal \S+:\d+ \S+|OpenCV\([\d.]+\) \S+:\d+: "
)
_NO_REASON = re.compile(r"Failed to decode sample #\d+ :")


class Result(NamedTuple):
    """The result for one file.

    Attributes
    ----------
    size, mtime_ns : int
        Size in bytes and modification time when the file was read; `UNSURE` if it could not be read.
    digest : str
        BLAKE2b of the content, hexadecimal; empty if it could not be read.
    error : str or None
        Why the file cannot be decoded.
    warnings : tuple of str
        Oddities of a file that decodes.
    """

    size: int
    mtime_ns: int
    digest: str
    error: str | None
    warnings: tuple[str, ...] = ()


class Read(NamedTuple):
    """An image that was read: its name, content, and result so far."""

    name: str
    data: bytes
    result: Result


# An image to decode: the path of a file, or one that was read.
Item = str | Read
# The shape of the image, None if it does not decode, and the messages of the decoder.
_Outcome = tuple[tuple[int, ...] | None, str]


def serve(connection: Connection) -> None:
    """Answer lists of :data:`Item` with lists of :class:`Result`, until the other end is closed."""
    answer(connection, prepare_decoding)


def prepare_decoding() -> Work:
    """Prepare to answer lists of :data:`Item` with lists of :class:`Result`."""
    decoder = _Decoder()
    return lambda items, log: _check_files(items, decoder, log)


class _Undecodable(Exception):
    """DALI raised an error for a batch."""


class _Decoder:
    """The decoder of the pipelines, for whole images; rebuilt after every failure."""

    def __init__(self) -> None:
        self._pipeline = _build_pipeline()

    def __call__(self, encoded: list[np.ndarray]) -> list[tuple[int, ...]]:
        """Shapes of the decoded images; raises _Undecodable if an image does not decode."""
        self._pipeline.feed_input("encoded", encoded)
        try:
            (images,) = self._pipeline.run()
        except Exception as error:
            # Many types: DALI's own errors, and C++ errors translated to Python's. DALI then calls the
            # pipeline "no longer valid"; it does work (2.4), but building a new one takes only 2 ms.
            self._pipeline = _build_pipeline()
            raise _Undecodable(BAD_HEADER if STOPPED_BY in str(error) else str(error)) from error
        shapes: list[tuple[int, ...]] = images.shape()
        return shapes


def _build_pipeline() -> Pipeline:
    @pipeline_def
    def pipeline() -> DataNode:
        return fn.decoders.image(check_headers(fn.external_source(name="encoded", batch=True)), **DECODER)

    # One thread: each core has a process of its own, so none waits for another.
    built = pipeline(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    built.build()
    assert isinstance(built, Pipeline)
    return built


def _check_files(items: Sequence[Item], decoder: _Decoder, log: int) -> list[Result]:
    results: list[Result] = []
    paths: list[str | None] = []  # of files
    group: list[tuple[int, np.ndarray]] = []

    def finish_group() -> None:
        for (position, content), outcome in zip(group, _decode(decoder, group, log), strict=True):
            results[position] = _complete_result(results[position], paths[position], content, *outcome)
        group.clear()

    for position, item in enumerate(items):
        _, data, result = _read_file(item) if isinstance(item, str) else item
        paths.append(item if isinstance(item, str) else None)
        results.append(result)
        if result.error is not None:
            continue
        if len(group) == BATCH or sum(content.size for _, content in group) + len(data) > _BATCH_BYTES:
            finish_group()
        group.append((position, np.frombuffer(data, np.uint8)))
    finish_group()
    return results


def _decode(decoder: _Decoder, group: list[tuple[int, np.ndarray]], log: int) -> list[_Outcome]:
    """Decode a group of files, each at most twice, however many are bad."""
    if not group:
        return []
    try:
        shapes = decoder([content for _, content in group])
    except _Undecodable as error:
        messages = drain(log) or str(error)
        if len(group) == 1:
            return [(None, messages)]
    else:
        messages = drain(log)
        if not messages or len(group) == 1:
            return [(shape, messages) for shape in shapes]
    # The messages do not say which file they are about.
    return [outcome for entry in group for outcome in _decode(decoder, [entry], log)]


def _read_file(path: str) -> Read:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        return unreadable(path, error)
    return read_content(path, data, status.st_size, status.st_mtime_ns)


def read_content(name: str, data: bytes, size: int = UNSURE, mtime_ns: int = UNSURE) -> Read:
    """Make the result of an image that could be read."""
    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
    return Read(name, data, Result(size, mtime_ns, digest, None if data else "empty file"))


def unreadable(name: str, error: OSError) -> Read:
    """Make the result of an image that could not be read."""
    return Read(name, b"", Result(UNSURE, UNSURE, "", f"{UNREADABLE}{error.strerror or error}"))


def require_readable(errors: Sequence[str], done: int, what: str) -> None:
    """Raise OSError if so many files cannot be read that the storage must be the cause.

    Parameters
    ----------
    errors : sequence of str
        The path and the reason for each file that cannot be used.
    done : int
        Number of files so far.
    what : str
        What the same command resumes.
    """
    unreadable = [error for error in errors if f" {UNREADABLE}" in error]
    if len(unreadable) > _MAX_UNREADABLE and len(unreadable) >= _MAX_UNREADABLE_SHARE * done:
        raise OSError(
            f"{len(unreadable)} files could not be read, probably because of the storage; the first:"
            f" {unreadable[0]}. The same command resumes {what} when the storage is back"
        )


def _complete_result(
    result: Result, path: str | None, content: np.ndarray, shape: tuple[int, ...] | None, messages: str
) -> Result:
    form = detect_format(content[:64].tobytes())
    message = clean_message(messages)
    if shape is None:
        if obstacle := explain_decoder_bug(content.tobytes()):
            return result._replace(error=obstacle)
        what = form.name if form else f"unknown content, {content[:8].tobytes()!r}"
        if form and not form.extensions:
            what += ", which DALI does not read"
        return result._replace(error=f"{what}: {message}")
    warnings = [f"the decoder says: {message}"] if message else []
    if path and form and os.path.splitext(path)[1].lower() not in form.extensions:
        warnings.append(f"{form.name} by its content")
    height, width = shape[:2]
    if min(height, width) < _MIN_SIDE:
        warnings.append(f"only {width} x {height} pixels")
    elif max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        warnings.append(f"{width} x {height} pixels, a strip")
    return result._replace(warnings=tuple(warnings))


def clean_message(messages: str) -> str:
    """Put messages of libraries, or DALI's error, on one line, without parts that differ between runs."""
    # This part of DALI's error is about the file; a traceback into this module comes before it.
    messages = messages.rpartition("encountered:")[2]
    messages = messages.replace("Current pipeline object is no longer valid.", "")
    lines = (_NOISE.sub("", line).strip() for line in messages.splitlines())
    text = "; ".join(dict.fromkeys(line for line in lines if line))
    if _NO_REASON.fullmatch(text):
        return "DALI cannot decode it and does not say why"
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "..."
