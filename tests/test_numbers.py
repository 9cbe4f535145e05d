"""The numbers of a run: logs, values that end it, its length, weight decay."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.trainer_process import Trainer, plain_classifier
from tests.training_runs import SMALL, lines, status, train
from training.architectures import SMALL_IMAGES, TORCHVISION
from training.figures import rounded
from training.learner import Learner
from training.model import build_model, build_schedule
from training.optimizers import parameter_groups

# -- NaN and infinite values --------------------------------------------------------------------------------

ONE_STEP = ["--max-steps", 1, "--checkpoint-every", 1]
STATISTIC = "A running mean or variance of a normalisation layer was not finite after step "
FAR = ["--warmup-epochs", 0, "--lr", 1e20]
NOT_FINITE: dict[str, tuple[list[object], str, str, list[str]]] = {
    # Options, model, error, logged events.
    "evaluation": (
        [*FAR, *ONE_STEP],
        "plain",
        "The evaluation after step 1 was not finite: loss (nan|inf); there is no checkpoint yet",
        ["train"],
    ),
    "evaluation of the average": (
        [*FAR, *ONE_STEP, "--ema-decay", 0.5],
        "plain",
        "The evaluation after step 1 was not finite: loss (nan|inf); there is no checkpoint yet",
        ["train"],
    ),
    "statistics of BatchNorm": (
        ["--lr", 0, *ONE_STEP],
        "overflowing",
        STATISTIC + "1; there is no checkpoint yet",
        ["train", "eval"],
    ),
    "statistics in the middle of an epoch": (
        ["--lr", 0, "--checkpoint-every", 2],
        "overflowing",
        STATISTIC + "2; there is no checkpoint yet",
        ["train", "train"],
    ),
}


def no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("name", NOT_FINITE)
def test_what_is_not_finite_ends_the_run(name: str, trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """Exit status 1, one line, no checkpoint; every line of metrics.jsonl is JSON."""
    options, model, words, events = NOT_FINITE[name]
    output = tmp_path / "run"
    outcome = trainer.run("--data", photos, "--output", output, *SMALL, *options, model=model)
    assert outcome.statuses == [1], outcome.said
    (error,) = re.findall("^.*train_imagenet.py: error: (.*)$", outcome.said, re.MULTILINE)
    assert re.match(words, error)
    assert "Traceback" not in outcome.said
    assert list(output.rglob("*.pt")) == []
    text = (output / "metrics.jsonl").read_text()
    found = [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]
    assert [line["event"] for line in found] == events
    assert all(line["step"] >= 1 for line in found)


@pytest.mark.usefixtures("plain_model")
def test_an_evaluation_alone_that_is_not_finite(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite weights whose products overflow."""
    monkeypatch.setattr("training.commands.build_model", plain_classifier)
    weights = {name: value.fill_(1e38) for name, value in plain_classifier("", 3).state_dict().items()}
    torch.save(weights, tmp_path / "w.pt")
    assert status(photos, tmp_path / "run", "--eval-only", "--init-weights", tmp_path / "w.pt") == 1
    said = capsys.readouterr()
    (error,) = said.err.splitlines()
    assert re.search(r"error: The evaluation of .*w\.pt was not finite: loss (nan|inf)$", error)
    assert "top-1" not in said.out
    assert not (tmp_path / "run").exists()


# -- Logged values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("loss", 2.3025850929940455, 2.302585),
        ("loss", -0.0, 0.0),
        ("loss", 1.23456789e-9, 1.234568e-9),
        ("ema_loss", 0.1234567890, 0.1234568),
        ("lr", 0.09997258721585931, 0.09997259),
        ("top1", 100 / 3, 33.3333),
        ("ema_top5", 100 * 49_999 / 50_000, 99.998),
        ("images_per_s", 1234.5678, 1235.0),
        ("images_per_s", 20.0123, 20.01),
        ("data_wait", 0.00001, 0.0),
        ("data_wait", -1e-9, 0.0),
        ("step", 123_456_789, 123_456_789),
    ],
)
def test_figures_are_rounded_as_their_meaning_allows(name: str, value: float, expected: float) -> None:
    (found,) = rounded({name: value}).values()
    assert json.dumps(found) == json.dumps(expected)  # distinguishes -0.0 from 0.0 and 1.0 from 1


# -- Means over a window ------------------------------------------------------------------------------------


