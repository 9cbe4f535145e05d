"""Available models; timm's; those with auxiliary heads."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional

import train_imagenet
from tests.grad_checkpointing import assert_checkpointing_changes_nothing
from tests.trainer_process import ROOT, Trainer
from tests.training_runs import SMALL, assert_same_run, lines, status, train, without_clock
from training.architectures import TORCHVISION
from training.config import Config, resolve
from training.distributed import Processes
from training.export import export
from training.learner import Learner, create_model, create_schedule
from training.model import build_model
from training.optimizers import create_optimizer, parameter_groups
from training.options import saved_settings
from training.progress import Progress

CPU = torch.device("cpu")

# -- Names -------------------------------------------------------------------------------------------------


def test_architectures_are_those_of_torchvision() -> None:
    assert sorted(TORCHVISION) == torchvision.models.list_models(module=torchvision.models)


def without_imports(script: str) -> str:
    """Output of a Python process, then whether it imported PyTorch."""
    code = f"import sys\n{script}\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout


def test_architectures_are_those_of_timm() -> None:
    found = without_imports("from training.architectures import timm_names; print(*sorted(timm_names()))")
    *names, imported = found.split()
    assert names == sorted(timm.list_models())
    assert imported == "False"


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet50", "resnet50"),  # in both
        ("timm/resnet50", "timm/resnet50"),
        ("test_vit", "timm/test_vit"),
        ("timm/test_vit", "timm/test_vit"),
        ("regnet_y_400mf", "regnet_y_400mf"),
        ("wrn_28_2", "wrn_28_2"),
    ],
)
def test_names_in_full(arch: str, expected: str) -> None:
    assert resolve(Config(arch=arch, device="cpu")).arch == expected


UNKNOWN = (
    "--arch must be a classification model of this trainer, of torchvision or, as timm/NAME, of timm; got "
)


@pytest.mark.parametrize(
    ("arch", "words", "with_timm"),
    [
        ("resnet5", f"{UNKNOWN}resnet5 (did you mean resnet50 or resnet", True),
        ("timm/resnet5", f"{UNKNOWN}timm/resnet5 (did you mean timm/resnet5", True),
        ("resnet50.a1_in1k", f"{UNKNOWN}resnet50.a1_in1k (did you mean resnet50?", True),
        (
            "vit_tiny_patch16_22",
            "(did you mean timm/vit_tiny_patch16_224 or ",
            True,
        ),
        ("hub/resnet50", f"{UNKNOWN}hub/resnet50 (did you mean ", True),
        ("qqqq", f"{UNKNOWN}qqqq (the trainer has cifar_resnet110, ", True),
        ("timm/test_vit", "--arch timm/test_vit needs timm, which is not installed here (pip", False),
        ("test_vit", "torchvision or, if timm is installed, of timm; got test_vit (", False),
    ],
)
def test_unknown_names(arch: str, words: str, with_timm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_timm:
        monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=re.escape(words)):
        resolve(Config(arch=arch, device="cpu"))


def best_of(output: Path) -> dict[str, Any]:
    """The best evaluation of a run with weight averaging."""
    found = [line for line in lines(output) if line["event"] == "eval"]
    return max(found, key=lambda line: float(line["ema_top1"]))


# -- timm's models -----------------------------------------------------------------------------------------

SMALLEST = ["test_efficientnet", "test_resnet", "test_vit", "test_convnext", "test_mambaout"]


@pytest.mark.parametrize("name", SMALLEST)
def test_weight_decay_is_that_of_timm(name: str) -> None:
    model = build_model(f"timm/{name}", 3)
    skipped: Any = getattr(model, "no_weight_decay", tuple)()
    theirs = param_groups_weight_decay(model, 0.1, no_weight_decay_list=skipped)
    decayed = {id(p) for group in theirs if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(parameter) for parameter in parameter_groups(model, 0.1)[0]["params"]}


@pytest.mark.parametrize("name", SMALLEST)
def test_grad_checkpointing(name: str) -> None:
    assert_checkpointing_changes_nothing(lambda: build_model(f"timm/{name}", 3), (2, 3, 64, 64))


@pytest.fixture(scope="module")
def timm_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with weight averaging."""
    output = tmp_path_factory.mktemp("timm") / "run"
    train(photos, output, "--arch", "test_efficientnet", "--ema-decay", 0.5, "--checkpoint-every", 1)
    return output


def test_a_run_of_timm(timm_run: Path, photos: Path, tmp_path: Path) -> None:
    """It resumes bit for bit, and a name without timm/ is recorded in full."""
    settings = json.loads((timm_run / "config.json").read_text())["settings"]
    assert settings["arch"] == "timm/test_efficientnet"
    assert "timm" in json.loads((timm_run / "config.json").read_text())["versions"]
    checkpoint = sorted((timm_run / "checkpoints").iterdir())[0]
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(checkpoint, tmp_path / "checkpoints")
    shutil.copy(timm_run / "config.json", tmp_path)
    shutil.copy(timm_run / "metrics.jsonl", tmp_path)
    command = ["--arch", "timm/test_efficientnet", "--ema-decay", 0.5, "--resume", "auto"]
    train(photos, tmp_path, *command)
    assert without_clock(tmp_path) == without_clock(timm_run)
    found, wanted = (torch.load(it / "last.pt", weights_only=True) for it in (tmp_path, timm_run))
    for entry in ("model", "ema"):
        assert all(torch.equal(it, wanted[entry][name]) for name, it in found[entry].items())


