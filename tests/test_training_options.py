"""The trainer's options, each against its expected effect on the training."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train_imagenet
from configs import option_from_argv
from dali_msda import Mixing
from pipelines.folders import check_dataset
from pipelines.imagenet import train_pipeline
from tests.image_sets import VAL_COUNTS, plain, write_split
from tests.trainer_process import Trainer
from tests.training_runs import SMALL, assert_same_run, lines, losses, status, train
from training.bad_files import Quarantine
from training.config import Config, resolve
from training.distributed import Processes
from training.learner import LOSSES, Learner
from training.loaders import Loaders
from training.mix_schedule import MixSchedule
from training.model import Average, build_model, build_schedule, checkpoint_activations
from training.optimizers import parameter_groups
from training.options import recorded_run

# -- Weight averaging ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plain_model")
def test_ema(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are averaged after each step, and the average is evaluated."""
    after: list[dict[str, Tensor]] = []
    step = Learner.train_step

    def noting(self: Learner, batches: Any) -> Tensor:
        loss = step(self, batches)
        after.append({name: value.double().clone() for name, value in self.model.state_dict().items()})
        return loss

    monkeypatch.setattr(Learner, "train_step", noting)
    found = train(photos, tmp_path / "run", "--ema-decay", 0.7, "--lr", 0.2, "--epochs", 3)
    average = after[0]
    for weights in after[1:]:
        average = {name: 0.7 * average[name] + 0.3 * weights[name] for name in average}
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for name, value in average.items():
        torch.testing.assert_close(saved["ema"][name].double(), value, rtol=1e-5, atol=1e-7)
        assert not torch.equal(saved["ema"][name], saved["model"][name])
    evaluations = [line for line in found if line["event"] == "eval"]
    keys = ["event", "epoch", "step", "top1", "top5", "loss", "ema_top1", "ema_top5", "ema_loss"]
    assert [list(line) for line in evaluations] == [keys] * 3
    assert all(line["loss"] != line["ema_loss"] for line in evaluations)


