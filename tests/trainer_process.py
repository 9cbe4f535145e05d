"""Runs of the trainer in separate processes, which can be killed, without seconds of imports.

A process imports the trainer once and forks a child for every run, before any library has started threads.
Tests use `Trainer`. A run can have a `plan`: what happens to it, at which event of which rank. Events are the
search for a checkpoint, training steps, the single operations of saving, the end.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Outcome(NamedTuple):
    """How a run ended: exit statuses (-9: killed by signal 9) and what was printed, in order of the ranks."""

    statuses: list[int]
    said: str


class Trainer:
    """A process that has imported the trainer, with `environment` added to that of the tests."""

    def __init__(self, **environment: str) -> None:
        self.environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: object,
        processes: int = 1,
        plan: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        record: Path | None = None,
        model: str | None = None,
        of_last_rank: Sequence[str] = (),
        screen: Sequence[str] = ("log", "log"),
        timeout: float = 120,
    ) -> Outcome:
        """Run the trainer with command-line `arguments`.

        `record` is a folder for files ``RANK.json`` with the indices of the images that each process got, by
        epoch, for training and validation (see `tests.image_sets.indices`). `model` is one of MODELS, used
        instead of --arch. `of_last_rank` are extra arguments of the last process. `screen` says what standard
        output and standard error are: "log" (returned in the outcome), "closed", a "broken" pipe, or a file
        on a "full" disk.
        `plan`, one or several, holds ``event`` (a name or "any"), ``number`` (from 1), ``rank`` (default 0)
        and ``do``, a list of actions: numbers of signals to send itself, seconds (float) to wait, "full disk"
        for that error, "bad loss" for a step whose loss is not finite, {"shell": TEXT} for a command.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "arguments": [str(argument) for argument in arguments],
            "processes": processes,
            "plans": [] if plan is None else [plan] if isinstance(plan, dict) else list(plan),
            "record": None if record is None else str(record),
            "model": model,
            "of_last_rank": list(of_last_rank),
            "screen": list(screen),
            "timeout": timeout,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _ports() -> Iterator[int]:
    """Free ports, below those that systems assign; other processes like this one start elsewhere."""
    for number in itertools.count(os.getpid() * 37):
        port = 10_000 + number % 20_000
        with socket.socket() as listener:
            if listener.connect_ex(("127.0.0.1", port)) == 0:
                continue  # in use
        yield port


