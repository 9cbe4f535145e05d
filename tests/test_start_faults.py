"""Faults that keep a run from starting: one line that says why, the documented exit status, no file left.

And oddities that do not.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import train_imagenet
from pipelines import check
from pipelines.demo_data import make_demo_dataset
from tests.trainer_process import Trainer
from tests.training_runs import SMALL, status
from training import export
from training.config import Config, resolve
from training.limits import free_memory
from training.model import build_model
from training.options import Option, options
from training.ranks import Ranks
from training.trial import try_model


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A command that must fail.

    Attributes
    ----------
    name : str
        What is wrong.
    given : tuple of str
        Options added to those of a good run; {root} is replaced by an empty folder.
    line : str
        Regular expression for the one line on standard error; {root} as above.
    prepare : str
        Shell command to run in {root} first.
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
        line="--output must be a writable folder; {root}/run: Permission denied",
    ),
    Fault(
        name="an output that cannot be made",
        prepare="mkdir closed && chmod 555 closed",
        given=("--output", "{root}/closed/a/run", "--resume", "auto"),
        line="--output must be a writable folder; {root}/closed: Permission denied",
    ),
    Fault(
        name="the output of another user's run",
        prepare="mkdir run && touch run/metrics.jsonl && chmod 444 run/metrics.jsonl && chmod 777 run",
        given=("--resume", "auto"),
        line="--output must be a writable folder; {root}/run/metrics.jsonl: Permission denied",
    ),
    Fault(
        name="its checkpoints",
        prepare="mkdir run run/checkpoints && chmod 555 run/checkpoints && chmod 777 run",
        given=("--resume", "auto"),
        line="--output must be a writable folder; {root}/run/checkpoints: Permission denied",
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
        line="--resume needs .*; {root}/run/config.json is not JSON: Expecting property name .*",
    ),
    Fault(
        name="a config.json of bytes",
        prepare="mkdir -m 777 run && printf '\\351' > run/config.json",
        given=("--resume", "auto"),
        line="--resume needs .*; {root}/run/config.json is not JSON: 'utf-8' codec .*",
    ),
    Fault(
        name="a config.json that nests too deeply",
        prepare="mkdir -m 777 run && head -c 100000 /dev/zero | tr '\\0' '[' > run/config.json",
        given=("--resume", "auto"),
        line="--resume needs .*; {root}/run/config.json is not JSON: maximum recursion depth .*",
    ),
    Fault(
        name="a config.json of something else",
        prepare="mkdir -m 777 run && echo '[]' > run/config.json",
        given=("--resume", "auto"),
        line="--resume needs .*; {root}/run/config.json holds no JSON object",
    ),
    *(
        Fault(
            name=f"--from-config of {content or 'nothing'}",
            prepare=f"echo '{content}' > record",
            given=("--from-config", "{root}/record"),
            line="--from-config must be the config.json of a run" + line,
        )
        for content, line in (
            ("", "; {root}/record is empty"),
            ("a: b", "; {root}/record is not JSON: Expecting value: .*"),
            ("{}", "; {root}/record holds no settings"),
            (
                '{"settings": {"learning_rate": 1}}',
                r" .*; in {root}/record --learning-rate is not an option .*",
            ),
            ('{"settings": {"epochs": "many"}}', " of this version; in {root}/record --epochs is 'many'"),
            ('{"settings": {"mix": ["hmix"]}}', r" of this version; in {root}/record --mix is \['hmix'\]"),
            ('{"settings": {"lr": -1}}', " of this version; in {root}/record --lr must be a number .*"),
            ('{"settings": {"crop_area": [1]}}', r" .*; in {root}/record --crop-area is \[1\]"),
        )
    ),
    Fault(
        name="--from-config of no file",
        given=("--from-config", "{root}/record"),
        line=r"\[Errno 2\] No such file or directory: '{root}/record'",
    ),
]
# Larger than any machine. All other options refuse such a number, or it does no harm.
LARGE = {
    "image_size": "--image-size must be smaller: the loader takes at least .* GiB per image, .*",
    "val_image_size": "--val-image-size must be smaller: the loader takes at least .* GiB per image, .*",
    "batch_size": "--batch-size must be smaller: the loader takes at least .* GiB for the 10{9} images .*",
    "workers": r"--workers must be at most \d+ here; got 10{9}",
    "rand_augment": "--rand-augment must be two numbers 1 <= n <= 16 and .*; got .*",
}
# Only the model knows these. SMALL has 8 images of 32 pixels per step.
SHAPES = [
    Fault(
        name="a model of another size",
        given=("--arch", "vit_b_16"),
        line=r"--image-size must be one that --arch vit_b_16 takes; got 32 \(Wrong image height! .*\)",
    ),
    Fault(
        name="images that are too small",
        given=("--arch", "squeezenet1_1", "--image-size", "8"),
        line=r"--image-size must be one that --arch squeezenet1_1 takes; got 8 \(.* too small\)",
    ),
    Fault(
        name="validation images that are too small",
        given=("--arch", "squeezenet1_1", "--val-image-size", "8"),
        line=r"--val-image-size must be one that --arch squeezenet1_1 takes; got 8 \(.* too small\)",
    ),
    Fault(
        name="one image a step and BatchNorm",
        given=("--batch-size", "1"),
        line="--batch-size must be at least 2: --arch shufflenet_v2_x0_5 needs more than one image in a"
        r" pass, and a step has 1; got 1 \(Expected more than 1 value per channel .*\)",
    ),
    Fault(
        name="one image a pass and BatchNorm",
        given=("--accumulate", "8"),
        line="--batch-size must be at least 16: .* and a step has 8; got 8 .*",
    ),
]


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder for results in which permissions hold, even if the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def no_root() -> Iterator[None]:
    """Run as a user bound by permissions."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def files_in(root: Path) -> dict[str, tuple[int, bytes] | None]:
    """Everything below a folder; for files their modification time and content."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in root.rglob("*")
    }


def assert_refused(fault: Fault, photos: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in(root)
    given = [word.replace("{root}", str(root)) for word in fault.given]
    command = ["--data", str(photos), "--output", str(root / "run"), *SMALL, *given]
    assert train_imagenet.main(command) == 2
    said = capsys.readouterr().err.rstrip("\n")
    expected = f"train_imagenet.py: error: {fault.line}".replace("{root}", str(root))
    assert re.fullmatch(expected, said), said
    assert files_in(root) == before


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_refused(
    fault: Fault, photos: Path, root: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit status 2; nothing is written."""
    subprocess.run(fault.prepare, shell=True, cwd=root, check=True, umask=0o022)
    request.getfixturevalue("no_root")
    assert_refused(fault, photos, root, capsys)


