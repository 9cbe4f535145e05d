"""SGD, AdamW and LAMB: steps against NumPy, options, resuming."""

from __future__ import annotations

import copy
import functools
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import train_imagenet
from configs import named_run
from tests.trainer_process import ROOT, Trainer
from tests.training_runs import SMALL, assert_same_run, lines, losses, status
from training.config import DEMO, Config
from training.distributed import Processes
from training.model import build_model
from training.optimization import DEFAULTS, Optimization
from training.optimizers import create_optimizer
from training.options import parse, recorded_run, settings

# -- Steps against the papers' formulas --------------------------------------------------------------------

Array = np.ndarray[Any, np.dtype[np.float64]]
STEPS = 5


def sgd(w: Array, gradients: list[Array], *, lr: float, decay: float, momentum: float) -> Array:
    """Nesterov momentum (Sutskever et al., 2013), with PyTorch's order of terms."""
    velocity = np.zeros_like(w)
    for gradient in gradients:
        g = gradient + decay * w
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity)
    return w


def adam_ratio(m: Array, v: Array, step: int, betas: tuple[float, float], eps: float) -> Array:
    """Adam's step before the learning rate (Kingma and Ba, 2015, algorithm 1)."""
    return (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)


def adaptive(
    w: Array,
    gradients: list[Array],
    *,
    lr: float,
    decay: float,
    betas: tuple[float, float],
    eps: float,
    layerwise: bool,
) -> Array:
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2) or LAMB (You et al., 2020, algorithm 2).

    LAMB scales a layer's step, including the decay, by the ratio of the norms; timm's does so if there is a
    decay and the norm is not 0.
    """
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(gradients, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        update = adam_ratio(m, v, step, betas, eps) + decay * w
        if layerwise and decay and w.any():
            update *= np.linalg.norm(w) / np.linalg.norm(update)
        w = w - lr * update
    return w


RULES: dict[str, tuple[Optimization, Any]] = {
    "sgd": (
        Optimization("sgd", lr=0.1, momentum=0.8, weight_decay=0.01),
        functools.partial(sgd, momentum=0.8),
    ),
    "adamw": (
        Optimization("adamw", lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        functools.partial(adaptive, betas=(0.8, 0.95), eps=1e-3, layerwise=False),
    ),
    "lamb": (
        Optimization("lamb", lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        functools.partial(adaptive, betas=(0.8, 0.95), eps=1e-3, layerwise=True),
    ),
}


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_steps_are_those_of_the_formulas(name: str, decay_all: bool) -> None:
    """In float32, with weight decay on matrices only, or on biases and gains as well."""
    optimization, rule = RULES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    before = {key: value.detach().double().numpy().copy() for key, value in model.named_parameters()}
    optimizer = create_optimizer(Config(optimization=optimization, decay_all=decay_all), model, Processes())
    gradients: dict[str, list[Array]] = {key: [] for key in before}
    for _ in range(STEPS):
        for key, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape)
            gradients[key].append(parameter.grad.double().numpy())
        optimizer.step()
    for key, parameter in model.named_parameters():
        decay = optimization.weight_decay if decay_all or key == "0.weight" else 0.0
        expected = rule(before[key], gradients[key], lr=optimization.lr, decay=decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=key)
        without = rule(before[key], gradients[key], lr=optimization.lr, decay=0.0)
        assert decay == 0 or np.abs(without - expected).max() > 1e-3  # or this would prove nothing


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_does_not_decay(name: Any) -> None:
    """With each optimiser: biases, gains, and a ViT's class token and position embedding."""
    model = build_model("vit_b_32", 3)
    optimizer = create_optimizer(Config(optimization=Optimization(name)), model, Processes())
    names = {parameter: key for key, parameter in model.named_parameters()}
    found = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert found.keys() == {DEFAULTS[name]["weight_decay"], 0.0}
    still = {names[parameter] for parameter in found[0.0]}
    assert {"class_token", "encoder.pos_embedding", "heads.head.bias"} <= still
    assert not any(key.endswith(("in_proj_weight", "mlp.0.weight", "head.weight")) for key in still)