def _child(order: dict[str, Any], rank: int, port: int, log: int) -> None:
    import train_imagenet
    import training.learner

    for number, state in zip((1, 2), order["screen"], strict=True):
        _open_screen(number, state, log)
    if "SHIM_RULES" in os.environ:  # one file per process: see tests/storage_shim.c
        os.environ["SHIM_RULES"] += f".{rank}"
    if order["processes"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(order["processes"]),
            "LOCAL_WORLD_SIZE": str(order["processes"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if plans := [plan for plan in order["plans"] if plan.get("rank", 0) == rank]:
        _follow(plans)
    if order["model"] is not None:
        setattr(training.learner, "build_model", MODELS[order["model"]])  # noqa: B010, it does not export it
    seen: dict[str, list[list[int]]] = {"train": [], "val": []}
    if order["record"] is not None:
        _record(seen)
    more = order["of_last_rank"] if rank == order["processes"] - 1 else []
    status = train_imagenet.main(order["arguments"] + more)
    if order["record"] is not None:
        (Path(order["record"]) / f"{rank}.json").write_text(json.dumps(seen))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _open_screen(number: int, state: str, log: int) -> None:
    if state == "closed":
        os.close(number)
    elif state == "broken":
        read_end, write_end = os.pipe()
        os.close(read_end)
        os.dup2(write_end, number)
        os.close(write_end)
    else:
        os.dup2(os.open("/dev/full", os.O_WRONLY) if state == "full" else log, number)


def plain_classifier(arch: str, num_classes: int, **options: bool) -> Any:
    """A small model without BatchNorm and dropout."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


def restless_classifier(arch: str, num_classes: int, **options: bool) -> Any:
    """A small model whose steps depend on more than its weights: BatchNorm and dropout."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, num_classes),
    )


def classifier_with_heads(arch: str, num_classes: int, *, aux_heads: bool = False) -> Any:
    """A small model with, on request, two auxiliary heads like googlenet's."""
    import torch
    from torch import nn

    class WithHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = restless_classifier(arch, 8)
            if aux_heads:
                self.aux1, self.aux2 = nn.Linear(8, num_classes), nn.Linear(8, num_classes)
            self.fc = nn.Linear(8, num_classes)

        def forward(self, images: torch.Tensor) -> Any:
            found = self.features(images)
            if not (self.training and aux_heads):
                return self.fc(found)
            return self.fc(found), self.aux2(found), self.aux1(found)

    return WithHeads()


def overflowing_classifier(arch: str, num_classes: int, **options: bool) -> Any:
    """A small model with values whose variance overflows float32, although its losses stay finite."""
    from torch import nn

    first = nn.Conv2d(3, 8, 3, stride=2)
    first.weight.data *= 1e25
    norm = nn.BatchNorm2d(8)
    return nn.Sequential(first, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


MODELS: dict[str, Callable[..., Any]] = {
    "plain": plain_classifier,
    "restless": restless_classifier,
    "with heads": classifier_with_heads,
    "overflowing": overflowing_classifier,
}


def _record(seen: dict[str, list[list[int]]]) -> None:
    """Record what the trainer takes from its loaders."""
    from tests.image_sets import indices
    from training.bad_files import GuardedLoader

    batches = GuardedLoader.__iter__

    def recorded(self: Any) -> Any:
        epoch: list[int] = []
        seen["train" if self._resumable else "val"].append(epoch)
        for images, targets in batches(self):
            epoch += indices(images)
            yield images, targets

    GuardedLoader.__iter__ = recorded  # type: ignore[method-assign]


def _follow(plans: list[dict[str, Any]]) -> None:
    """Count events and carry out the plans."""
    from pipelines import files
    from training import recipe
    from training.learner import Learner
    from training.output import Output
    from training.run import Run

    seen: Counter[str] = Counter()

    def event(name: str, result: Any = None) -> None:
        seen.update((name, "any"))
        for plan in plans:
            if plan["event"] not in (name, "any") or seen[plan["event"]] != plan["number"]:
                continue
            for deed in plan["do"]:
                if isinstance(deed, float):
                    time.sleep(deed)
                elif isinstance(deed, dict):
                    subprocess.run(deed["shell"], shell=True, check=True)
                elif deed == "full disk":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                elif deed == "bad loss":
                    result.fill_(math.nan)
                else:
                    os.kill(os.getpid(), deed)

    def after(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            event(name, result)
            return result

        return wrapped

    def write(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            event("half written")
            file.write(data[len(data) // 2 :])
            file.flush()
            event("not synced")
            os.fsync(file.fileno())
        event("not renamed")

    files.write_synced = write
    for owner, attribute, name in (
        (Path, "replace", "renamed"),
        (Path, "hardlink_to", "linked"),
        (Path, "unlink", "removed"),
        (Learner, "train_step", "step"),
        (Output, "log", "logged"),
        (recipe, "find_start", "looked"),
        (Run, "end", "ended"),
    ):
        setattr(owner, attribute, after(name, getattr(owner, attribute)))
    evaluate = Run.evaluate

    def evaluate_after(self: Any, stop: Any = None) -> Any:
        event("evaluation")
        return evaluate(self, stop)

    Run.evaluate = evaluate_after  # type: ignore[method-assign]


def _serve() -> None:
    # Children have what is imported or computed here.
    import dali_msda.backends.numba.headers
    import dali_msda.backends.numba.mix
    import dali_msda.operators  # noqa: F401
    import training.commands  # noqa: F401
    from training.options import options

    options()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line, port in zip(sys.stdin, _ports(), strict=False):
        order = json.loads(line)
        with tempfile.TemporaryFile() as log:
            children = []
            for rank in range(order["processes"]):
                child = os.fork()
                if child == 0:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    try:
                        _child(order, rank, port, log.fileno())
                    except BaseException:
                        import traceback

                        traceback.print_exc()
                        sys.stderr.flush()
                    os._exit(70)
                children.append(child)
            statuses = _wait(children, order["timeout"])
            log.seek(0)
            said = log.read().decode()
        print(json.dumps({"statuses": statuses, "said": said}), flush=True)


def _wait(children: list[int], timeout: float) -> list[int]:
    """Wait for exit statuses; kill the children at the time limit."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [statuses[child] for child in children]


if __name__ == "__main__":
    _serve()
