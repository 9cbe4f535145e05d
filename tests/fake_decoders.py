"""Replacements for the decoding process of the check and the packer; they decode nothing."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path


def dies_at_start(_: Connection) -> None:
    """Exits before it is ready."""
    os._exit(3)


def has_a_bug(connection: Connection) -> None:
    """Reports a fault of its own for the first batch."""
    from pipelines._workers import Fault

    connection.send(None)
    connection.recv()
    connection.send(Fault("KeyError: 'no such thing'"))


def dislikes_some(connection: Connection) -> None:
    """Calls every file empty; hangs on files named slow, and is killed by those named large or fatal."""
    from pipelines._decoding import Result

    connection.send(None)
    while True:
        try:
            paths = connection.recv()
        except EOFError:
            return
        for path in paths:
            if "slow" in path:
                time.sleep(600)
            if "large" in path:
                os.kill(os.getpid(), signal.SIGKILL)
            if "fatal" in path:
                os.kill(os.getpid(), signal.SIGFPE)
        sizes = [(os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
        connection.send([Result(size, time_ns, "", "empty file") for size, time_ns in sizes])


def begins_and_waits(connection: Connection) -> None:
    """Creates the file "begun" beside the images when it starts a batch, and answers half a second later."""
    from pipelines._decoding import Result

    connection.send(None)
    paths = connection.recv()
    (Path(paths[0]).parent / "begun").touch()
    time.sleep(0.5)
    connection.send([Result(0, 0, "", None) for _ in paths])
    connection.recv()


def copies_some(connection: Connection) -> None:
    """Packs by copying; hangs on files named slow, and is killed by those named large or fatal."""
    from pipelines._packing import Packed

    connection.send(None)
    while True:
        try:
            tasks = connection.recv()
        except EOFError:
            return
        for task in tasks:
            if "slow" in task.source:
                time.sleep(600)
            if "large" in task.source:
                os.kill(os.getpid(), signal.SIGKILL)
            if "fatal" in task.source:
                os.kill(os.getpid(), signal.SIGFPE)
        results = []
        for task in tasks:
            content, status = Path(task.source).read_bytes(), os.stat(task.source)
            Path(task.target).write_bytes(content)
            results.append(Packed(status.st_size, status.st_mtime_ns, len(content), False))
        connection.send(results)
