"""A run interrupted anywhere and resumed equals an uninterrupted one: metrics and weights, bit for bit."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import io
import json
import operator
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import train_imagenet
from pipelines import files
from tests.devices import trainer_options, with_device
from tests.image_sets import photo, write_split
from tests.trainer_process import Outcome, Trainer, restless_classifier
from tests.training_runs import assert_same_run, flat, without_clock
from training import checkpoints
from training.learner import Learner
from training.model import build_schedule

# 43 images in batches of 8: five steps per epoch, three images left over.
SETTINGS = ["--image-size", "32", "--batch-size", "8", "--epochs", "3"]
SETTINGS += ["--warmup-epochs", "1", "--amp", "none", "--device", "cpu", "--workers", "1", "--log-every", "1"]
SETTINGS += ["--checkpoint-every", "2", "--lr", "0.01"]
AGAIN = ["--resume", "auto"]
# Everything with a state of its own, or that depends on the batch number. (test_augment tests that
# RandAugment continues its draws from a checkpoint: its graph takes seconds to build, at every resume.)
FULL = ["--ema-decay", "0.9", "--accumulate", "2", "--clip-grad-norm", "2", "--color-jitter", "0.4"]
FULL += ["--mix-alpha-start", "0.3", "--mix-probability-start", "0.2", "--mix-ramp-epochs", "1.5"]
FULL += ["--mix-off-epoch", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split, counts in (("train", (17, 14, 12)), ("val", (5, 4, 4))):
        write_split(root / split, counts, lambda index, _: Image.fromarray(photo(40 + index, 50, index)))
    return root


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.learner.build_model", restless_classifier)


@pytest.fixture(scope="module")
def trainer(trainer: Trainer) -> Callable[..., Outcome]:
    """Runs the trainer in separate processes, with the same model as in this one."""
    return functools.partial(trainer.run, model="restless")


@pytest.fixture(scope="module")
def undisturbed(
    trainer: Callable[..., Outcome], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Output folder of an uninterrupted run, by method, number of processes and device."""

    @functools.cache
    def make(mix: str = "hmix", processes: int = 1, full: bool = False, device: str = "cpu") -> Path:
        output = tmp_path_factory.mktemp("undisturbed") / f"{mix}-{processes}"
        command = ["--data", data, "--output", output, "--mix", mix, *SETTINGS, *shared(processes)]
        command += trainer_options(device)
        command += FULL if full else []
        outcome = trainer(*command, processes=processes)
        assert outcome.statuses == [0] * processes, outcome.said
        return output

    return make


def shared(processes: int) -> list[str]:
    """Settings that depend on the number of processes: batches must divide evenly."""
    return ["--batch-size", "9"] if processes == 3 else []


