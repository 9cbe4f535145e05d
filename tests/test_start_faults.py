"""What a run cannot begin with: one line that says what, the documented exit status, and no file left.

And what it can begin with all the same.
"""

from __future__ import annotations

import re
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
    given : tuple of str
        Options, beside those of a good run; {root} stands for an empty folder.
    line : str
        A regular expression that the one line on standard error matches; {root} likewise.
    """

    name: str
    given: tuple[str, ...]
    line: str


SETTINGS = [
    Fault(
        name="a seed of more than 64 bits",
        given=("--seed", str(2**64)),
        line=r"--seed must be below 2\*\*64; got 18446744073709551616",
    ),
]


@pytest.mark.parametrize("fault", SETTINGS, ids=lambda fault: fault.name)
def test_refused(fault: Fault, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With status 2, and nothing is written."""
    given = [word.replace("{root}", str(tmp_path)) for word in fault.given]
    command = ["--data", str(photos), "--output", str(tmp_path / "run"), *SMALL, *given]
    assert train_imagenet.main(command) == 2
    said = capsys.readouterr().err.rstrip("\n")
    assert re.fullmatch(f"train_imagenet.py: error: {fault.line}".replace("{root}", str(tmp_path)), said), (
        said
    )
    assert list(tmp_path.iterdir()) == []


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
