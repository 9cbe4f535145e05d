"""Starts, stops and restarts of the trainer: no training is lost."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest
from tqdm import tqdm

import train_imagenet
from tests.trainer_process import ROOT, Outcome, Trainer
from tests.training_runs import assert_same_run, without_clock
from training import resume
from training.checkpoints import VERSION, Checkpoints
from training.signals import STOP_SIGNALS

# 24 images in batches of 8: three steps per epoch.
SETTINGS = ["--image-size", "32", "--batch-size", "8", "--epochs", "3", "--lr", "0.01", "--log-every", "1"]
SETTINGS += ["--warmup-epochs", "1", "--amp", "none", "--device", "cpu", "--workers", "1"]
SETTINGS += ["--checkpoint-every", "2"]
AGAIN = ["--resume", "auto"]


@pytest.fixture(scope="module")
def undisturbed(trainer: Trainer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run without interruptions."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    outcome = trainer.run("--data", photos, "--output", output, *SETTINGS, model="plain")
    assert outcome.statuses == [0], outcome.said
    return output


class Held:
    """A run that pauses at an event until it is released."""

    def __init__(self, run: Callable[..., Outcome], event: str, number: int, folder: Path) -> None:
        here, self._on = folder / "here", folder / "on"
        wait = f"touch {here}; until [ -e {self._on} ]; do sleep 0.05; done"
        plan = {"event": event, "number": number, "do": [{"shell": wait}]}
        self._outcomes: list[Outcome] = []
        self._thread = threading.Thread(target=lambda: self._outcomes.append(run(plan=plan)))
        self._thread.start()
        while not here.exists():
            assert self._thread.is_alive(), self._outcomes
            time.sleep(0.02)

    def let_go(self) -> Outcome:
        """Release it and wait for it to finish."""
        self._on.touch()
        self._thread.join()
        return self._outcomes[0]


# -- Two processes, one folder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "number", "first", "second", "words"),
    [
        ("step", 5, 0, 2, "another process writes to {output}"),
        ("renamed", 6, 0, 2, "another process writes to {output}"),
        ("looked", 1, 2, 0, "another process has written to {output} since this one started"),
    ],
    ids=["in a step", "while it saves", "before it has made the folder"],
)
@pytest.mark.usefixtures("plain_model")
def test_a_restart_that_overlaps(
    event: str,
    number: int,
    first: int,
    second: int,
    words: str,
    trainer: Trainer,
    photos: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The process that owns the folder finishes; the other exits before it changes anything.

    If the second looks for a checkpoint, the first writes more of them before the second continues.
    """
    output = tmp_path / "run"
    command = ["--data", str(photos), "--output", str(output), *SETTINGS, *AGAIN]

    def run(plan: object) -> Outcome:
        return trainer.run(*command, plan=plan, model="plain")  # type: ignore[arg-type]

    held = Held(run, event, number, tmp_path)
    if first == 0:
        look = resume.find_start

        def and_wait(*arguments: Any) -> Any:
            start = look(*arguments)
            held.let_go()
            return start

        monkeypatch.setattr("training.recipe.find_start", and_wait)
    try:
        assert train_imagenet.main(command) == second
    finally:
        outcome = held.let_go()
    assert outcome.statuses == [first], outcome.said
    said = capfd.readouterr().err if second else outcome.said
    (error,) = (line for line in said.splitlines() if "error: " in line)
    assert words.format(output=output) in error
    assert_same_run(output, undisturbed)


