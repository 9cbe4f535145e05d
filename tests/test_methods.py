"""The table of methods, and that every surface shows what it says."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from typing import Any

import pytest
from nvidia.dali import Pipeline, fn

import dali_msda as msda
from configs import named_run
from dali_msda.arguments import DrawArguments
from dali_msda.methods import ARGUMENTS, METHODS, MIXING, TABLE, Method, methods_with
from pipelines import imagenet
from pipelines.records import Output
from tests.image_sets import CLASSES
from tests.trainer_process import ROOT
from training.config import Config, resolve
from training.options import parse

# Section 5 of the paper: what it trained ImageNet and CIFAR-100 with.
PAPER = {
    "mixup": {"alpha": (0.8, 1.0)},
    "cutmix": {"alpha": (1.0, 1.0)},
    "stochastic": {"mixup_alpha": (1.0, 1.0), "cutmix_alpha": (1.0, 1.0), "switch_probability": (0.5, 0.5)},
    "hmix": {"alpha": (1.0, 1.0), "ratio": (0.75, 0.5)},
    "gmix": {"alpha": (1.0, 0.5)},
}


def test_values_of_the_paper() -> None:
    assert ("none", *PAPER) == METHODS
    assert tuple(PAPER) == MIXING
    for name, arguments in PAPER.items():
        found = {a.name: (a.default, a.cifar100) for a in TABLE[name].arguments}
        assert found == arguments
    assert TABLE["none"].arguments == ()


def test_arguments_of_one_name_are_one() -> None:
    for method in TABLE.values():
        for argument in method.arguments:
            same = ARGUMENTS[argument.name]
            assert (argument.fraction, argument.help) == (same.fraction, same.help)
    assert methods_with("ratio") == ("hmix",)


@pytest.mark.parametrize(
    ("name", "good", "bad"), [("alpha", 0.0, -1e-9), ("ratio", 0.0, 1.1), ("ratio", 1.0, -0.1)]
)
def test_ranges(name: str, good: float, bad: float) -> None:
    assert ARGUMENTS[name].takes(good)
    assert not ARGUMENTS[name].takes(bad)
    assert not ARGUMENTS[name].takes(float("nan"))
    assert not ARGUMENTS[name].takes(float("inf"))


@pytest.mark.parametrize("name", MIXING)
def test_signatures_and_records(name: str) -> None:
    """The functions, their arguments in order, and the record that they fill."""
    shown = inspect.signature(getattr(msda, name)).parameters
    own = {argument: shown[argument].default for argument in shown if argument in ARGUMENTS}
    assert list(own.items()) == list(TABLE[name].defaults.items())
    for argument in TABLE[name].arguments:
        assert argument.help in str(inspect.getdoc(getattr(msda, name)))


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[DrawArguments]:
    """What the operators are asked for."""
    made: list[DrawArguments] = []
    original = DrawArguments.from_call

    def noting(*positional: Any, **named: Any) -> DrawArguments:
        made.append(original(*positional, **named))
        return made[-1]

    monkeypatch.setattr(DrawArguments, "from_call", noting)
    return made


@pytest.mark.parametrize("name", METHODS)
def test_defaults_agree(name: str, coded: Any, records: list[DrawArguments]) -> None:
    """By function, by name, in the training pipeline, from the command line and in the paper's named run."""
    with Pipeline(4, 1, None):
        images, labels = fn.external_source(source=lambda: None, num_outputs=2)
        msda.mix(images, labels, method=name, num_classes=3)
        if name in MIXING:
            getattr(msda, name)(images, labels, num_classes=3)
    imagenet.train_pipeline(
        coded, mix=name, num_classes=len(CLASSES), batch_size=4, num_threads=1, output=Output(image_size=8)
    )
    for settings in (parse(["--mix", name], Config()), named_run(f"imagenet_{name}")):
        chosen = resolve(settings if settings.data else dataclasses.replace(settings, data=coded))
        imagenet.train_pipeline(
            coded,
            mix=chosen.mixing,
            num_classes=len(CLASSES),
            batch_size=4,
            num_threads=1,
            output=Output(image_size=8),
        )
    found = [record.values for record in records]
    assert found == [TABLE[name].defaults] * (4 if name == "none" else 5)


def row(method: Method) -> str:
    """A line of the README's table."""
    arguments = ", ".join(f"`{name}={default}`" for name, default in method.defaults.items())
    return f"| `msda.{method.name}` | {method.summary} | {arguments} | {method.paper} |"


def test_readme() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("| function | mask | own arguments | paper |")
    assert lines[start + 2 : start + 2 + len(MIXING)] == [row(TABLE[name]) for name in MIXING]


def test_the_table_needs_nothing() -> None:
    """Neither DALI nor Numba nor NumPy: the command line reads it."""
    script = "import sys, dali_msda.methods\nprint(*{'nvidia', 'numba', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_names_of_the_package() -> None:
    assert set(msda.__all__) <= set(dir(msda))
    for name in msda.__all__:
        assert getattr(msda, name) is not None, name
    assert msda.MixParams._fields == ("lam", "partner", "mask")
    with pytest.raises(AttributeError, match="has no attribute 'hmx'"):
        msda.hmx  # noqa: B018