def of_training(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in found if line["event"] == "train"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_line_has_the_means_since_the_one_before(
    processes: int, trainer: Trainer, photos: Path, tmp_path: Path
) -> None:
    """Across epochs (of three steps), and across a stop and a resume: steps 1-4, 5-8 and 9."""
    output = tmp_path / "run"
    command = ["--data", photos, *SMALL, "--epochs", 3, "--lr", 0.1]
    statuses = []
    windows: list[object] = ["--log-every", 4, "--resume", "auto"]
    plan = {"event": "step", "number": 6, "do": [int(signal.SIGTERM)]}
    for folder, extra, stop in (
        (tmp_path / "each", [], None),
        (output, windows, plan),
        (output, windows, None),
    ):
        every = [*command, "--output", folder, *extra]
        outcome = trainer.run(*every, processes=processes, model="restless", plan=stop)
        statuses.append(outcome.statuses[0])
    assert statuses == [0, 128 + signal.SIGTERM, 0]
    each, found = of_training(lines(tmp_path / "each")), of_training(lines(output))
    assert [line["step"] for line in each] == list(range(1, 10))
    assert [line["step"] for line in found] == [4, 8, 9]
    for line, (first, last) in zip(found, ((0, 4), (4, 8), (8, 9)), strict=True):
        window = each[first:last]
        assert line["lr"] == window[-1]["lr"]
        for name, accuracy in (("loss", 1e-6), ("dominant_top1", 1e-4)):
            mean = sum(one[name] for one in window) / len(window)
            assert line[name] == pytest.approx(mean, abs=accuracy), name
    assert len({line["loss"] for line in each}) == 9
    assert len({line["dominant_top1"] for line in each}) > 1


@pytest.mark.usefixtures("plain_model")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accuracy_against_the_dominant_label(
    accumulate: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the mixed images, with the weights before the step."""
    expected: list[float] = []
    step = Learner.train_step

    def noting(self: Learner, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        given = [
            (images.clone(), targets.clone()) for images, targets in itertools.islice(batches, accumulate)
        ]
        with torch.no_grad():
            logits = np.concatenate([self.model(images).numpy() for images, _ in given])
        targets = np.concatenate([targets.numpy() for _, targets in given])
        assert ((targets > 0.01) & (targets < 0.99)).any()
        expected.append(round(100 * float(np.mean(logits.argmax(1) == targets.argmax(1))), 4))
        return step(self, iter(given))

    monkeypatch.setattr(Learner, "train_step", noting)
    found = of_training(train(photos, tmp_path / "run", "--accumulate", accumulate, "--lr", 0.1))
    assert [line["dominant_top1"] for line in found] == expected
    assert len(set(expected)) > 1


# -- Length of a run ----------------------------------------------------------------------------------------


def rates(epochs: float, steps: int) -> list[float]:
    """Logged learning rates at three steps per epoch, with one epoch of warm-up."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = build_schedule(optimizer, 3, round(3 * epochs))
    found = []
    for _ in range(steps):
        found.append(float(f"{schedule.get_last_lr()[0]:.7g}"))
        optimizer.step()
        schedule.step()
    return found


# Options of each start of one run, at three steps per epoch; the steps evaluated so far.
STARTS: dict[str, list[tuple[list[object], list[int]]]] = {
    "stops": [
        (["--max-steps", 2], [2]),  # in the first epoch
        (["--max-steps", 2], [2]),  # complete: nothing to do
        (["--max-steps", 3], [2, 3]),  # at the end of an epoch
        (["--max-steps", 7], [2, 3, 6, 7]),
        (["--max-steps", 5], [2, 3, 6, 7]),  # already past it
        ([], [2, 3, 6, 7, 9]),
    ],
    "parts of epochs": [
        (["--epochs", 0.67], [2]),
        (["--epochs", 2.3], [2, 3, 6, 7]),
        (["--epochs", 3], [2, 3, 6, 7, 9]),
    ],
}


@pytest.fixture(scope="module")
def whole(trainer: Trainer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs."""
    output = tmp_path_factory.mktemp("numbers") / "whole"
    command = ["--data", photos, *SMALL, "--epochs", 3, "--output", output]
    assert trainer.run(*command, model="restless").statuses == [0]
    return output


@pytest.mark.parametrize("name", STARTS)
def test_how_far_a_run_goes(name: str, whole: Path, trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """It stops where it is told to, also in the middle of an epoch, and continues from there.

    --max-steps does not change the learning rate, so the run ends like one that never stopped; --epochs does.
    """
    output = tmp_path / "run"
    command = ["--data", photos, *SMALL, "--epochs", 3, "--output", output, "--resume", "auto"]
    before = 0
    for options, evaluated in STARTS[name]:
        outcome = trainer.run(*command, *options, model="restless")
        assert outcome.statuses == [0], outcome.said
        found = lines(output)
        assert [line["step"] for line in found if line["event"] == "eval"] == evaluated
        assert [line["step"] for line in of_training(found)] == list(range(1, evaluated[-1] + 1))
        assert f"of {-(-evaluated[-1] // 3)}\n" in outcome.said  # epochs, in the table
        if "--epochs" in options:
            epochs = float(str(options[1]))
            new = slice(before, None)
            assert [line["lr"] for line in of_training(found)][new] == rates(epochs, evaluated[-1])[new]
        before = evaluated[-1]
    if name == "stops":
        trained = [
            [line[key] for line in of_training(lines(folder)) for key in ("lr", "loss")]
            for folder in (whole, output)
        ]
        assert trained[0] == trained[1]
        wanted, got = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, output))
        for key, value in wanted["model"].items():
            assert torch.equal(got["model"][key], value), key


@pytest.mark.parametrize("version", [3, 4])
def test_a_squeezed_schedule_of_before(version: int, trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """Up to version 3, --max-steps set the schedule's length: one line says so, and the run continues."""
    output = tmp_path / "run"
    command = ["--data", photos, *SMALL, "--output", output]
    assert trainer.run(*command, "--max-steps", 2, model="plain").statuses == [0]
    for path in output.rglob("*.pt"):
        content = torch.load(path, weights_only=True)
        ranks = [{key: rank[key] for key in rank.keys() - {"window"}} for rank in content["ranks"]]
        path.unlink()
        torch.save(content | ({"version": 3, "ranks": ranks} if version == 3 else {}), path)
    line = (
        "The checkpoint is from an earlier version, which planned the learning rate over --max-steps 2: from"
        " now on it is planned over --epochs, 6 steps\n"
    )
    for says in (version == 3, False):  # not for the checkpoint that the first start wrote
        outcome = trainer.run(*command, "--resume", "auto", model="plain")
        assert outcome.statuses == [0], outcome.said
        assert outcome.said.count(line) == says
    assert [line["step"] for line in of_training(lines(output))] == list(range(1, 7))


# -- Weight decay -------------------------------------------------------------------------------------------

# torchvision's references (references/classification/utils.py, set_weight_decay) with weight decay 0 for
# norms, biases and transformer embeddings, as in its Swin recipes: a parameter in one of these layers, or
# with exactly one of these names, does not decay.
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
)
NAMES = ("bias", "class_token", "position_embedding", "relative_position_bias_table")
# What those names miss: attention's bias; the position embedding, which has another name in torchvision
# itself; and gains that the authors of ConvNeXt and Swin V2 did not decay.
MISSED = {
    "vit": {"in_proj_bias", "pos_embedding"},
    "convnext": {"layer_scale"},
    "swin_v2": {"logit_scale"},
}


class WithoutMemory(TorchFunctionMode):
    """Layers built inside have their weights on the meta device.

    A device context would also move tensors from which models compute their sizes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        on_meta = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **(kwargs or {}) | on_meta)


def names_without_decay(model: nn.Module) -> set[str]:
    decayed, plain = parameter_groups(model, 1e-4)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-4, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {*decayed["params"], *plain["params"]} == names.keys()
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    return {names[parameter] for parameter in plain["params"]}


def test_what_decays_in_every_architecture() -> None:
    for arch in (*SMALL_IMAGES, *TORCHVISION):
        with WithoutMemory():
            model = build_model(arch, 10)
        missed = next((names for family, names in MISSED.items() if arch.startswith(family)), set())
        expected, met = set(), set()
        for path, module in model.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                if isinstance(module, NORMS) or name in NAMES or name in missed:
                    expected.add(f"{path}.{name}".lstrip("."))
                    met.add(name)
        assert names_without_decay(model) == expected, arch
        assert missed <= met, arch


def test_what_decays_is_found_by_type() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.Linear(2, 2)
            self.weight = nn.BatchNorm1d(2)
            self.other = nn.InstanceNorm1d(2, affine=True)
            self.bias = nn.Bilinear(2, 2, 2)
            self.norm = nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True)
            self.up = nn.ConvTranspose1d(2, 2, 1)

    model = Odd()
    decaying = {"bn.weight", "bias.weight", "up.weight", "norm.out_proj.weight"}
    decaying |= {f"norm.{each}_proj_weight" for each in "qkv"}
    assert {name for name, _ in model.named_parameters()} - names_without_decay(model) == decaying