@pytest.mark.parametrize(("mix", "processes"), [("gmix", 1), ("gmix", 2), ("hmix", 3)])
def test_killed_anywhere(
    mix: str,
    processes: int,
    trainer: Callable[..., Outcome],
    data: Path,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Killed at random steps or save operations until it finishes.

    The sum of two processes' gradients does not depend on their order, that of three does. With one and two
    processes the runs average weights, accumulate gradients, augment, and change the mixing over time.
    """
    rng = random.Random(f"{mix} {processes}")
    output = tmp_path / "run"
    full = processes < 3
    command = ["--data", data, "--output", output, "--mix", mix, *SETTINGS, *shared(processes), *AGAIN]
    command += FULL if full else []
    kills = 0
    while True:
        rank = rng.randrange(processes)
        plan = {"event": "any", "number": rng.randint(1, 8 if rank else 60), "rank": rank, "do": [9]}
        outcome = trainer(*command, processes=processes, plan=plan if kills < 6 else None)
        if outcome.statuses == [0] * processes:
            break
        assert outcome.statuses[rank] == -signal.SIGKILL, outcome.said
        kills += 1
    assert kills >= 3
    assert_same_run(output, undisturbed(mix, processes, full))


EVENTS = ["half written", "not synced", "not renamed", "renamed", "linked", "removed", "logged", "evaluation"]


def test_killed_at_every_kind_of_event(
    trainer: Callable[..., Outcome], data: Path, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    """One run, killed at the second event of each kind in turn; the newest checkpoint survives."""
    output = tmp_path / "run"
    command = ["--data", data, "--output", output, *SETTINGS, *AGAIN]
    steps = [0]
    for event in EVENTS:
        outcome = trainer(*command, plan={"event": event, "number": 2, "do": [9]})
        assert outcome.statuses == [-signal.SIGKILL], (event, outcome.said)
        path, content, damaged = checkpoints.Checkpoints(output, 3).newest()
        assert damaged == []
        steps.append(checkpoints.unpack(content)["progress"]["step"] if path else 0)
    assert steps == sorted(steps)
    assert trainer(*command).statuses == [0]
    assert_same_run(output, undisturbed())


@with_device("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP], [signal.SIGTERM])
def test_signal_saves_the_step(
    number: signal.Signals,
    device: str,
    trainer: Callable[..., Outcome],
    data: Path,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """At step 8, where no checkpoint is due."""
    output = tmp_path / "run"
    command = ["--data", data, "--output", output, *SETTINGS, *AGAIN, "--checkpoint-every", "100"]
    command += trainer_options(device)
    plan = {"event": "step", "number": 8, "do": [int(number), 0.2]}
    outcome = trainer(*command, plan=plan)
    assert outcome.statuses == [128 + number]
    assert f"{number.name}: finishing the step" in outcome.said
    assert "Stopped at step 8 of 15" in outcome.said
    assert torch.load(output / "last.pt", weights_only=True)["progress"]["step"] == 8
    assert without_clock(output)[-1]["step"] == 8
    outcome = trainer(*command)
    assert "step-00000008.pt" in outcome.said
    assert outcome.statuses == [0]
    expected = undisturbed(device=device)
    assert without_clock(output) == without_clock(expected)
    weights = [torch.load(path / "last.pt", weights_only=True)["model"] for path in (output, expected)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_second_signal_does_not_save(trainer: Callable[..., Outcome], data: Path, tmp_path: Path) -> None:
    plan = {"event": "step", "number": 3, "do": [int(signal.SIGTERM), 0.8, int(signal.SIGTERM), 5.0]}
    outcome = trainer("--data", data, "--output", tmp_path / "run", *SETTINGS, plan=plan)
    assert outcome.statuses == [128 + signal.SIGTERM]
    assert "quitting without saving" in outcome.said
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["progress"]["step"] == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_signal_in_the_evaluation(
    processes: int,
    trainer: Callable[..., Outcome],
    data: Path,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """It is interrupted, and repeated on resume. With two processes only the second gets the signal."""
    output = tmp_path / "run"
    command = ["--data", data, "--output", output, *SETTINGS, *AGAIN]
    plan = {
        "event": "evaluation",
        "number": 2,
        "rank": processes - 1,
        "do": [int(signal.SIGTERM), 0.2],
    }
    outcome = trainer(*command, processes=processes, plan=plan)
    assert outcome.statuses == [128 + signal.SIGTERM] * processes, outcome.said
    saved = torch.load(output / "last.pt", weights_only=True)["progress"]
    assert (saved["step"], saved["epoch"], saved["evaluation"]) == (10, 1, None)
    assert [line["event"] for line in without_clock(output)].count("eval") == 1
    assert trainer(*command, processes=processes).statuses == [0] * processes
    assert_same_run(output, undisturbed(processes=processes))


# -- What resumes, and what is refused --------------------------------------------------------------------


@pytest.fixture
def copy(undisturbed: Callable[..., Path], tmp_path: Path) -> Path:
    """A finished run with the checkpoints of steps 12, 14 and 15."""
    return Path(shutil.copytree(undisturbed(), tmp_path / "copy"))


def run(data: Path, *arguments: object) -> int:
    return train_imagenet.main(["--data", str(data), *SETTINGS, *map(str, arguments)])


def test_damaged_checkpoints_are_passed_over(
    copy: Path, data: Path, undisturbed: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    newest, before = (copy / "checkpoints" / f"step-000000{step}.pt" for step in (15, 14))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    before.write_bytes(before.read_bytes()[:-1000])
    assert run(data, "--output", copy, *AGAIN) == 0
    said = capfd.readouterr()
    assert f"{newest} is damaged" in said.err
    assert f"{before} is damaged" in said.err
    assert "resuming from" in said.out
    assert "step-00000012.pt" in said.out
    for damaged in (copy / "checkpoints").glob("*.damaged"):
        damaged.unlink()
    assert_same_run(copy, undisturbed())


def test_nothing_to_resume(
    copy: Path, data: Path, undisturbed: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed before its first checkpoint was complete: its log lines are dropped."""
    shutil.rmtree(copy / "checkpoints")
    for name in ("last.pt", "best.pt"):
        (copy / name).unlink()
    assert run(data, "--output", copy, *AGAIN) == 0
    assert "no checkpoint yet, starting" in capfd.readouterr().out
    assert_same_run(copy, undisturbed())


def test_a_finished_run_stays_as_it_is(copy: Path, data: Path, undisturbed: Callable[..., Path]) -> None:
    assert run(data, "--output", copy, *AGAIN) == 0
    assert_same_run(copy, undisturbed())


def test_another_configuration_is_refused(copy: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    changes = ["--lr", "0.02", "--mix", "gmix", "--seed", "7", "--epochs", "2"]
    assert run(data, "--output", copy, *AGAIN, *changes) == 2
    error = capfd.readouterr().err
    for words in (
        "--lr 0.01 in the checkpoint, 0.02 here",
        "--mix hmix in the checkpoint, gmix here",
        "--seed 0 in the checkpoint, 7 here",
    ):
        assert words in error
    assert "--epochs 3 in the checkpoint, 2 here" in error
    for same in ("--arch", "--momentum", "--output", "--data"):
        assert same not in error
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_other_images_are_refused(
    copy: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same list of images in another place counts as the same configuration."""
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    assert run(moved, "--output", copy, *AGAIN) == 0
    next((moved / "train").rglob("*.png")).unlink()
    assert run(moved, "--output", copy, *AGAIN) == 2
    error = capfd.readouterr().err
    assert "images in train/" in error
    assert "images in val/" not in error


def test_more_epochs(copy: Path, data: Path) -> None:
    """The learning rate continues on the longer curve."""
    assert run(data, "--output", copy, *AGAIN, "--epochs", "4") == 0
    lines = without_clock(copy)
    assert [line["step"] for line in lines if line["event"] == "train"] == list(range(1, 21))
    config = json.loads((copy / "config.json").read_text())
    assert (config["settings"]["epochs"], config["resumed_at_step"]) == (4, 15)
    assert [before["settings"]["epochs"] for before in config["before"]] == [3]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = build_schedule(optimizer, 5, 20, 0)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [line["lr"] for line in lines if line["event"] == "train"][15:] == [
        float(f"{rate:.7g}") for rate in rates[15:]
    ]


def test_a_checkpoint_by_its_path(
    copy: Path,
    data: Path,
    tmp_path: Path,
    undisturbed: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Into a new folder, with all earlier results; never over later ones."""
    path = copy / "checkpoints" / "step-00000012.pt"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert run(data, "--resume", path) == 2
    assert "would overwrite" in capfd.readouterr().err
    assert run(data, "--resume", path, "--output", tmp_path / "other") == 0
    assert_same_run(tmp_path / "other", undisturbed())
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert run(data, "--resume", copy / "last.pt") == 0


def as_version_1(content: dict[str, Any]) -> bytes:
    """A checkpoint from before they had versions: the old layout, and a SHA-256 as the ZIP comment."""
    run, progress = content["run"], content["progress"]
    old = {
        "model": content["model"],
        "ema": content["ema"],
        "ema_updates": progress["step"],
        "optimizer": content["optimizer"],
        "scaler": content["scaler"],
        "ranks": [{"loader": rank["loader"], "random": rank["random"]} for rank in content["ranks"]],
        "epoch": progress["epoch"],
        "step": progress["step"],
        "evaluation": progress["evaluation"],
        "best": progress["best"],
        "settings": run["settings"],
        "images": run["images"],
        "processes": run["processes"],
        "arch": run["settings"]["arch"],
        "num_classes": len(run["classes"]),
        "metrics_bytes": content["output"]["metrics_bytes"],
    }
    buffer = io.BytesIO()
    torch.save(old, buffer)
    archive = buffer.getvalue()
    comment = b"sha256=" + hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + len(comment).to_bytes(2, "little") + comment


@pytest.mark.parametrize("step", [12, 15])
def test_a_checkpoint_of_version_1(
    step: int, data: Path, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    """In the middle of an epoch, and after the last."""
    expected, output = undisturbed("gmix", 1, True), tmp_path / "run"
    path = Path(f"checkpoints/step-{step:08d}.pt")
    content = torch.load(expected / path, weights_only=True)
    assert (content["version"], checkpoints.VERSION) == (4, 4)
    old = as_version_1(content)
    content["run"]["classes"] = None  # older ones do not hold them
    assert flat(checkpoints.unpack(old)).keys() == flat(content).keys()
    (output / "checkpoints").mkdir(parents=True)
    (output / path).write_bytes(old)
    shutil.copy(expected / "best.pt", output)
    shutil.copy(expected / "metrics.jsonl", output)
    assert run(data, "--output", output, *AGAIN, "--mix", "gmix", *FULL) == 0
    assert without_clock(output) == without_clock(expected)
    found, wanted = (checkpoints.unpack((folder / "last.pt").read_bytes()) for folder in (output, expected))
    for part in ("model", "ema", "progress", "ranks"):
        found_leaves, wanted_leaves = flat(found[part]), flat(wanted[part])
        assert found_leaves.keys() == wanted_leaves.keys()
        for name, value in wanted_leaves.items():
            same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
            assert same(found_leaves[name], value), name


def test_a_checkpoint_of_a_newer_version(copy: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    newest = copy / "checkpoints" / "step-00000015.pt"
    content = torch.load(newest, weights_only=True)
    newest.write_bytes(checkpoints.pack(content | {"version": 5}))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for resume in ("auto", newest):
        assert run(data, "--output", copy, "--resume", resume) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line == (
            f"train_imagenet.py: error: {newest} has checkpoint version 5; this trainer reads 1 to 4"
        )
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_bad_resume(copy: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: object) -> str:
        assert run(data, *arguments) == 2
        return capfd.readouterr().err

    assert "--resume auto needs --output" in error("--resume", "auto")
    assert "there is no file" in error("--resume", tmp_path / "none.pt")
    (tmp_path / "other.pt").write_bytes(b"no checkpoint")
    assert "other.pt is damaged" in error("--resume", tmp_path / "other.pt")
    assert "--keep must be at least 1" in error("--keep", "0")
    assert "--checkpoint-every must be at least 1" in error("--checkpoint-every", "0")
    with (copy / "metrics.jsonl").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process writes to" in error("--output", copy, *AGAIN)


def test_another_number_of_processes_is_refused(
    copy: Path, data: Path, trainer: Callable[..., Outcome]
) -> None:
    outcome = trainer("--data", data, "--output", copy, *SETTINGS, *AGAIN, processes=2)
    assert outcome.statuses == [2, 2]
    assert "--resume needs as many processes as the run began with, 1; got 2" in outcome.said


# -- Failed writes -----------------------------------------------------------------------------------------


def test_full_disk(
    data: Path,
    tmp_path: Path,
    undisturbed: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The run ends with one line that says so, and resumes when there is space again."""
    write = files.write_synced

    def full(path: Path, content: bytes) -> None:
        if "step-00000006" in path.name:
            path.write_bytes(content[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_synced", full)
        assert run(data, "--output", output, "--storage-patience", 0) == 75
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("train_imagenet.py: error: cannot write")
    assert "No space left on device; the newest good checkpoint is" in last
    assert last.endswith("step-00000005.pt (--storage-patience 0)")
    assert run(data, "--output", output, *AGAIN) == 0
    assert_same_run(output, undisturbed())


def test_output_folder_removed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    step = Learner.train_step

    def remove(self: Learner, batches: Any) -> torch.Tensor:
        if self.schedule.last_epoch == 2:
            shutil.rmtree(output)
        return step(self, batches)

    monkeypatch.setattr(Learner, "train_step", remove)
    assert run(data, "--output", output, "--storage-patience", 0) == 75
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("train_imagenet.py: error: cannot write")
    assert str(output) in last
    assert "No such file or directory" in last


def test_output_cannot_be_made(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(data, "--output", tmp_path / "file" / "run") == 2
    assert f"--output must be a folder; {tmp_path}/file is a file" in capfd.readouterr().err