def test_a_newer_checkpoint_is_not_called_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.start()
    for step in (2, 4):
        checkpoints.save(step, {"version": VERSION, "progress": {"step": step}}, is_best=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pt")}
    with pytest.raises(ValueError, match=r"step-00000004\.pt was written by another process since"):
        checkpoints.prepare_resume(2, checkpoints.path(2).read_bytes(), is_best=False, source=tmp_path)
    with pytest.raises(ValueError, match=r"step-00000002\.pt was written by another process since"):
        checkpoints.start()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pt*")} == before


# -- Files truncated between two starts ----------------------------------------------------------------------


@pytest.mark.parametrize("end", [-1, -40, 0], ids=["line end", "half a line", "everything"])
def test_metrics_that_were_cut(
    end: int, trainer: Trainer, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A partial line is removed, so that the file stays valid; a message says so, and the run is the same."""
    output = tmp_path / "run"
    command = ["--data", photos, "--output", output, *SETTINGS, *AGAIN]
    stopped = trainer.run(*command, plan=event("step", int(SIGTERM), 0.7, number=4), model="plain")
    assert stopped.statuses == [143], stopped.said
    metrics = output / "metrics.jsonl"
    data = metrics.read_bytes()
    metrics.write_bytes(data[:end])
    whole = metrics.read_bytes().rfind(b"\n") + 1
    outcome = trainer.run(*command, model="plain")
    assert outcome.statuses == [0], outcome.said
    lost = f"{metrics} lacks {len(data) - whole} bytes of lines from before the checkpoint; those are lost"
    assert lost in outcome.said
    before = data[:whole].count(b"\n")
    expected = without_clock(undisturbed)
    assert without_clock(output) == expected[:before] + expected[data.count(b"\n") :]


# -- Signals before the first step and after the last --------------------------------------------------------


def event(name: str, *deeds: object, number: int = 1) -> dict[str, Any]:
    return {"event": name, "number": number, "do": list(deeds)}


@pytest.mark.parametrize(
    ("plan", "status", "last"),
    [
        *(
            (
                [event("looked", int(number), 5.0)],
                128 + number,
                f"{number.name}: exiting; there is nothing to save",
            )
            for number in STOP_SIGNALS
        ),
        (
            [event("step", int(SIGTERM), 0.7, number=4), event("ended", int(SIGINT), 5.0)],
            130,
            "Stopped at step 4",
        ),
        ([event("ended", int(SIGINT), 5.0)], 130, "  results"),
    ],
)
def test_signals_around_the_training(
    plan: list[dict[str, Any]], status: int, last: str, trainer: Trainer, photos: Path, tmp_path: Path
) -> None:
    """At most one line, and the exit status of the signal."""
    command = ["--data", photos, "--output", tmp_path / "run", *SETTINGS]
    outcome = trainer.run(*command, plan=plan, model="plain")
    assert outcome.statuses == [status], outcome.said
    lines = [line for line in outcome.said.split("\n") if line]
    assert lines[-1].startswith(last), outcome.said
    assert "Traceback" not in outcome.said
    if plan[0]["event"] == "looked":
        assert len(lines) == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("library", ["_ctypes", "libtorch"])
def test_ctrl_c_while_it_imports(library: str, tmp_path: Path) -> None:
    """While importing its own modules first, then PyTorch."""
    program = f"import signal; signal.signal({int(SIGINT)}, signal.default_int_handler);"
    program += " import runpy; runpy.run_path('train_imagenet.py', run_name='__main__')"
    command = [sys.executable, "-c", program, "--demo-data", str(tmp_path / "demo"), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode in (-SIGINT, 128 + SIGINT)  # the same to a shell
    assert said == ""
    assert errors.strip() in ("", "SIGINT: exiting; there is nothing to save")


@pytest.mark.parametrize("killed", [0, 2])
def test_a_process_that_dies(killed: int, trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """The others exit with at most one error, printed by the main process if it is alive."""
    plan = {"event": "step", "number": 2, "rank": killed, "do": [SIGKILL]}
    command = ["--data", photos, "--output", tmp_path / "run", *SETTINGS, "--batch-size", 6, *AGAIN]
    outcome = trainer.run(*command, processes=3, plan=plan, model="plain")
    assert outcome.statuses == [-SIGKILL if rank == killed else 1 for rank in range(3)], outcome.said
    errors = [line for line in outcome.said.splitlines() if "rror" in line]
    assert ["another process of the run has died; --resume auto" in line for line in errors] == (
        [True] if killed else []
    ), outcome.said


# -- Nobody reads the output --------------------------------------------------------------------------------

SCREENS = [("broken", "log"), ("log", "closed"), ("closed", "broken"), ("full", "full")]


@pytest.mark.parametrize("screen", SCREENS, ids="-".join)
def test_a_screen_that_is_gone(
    screen: tuple[str, str], trainer: Trainer, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The run finishes, and its files are complete."""
    command = ["--data", photos, "--output", tmp_path / "run", *SETTINGS]
    outcome = trainer.run(*command, model="plain", screen=screen)
    assert outcome.statuses == [0], outcome.said
    assert "rror" not in outcome.said
    assert ("9 steps" in outcome.said) == (screen[0] == "log"), outcome.said
    logged = (tmp_path / "run" / "log.txt").read_text()
    for line in ("resnet50 on 24", "epoch 3: top-1", "100%", "for 9 steps"):
        assert logged.count(line) == 1, logged
    assert_same_run(tmp_path / "run", undisturbed)


def test_an_error_nobody_reads(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    command = ["--data", photos, "--output", tmp_path / "run", *SETTINGS]
    for screen in SCREENS:
        assert trainer.run(*command, model="plain", screen=screen).statuses == [2], screen


def printed(said: str) -> list[str]:
    """The final lines on the screen, sorted (the order of the streams varies), without progress bars."""
    lines = (line.rstrip("\r").split("\r")[-1].rstrip() for line in said.split("\n"))
    return sorted(line for line in lines if line and "step/s" not in line and "%|" not in line)


AWAY = {"event": "step", "number": 2, "do": [{"shell": "mv {run}/log.txt {run}/away"}]}
BACK = {"event": "step", "number": 8, "do": [{"shell": "mv {run}/away {run}/log.txt"}]}


@pytest.mark.parametrize(
    ("plan", "statuses", "line"),
    [
        (
            [{"event": "step", "number": 4, "do": [SIGTERM, 0.7]}],
            [128 + SIGTERM, 0],
            "Stopped at step 4 of 9",
        ),
        ([{"event": "step", "number": 4, "do": ["bad loss"]}], [1, 0], "error: The loss was not finite"),
        ([AWAY, BACK], [0], "epoch 2: top-1"),
    ],
    ids=["a stop", "an error", "a log that is away for a while"],
)
def test_the_log_has_all_that_is_printed(
    plan: list[dict[str, Any]],
    statuses: list[int],
    line: str,
    trainer: Trainer,
    photos: Path,
    tmp_path: Path,
) -> None:
    """Once, also for a resumed run; of a progress bar, its last state."""
    run = tmp_path / "run"
    plan = json.loads(json.dumps(plan).replace("{run}", str(run)))
    command = ["--data", photos, "--output", run, *SETTINGS, *AGAIN]
    outcomes = [
        trainer.run(*command, model="plain", plan=None if number else plan) for number in range(len(statuses))
    ]
    said = "\n".join(outcome.said for outcome in outcomes)
    assert [outcome.statuses for outcome in outcomes] == [[status] for status in statuses], said
    assert line in said
    assert printed((run / "log.txt").read_text()) == printed(said)


def test_a_log_that_cannot_be_written(
    trainer: Trainer, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    plan = {"event": "step", "number": 2, "do": [{"shell": f"rm {run}/log.txt && mkdir {run}/log.txt"}]}
    outcome = trainer.run("--data", photos, "--output", run, *SETTINGS, model="plain", plan=plan)
    assert outcome.statuses == [0], outcome.said
    assert "rror" not in outcome.said
    assert_same_run(run, undisturbed)


def test_saved_before_it_is_told(
    plain_model: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, told = tmp_path / "run", []
    write = tqdm.write

    def look(line: str, *more: Any) -> None:
        told.append((line.split(":")[0], max(Checkpoints(output, 3).numbered(), default=0)))
        write(line, *more)

    monkeypatch.setattr(tqdm, "write", staticmethod(look))
    assert train_imagenet.main(["--data", str(photos), "--output", str(output), *SETTINGS]) == 0
    assert told == [("epoch 1", 3), ("epoch 2", 6), ("epoch 3", 9)]


STREAMS = """
import os, sys
from pipelines.screen import keep_printing
keep_printing()
for number in range(9999):
    print(number)
    print(number, file=sys.stderr)
print(*(os.readlink(f"/proc/self/fd/{number}") for number in range(3)), file=open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize(
    ("line", "status", "opened"),
    [
        ("{program} | head -1 >/dev/null", 0, "pipe:"),
        ("{program} 2>&1 | head -1 >/dev/null", 0, "pipe:"),
        ("{program} <&- >&- 2>&-", 0, "/dev/null /dev/null /dev/null"),
        ("{program} >/dev/full 2>&1", 0, "/dev/full /dev/full"),
        ("PYTHONUNBUFFERED=1 {program} | head -1 >/dev/null", 0, "pipe:"),
    ],
)
def test_streams(line: str, status: int, opened: str, tmp_path: Path) -> None:
    """The next file to be opened does not get the descriptor of a closed stream."""
    program = shlex.join([sys.executable, "-c", STREAMS, str(tmp_path / "opened")])
    command = ["bash", "-o", "pipefail", "-c", line.format(program=program)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert process.returncode == status, process.stderr
    assert "Error" not in process.stderr
    assert opened in (tmp_path / "opened").read_text()