def test_weights_of_timm(
    timm_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported, or saved by timm's training script: both hold the model's name."""
    export(timm_run / "best.pt", tmp_path / "exported.safetensors")
    model = timm.create_model("test_efficientnet", num_classes=3)
    average = torch.load(timm_run / "best.pt", weights_only=True)["ema"]
    content = {"arch": "test_efficientnet", "state_dict": model.state_dict(), "state_dict_ema": average}
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "nameless.pth")
    for name, more in (("exported.safetensors", []), ("checkpoint.pth.tar", ["--image-size", 32])):
        arguments = ["--data", photos, "--eval-only", "--init-weights", tmp_path / name, "--device", "cpu"]
        arguments += ["--batch-size", 8, "--workers", 1, "--amp", "none", *more]
        assert train_imagenet.main([str(argument) for argument in arguments]) == 0
        said = capsys.readouterr().out
        assert f"top-1 {best_of(timm_run)['ema_top1']:.2f} %" in said
        assert "--arch timm/test_efficientnet" in said
    other = ["--eval-only", "--init-weights", tmp_path / "nameless.pth", "--arch", "efficientnet_b0"]
    assert status(photos, tmp_path / "none", *other) == 2
    error = capsys.readouterr().err
    assert "--arch timm/efficientnet_b0 is timm's model of that name" in error


def test_another_classifier(tmp_path: Path) -> None:
    """timm says which layer it is."""
    for name in ("test_efficientnet", "test_convnext", "test_vit"):
        torch.save(timm.create_model(name, num_classes=7).state_dict(), tmp_path / "w.pth")
        config = resolve(
            Config(
                arch=name, device="cpu", init_weights=tmp_path / "w.pth", new_classifier=True, image_size=64
            )
        )
        model = create_model(config, ["a", "b"], CPU, Processes(), tmp_path / "w.pth")
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 2)


# -- Auxiliary heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "size", "given", "weight", "count"),
    [
        ("googlenet", 32, None, 0.3, 2),
        ("googlenet", 32, 0.7, 0.7, 2),
        ("googlenet", 32, 0.0, 0.0, 0),
        ("inception_v3", 299, None, 0.4, 1),
        ("inception_v3", 75, 0.0, 0.0, 0),
    ],
)
def test_loss_of_auxiliary_heads(
    arch: str, size: int, given: float | None, weight: float, count: int
) -> None:
    """For mixed targets, added to the loss of the main output; the evaluation uses the main loss alone."""
    config = resolve(Config(arch=arch, image_size=size, aux_loss_weight=given, device="cpu", amp="none"))
    assert config.aux_loss_weight == weight
    model = create_model(config, ["a", "b", "c"], CPU, Processes(), None)
    images, targets = torch.randn(2, 3, size, size), torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.1, 0.9]])
    before = copy.deepcopy(model)
    optimizer, progress = create_optimizer(config, model, Processes()), Progress()
    progress.plan(config, 10)
    schedule = create_schedule(config, optimizer, progress)
    learner = Learner(config, Processes(), model, optimizer, GradScaler("cpu", enabled=False), schedule)
    torch.manual_seed(1)
    loss = learner.train_step(iter([(images, targets)]))
    torch.manual_seed(1)
    found = before(images)
    main, *others = (found,) if isinstance(found, Tensor) else found
    assert len(others) == count
    expected = functional.cross_entropy(main, targets) + weight * sum(
        functional.cross_entropy(other, targets) for other in others
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert learner.right == (main.argmax(1) == targets.argmax(1)).sum()
    moved = [name for name, it in model.named_parameters() if not torch.equal(it, before.get_parameter(name))]
    of_heads = {name.split(".")[0] for name in moved} & {"aux1", "aux2", "AuxLogits"}
    assert len(of_heads) == count
    assert isinstance(model.eval()(images), Tensor)


ARGUMENTS = ["--arch", "googlenet", "--ema-decay", 0.5, "--accumulate", 2, "--checkpoint-every", 1]


def test_resumes_with_auxiliary_heads(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """Bit for bit, in two processes and with weight averaging."""
    processes = 2
    command = ["--data", photos, *SMALL, *ARGUMENTS]
    options: dict[str, Any] = {"model": "with heads", "processes": processes}
    whole = trainer.run(*command, "--output", tmp_path / "whole", **options)
    assert whole.statuses == [0] * processes, whole.said
    cut = [*command, "--output", tmp_path / "cut", "--resume", "auto"]
    plan = {"event": "step", "number": 3, "do": [signal.SIGKILL]}
    stopped = trainer.run(*cut, plan=plan, **options)
    assert stopped.statuses[0] == -signal.SIGKILL, stopped.said
    outcome = trainer.run(*cut, **options)
    assert outcome.statuses == [0] * processes, outcome.said
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    saved = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)
    for entry in ("model", "ema"):
        assert {"aux1.weight", "aux2.weight", "fc.weight"} < saved[entry].keys()


@pytest.fixture(scope="module")
def googlenet(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    output = tmp_path_factory.mktemp("googlenet") / "run"
    train(photos, output, "--arch", "googlenet", "--max-steps", 1)
    return output


def test_weights_with_auxiliary_heads(
    googlenet: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evaluation has no heads; a training takes the file's, in the order of its own classes."""
    saved = torch.load(googlenet / "last.pt", weights_only=True)["model"]
    export(googlenet / "last.pt", tmp_path / "weights.safetensors")
    given = ["--eval-only", "--init-weights", tmp_path / "weights.safetensors"]
    assert status(photos, tmp_path / "none", "--arch", "googlenet", *given) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "top-1" in line]
    result = lines(googlenet)[-1]
    assert f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, loss {result['loss']:.4f}" in line

    def begin(names: str) -> dict[str, Tensor]:
        (tmp_path / "classes.txt").write_text(names)
        weights = tmp_path / "weights.safetensors"
        config = Config(
            arch="googlenet", device="cpu", init_weights=weights, class_names=tmp_path / "classes.txt"
        )
        classes = ["ant", "bee", "cat"]
        return create_model(resolve(config), classes, CPU, Processes(), weights).state_dict()

    found = begin("ant\nbee\ncat")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    other = begin("cat\nant\nbee")
    for layer in ("fc", "aux1.fc2", "aux2.fc2"):
        assert torch.equal(other[f"{layer}.weight"], saved[f"{layer}.weight"][[1, 2, 0]])


