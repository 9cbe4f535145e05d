"""Several processes: which images each sees, what is counted, and that the training is the same."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]
from torch.nn import functional

import train_imagenet
from pipelines.imagenet import val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Output
from tests.image_sets import TRAIN_COUNTS, VAL_COUNTS, photo, plain, write_split
from tests.trainer_process import ROOT, Trainer, plain_classifier
from tests.training_runs import without_clock
from training.distributed import store_of_this_start
from training.model import build_model

TRAIN, VAL = sum(TRAIN_COUNTS), sum(VAL_COUNTS)  # 23 and 17
SETTINGS = ["--arch", "mobilenet_v3_small", "--image-size", "32", "--warmup-epochs", "1", "--amp", "none"]
SETTINGS += ["--device", "cpu", "--workers", "1", "--log-every", "1", "--lr", "0.01"]


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 8), (2, 2), (3, 6), (3, 15)])
def test_audit(processes: int, batch_size: int, trainer: Trainer, coded: Path, tmp_path: Path) -> None:
    """Images seen by the processes of a real run: each training image at most once per epoch, with
    different ones left over in each; each validation image exactly once, and counted once."""
    output, epochs = tmp_path / "run", 4
    command = ["--data", coded, "--output", output, "--mix", "none", "--epochs", epochs, *SETTINGS]
    outcome = trainer.run(
        *command, "--batch-size", batch_size, processes=processes, record=tmp_path, model="plain"
    )
    assert outcome.statuses == [0] * processes, outcome.said
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    each = batch_size // processes
    steps = TRAIN // processes // each
    left_over = []
    for epoch in range(epochs):
        parts = [process["train"][epoch] for process in seen]
        assert [len(part) for part in parts] == [steps * each] * processes
        together = list(itertools.chain(*parts))
        assert len(set(together)) == len(together)
        left_over.append(frozenset(range(TRAIN)) - set(together))
        assert sorted(itertools.chain(*(process["val"][epoch] for process in seen))) == list(range(VAL))
    assert len(set(left_over)) > 1
    orders = [tuple(process["train"][epoch]) for process in seen for epoch in range(epochs)]
    assert len(set(orders)) == len(orders)

    model = plain_classifier("", 3)
    model.load_state_dict(torch.load(output / "last.pt", weights_only=True)["model"])
    loader = DALILoader(val_pipeline(coded, output=Output(image_size=32), batch_size=VAL, num_threads=1))
    ((images, labels),) = loader
    with torch.inference_mode():
        logits = model(images)
    line = without_clock(output)[-1]
    assert line["top1"] == round(100 * int((logits.argmax(1) == labels).sum()) / VAL, 4)
    assert line["loss"] == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)


def test_two_processes_train_as_one(trainer: Trainer, tmp_path: Path) -> None:
    """The same sum of gradients, up to its order: no randomness, no layer that mixes images.

    Each image has one colour, so crops and mirrors do not change it; there is no mixing, BatchNorm or
    dropout; and every batch has all images, so it does not matter which process gets which.
    """
    data = tmp_path / "data"
    for split, counts in (("train", (12, 7, 5)), ("val", VAL_COUNTS)):
        write_split(data / split, counts, plain)
    command = ["--data", data, "--mix", "none", "--epochs", 8, *SETTINGS, "--lr", "0.1", "--batch-size", 24]
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        outcome = trainer.run(*command, "--output", output, processes=processes, model="plain")
        assert outcome.statuses == [0] * processes, outcome.said
        found.append(without_clock(output))
    one, two = found
    losses = [line["loss"] for line in one]
    assert [line["loss"] for line in two] == pytest.approx(losses, rel=1e-5)
    assert len(set(losses)) == 16
    assert abs(losses[-1] - losses[0]) > 0.01
    assert [line.get("top1") for line in two] == [line.get("top1") for line in one]


def test_one_process_writes_and_they_draw_differently(trainer: Trainer, coded: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = ["--data", coded, "--output", output, *SETTINGS, "--epochs", 1, "--batch-size", 8]
    outcome = trainer.run(*command, processes=2)
    assert outcome.statuses == [0, 0], outcome.said
    assert outcome.said.count("Results:") == 1
    assert len(list(output.glob("events.out.tfevents*"))) == 1
    saved = torch.load(output / "last.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in saved["model"])
    build_model("mobilenet_v3_small", 3).load_state_dict(saved["model"])
    first, second = saved["ranks"]
    assert not torch.equal(first["random"]["torch"], second["random"]["torch"])
    assert first["random"]["numpy"] != second["random"]["numpy"]
    assert first["loader"]["pipeline"] != second["loader"]["pipeline"]
    assert (first["loader"]["epoch"], first["loader"]["position"]) == (
        second["loader"]["epoch"],
        second["loader"]["position"],
    )


def test_errors_come_to_all(trainer: Trainer, coded: Path, tmp_path: Path) -> None:
    """No process waits forever for one that found an error."""
    command = ["--data", coded, *SETTINGS, "--output", tmp_path / "run"]
    outcome = trainer.run(*command, "--batch-size", 9, processes=2)
    assert outcome.statuses == [2, 2]
    assert "--batch-size must be a multiple of the number of processes (2); got 9" in outcome.said
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    outcome = trainer.run(*command, "--batch-size", 8, processes=2)
    assert outcome.statuses == [2, 2]
    assert "holds another run" in outcome.said
    assert outcome.said.count("error: ") == 1
    assert "Traceback" not in outcome.said
    outcome = trainer.run(*command, "--batch-size", 24, processes=2)
    assert outcome.statuses == [2, 2]
    assert "--batch-size must be at most the number of training images (22); got 24" in outcome.said


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.mark.parametrize(
    ("torchrun", "more", "times", "words"),
    [
        (["--nproc-per-node", "3"], ["--lr", "-1"], 1, "--lr must be"),
        (["--nproc-per-node", "2", "--max-restarts", "1"], [], 2, "--resume must be auto with torchrun's"),
    ],
    ids=["bad input", "restarts that cannot resume"],
)
def test_one_error_for_all(
    torchrun: list[str], more: list[str], times: int, words: str, coded: Path, tmp_path: Path
) -> None:
    """Not one per process; torchrun restarts them as often as it was told to."""
    command = [*TORCHRUN, *torchrun, "train_imagenet.py", "--data", str(coded), *SETTINGS, *more]
    command += ["--batch-size", "6", "--output", str(tmp_path / "run")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    errors = [line for line in process.stderr.splitlines() if "train_imagenet.py: error: " in line]
    assert process.returncode == 1
    assert len(errors) == times, process.stderr
    assert words in errors[0]
    assert not (tmp_path / "run").exists()


def test_full_disk(trainer: Trainer, coded: Path, tmp_path: Path) -> None:
    """All exit with the status for it."""
    command = ["--data", coded, *SETTINGS, "--output", tmp_path / "run", "--epochs", 2, "--batch-size", 8]
    command += ["--storage-patience", 0]
    # The first two writes are the picture and config.json.
    plan = {"event": "half written", "number": 4, "do": ["full disk"]}
    outcome = trainer.run(*command, processes=2, plan=plan)
    assert outcome.statuses == [75, 75], outcome.said
    assert "No space left on device; the newest good checkpoint is" in outcome.said
    assert outcome.said.count("error: ") == 1
    assert "Traceback" not in outcome.said


def test_sync_bn_needs_gpus(coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(coded), *SETTINGS, "--output", str(tmp_path / "run"), "--sync-bn"]
    assert train_imagenet.main(command) == 2
    assert "--sync-bn must be left out on the CPU; got True" in capsys.readouterr().err


def test_store_of_a_start() -> None:
    """Each start uses its own part of the store, whatever earlier starts left there."""
    store, size = HashStore(), 4

    def start(rank: int) -> int:
        time.sleep(0.05 * (rank * 3 % size))  # rank 0 is neither first nor last
        return int(store_of_this_start(store, rank, size).add("members", 1))

    for rank in (1, 3):
        store.set(f"hello/{rank}", "of one that died before it was answered")
    with ThreadPoolExecutor(size) as pool:
        for _ in range(3):
            assert sorted(pool.map(start, range(size))) == [1, 2, 3, 4]


def test_store_of_a_start_names_the_missing() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    store.set("hello/2", "of one that died")
    with pytest.raises(TimeoutError, match=re.escape("have not started: [1, 2]")):
        store_of_this_start(store, 0, 3)


def test_second_start_with_the_store_of_torchrun() -> None:
    """The first process is early and must not use the second one's previous address."""
    script = """
import os, time, torch
from training.distributed import Processes

def start(rank):
    pid = os.fork()
    if pid == 0:
        os.environ["RANK"] = str(rank)
        processes = Processes.from_environment()
        processes.start(torch.device("cpu"))
        met = processes.max_over_ranks(processes.rank + 5) == 6
        processes.stop()
        os._exit(0 if met else 1)
    return pid

for _ in range(2):
    first = start(0)
    time.sleep(1)
    second = start(1)
    assert [os.waitpid(pid, 0)[1] for pid in (first, second)] == [0, 0]
"""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, timeout=120, check=True)


