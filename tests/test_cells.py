"""Cells of figures that are computed in several processes. Imports little, as these processes do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.figures import Options, compute_cells

ROOT = Path(__file__).parent.parent


def _square(key: str) -> int:
    if key == "5":
        raise ValueError("key must not be 5; got 5")
    return int(key) ** 2


def test_cells_in_processes_are_the_same(tmp_path: Path) -> None:
    """In the order of the keys, and kept as they come, also if one fails."""
    options = Options(tmp_path / "a.png", quick=False, dpi=50)
    keys = ["3", "1", "2", "7", "6", "4"]
    assert list(compute_cells(options, keys, {}, _square, workers=2).items()) == [
        (k, int(k) ** 2) for k in keys
    ]
    with pytest.raises(ValueError, match="key must not be 5"):
        compute_cells(options, [*keys, "5"], {}, _square, workers=2)
    kept = (tmp_path / "a.cells.jsonl").read_text().splitlines()
    assert sorted(kept[1:]) == sorted(json.dumps({k: int(k) ** 2}) for k in keys)


_NEVER_ENDS = """
import sys, time
from pathlib import Path
from experiments.figures import Options, compute_cells

def wait(key):
    Path(sys.argv[1], key).touch()
    time.sleep(600)

if __name__ == "__main__":
    compute_cells(Options(Path(sys.argv[1], "a.png"), quick=False, dpi=50), ["x", "y"], {}, wait, workers=2)
"""


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_NEVER_ENDS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)

    def wait_until(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.05)

    wait_until(lambda: (tmp_path / "x").exists() and (tmp_path / "y").exists())
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(_is_alive(child) for child in children))


def _is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