def test_weights_without_auxiliary_heads(
    googlenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The heads then start with random weights, and a line says so; a new classifier renews theirs too."""
    saved = torch.load(googlenet / "last.pt", weights_only=True)["model"]
    torch.save({name: it for name, it in saved.items() if "aux" not in name}, tmp_path / "w.pt")
    config = resolve(Config(arch="googlenet", device="cpu"))
    names = ["ant", "bee", "cat"]
    found = create_model(config, names, CPU, Processes(), tmp_path / "w.pt").state_dict()
    assert torch.equal(found["fc.weight"], saved["fc.weight"])
    assert found["aux1.fc2.weight"].std() > 0
    assert "missing and left as they were: aux1.conv.conv.weight" in capsys.readouterr().out
    torch.save(saved, tmp_path / "w.pt")
    config = resolve(
        Config(arch="googlenet", device="cpu", new_classifier=True, init_weights=tmp_path / "w.pt")
    )
    found = create_model(config, [*names, "dog"], CPU, Processes(), tmp_path / "w.pt").state_dict()
    for layer in ("fc", "aux1.fc2", "aux2.fc2"):
        assert len(found[f"{layer}.weight"]) == 4
    assert torch.equal(found["aux1.fc1.weight"], saved["aux1.fc1.weight"])
    assert torch.equal(found["conv1.conv.weight"], saved["conv1.conv.weight"])


def test_checkpoints_of_before() -> None:
    """They have no auxiliary heads: --aux-loss-weight 0 resumes them."""
    for arch, weight in (("googlenet", 0.0), ("inception_v3", 0.0), ("resnet18", None)):
        assert saved_settings({"arch": arch})["aux_loss_weight"] == weight
        assert saved_settings({"arch": arch, "aux_loss_weight": 0.3})["aux_loss_weight"] == 0.3


def test_a_run_with_heads_is_repeated(googlenet: Path, photos: Path, tmp_path: Path) -> None:
    """From its config.json; another architecture has its own weight."""
    command = ["--from-config", googlenet / "config.json", "--data", photos]
    for arch, weight in (("googlenet", 0.3), ("inception_v3", 0.4), ("resnet18", None)):
        arguments = [str(argument) for argument in (*command, "--arch", arch)]
        assert resolve(train_imagenet.settings_of(arguments)).aux_loss_weight == weight


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["--arch", "inception_v3", "--image-size", 224],
            ["--image-size must be one that --arch inception_v3 takes; got 224 (",
             "; --aux-loss-weight 0 trains without auxiliary heads"],
        ),
        (
            ["--arch", "resnet18", "--aux-loss-weight", 0.4],
            ["--aux-loss-weight must be left out with --arch resnet18, which has no auxiliary heads; got"],
        ),
        (["--aux-loss-weight", -1], ["--aux-loss-weight must be a number of at least 0; got -1.0"]),
        (["--aux-loss-weight", math.nan], ["--aux-loss-weight must be a number of at least 0; got nan"]),
    ],
)  # fmt: skip
def test_refused(
    given: list[object],
    words: list[str],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With exit status 2 and one line; nothing is written."""
    assert status(photos, tmp_path / "run", *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not [each for each in words if each not in line], line
    assert list(tmp_path.iterdir()) == []