# -- torchrun -----------------------------------------------------------------------------------------------


def _workers(torchrun: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return [
        pid for pid in map(int, children) if b"train_imagenet" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def _when(ready: Callable[[], bool], torchrun: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert torchrun.poll() is None, "torchrun has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _status(torchrun: subprocess.Popen[bytes], timeout: float) -> int | None:
    try:
        return torchrun.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        return None


def test_torchrun(trainer: Trainer, tmp_path: Path) -> None:
    """A worker is killed, and torchrun continues the run on its own; a signal to it stops the run."""
    data, output, log = tmp_path / "data", tmp_path / "run", tmp_path / "log"
    for split, counts in (("train", (17, 14, 12)), ("val", (5, 4, 4))):
        write_split(data / split, counts, lambda index, _: Image.fromarray(photo(40 + index, 50, index)))
    settings = ["--data", data, *SETTINGS, "--epochs", 3, "--batch-size", 8, "--checkpoint-every", 2]
    outcome = trainer.run(*settings, "--output", tmp_path / "undisturbed", processes=2)
    assert outcome.statuses == [0, 0], outcome.said
    command = [*TORCHRUN, "--nproc-per-node", "2"]
    command += ["--max-restarts", "3", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1,SIGHUP"]
    command += ["train_imagenet.py", *map(str, settings)]
    command += ["--output", str(output), "--resume", "auto"]

    def logged(count: int) -> bool:
        path = output / "metrics.jsonl"
        return path.exists() and len(path.read_bytes().splitlines()) >= count

    with log.open("ab") as file:
        torchrun = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        _when(lambda: logged(4), torchrun)
        os.kill(max(_workers(torchrun)), signal.SIGKILL)
        _when(lambda: "--resume auto: resuming from" in log.read_text(), torchrun)
        _when(lambda: logged(8), torchrun)
        torchrun.send_signal(signal.SIGUSR1)  # torchrun forwards it, because it was told to
        assert _status(torchrun, 120) not in (0, None), log.read_text()
    finally:
        torchrun.kill()
        torchrun.wait()
    said = log.read_text()
    step = torch.load(output / "last.pt", weights_only=True)["progress"]["step"]
    assert "SIGUSR1: finishing the step" in said
    assert f"Stopped at step {step} of 15" in said
    assert said.count("--resume auto: resuming from") == 1, said
    outcome = trainer.run(*settings, "--output", output, "--resume", "auto", processes=2)
    assert outcome.statuses == [0, 0], outcome.said
    assert without_clock(output) == without_clock(tmp_path / "undisturbed")
    weights = [
        torch.load(path / "last.pt", weights_only=True)["model"]
        for path in (output, tmp_path / "undisturbed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
