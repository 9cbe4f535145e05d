"""What every result of a benchmark says of itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.common import revision, save, spread


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="an image has no git")
def test_revision(tmp_path: Path) -> None:
    assert revision(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert revision(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").touch()
    assert revision(tmp_path) == {"commit": commit, "dirty": True}


def test_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command but no path of the machine, the commit, processor and versions."""
    monkeypatch.setattr("sys.argv", ["x", "--data", "/somebody/pictures", "--rounds", "3"])
    content = json.loads(save("bench_x", {"seconds": spread([3.0, 1.0, 2.0])}, tmp_path).read_text())
    assert content["command"] == "python -m benchmarks.bench_x --data pictures --rounds 3"
    assert {"benchmark", "date", "commit", "dirty", "machine", "results"} <= content.keys()
    assert content["results"]["seconds"] == {"median": 2.0, "q1": 1.5, "q3": 2.5, "rounds": 3}
    assert "torch" in content["machine"]["versions"]