@pytest.mark.parametrize("fault", SHAPES, ids=lambda fault: fault.name)
def test_refused_by_the_model(
    fault: Fault, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(fault, photos, tmp_path, capsys)


def numbers_in(option: Option) -> int:
    """How many numbers the option takes."""
    kinds = typing.get_args(option.kind) or (option.kind,)
    is_pair = typing.get_origin(option.kind) is tuple
    return (2 if is_pair else 1) if {int, float}.intersection(kinds) else 0


@pytest.mark.parametrize("option", [*filter(numbers_in, options())], ids=lambda option: option.name)
def test_too_large(option: Option, photos: Path) -> None:
    """No number crashes the process or hangs it: it is refused, or does no harm."""
    given = [f"--{option.name.replace('_', '-')}", *["1000000000"] * numbers_in(option)]
    try:
        resolve(train_imagenet.settings_of(["--data", str(photos), *SMALL, *given]))
        said = ""
    except ValueError as error:
        said = str(error)
    assert re.fullmatch(LARGE.get(option.name, "(--.* must be .*; got .*)?"), said), said


def test_a_model_without_memory(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loader needs two thirds of the memory, the model several times as much."""
    free = free_memory()
    assert free is not None
    fault = Fault(
        name="a large image",
        given=("--image-size", str(math.isqrt(free // 72)), "--val-image-size", "32", "--batch-size", "2"),
        line="--image-size must be smaller: --arch shufflenet_v2_x0_5 takes at least .* GiB per image, .*",
    )
    assert_refused(fault, photos, tmp_path, capsys)


def test_no_compiler(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fault = Fault(
        name="no compiler",
        given=("--compile",),
        line=r"--compile must be left out where PyTorch cannot compile; got True \(.*\)",
    )
    assert_refused(fault, photos, tmp_path, capsys)


def test_refused_in_several_processes(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    command = ["--data", photos, "--output", tmp_path / "run", *SMALL, "--batch-size", 2]
    outcome = trainer.run(*command, processes=2)
    assert outcome.statuses == [2, 2], outcome.said
    assert "--batch-size must be at least 4: --arch shufflenet_v2_x0_5 needs more than one" in outcome.said
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build_model("squeezenet1_1", 3).state_dict(), tmp_path / "weights.pt")
    given = ["--eval-only", "--init-weights", tmp_path / "weights.pt", "--arch", "squeezenet1_1"]
    assert status(photos, tmp_path / "run", *given, "--image-size", 8) == 2
    assert "--val-image-size must be one that --arch squeezenet1_1 takes; got 8 (" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "weights.pt"]


def test_the_run_without_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although its speed is measured before its model is built."""
    make_demo_dataset(tmp_path / "demo", train_per_class=4, val_per_class=1)
    monkeypatch.setattr("training.demo.make_demo_dataset", lambda folder, workers: folder)
    monkeypatch.chdir(tmp_path)
    command = ["--demo-data", "demo", "--device", "cpu", "--amp", "none", "--arch", "vit_b_16"]
    assert train_imagenet.main(command) == 2
    assert "--image-size must be one that --arch vit_b_16 takes; got 64 (" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "demo"]


@pytest.mark.parametrize("arch", ["shufflenet_v2_x0_5", "densenet121"])
def test_a_trial_changes_nothing(arch: str) -> None:
    """Weights, statistics, gradients and mode are the same as before."""
    model = build_model(arch, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try_model(model, resolve(Config(device="cpu", image_size=32, arch=arch)), torch.device("cpu"), Ranks())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# -- Home folder -------------------------------------------------------------------------------------------


PATHS = [option.name for option in options() if Path in getattr(option.kind, "__args__", (option.kind,))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize("name", [*(name for name in PATHS if name != "from_config"), "resume"])
def test_home(name: str, home: Path) -> None:
    """The shell does not expand ``--output=~/x``: the trainer must."""
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
    assert f"--output must be a folder; got the file {home}/checked" in capsys.readouterr().err
    assert export.main(["~/none.pt", "~/weights"]) == 2
    assert f"{home}/weights exists already" in capsys.readouterr().err


def test_home_of_what_is_read_first(home: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for files read first, for the settings in them."""
    assert train_imagenet.main(["--from-config=~/config.json"]) == 2
    assert f"No such file or directory: '{home}/config.json'" in capsys.readouterr().err
    (home / "weights.pt").write_text("nothing")
    assert train_imagenet.main(["--data", str(photos), "--init-weights=~/weights.pt"]) == 2
    assert f"--init-weights must be a file of weights; {home}/weights.pt is a text" in capsys.readouterr().err
