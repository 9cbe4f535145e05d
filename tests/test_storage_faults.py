"""Storage of images and output that goes away, for a while or for good, and how the trainer reacts.

The faults are real: folders are renamed, disks (tmpfs) are full, and a library that is loaded before the C
library makes system calls fail (`storage_shim.c`).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from pipelines import check
from tests.checking import KINDS
from tests.image_sets import photo, write_split
from tests.trainer_process import Outcome, Trainer
from tests.training_runs import assert_same_run

# 43 images in batches of 8: five steps per epoch, three images left over.
SETTINGS = ["--image-size", "32", "--batch-size", "8", "--epochs", "12", "--mix", "gmix", "--lr", "0.01"]
SETTINGS += ["--warmup-epochs", "1", "--amp", "none", "--device", "cpu", "--workers", "1", "--log-every", "1"]
SETTINGS += ["--checkpoint-every", "3", "--ema-decay", "0.9", "--resume", "auto"]
SHORT = ["--storage-patience", "0.7"]
# A command that runs `back` once the trainer says on its standard error that it waits.
LATER = """
n=$(wc -c < /proc/self/fd/2)
(for i in $(seq 300); do
    tail -c +$((n + 1)) /proc/self/fd/2 | grep -q 'retrying in' && break
    sleep 0.1
done; {back}) &
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split, counts in (("train", (17, 14, 12)), ("val", (5, 4, 4))):
        write_split(root / split, counts, lambda index, _: Image.fromarray(photo(40 + index, 50, index)))
    return root


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy, whose folders may disappear."""
    return Path(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture(scope="module")
def shimmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A trainer whose system calls fail by the rules in the file $SHIM_RULES, one file per process."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    source = Path(__file__).with_name("storage_shim.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "shim.so"), str(source), "-ldl"]
    subprocess.run(command, check=True)
    trainer = Trainer(LD_PRELOAD=str(folder / "shim.so"), SHIM_RULES=str(folder / "rules"))
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def undisturbed(
    trainer: Trainer, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Output folder of a run without faults, by number of processes."""
    found: dict[int, Path] = {}

    def make(processes: int) -> Path:
        if processes not in found:
            found[processes] = tmp_path_factory.mktemp("undisturbed") / "run"
            command = ["--data", original, "--output", found[processes], *SETTINGS]
            outcome = trainer.run(*command, processes=processes, model="restless")
            assert outcome.statuses == [0] * processes, outcome.said
        return found[processes]

    return make


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of the storage, and what the run prints about it.

    Attributes
    ----------
    name : str
    away, back : str
        A shell command, with {data} and {output}, and one that undoes it.
    words : tuple of str
        Expected on the screen.
    rank : int
        Process in which it happens.
    event : str
        When it happens: after a step, or before an evaluation.
    ends : bool
        Whether it also ends a run in `test_gone`: one fault for each place of the run that meets it.
    """

    name: str
    away: str
    back: str
    words: tuple[str, ...]
    rank: int = 0
    event: str = "step"
    ends: bool = False


def moved(name: str, folder: str, **more: Any) -> Fault:
    """A folder is renamed; `then` is put in its place."""
    then = more.pop("then", "true")
    away = f"mv {folder} {folder}-gone && {then}"
    back = f"rm -rf {folder}; mv {folder}-gone {folder}"
    return Fault(name=name, away=away, back=back, words=(folder, "No such file or directory"), **more)


def refused(name: str, what: str, error: int, path: str, words: str, **more: Any) -> Fault:
    """System calls of one kind fail below a path."""
    away = f'echo "{what} {error} {path}" > $SHIM_RULES'
    return Fault(name=name, away=away, back="rm -f $SHIM_RULES", words=(words, path), **more)


TRAIN, VAL = "{data}/train", "{data}/val"
EMPTY = "for c in {data}/train-gone/*; do mkdir -p {data}/train/$(basename $c); done"
MOVED = [
    moved("train", TRAIN, ends=True),
    moved("val", VAL, event="evaluation", ends=True),
    moved("output", "{output}", ends=True),
    moved("an empty folder where a share was mounted", TRAIN, then="mkdir {data}/train"),
    moved("empty class folders", TRAIN, then=EMPTY),
]
REFUSED = [
    refused("EIO", "read", 5, TRAIN, "Input/output error", ends=True),
    refused("ESTALE of val", "read", 116, VAL, "Stale file handle", event="evaluation"),
    refused("EROFS", "write", 30, "{output}", "Read-only file system", ends=True),
    refused("EIO of metrics.jsonl", "write", 5, "{output}/metrics.jsonl", "Input/output error", ends=True),
    refused("EIO of last.pt", "write", 5, "{output}/last.pt", "Input/output error", ends=True),
    refused("EACCES", "read", 13, TRAIN, "Permission denied"),
    refused("EMFILE", "read", 24, TRAIN, "Too many open files"),
    refused("ETIMEDOUT", "read", 110, TRAIN, "Connection timed out"),
    refused("ESTALE of the output", "write", 116, "{output}", "Stale file handle"),
    refused("EIO of TensorBoard", "write", 5, "{output}/events", "Input/output error"),
]
OF_TWO = [
    refused("ESTALE of one", "read", 116, TRAIN, "Stale file handle", rank=1, ends=True),
    refused("EIO of val of one", "read", 5, VAL, "Input/output error", rank=1, event="evaluation"),
    refused("ENOSPC", "write", 28, "{output}", "No space left on device", ends=True),
    moved("train of both", TRAIN, ends=True),
]
CASES = {"renamed": (MOVED, 1), "refused": (REFUSED, 1), "two processes": (OF_TWO, 2)}


class Runs:
    """Runs of the trainer with faults."""

    def __init__(
        self, faults: list[Fault], processes: int, trainer: Trainer, data: Path, output: Path
    ) -> None:
        self.faults = faults
        self.processes = processes
        self.trainer = trainer
        self.output = output
        self.data = data

    def text(self, text: str) -> str:
        return text.format(data=self.data, output=self.output)

    def plan(self, fault: Fault, number: int, *, back: bool) -> dict[str, Any]:
        """The fault at an event; `back` undoes it once the run waits."""
        command = self.text(fault.away)
        if back:
            command += LATER.replace("{back}", self.text(fault.back))
        return {"event": fault.event, "number": number, "rank": fault.rank, "do": [{"shell": command}]}

    def run(self, *more: object, plan: Any = None) -> Outcome:
        command = ["--data", self.data, "--output", self.output, *SETTINGS, *more]
        outcome = self.trainer.run(*command, processes=self.processes, plan=plan, model="restless")
        assert "Traceback" not in outcome.said, outcome.said
        return outcome

    def undo(self, fault: Fault) -> None:
        environment = os.environ | self.trainer.environment
        if "SHIM_RULES" in environment:
            environment["SHIM_RULES"] += f".{fault.rank}"
        subprocess.run(self.text(fault.back), shell=True, check=True, env=environment)

    def step(self) -> int:
        """The step of last.pt, after checking that all files are whole and no image was quarantined."""
        found = [path for path in self.output.rglob("*") if path.is_file()]
        assert not [path for path in found if "tmp" in path.name or path.name == "quarantine.jsonl"]
        steps = {
            path.name: torch.load(path, weights_only=True)["progress"]["step"]
            for path in found
            if path.suffix == ".pt"
        }
        return int(steps["last.pt"])


@pytest.fixture
def runs(request: pytest.FixtureRequest, trainer: Trainer, data: Path, tmp_path: Path) -> Runs:
    faults, processes = CASES[request.param]
    chosen = trainer if request.param == "renamed" else request.getfixturevalue("shimmed")
    return Runs(faults, processes, chosen, data, tmp_path / "run")


@pytest.mark.parametrize("runs", CASES, indirect=True)
def test_back_after_a_while(runs: Runs, undisturbed: Callable[[int], Path]) -> None:
    """One fault after another: the run waits, says so, and ends like the run without faults."""
    # After steps whose lines in metrics.jsonl are not in a checkpoint yet (every third step). An evaluation
    # reads ahead for the next one: that error comes with the last of twelve.
    numbers = {"step": itertools.count(5, 6), "evaluation": itertools.count(11)}
    plan = [runs.plan(fault, next(numbers[fault.event]), back=True) for fault in runs.faults]
    outcome = runs.run("--storage-patience", 60, plan=plan)
    assert outcome.statuses == [0] * runs.processes, outcome.said
    for fault in runs.faults:
        for words in fault.words:
            assert runs.text(words) in outcome.said, fault.name
    assert outcome.said.count("back after") >= len(runs.faults)
    assert runs.step() == 60
    assert_same_run(runs.output, undisturbed(runs.processes))


@pytest.mark.parametrize("runs", CASES, indirect=True)
def test_gone(runs: Runs, undisturbed: Callable[[int], Path]) -> None:
    """The run saves what it can, ends with its own exit status, and resumes as after a kill."""
    steps = [0]
    for fault in (fault for fault in runs.faults if fault.ends):  # each start takes a second
        number = 1 if fault.event == "evaluation" else 3
        outcome = runs.run(*SHORT, plan=runs.plan(fault, number, back=False))
        assert outcome.statuses == [os.EX_TEMPFAIL] * runs.processes, (fault.name, outcome.said)
        for words in (*fault.words, "train_imagenet.py: error: ", "--storage-patience 0.7", "To resume: "):
            assert runs.text(words) in outcome.said, fault.name
        assert f"--resume auto --output {runs.output}" in outcome.said
        (error,) = (line for line in re.split(r"[\r\n]", outcome.said) if "error: " in line)
        assert error.startswith("train_imagenet.py: error: "), fault.name
        runs.undo(fault)
        steps.append(runs.step())
    assert sorted(steps) == steps
    assert runs.run().statuses == [0] * runs.processes
    assert_same_run(runs.output, undisturbed(runs.processes))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("room", ["in time", "later"])
def test_full_disk(
    room: str, trainer: Trainer, small_disk: Path, data: Path, undisturbed: Callable[[int], Path]
) -> None:
    """A disk that fills up after some checkpoints; the newest good one stays."""
    runs = Runs([], 1, trainer, data, small_disk / "run")
    fill = f"dd if=/dev/zero of={small_disk}/filler bs=4k 2>/dev/null"
    free = f"rm {small_disk}/filler"
    in_time = room == "in time"
    command = f"{fill}; {LATER.replace('{back}', free) if in_time else 'true'}"
    plan = {"event": "step", "number": 7, "do": [{"shell": command}]}
    outcome = runs.run("--storage-patience", 60 if in_time else 0.7, plan=plan)
    assert "No space left on device" in outcome.said
    if not in_time:
        assert outcome.statuses == [os.EX_TEMPFAIL], outcome.said
        assert outcome.said.count("error: ") == 1
        assert runs.step() == 6
        subprocess.run(free, shell=True, check=True)
        outcome = runs.run()
    assert outcome.statuses == [0], outcome.said
    assert_same_run(runs.output, undisturbed(1))


@pytest.mark.parametrize(("room", "resumed"), [("later", False), ("in time", True)])
def test_full_disk_at_the_start(
    room: str,
    resumed: bool,
    trainer: Trainer,
    small_disk: Path,
    data: Path,
    undisturbed: Callable[[int], Path],
) -> None:
    """The run waits, whatever it writes first: the command is not wrong."""
    runs = Runs([], 1, trainer, data, small_disk / "run")
    if resumed:
        stop = {"event": "step", "number": 7, "do": [int(signal.SIGTERM)]}
        assert runs.run(plan=stop).statuses == [128 + signal.SIGTERM]
    fill = f"dd if=/dev/zero of={small_disk}/filler bs=4k 2>/dev/null"
    free = f"rm {small_disk}/filler"
    in_time = room == "in time"
    command = f"{fill}; {LATER.replace('{back}', free) if in_time else 'true'}"
    plan = {"event": "looked", "number": 1, "do": [{"shell": command}]}
    outcome = runs.run("--storage-patience", 60 if in_time else 0.7, plan=plan)
    assert "No space left on device" in outcome.said
    if not in_time:
        assert outcome.statuses == [os.EX_TEMPFAIL], outcome.said
        assert outcome.said.count("error: ") == 1
        subprocess.run(free, shell=True, check=True)
        outcome = runs.run()
    assert outcome.statuses == [0], outcome.said
    assert_same_run(runs.output, undisturbed(1))


def test_disk_full_for_a_log(shimmed: Trainer, data: Path, tmp_path: Path) -> None:
    """One error with the newest checkpoint: after step 3, with three lines in metrics.jsonl."""
    rules, output = shimmed.environment["SHIM_RULES"], tmp_path / "run"
    for name in ("metrics.jsonl", "events"):
        runs = Runs([], 1, shimmed, data, output)
        full = {"shell": f"echo write 28 {output}/{name} > {rules}.0"}
        plan = {"event": "step", "number": 2 if name == "events" else 5, "do": [full]}
        outcome = runs.run(*SHORT, plan=plan)
        Path(f"{rules}.0").unlink()
        assert outcome.statuses == [os.EX_TEMPFAIL], outcome.said
        (error,) = (line for line in outcome.said.splitlines() if "error: " in line)
        assert "No space left on device" in error
        assert f"the newest good checkpoint is {output}/checkpoints/step-00000003.pt" in error


@pytest.mark.parametrize(
    ("split", "bad", "limit", "status"),
    [
        ("train", 10, 0.01, 0),  # few files are fine, whatever their share
        ("train", 11, 0.5, 0),
        ("train", 11, 0.01, 1),
        ("val", 11, 0.01, 1),
        ("train", 11, 1, 0),
    ],
)
def test_many_bad_files(
    split: str, bad: int, limit: float, status: int, trainer: Trainer, data: Path, tmp_path: Path
) -> None:
    """They end the run with the state of the last step, and the message says what to do."""
    for path in sorted((data / split).rglob("*.*"))[:bad]:
        path.write_bytes(KINDS["wrong checksum.png"].data)
    runs = Runs([], 1, trainer, data, tmp_path / "run")
    outcome = runs.run("--bad-files-limit", limit, "--batch-size", 32, "--epochs", 1)
    assert outcome.statuses == [status], outcome.said
    quarantined = tmp_path / "run" / "quarantine.jsonl"
    if status == 0:
        assert len(quarantined.read_bytes().splitlines()) == bad
    else:
        assert f"in {data / split} cannot be decoded" in outcome.said
        assert "python -m pipelines.check" in outcome.said
        assert not quarantined.exists()


@pytest.mark.parametrize(
    ("folder", "back"),
    [("{data}/train", "true"), ("{output}", "mv {output}-gone {output}")],
    ids=["images that stay away", "output that is back"],
)
def test_a_signal_ends_the_wait(folder: str, back: str, trainer: Trainer, data: Path, tmp_path: Path) -> None:
    """The last step is saved, with the signal's exit status; also before it notices that storage is back."""
    runs = Runs([], 1, trainer, data, tmp_path / "run")
    stop = LATER.replace("{back}", f"{runs.text(back)}; kill $PPID").replace("(for", "PPID=$PPID; (for")
    stop = stop.replace("retrying in", "retrying in 2.0")
    away = runs.text(f"mv {folder} {folder}-gone")
    plan = {"event": "step", "number": 4, "do": [{"shell": f"{away}; {stop}"}]}
    outcome = runs.run("--storage-patience", 60, plan=plan)
    assert outcome.statuses == [128 + signal.SIGTERM], outcome.said
    assert runs.step() >= 4


