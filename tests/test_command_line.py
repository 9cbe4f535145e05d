"""The command line answers before any heavy import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.trainer_process import ROOT

# Runs the trainer with each command line and prints its exit status and imports.
SCRIPT = """
import contextlib, io, json, sys
import train_imagenet
found = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = train_imagenet.main(arguments)
        except SystemExit as error:
            status = error.code
    heavy = {"torch", "torchvision", "nvidia", "tensorboard", "numba", "scipy"} & set(sys.modules)
    found.append((status, said.getvalue(), sorted(heavy)))
print(json.dumps(found))
"""


def test_answers_without_heavy_imports(coded: Path, tmp_path: Path) -> None:
    """Help, and errors of every kind: of the parser, of one value, of two, of files."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    data, nothing = ["--data", str(coded), "--device", "cpu"], str(tmp_path / "nothing")
    errors = {
        "--lr": ["--lr", "high"],
        "--mix": ["--mix", "hmx"],
        "unrecognized": ["--no-such-option"],
        "--config must be one of": ["--config", "imagenet_hmx"],
        "--arch must be": ["--arch", "resnet5"],
        "--mix-ratio must be left out": ["--mix", "gmix", "--mix-ratio", "0.5"],
        "--amp must be": ["--device", "cpu", "--amp", "fp16"],
        "(no such folder)": ["--data", nothing],
        "--batch-size must be at most": [*data, "--batch-size", "512"],
        "--batch-size must be a multiple": [*data, "--accumulate", "7", "--batch-size", "8"],
        "--file-list must be": [*data, "--batch-size", "8", "--file-list", nothing],
        "--output must be a new": [*data, "--batch-size", "8", "--output", str(tmp_path / "used")],
        "--resume auto needs": [*data, "--batch-size", "8", "--resume", "auto"],
        "--resume must be auto": [*data, "--batch-size", "8", "--resume", nothing],
        "--init-weights must be": [*data, "--batch-size", "8", "--init-weights", nothing],
    }
    lines = [["--help"], *errors.values()]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    (help_status, _, heavy), *found = json.loads(process.stdout)
    assert (help_status, heavy) == (0, [])
    for words, (status, said, heavy) in zip(errors, found, strict=True):
        assert status == 2, words
        assert words in said.lower() if words == "unrecognized" else words in said
        assert heavy == [], words