@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_ema_with_a_warm_up(decay: float) -> None:
    """Against NumPy: the first step is copied, then the decay is at most (1 + step) / (10 + step)."""
    rng = np.random.default_rng(0)
    model = nn.BatchNorm1d(4)
    average = Average(model, decay, warmup=True)
    averages = average.module.state_dict()
    expected = np.zeros(4)
    decays = []
    for step in range(1, 201):
        values = rng.normal(size=4)
        with torch.no_grad():
            model.weight.copy_(torch.tensor(values))
            assert model.running_mean is not None
            model.running_mean.copy_(torch.tensor(values))
        average.update(step)
        decays.append(0.0 if step == 1 else min(decay, (1 + step) / (10 + step)))
        expected = decays[-1] * expected + (1 - decays[-1]) * values
        for name in ("weight", "running_mean"):
            np.testing.assert_allclose(averages[name].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (decays[1], decays[-1]) == (0.25, decay)
    assert decays.index(decay) == {0.9: 79, 0.3: 2}[decay]  # where the warm-up ends


def test_ema_of_a_run_warms_up_and_is_resumed(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """The average follows the formula, with or without a stop and a resume."""
    command = ["--data", photos, *SMALL, "--ema-decay", 0.9, "--ema-warmup", "--checkpoint-every", 1]
    command += ["--keep", 9, "--resume", "auto", "--output"]
    assert trainer.run(*command, tmp_path / "whole", model="restless").statuses == [0]
    plan = {"event": "step", "number": 4, "do": [int(signal.SIGTERM)]}
    stopped = trainer.run(*command, tmp_path / "run", model="restless", plan=plan)
    assert stopped.statuses == [128 + signal.SIGTERM], stopped.said
    assert trainer.run(*command, tmp_path / "run", model="restless").statuses == [0]
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    expected: dict[str, Tensor] = {}
    for step in range(1, 7):
        path = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}.pt"
        saved = torch.load(path, weights_only=True)
        for name, value in saved["model"].items():
            decay = (1 + step) / (10 + step) if name in expected else 0.0
            expected[name] = decay * expected.get(name, 0.0) + (1 - decay) * value.double()
            if value.is_floating_point():
                torch.testing.assert_close(saved["ema"][name].double(), expected[name], rtol=1e-5, atol=1e-7)


def test_ema_chooses_the_best(photos: Path, tmp_path: Path) -> None:
    found = train(
        photos, tmp_path / "run", "--arch", "resnet18", "--ema-decay", 0.5, "--lr", 0.05, "--epochs", 4
    )
    evaluations = [line for line in found if line["event"] == "eval"]
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["progress"]
    averages = [line["ema_top1"] for line in evaluations]
    assert round(best["best"]["top1"], 4) == averages[best["epoch"]] == max(averages)
    assert max(averages) != max(line["top1"] for line in evaluations)  # or this would prove nothing


def test_ema_of_batch_statistics(photos: Path, tmp_path: Path) -> None:
    """The running statistics are averaged too: with decay 0 both models are the same."""
    found = train(photos, tmp_path / "run", "--ema-decay", 0.0, "--max-steps", 3)
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert any("running_mean" in name for name in saved["ema"])
    for name, value in saved["model"].items():
        torch.testing.assert_close(saved["ema"][name], value, rtol=1e-6, atol=1e-7)
    (evaluation,) = [line for line in found if line["event"] == "eval"]
    assert evaluation["ema_top1"] == evaluation["top1"]


# -- Steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 2), (1, 3), (2, 2)])
def test_accumulation_is_one_large_step(
    processes: int, accumulate: int, trainer: Trainer, tmp_path: Path
) -> None:
    """The same losses in float32 as with one batch: every step has all images, and nothing is random."""
    data = tmp_path / "data"
    for split, counts in (("train", (12, 7, 5)), ("val", VAL_COUNTS)):
        write_split(data / split, counts, plain)
    command = ["--data", data, "--mix", "none", *SMALL, "--epochs", 6, "--lr", 0.1, "--batch-size", 24]
    command += ["--clip-grad-norm", 0.5]
    found = []
    for name, count, passes in (("one", 1, 1), ("several", processes, accumulate)):
        output = tmp_path / name
        outcome = trainer.run(
            *command, "--output", output, "--accumulate", passes, processes=count, model="plain"
        )
        assert outcome.statuses == [0] * count, outcome.said
        found.append(losses(lines(output)))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert len(set(found[0])) == 6
    assert found[0][0] - found[0][-1] > 0.01


@pytest.mark.usefixtures("plain_model")
def test_what_does_not_fill_a_step_is_left_out(photos: Path, tmp_path: Path) -> None:
    """24 images in batches of 2 times 5: two steps per epoch, and the next starts with its first images."""
    found = train(photos, tmp_path / "run", "--batch-size", 10, "--accumulate", 5, "--epochs", 3)
    assert [line.get("step") for line in found if line["event"] == "train"] == list(range(1, 7))
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (saved["ranks"][0]["loader"]["epoch"], saved["ranks"][0]["loader"]["position"]) == (2, 10)


@pytest.mark.usefixtures("plain_model")
def test_clipping(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without momentum and decay, a step's length is lr times the norm, which is at most the limit."""
    lengths: dict[str, list[float]] = {"clipped": [], "free": []}
    kind = ""
    step = Learner.train_step

    def measured(self: Learner, batches: Any) -> Tensor:
        before = [parameter.detach().clone() for parameter in self.model.parameters()]
        lr = self.schedule.get_last_lr()[0]
        loss = step(self, batches)
        moved = [(p.detach() - b) / lr for p, b in zip(self.model.parameters(), before, strict=True)]
        lengths[kind].append(float(torch.cat([move.flatten() for move in moved]).norm()))
        return loss

    monkeypatch.setattr(Learner, "train_step", measured)
    plain_sgd = ["--momentum", 0, "--weight-decay", 0, "--max-steps", 4]
    for kind, limit in (("free", []), ("clipped", ["--clip-grad-norm", 0.05])):
        train(photos, tmp_path / kind, *plain_sgd, *limit)
    assert min(lengths["free"]) > 0.06
    assert lengths["clipped"] == pytest.approx([0.05] * 4, rel=1e-3)


def test_bce_is_the_mean_of_the_classes(photos: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (5, 7)), rng.dirichlet(np.ones(7), 5)
    expected = -(targets * -np.log1p(np.exp(-logits)) + (1 - targets) * -np.log1p(np.exp(logits))).mean()
    loss = LOSSES["bce"](torch.tensor(logits), torch.tensor(targets))
    assert float(loss) == pytest.approx(expected, rel=1e-9)
    found = [train(photos, tmp_path / kind, "--loss", kind, "--max-steps", 2) for kind in ("bce", "ce")]
    # With random weights: about log 2 per class, log 3 for the classes together.
    assert losses(found[0])[0] < losses(found[1])[0]


def test_step_schedule() -> None:
    """A tenth after every three steps from the start, with a warm-up over the first two."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build_schedule(optimizer, 2, 10, decay_every=3)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


def test_milestones() -> None:
    """A tenth at each of them, whatever their distance, also after resuming in between."""
    expected = [1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01]
    for done in (0, 2, 3, 7):
        optimizer = torch.optim.SGD(
            [{"params": [torch.zeros(1, requires_grad=True)], "initial_lr": 1.0}], lr=1.0
        )
        schedule = build_schedule(optimizer, 0, 8, done, decay_at=[2, 7])
        rates = []
        for _ in range(8 - done):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx(expected[done:])


@pytest.mark.usefixtures("plain_model")
def test_milestones_of_a_run(photos: Path, tmp_path: Path) -> None:
    """In epochs, of three steps each."""
    given = ["--lr-schedule", "step", "--lr-milestones", 1, 1.7, "--warmup-epochs", 0, "--lr", 1e-3]
    found = train(photos, tmp_path / "run", *given)
    assert [line["lr"] for line in found if line["event"] == "train"] == pytest.approx(
        [1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5]
    )
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert saved["lr_milestones"] == [1.0, 1.7]
    assert recorded_run(tmp_path / "run" / "config.json").lr_milestones == (1.0, 1.7)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["--lr-milestones", 150, 225],
            "--lr-milestones must be used with --lr-schedule step; got (150.0, 225.0)",
        ),
        (
            ["--lr-milestones", 225, 150],
            "--lr-milestones must be increasing numbers above 0; got (225.0, 150.0)",
        ),
        (["--lr-milestones", 5, 5], "--lr-milestones must be increasing numbers above 0; got (5.0, 5.0)"),
        (["--lr-milestones", 0, 5], "--lr-milestones must be increasing numbers above 0; got (0.0, 5.0)"),
        (["--lr-milestones", "nan"], "--lr-milestones must be increasing numbers above 0; got (nan,)"),
        (["--lr-milestones", "inf"], "--lr-milestones must be increasing numbers above 0; got (inf,)"),
        (["--crop-padding", 32], "--crop-padding must be below the image size (32); got 32"),
        (["--crop-padding", -1], "--crop-padding must be at least 0; got -1"),
        (
            ["--crop-padding", 2, "--crop-area", 0.5, 1],
            "--crop-area must be left out with crop_padding, which replaces it; got (0.5, 1.0)",
        ),
    ],
)
def test_refused(
    given: list[object], words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(photos, tmp_path / "run", *given) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("plain_model")
def test_step_schedule_of_a_run(photos: Path, tmp_path: Path) -> None:
    found = train(
        photos,
        tmp_path / "run",
        "--lr-schedule",
        "step",
        "--lr-step-epochs",
        1,
        "--warmup-epochs",
        0,
        "--lr",
        0.1,
    )
    rates = [line["lr"] for line in found if line["event"] == "train"]
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 3)


def test_decay_of_everything() -> None:
    groups = parameter_groups(build_model("resnet18", 3), 0.1, decay_all=True)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


# -- Ramps --------------------------------------------------------------------------------------------------


def mixed_samples(config: Config, photos: Path, batches: int, bad: int | None = None) -> list[int]:
    """Number of mixed samples per batch: those with a label strictly between 0 and 1."""
    listing = check_dataset(photos)[0]
    if bad is not None:
        listing = listing.without([bad])
    loaders = Loaders(resolve(config), Processes(), Quarantine(Path(os.devnull), skip=False), dict)
    loader = loaders.train(listing)
    found: list[int] = []
    while len(found) < batches:
        for _, targets in itertools.islice(loader, batches - len(found)):
            found.append(int(((targets > 0.01) & (targets < 0.99)).any(1).sum()))
    return found


@pytest.mark.parametrize("per_class", [8, 9])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_mixing_ends_with_the_epoch(accumulate: int, per_class: int, tmp_path: Path) -> None:
    """The last batch before --mix-off-epoch is mixed, the first one after it is not: with 24 images,
    which fill three batches of eight, and with 27, of which some are read but not used."""
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_split(data / split, 3 * (per_class,), plain)
    config = Config(
        data=data,
        image_size=8,
        batch_size=8,
        accumulate=accumulate,
        device="cpu",
        mixing=Mixing("mixup", alpha=1e4),
        mix_schedule=MixSchedule(off_epoch=2),
        workers=1,
    )
    per_epoch = 3 if accumulate == 1 else 6
    for bad in (None, 5):
        found = mixed_samples(config, data, 4 * per_epoch, bad)
        assert sum(found[: 2 * per_epoch]) > 2 * per_epoch
        assert found[2 * per_epoch - 1] > 0
        assert found[2 * per_epoch :] == [0] * 2 * per_epoch


def test_ramps_come_from_the_settings(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 1.5 epochs of 3 batches: the values at the first batch, in the middle and at the end."""
    config = Config(
        data=photos,
        batch_size=8,
        device="cpu",
        mixing=Mixing(alpha=1.0),
        mix_schedule=MixSchedule(alpha_start=0.2, probability_start=0.5, ramp_epochs=1.5, off_epoch=4),
    )
    seen: list[Mixing] = []

    def noting(*arguments: Any, mix: Mixing, **named: Any) -> Any:
        seen.append(mix)
        return train_pipeline(*arguments, mix=mix, **named)

    monkeypatch.setattr("training.loaders.train_pipeline", noting)
    images = check_dataset(photos)[0]
    assert len(images) == 24
    loaders = Loaders(resolve(config), Processes(), Quarantine(Path(os.devnull), skip=False), dict)
    len(loaders.train(images))  # builds the pipeline
    alpha, probability = seen[0].arguments["alpha"], seen[0].probability
    assert callable(alpha)
    assert callable(probability)
    assert [alpha(batch) for batch in (0, 3, 5, 20)] == pytest.approx([0.2, 0.2 + 0.8 * 2 / 3, 1.0, 1.0])
    values = [probability(batch) for batch in (0, 3, 5, 11, 12, 20)]
    assert values == pytest.approx([0.5, 0.5 + 0.5 * 2 / 3, 1.0, 1.0, 0.0, 0.0])


# -- Augmentation, memory, algorithms -----------------------------------------------------------------------


def test_augmented_runs_repeat(photos: Path, tmp_path: Path) -> None:
    rand, trivial, jitter = (
        ["--auto-augment", "rand"],
        ["--auto-augment", "trivial"],
        ["--color-jitter", "0.4"],
    )
    found = [
        losses(train(photos, tmp_path / name, "--max-steps", 2, *extra))
        for name, extra in (
            ("one", rand + jitter),
            ("two", rand + jitter),
            ("trivial", trivial),
            ("jitter", jitter),
            ("none", []),
        )
    ]
    assert found[0] == found[1]
    assert len(set(map(tuple, found))) == 4


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_grad_checkpointing_changes_nothing(arch: str) -> None:
    """Same gradients and BatchNorm statistics over two passes, with dropout; fewer activations are kept."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = build_model(arch, 5)
        if checkpointing:
            checkpoint_activations(model)
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        for _ in range(2):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = (
                    model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
                    .square()
                    .sum()
                )
            loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append((gradients, model.state_dict(), kept))
    (gradients, state, kept), (again, with_checkpoints, less) = found
    assert state.keys() == with_checkpoints.keys()
    for before, after in zip(gradients, again, strict=True):
        assert before is not None
        assert after is not None
        assert torch.equal(before, after)
    assert all(torch.equal(state[name], with_checkpoints[name]) for name in state)
    assert less < kept / 2


def test_grad_checkpointing_run(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["--ema-decay", 0.5, "--max-steps", 3]
    found = [train(photos, tmp_path / name, *extra, *option) for name, option in
             (("kept", []), ("again", ["--grad-checkpointing"]))]  # fmt: skip
    for line in (*found[0], *found[1]):
        line.pop("images_per_s", None)
        line.pop("data_wait", None)
    assert found[0] == found[1]
    states = [
        torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("kept", "again")
    ]
    assert states[0].keys() == states[1].keys()
    extra = ["--arch", "vgg11", "--image-size", 64, "--grad-checkpointing"]
    assert status(photos, tmp_path / "vgg", *extra) == 2
    assert "--grad-checkpointing needs a model made of blocks" in capsys.readouterr().err


@pytest.mark.usefixtures("plain_model")
def test_compile(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled model trains to the same losses; checkpoints have the names of the plain one.

    Traced forward and backward, but without the C++ compiler, which would take half a minute.
    """
    compiled: list[nn.Module] = []
    compile_ = torch.compile

    def noting(code: Any) -> Any:
        if isinstance(code, nn.Module):  # not the one-line trial
            compiled.append(code)
        return compile_(code, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", noting)
    found = [losses(train(photos, tmp_path / name, "--max-steps", 3, *extra)) for name, extra in
             (("plain", []), ("compiled", ["--compile"]))]  # fmt: skip
    assert len(compiled) == 1
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    states = [
        torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("plain", "compiled")
    ]
    assert states[0].keys() == states[1].keys()


def test_deterministic(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen: list[tuple[bool, bool]] = []
    step = Learner.train_step

    def noting(self: Learner, batches: Any) -> Tensor:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return step(self, batches)

    monkeypatch.setattr(Learner, "train_step", noting)
    train(photos, tmp_path / "one", "--max-steps", 1, "--deterministic")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    train(photos, tmp_path / "two", "--max-steps", 1)
    assert seen == [(True, False), (False, True)]


# -- Named runs and combinations ---------------------------------------------------------------------------


def test_a_named_run_from_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its settings are defaults: options override them, in any position."""
    small = ["--arch", "shufflenet_v2_x0_5", "--image-size", "32", "--batch-size", "8", "--device", "cpu"]
    small += ["--amp", "none", "--data", str(photos), "--output", str(tmp_path / "run"), "--max-steps", "1"]
    given = ["--mix", "gmix", "--config", "imagenet_hmix", "--color-jitter", "0.1"]
    assert train_imagenet.main([*small, *given]) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["config"], settings["mix"], settings["color_jitter"]) == ("imagenet_hmix", "gmix", 0.1)
    assert (settings["mix_alpha"], settings["mix_ratio"]) == (1.0, None)
    assert (settings["epochs"], settings["lr_schedule"], settings["decay_all"]) == (300, "step", True)
    assert train_imagenet.main(["--config=imagenet_gmx", "--data", str(photos)]) == 2
    error = capsys.readouterr().err
    assert "--config must be one of cifar100_preact_resnet18_cutmix, " in error
    assert ", imagenet_cutmix, imagenet_gmix, " in error
    assert "got imagenet_gmx (did you mean imagenet_gmix or " in error
    assert train_imagenet.main(["--config", "imagenet_gmix"]) == 2
    assert "--config must be used with --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], None),
        (["--mix", "gmix"], None),
        (["--config"], ""),
        (["--config", "a"], "a"),
        (["--config=a", "--lr", "1", "--config", "b"], "b"),
    ],
)
def test_which_run_is_asked_for(arguments: list[str], name: str | None) -> None:
    assert option_from_argv(arguments, "--config") == name


BAD: dict[str, tuple[list[str], str]] = {
    "decay of the average": (["--ema-decay", "1"], "--ema-decay must be in [0, 1); got 1.0"),
    "warm-up of no average": (["--ema-warmup"], "--ema-warmup must be used with --ema-decay; got True"),
    "accumulation": (
        ["--accumulate", "3"],
        "--batch-size must be a multiple of the number of processes (1) times",
    ),
    "clipping": (["--clip-grad-norm", "0"], "--clip-grad-norm must be above 0; got 0.0"),
    "magnitude": (
        ["--rand-augment", "2", "31"],
        "--rand-augment must be two numbers 1 <= n <= 16 and 0 <= m < 31",
    ),
    "jitter": (["--color-jitter", "2"], "--color-jitter must be in [0, 1]; got 2.0"),
    "ramp without start": (["--mix-ramp-epochs", "2"], "--mix-ramp-epochs must be above 0 with"),
    "start without ramp": (["--mix-alpha-start", "2"], "--mix-ramp-epochs must be above 0 with"),
    "off epoch": (["--mix-off-epoch", "-1"], "--mix-off-epoch must be at least 0; got -1"),
    "off without mixing": (
        ["--mix", "none", "--mix-off-epoch", "1"],
        "--mix-off-epoch must be left out with",
    ),
    "compiled and checkpointed": (
        ["--compile", "--grad-checkpointing"],
        "--grad-checkpointing must be left out",
    ),
    "validation size": (["--val-image-size", "0"], "--val-image-size must be at least 1; got 0"),
    "evaluate and resume": (
        ["--eval-only", "--init-weights", "x", "--resume", "auto"],
        "--resume must be left out with --eval-only",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_setting(name: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra, words = BAD[name]
    output = tmp_path / "run"
    assert status(photos, output, *extra) == 2
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_processes_compare_what_they_were_given(
    trainer: Trainer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines with different images: every process refuses, and names the difference."""
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    next((other / "train").rglob("*.png")).rename(other / "train" / "ant" / "another.png")
    command = ["--output", tmp_path / "run", *SMALL]
    outcome = trainer.run("--data", photos, *command, processes=2, of_last_rank=["--data", str(other)])
    assert outcome.statuses == [2, 2], outcome.said
    assert "images in train/ (SHA-256 of the list) must be the same in all processes" in outcome.said
    outcome = trainer.run("--data", photos, *command, processes=2, of_last_rank=["--lr", "0.3"])
    assert outcome.statuses == [2, 2], outcome.said
    assert (
        "--lr must be the same in all processes; got 0.01 in process 0 and 0.3 in process 1" in outcome.said
    )
    # May change when a run resumes, but decides when the processes synchronise.
    outcome = trainer.run("--data", photos, *command, processes=2, of_last_rank=["--max-steps", "1"])
    assert outcome.statuses == [2, 2], outcome.said
    assert "--max-steps must be the same in all processes; got None in process 0 and 1" in outcome.said