@pytest.mark.parametrize("fault", ["ESTALE", "gone"])
def test_evaluation_only(
    fault: str, shimmed: Trainer, data: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), weights)
    rules = Path(shimmed.environment["SHIM_RULES"] + ".0")
    if fault == "ESTALE":
        rules.write_text(f"read 116 {data}/val\n")
    else:
        rules.write_text(f"read 2 {data}/val/\n")
    command = ["--data", data, "--eval-only", "--init-weights", weights, "--arch", "resnet18", *SHORT]
    command += ["--image-size", 32, "--batch-size", 8, "--device", "cpu", "--workers", 1, "--amp", "none"]
    try:
        outcome = shimmed.run(*command)
    finally:
        rules.unlink()
    assert outcome.statuses == [os.EX_TEMPFAIL], outcome.said
    assert "Traceback" not in outcome.said
    assert str(data / "val") in outcome.said
    assert "--storage-patience 0.7" in outcome.said


@pytest.mark.parametrize("unreadable", [10, 11])
def test_check(unreadable: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few unreadable files are reported; if there are many, storage is at fault: no report is written."""
    paths = sorted((data / "train").rglob("*.*"))[:unreadable]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
        path.symlink_to("/proc/self/mem")  # opens; reading it is an error
    command = [str(data / "train"), "--output", str(tmp_path / "out"), "--workers", "1"]
    status = check.main(command)
    said = capsys.readouterr()
    reported = (tmp_path / "out" / "report.json").exists()
    if unreadable == 10:
        assert (status, reported) == (1, True)
        return
    assert (status, reported) == (2, False)
    assert "11 files could not be read" in said.err
    assert f"{paths[0]} cannot be read: Input/output error" in said.err
    for path, content in zip(paths, contents, strict=True):
        path.unlink()
        path.write_bytes(content)
    assert check.main(command) == 0
