"""The soak: the faults that it must find, and its full disk; make soak runs it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.soak_disk import Disk
from benchmarks.soak_folder import RunFolder
from training.checkpoints import VERSION, Checkpoints, unpack


@pytest.mark.parametrize("mounted", [True, False])
def test_a_full_disk(mounted: bool, tmp_path: Path) -> None:
    program = "import sys; open(sys.argv[1], 'w').write('x' * 9999)"
    command = [sys.executable, "-c", program, str(tmp_path / "disk" / "run")]
    try:
        disk = Disk(tmp_path / "disk", mounted=mounted)
    except SystemExit as error:
        pytest.skip(str(error))
    with disk:
        assert disk.mounted == mounted
        subprocess.run(command, check=True)
        with disk.full():
            command[-1] += "-other"
            full = subprocess.run(command, capture_output=True, text=True)
        assert "No space left on device" in full.stderr
        subprocess.run(command, check=True)


LINES = [{"event": "train", "step": step, "loss": 1 / step, "images_per_s": 9.5} for step in range(1, 9)]


def written(folder: Path, steps: int) -> Path:
    """A run up to a step, with a checkpoint at every second step, the first of them the best."""
    checkpoints = Checkpoints(folder, 3)
    checkpoints.start()
    text = b""
    for step in range(1, steps + 1):
        text += json.dumps(LINES[step - 1]).encode() + b"\n"
        if step % 2 == 0:
            parts: dict[str, Any] = {"progress": {"step": step}, "output": {"metrics_bytes": len(text)}}
            parts["model"] = {"weight": torch.full((9,), float(step))}
            checkpoints.save(step, {"version": VERSION, **parts}, is_best=step == 2)
    (folder / "metrics.jsonl").write_bytes(text)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run."""
    return RunFolder(written(tmp_path / "run", 8), written(tmp_path / "calm", 8))


def edited(edit: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "metrics.jsonl"
        path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))

    return change


def one_bit(folder: Path) -> None:
    path = folder / "last.pt"
    content = unpack(path.read_bytes())
    content["model"]["weight"][3] = torch.nextafter(content["model"]["weight"][3], torch.tensor(9.0))
    path.unlink()
    torch.save(content, path)


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a line twice": (edited(lambda lines: lines + lines[-1:]), "more"),
    "a line is missing": (edited(lambda lines: lines[:3] + lines[4:]), "where {'event': 'train', 'step': 4"),
    "no last line": (edited(lambda lines: lines[:-1]), "ends before {'event': 'train', 'step': 8"),
    "another number": (edited(lambda lines: [lines[0].replace(b"1.0", b"1.1"), *lines[1:]]), "was expected"),
    "half a line": (edited(lambda lines: [*lines, b'{"ev']), "in the middle of a line"),
    "NaN": (edited(lambda lines: [lines[0].replace(b"1.0", b"NaN"), *lines[1:]]), "NaN is no JSON"),
    "one bit of a weight": (one_bit, "last.pt: /model/weight differs"),
    "no best checkpoint": (lambda folder: (folder / "best.pt").unlink(), "best.pt is missing"),
    "a damaged one": (lambda folder: (folder / "best.pt").write_bytes(b"PK"), "lost: "),
    "left over": (lambda folder: (folder / ".x.pt.tmp").touch(), "left behind: ['.x.pt.tmp']"),
    "a bad file": (lambda folder: (folder / "quarantine.jsonl").touch(), "was called bad"),
}


@pytest.mark.parametrize(("plant", "words"), PLANTED.values(), ids=list(PLANTED))
def test_what_is_wrong_is_found(plant: Callable[[Path], object], words: str, run: RunFolder) -> None:
    assert run.faults(torn=False) + run.differences() == []
    plant(run.folder)
    found = run.faults(torn=False)
    if not any(fault.startswith(("lost", "metrics.jsonl: ")) for fault in found):
        found += run.differences()
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize("cut", [True, False])
def test_its_own_damage_is_no_fault(cut: bool, run: RunFolder) -> None:
    """The run resumes from the checkpoint before; a byte that is never read changes nothing."""
    rng = random.Random(0)
    while run.step() == 8:
        assert run.damage(rng, cut=cut) is None
    assert run.step() == 6
    assert run.good()[0].name == "step-00000006.pt"
    assert run.faults(torn=False) == []


def test_its_own_cut_of_the_metrics_is_no_fault(run: RunFolder) -> None:
    """But it is a fault if a line before that cut is missing too."""
    run.cut_metrics(random.Random(0))
    assert [line["step"] for line in run.lost_lines] == [8]
    assert run.faults(torn=True) == []
    edited(lambda lines: lines[:-1])(run.folder)
    assert run.differences() == []
    edited(lambda lines: lines[:-1])(run.folder)
    assert "ends before {'event': 'train', 'step': 7" in run.differences()[0]
