"""What a run cannot begin with: one line that says what, the documented exit status, and no file left.

And what it can begin with all the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import train_imagenet
from pipelines import check
from tests.training_runs import SMALL
from training import export
from training.options import options


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A command that cannot be carried out.

    Attributes
    ----------
    name : str
        What is wrong.
    given : tuple of str
        Options, beside those of a good run; {root} stands for an empty folder.
    line : str
        A regular expression that the one line on standard error matches; {root} likewise.
    prepare : str
        A command of the shell that is run in {root} before.
    """

    name: str
    given: tuple[str, ...]
    line: str
    prepare: str = "true"


FAULTS = [
    Fault(
        name="a seed of more than 64 bits",
        given=("--seed", str(2**64)),
        line=r"--seed must be below 2\*\*64; got 18446744073709551616",
    ),
    Fault(
        name="an output that is a file",
        prepare="touch run",
        given=(),
        line="--output must be a folder; {root}/run is a file",
    ),
    Fault(
        name="the same with --resume",
        prepare="touch run",
        given=("--resume", "auto"),
        line="--output must be a folder; {root}/run is a file",
    ),
    Fault(
        name="an output below a file",
        prepare="touch file",
        given=("--output", "{root}/file/run", "--resume", "auto"),
        line="--output must be a folder; {root}/file is a file",
    ),
    Fault(
        name="an output that cannot be written to",
        prepare="mkdir run && chmod 555 run",
        given=(),
        line="--output must be a folder that can be written to; {root}/run: Permission denied",
    ),
    Fault(
        name="an output that cannot be made",
        prepare="mkdir closed && chmod 555 closed",
        given=("--output", "{root}/closed/a/run", "--resume", "auto"),
        line="--output must be a folder that can be written to; {root}/closed: Permission denied",
    ),
    Fault(
        name="the output of another user's run",
        prepare="mkdir run && touch run/metrics.jsonl && chmod 444 run/metrics.jsonl && chmod 777 run",
        given=("--resume", "auto"),
        line="--output must be a folder that can be written to; {root}/run/metrics.jsonl: Permission denied",
    ),
    Fault(
        name="its checkpoints",
        prepare="mkdir run run/checkpoints && chmod 555 run/checkpoints && chmod 777 run",
        given=("--resume", "auto"),
        line="--output must be a folder that can be written to; {root}/run/checkpoints: Permission denied",
    ),
    Fault(
        name="an empty config.json",
        prepare="mkdir -m 777 run && touch run/config.json",
        given=("--resume", "auto"),
        line="--resume needs the config.json of its run, or none; {root}/run/config.json is empty",
    ),
    Fault(
        name="a config.json that is cut",
        prepare="mkdir -m 777 run && echo '{\"settings\": {' > run/config.json",
        given=("--resume", "auto"),
        line="--resume needs .*; {root}/run/config.json is no JSON: Expecting property name .*",
    ),
    Fault(
        name="a config.json of bytes",
        prepare="mkdir -m 777 run && printf '\\351' > run/config.json",
        given=("--resume", "auto"),
        line="--resume needs .*; {root}/run/config.json is no JSON: 'utf-8' codec .*",
    ),
    Fault(
        name="a config.json that nests too deeply",
        prepare="mkdir -m 777 run && head -c 100000 /dev/zero | tr '\\0' '[' > run/config.json",
        given=("--resume", "auto"),
        line="--resume needs .*; {root}/run/config.json is no JSON: maximum recursion depth .*",
    ),
    Fault(
        name="a config.json of something else",
        prepare="mkdir -m 777 run && echo '[]' > run/config.json",
        given=("--resume", "auto"),
        line="--resume needs .*; {root}/run/config.json holds no JSON object",
    ),
]


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder for results. Permissions count in it, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def no_root() -> Iterator[None]:
    """Run as a user whom permissions keep out."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def files_in(root: Path) -> dict[str, tuple[int, bytes] | None]:
    """What is below a folder; of files when they were changed, and what is in them."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_refused(
    fault: Fault, photos: Path, root: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, and nothing is written."""
    subprocess.run(fault.prepare, shell=True, cwd=root, check=True)
    before = files_in(root)
    request.getfixturevalue("no_root")
    given = [word.replace("{root}", str(root)) for word in fault.given]
    command = ["--data", str(photos), "--output", str(root / "run"), *SMALL, *given]
    assert train_imagenet.main(command) == 2
    said = capsys.readouterr().err.rstrip("\n")
    expected = f"train_imagenet.py: error: {fault.line}".replace("{root}", str(root))
    assert re.fullmatch(expected, said), said
    assert files_in(root) == before


# -- The home folder ---------------------------------------------------------------------------------------


PATHS = [option.name for option in options() if Path in getattr(option.kind, "__args__", (option.kind,))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize("name", [*PATHS, "resume"])
def test_home(name: str, home: Path) -> None:
    """``--output=~/x`` reaches the trainer as it is."""
    assert {"data", "output", "init_weights", "class_names", "demo_data"} < set(PATHS)
    for given, expected in (
        ("~/x", home / "x"),
        ("~", home),
        ("a/~", Path("a/~")),
        ("~nobody-of-that-name/x", Path("~nobody-of-that-name/x")),
    ):
        config = train_imagenet.settings_of([f"--{name.replace('_', '-')}={given}"])
        assert Path(getattr(config, name)) == expected
    assert train_imagenet.settings_of(["--resume=auto"]).resume == "auto"


def test_home_of_the_other_programs(home: Path, coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "data").symlink_to(coded)
    for name in ("checked", "weights"):
        (home / name).touch()
    assert check.main(["~/data", "--output=~/checked"]) == 2
    assert f"--output must be a folder; {home}/checked is a file" in capsys.readouterr().err
    assert export.main(["~/none.pt", "~/weights"]) == 2
    assert f"{home}/weights is there already" in capsys.readouterr().err


def test_home_of_weights(home: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read for their settings before the other options are."""
    (home / "weights.pt").write_text("nothing")
    assert train_imagenet.main(["--data", str(photos), "--init-weights=~/weights.pt"]) == 2
    assert f"--init-weights must be a file of weights; {home}/weights.pt is a text" in capsys.readouterr().err