def test_clipping_of_lamb(monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path) -> None:
    """At 1, timm's default for LAMB, unless another norm is given: the gradients it gets have that norm."""
    norms: list[float] = []

    def noting(self: Any, *arguments: Any, **named: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        return step(self, *arguments, **named)

    from timm.optim import Lamb

    step = Lamb.step
    monkeypatch.setattr(Lamb, "step", noting)
    found = []
    for name, extra in (("own", []), ("given", ["--clip-grad-norm", 0.25])):
        given = ["--optimizer", "lamb", "--max-steps", 1, *extra]
        assert status(photos, tmp_path / name, *given) == 0
        found.append(norms.copy())
        norms.clear()
    assert found[0] == pytest.approx([1.0], rel=1e-4)
    assert found[1] == pytest.approx([0.25], rel=1e-4)


# -- A run -------------------------------------------------------------------------------------------------

# Biases and norms without decay, a state for every parameter, and a rate that learns in six steps.
RUNS: dict[str, list[object]] = {
    "sgd": ["--lr", 0.05],
    "adamw": ["--optimizer", "adamw", "--lr", 0.01],
    "lamb": ["--optimizer", "lamb", "--lr", 0.02],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_resumed_to_the_bit(name: str, trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch; and its state is that of its optimiser."""
    command = ["--data", photos, *SMALL, *RUNS[name], "--keep", 1, "--resume", "auto", "--output"]
    assert trainer.run(*command, tmp_path / "whole", model="restless").statuses == [0]
    plan = {"event": "step", "number": 2, "do": [int(signal.SIGTERM)]}
    stopped = trainer.run(*command, tmp_path / "run", model="restless", plan=plan)
    assert stopped.statuses == [128 + signal.SIGTERM], stopped.said
    resumed = trainer.run(*command, tmp_path / "run", model="restless")
    assert resumed.statuses == [0], resumed.said
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["optimizer"]
    kinds = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
    found = {key for entry in state["state"].values() for key in entry}
    assert found == kinds.get(name, {"exp_avg", "exp_avg_sq"})


def test_sgd_is_what_it_was(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """The default and SGD spelt out are the same run; the other optimisers differ."""
    command = ["--data", photos, *SMALL, "--max-steps", 2, "--output"]
    spelt = ["--optimizer", "sgd", "--momentum", 0.9, "--weight-decay", 1e-4]
    found = []
    for name, extra in (("default", []), ("sgd", spelt), ("adamw", RUNS["adamw"]), ("lamb", RUNS["lamb"])):
        assert trainer.run(*command, tmp_path / name, *extra, model="plain").statuses == [0]
        found.append(losses(lines(tmp_path / name)))
    assert found[0] == found[1]
    assert len({tuple(each) for each in found}) == 3


def test_a_checkpoint_of_another_optimizer_is_refused(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = ["--data", photos, *SMALL, "--output", output]
    assert trainer.run(*command, "--max-steps", 1, model="plain").statuses == [0]
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    outcome = trainer.run(*command, "--resume", "auto", "--optimizer", "adamw", model="plain")
    assert outcome.statuses == [2], outcome.said
    (error,) = re.findall("error: (.*)", outcome.said)
    assert "--optimizer sgd in the checkpoint, adamw here" in error
    assert "--momentum 0.9 in the checkpoint, None here" in error
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


# -- Older checkpoints -------------------------------------------------------------------------------------


def decayed_before(name: str) -> bool:
    """By the names in a VisionTransformer: all except norms and those called just "bias"."""
    return not (name.rpartition(".")[2] == "bias" or ".ln" in name)


def test_groups_of_before_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """A ViT continues as before the change, bit for bit, also from its next checkpoint; one line says so."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 1}
    model = VisionTransformer(**sizes, hidden_dim=4, mlp_dim=6, num_classes=3)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    config = Config(optimization=Optimization("sgd", lr=0.1, weight_decay=0.1))
    names = [name for name, _ in model.named_parameters()]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    def resumed(model: nn.Module, state: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
        copied = copy.deepcopy(model)
        optimizer = create_optimizer(config, copied, Processes())
        optimizer.load_state_dict(copy.deepcopy(state))
        return copied, optimizer

    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[n] for n in names if decayed_before(n) is decays], "weight_decay": decay}
        for decays, decay in ((True, 0.1), (False, 0.0))
    ]
    old = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    step(model, old, 1)
    again, optimizer = resumed(model, old.state_dict())
    assert capsys.readouterr().out == (
        "The checkpoint is from an earlier version, in which 4 more parameters (class_token, in_proj_bias,"
        " pos_embedding) had weight decay: they keep it in this run\n"
    )
    for seed in (2, 3):
        step(model, old, seed)
        step(again, optimizer, seed)
        again, optimizer = resumed(again, optimizer.state_dict())
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_groups_that_nobody_had_are_refused() -> None:
    """Groups of another model: with PyTorch's own error."""
    model = nn.Linear(2, 2)
    optimizer = create_optimizer(Config(), model, Processes())
    state = optimizer.state_dict()
    state["param_groups"][0]["params"] = [0, 1, 2]
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(state)


# -- Options -----------------------------------------------------------------------------------------------

SPELT = Optimization("adamw", lr=0.003, weight_decay=0.3, betas=(0.8, 0.95))
GIVEN: dict[str, tuple[Config, list[str], Optimization]] = {
    # Arguments that a new optimiser does not take are dropped, and all of its own have its defaults.
    "named run": (named_run("imagenet_hmix"), ["--optimizer", "adamw"], Optimization("adamw")),
    "named run and rate": (
        named_run("imagenet_hmix"),
        ["--optimizer", "lamb", "--lr", "0.1"],
        Optimization("lamb", lr=0.1),
    ),
    "named run of SGD": (
        named_run("imagenet_hmix"),
        ["--momentum", "0.8"],
        Optimization("sgd", lr=0.1, momentum=0.8, weight_decay=1e-4),
    ),
    "without data": (DEMO, ["--optimizer", "adamw"], Optimization("adamw")),
    "without data, SGD": (DEMO, ["--optimizer", "sgd"], Optimization("sgd", lr=0.05)),
    "the same": (Config(optimization=SPELT), ["--optimizer", "adamw"], SPELT),
    "back to SGD": (Config(optimization=SPELT), ["--optimizer", "sgd"], Optimization("sgd")),
    "one argument": (
        Config(optimization=SPELT),
        ["--optimizer-betas", "0.9", "0.99"],
        Optimization("adamw", lr=0.003, weight_decay=0.3, betas=(0.9, 0.99)),
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_command_line_asks_for(name: str, tmp_path: Path) -> None:
    """On top of a configuration, and of the config.json of its run."""
    default, given, expected = GIVEN[name]
    assert parse(given, default).optimization == expected
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": settings(default)}))
    assert parse(given, recorded_run(file)).optimization == expected


REFUSED: dict[str, tuple[list[str], str]] = {
    "momentum of AdamW": (
        ["--optimizer", "adamw", "--momentum", "0.9"],
        "--momentum must be left out with adamw (it belongs to sgd); got 0.9",
    ),
    "momentum of LAMB, with a named run": (
        ["--config", "imagenet_hmix", "--optimizer", "lamb", "--momentum", "0.9"],
        "--momentum must be left out with lamb (it belongs to sgd); got 0.9",
    ),
    "betas of SGD": (
        ["--optimizer-betas", "0.9", "0.99"],
        "--optimizer-betas must be left out with sgd (it belongs to adamw and lamb); got (0.9, 0.99)",
    ),
    "eps of SGD": (
        ["--optimizer-eps", "1e-6"],
        "--optimizer-eps must be left out with sgd (it belongs to adamw and lamb); got 1e-06",
    ),
    "a beta of 1": (
        ["--optimizer", "adamw", "--optimizer-betas", "0.9", "1"],
        "--optimizer-betas must be two numbers in [0, 1); got (0.9, 1.0)",
    ),
    "an eps of 0": (
        ["--optimizer", "lamb", "--optimizer-eps", "0"],
        "--optimizer-eps must be above 0; got 0.0",
    ),
    "a negative rate": (["--lr", "-1"], "--lr must be a number of at least 0; got -1.0"),
    "an infinite decay": (
        ["--weight-decay", "inf"],
        "--weight-decay must be a number of at least 0; got inf",
    ),
    "no norm": (["--clip-grad-norm", "nan"], "--clip-grad-norm must be above 0; got nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(
    name: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, words = REFUSED[name]
    output = tmp_path / "run"
    assert train_imagenet.main(["--data", str(photos), "--output", str(output), *given]) == 2
    assert capsys.readouterr().err == f"train_imagenet.py: error: {words}\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"method": "adam"}, r"method must be one of 'sgd', 'adamw', 'lamb'; got 'adam'"),
        ({"lr": "high"}, r"lr must be a number; got 'high'"),
        ({"method": "adamw", "betas": (0.9,)}, r"betas must be two numbers; got \(0\.9,\)"),
        ({"method": "adamw", "betas": 0.9}, r"betas must be two numbers; got 0\.9"),
    ],
)
def test_a_record_checks_itself(named: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Optimization(**named)


def test_without_timm(photos: Path, tmp_path: Path) -> None:
    """LAMB is refused before PyTorch is imported."""
    code = (
        "import sys; sys.modules['timm'] = None; import train_imagenet; status = train_imagenet.main();"
        " print('torch' in sys.modules); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "--data", str(photos), "--output", str(tmp_path / "run"), *SMALL]
    found = subprocess.run([*command, "--optimizer", "lamb"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == (
        "train_imagenet.py: error: --optimizer must be sgd or adamw unless timm is installed; got lamb\n"
    )
    assert found.stdout == "False\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("plain_model")
def test_who_needs_timm(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AdamW does not; LAMB says why an installed timm cannot be imported, and creates no folder."""
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    assert status(photos, tmp_path / "adamw", "--optimizer", "adamw", "--max-steps", 1) == 0
    capsys.readouterr()
    assert status(photos, tmp_path / "lamb", "--optimizer", "lamb") == 2
    assert capsys.readouterr().err == (
        "train_imagenet.py: error: --optimizer lamb needs timm, whose import failed: import of"
        " timm.optim halted; None in sys.modules\n"
    )
    assert not (tmp_path / "lamb").exists()
