"""The data set check resumes where it stopped, and decodes changed files again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines import _decoding, check, examine
from pipelines._findings import find_splits
from pipelines.folders import list_images
from tests import fake_decoders
from tests.checking import TRUNCATED, images, run, state
from tests.image_sets import plain

ROOT = Path(check.__file__).resolve().parent.parent


INTERRUPTED_CHECK = """
import os, signal, sys
from pipelines import _workers, check

append, remaining = check._State.append, int(sys.argv[2])
def append_and_stop(self, split, positions, results):
    global remaining
    append(self, split, positions, results)
    remaining -= 1
    if remaining == 0:
        number = int(sys.argv[1])
        # To all processes, as terminals and Slurm do.
        os.kill(os.getpid(), number) if number == signal.SIGKILL else os.killpg(0, number)
check._State.append = append_and_stop
worker = _workers.Worker.__init__
def print_worker(self, program):
    worker(self, program)
    print("worker", self.process.pid, flush=True)
_workers.Worker.__init__ = print_worker
if __name__ == "__main__":
    sys.exit(check.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A set of 150 images, ten of them bad, and the report and list of an uninterrupted check."""
    root = tmp_path_factory.mktemp("long")
    bad = {0, 31, 32, 63, 64, 100, 101, 102, 148, 149}
    _, report = run(images(root / "set", 150, bad), root / "out")
    assert len(report["unusable"]["set"]) == 10
    return root / "set", report, (root / "out" / "set.txt").read_text()


def has_ended(process: int) -> bool:
    """Whether a process has ended (zombies included)."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_resumes_after_an_interruption(
    number: signal.Signals,
    reference: tuple[Path, dict[str, Any], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, report, file_list = reference
    output, script = tmp_path / "out", tmp_path / "stopped.py"
    script.write_text(INTERRUPTED_CHECK)
    arguments = [str(data), "--output", str(output), "--workers", "2"]
    process = subprocess.run(
        [sys.executable, str(script), str(int(number)), "2", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    before = (output / "state.jsonl").read_bytes()
    done = before.count(b"\n") - 1
    assert not (output / "report.json").exists()
    assert not (output / "set.txt").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert done == 64
        # Killed in the middle of a line.
        (output / "state.jsonl").write_bytes(before + b'{"split": "set", "file": "a/1')
    else:
        assert process.returncode == 128 + number, process.stderr
        # The two batches, and those in progress.
        assert 64 <= done <= 128
        assert f"{done} of 150 files done" in process.stdout
    # The decoding processes have ended, even when their parent was killed.
    workers = [int(line.split()[1]) for line in process.stdout.splitlines() if line.startswith("worker")]
    assert len(workers) == 2
    limit = time.monotonic() + 30
    while not all(map(has_ended, workers)):
        assert time.monotonic() < limit
        time.sleep(0.05)

    status, resumed = run(data, output)
    assert (status, resumed) == (1, report)
    assert (output / "set.txt").read_text() == file_list
    assert f"{done} of 150 files were already checked" in capsys.readouterr().out
    # Nothing is decoded twice: the earlier lines remain, and each file is listed once.
    assert (output / "state.jsonl").read_bytes().startswith(before)
    files = [record["file"] for record in state(output)]
    assert sorted(files) == sorted(f"a/{index:03d}.png" for index in range(150))


def test_results_are_written_at_once(tmp_path: Path) -> None:
    (split,) = find_splits(images(tmp_path / "set", 2))
    with check._State(tmp_path / "state.jsonl", tmp_path / "set") as results:
        results.load([split])
        results.append(split, [1], [_decoding.Result(5, 6, "07" * 16, None)])
        assert state(tmp_path) == [
            {"split": "set", "file": "a/001.png", "size": 5, "mtime_ns": 6, "digest": "07" * 16}
        ]
    assert split.done.tolist() == [False, True]


def test_finishes_current_batches_and_starts_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(tmp_path / "set", 70)
    (split,) = find_splits(folder)
    stop = threading.Event()

    def stop_when_begun() -> None:
        while not (folder / "a" / "begun").exists():
            time.sleep(0.01)
        stop.set()

    monkeypatch.setattr(examine, "serve", fake_decoders.begins_and_waits)
    watcher = threading.Thread(target=stop_when_begun)
    watcher.start()
    answers = list(examine.decode(check._remaining_batches([split]), 1, 60.0, stop))
    watcher.join()
    assert [positions for _, positions, _ in answers] == [list(range(32))]


def test_files_after_a_damaged_line_are_decoded_again(
    reference: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    """After a power failure, blocks of a file may be zeros."""
    data, report, _ = reference
    output = tmp_path / "out"
    shutil.copytree(data.parent / "out", output)
    lines = (output / "state.jsonl").read_bytes().splitlines(keepends=True)
    lines[41] = bytes(len(lines[41]) - 1) + b"\n"
    (output / "state.jsonl").write_bytes(b"".join(lines))
    assert run(data, output) == (1, report)
    assert (output / "state.jsonl").read_bytes().startswith(b"".join(lines[:41]))
    assert len(state(output)) == 150


def test_only_what_changed_is_decoded_again(tmp_path: Path) -> None:
    data, output = images(tmp_path / "set", 6), tmp_path / "out"
    assert run(data, output)[0] == 0
    (data / "a" / "000.png").unlink()
    (data / "a" / "001.png").write_bytes(TRUNCATED)
    os.utime(data / "a" / "002.png", ns=(1, 1))
    plain(9).save(data / "a" / "new.png")
    status, report = run(data, output)
    assert status == 1
    assert [record["file"] for record in state(output)[6:]] == ["a/001.png", "a/002.png", "a/new.png"]
    assert list(report["unusable"]["set"]) == ["a/001.png"]
    listed = ["a/002.png", "a/003.png", "a/004.png", "a/005.png", "a/new.png"]
    assert list_images(data, output / "set.txt").files == listed
    assert report["files"] == {"set": 6}


def test_another_version_of_dali_starts_over(tmp_path: Path) -> None:
    data, output = images(tmp_path / "set", 3, {1}), tmp_path / "out"
    expected = run(data, output)
    text = (output / "state.jsonl").read_text()
    (output / "state.jsonl").write_text(
        re.sub(r'"dali": "[\d.]+"', '"dali": "1.0.0"', text).replace("error", "x")
    )
    assert run(data, output) == expected
    assert (output / "state.jsonl").read_text() == text


# Processes that fail
