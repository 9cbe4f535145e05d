"""The command line and the recorded settings match the records."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest

import train_imagenet
from configs import named_run
from dali_msda import Mixing
from dali_msda.methods import TABLE, Method
from pipelines.records import Augmentation
from tests.own_method import STRIPE
from tests.trainer_process import Trainer
from tests.training_runs import SMALL, status, without_clock
from training.checkpoints import pack, unpack
from training.config import DEMO, Config, resolve
from training.distributed import Processes
from training.hardware import choose_decoding
from training.methods import mixing_of
from training.mix_schedule import MixSchedule
from training.optimization import Optimization
from training.options import options, parse, recorded_run, saved_settings, settings
from training.resume import check_same

# The content of config.json and checkpoints before there were records, with default values.
FLAT: dict[str, Any] = {
    "config": None, "data": None, "file_list": None, "mix": "hmix", "mix_alpha": 1.0, "mix_ratio": 0.75,
    "mix_probability": 1.0, "mix_convention": "reference", "mix_ramp_epochs": 0.0, "mix_alpha_start": None,
    "mix_probability_start": None, "mix_off_epoch": None, "auto_augment": "none", "rand_augment": [2, 9],
    "color_jitter": 0.0, "arch": "resnet50", "init_weights": None, "image_size": 224, "val_image_size": 224,
    "epochs": 300, "batch_size": 256, "accumulate": 1, "loss": "ce", "lr": 0.1, "lr_schedule": "cosine",
    "lr_step_epochs": 75.0, "momentum": 0.9, "weight_decay": 0.0001, "decay_all": False,
    "clip_grad_norm": None, "warmup_epochs": 5.0, "label_smoothing": 0.0, "ema_decay": None,
    "crop_area": [0.08, 1.0], "device": "cpu", "amp": "none", "compile": False, "grad_checkpointing": False,
    "deterministic": False, "sync_bn": False, "workers": 1, "seed": 0, "bad_files": "skip", "output": None,
    "resume": None, "eval_only": False, "checkpoint_every": 1000, "keep": 3, "max_steps": None,
    "log_every": 50, "demo_data": "data/demo",
}  # fmt: skip
# For each method, the values of its arguments there.
OF_METHODS = {
    "none": (None, None),
    "mixup": (0.8, None),
    "cutmix": (1.0, None),
    "stochastic": (1.0, None),
    "hmix": (1.0, 0.75),
    "gmix": (1.0, None),
}


@pytest.fixture
def stripe(monkeypatch: pytest.MonkeyPatch) -> Method:
    """A user's own method, in the table."""
    monkeypatch.setitem(TABLE, "stripe", STRIPE)
    return STRIPE


def flags(config: Config) -> list[str]:
    """The command line for a configuration."""
    found = []
    for name, value in settings(config).items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            found.append(option)
        elif value is not None and value is not False:
            found += [option, *map(str, value if isinstance(value, list) else [value])]
    return found


CONFIGS = pytest.mark.parametrize(
    "config",
    [
        Config(),
        DEMO,
        named_run("cifar100_resnet56_hmix"),
        named_run("imagenet_stochastic"),
        Config(
            mixing=Mixing("stochastic", mixup_alpha=2.0, switch_probability=0.1, granularity="batch"),
            mix_schedule=MixSchedule(alpha_start=0.1, probability_start=0.2, ramp_epochs=3.0, off_epoch=7),
            augmentation=Augmentation(crop_area=(0.3, 0.4), mirror_probability=0.0, auto_augment="rand"),
        ),
        Config(mixing=Mixing("hmix", ratio=0.0, label_smoothing=0.1, convention="paper", probability=0.0)),
        Config(mixing=mixing_of("puzzlemix", eta=0.5, levels=4, granularity="batch")),
        Config(optimization=Optimization("adamw", betas=(0.8, 0.95), clip_grad_norm=2.0)),
        Config(optimization=Optimization("lamb", eps=1e-7)),
    ],
)


@CONFIGS
def test_every_setting_can_be_written_as_an_option(config: Config) -> None:
    """The settings cover the whole configuration, and no default hides a difference."""
    assert parse(flags(config), Config()) == config
    assert parse(flags(config), DEMO) == config


@CONFIGS
def test_every_setting_is_read_from_a_record(config: Config, tmp_path: Path) -> None:
    """A run's record gives its configuration, except --output."""
    there: dict[str, Any] = {
        "output": Path("there"),
        "resume": "auto",
        "init_weights": Path("w.pt"),
        "val_image_size": 96,
    }
    (tmp_path / "config.json").write_text(
        json.dumps({"settings": settings(dataclasses.replace(config, **there))})
    )
    expected = dataclasses.replace(config, init_weights=Path("w.pt"), val_image_size=96)
    assert recorded_run(tmp_path / "config.json") == expected


def test_what_is_given_overrides_a_record(tmp_path: Path) -> None:
    """A new size also sets that of the evaluation, and a new method brings its own arguments."""
    file = tmp_path / "config.json"
    was = Config(data=tmp_path, decay_all=True, mix_schedule=MixSchedule(alpha_start=0.1, ramp_epochs=2.0))
    file.write_text(json.dumps({"settings": settings(resolve(was))}))
    given = ["--from-config", str(file), "--mix", "none", "--image-size", "96", "--no-decay-all", "--lr=2"]
    now = resolve(train_imagenet.settings_of(given))
    assert now == resolve(
        Config(
            data=tmp_path,
            from_config=file,
            mixing=Mixing("none"),
            image_size=96,
            optimization=Optimization(lr=2.0),
        )
    )
    with pytest.raises(ValueError, match=r"--from-config must be left out with --config imagenet_hmix; got"):
        train_imagenet.settings_of([*given, "--config", "imagenet_hmix"])


def test_names_are_those_of_before() -> None:
    now = settings(resolve(Config(device="cpu", amp="none", workers=1)))
    assert {name: now[name] for name in FLAT} == FLAT
    new = {"mix_mixup_alpha", "mix_cutmix_alpha", "mix_switch_probability", "mix_granularity"}
    new |= {"init_entry", "new_classifier", "class_names", "absent_classes"}
    new |= {"crop_aspect_ratio", "mirror_probability", "bad_files_limit", "storage_patience"}
    new |= {"val_labels", "allow_empty_classes", "from_config", "aux_loss_weight", "val_resize_size"}
    new |= {"optimizer", "optimizer_betas", "optimizer_eps", "ema_warmup", "crop_padding", "lr_milestones"}
    new |= {f"mix_{name}" for name in ("beta", "gamma", "eta", "levels", "neighbor_size")}
    new |= {"mix_transport_size", "mix_transport_cost", "scaled_decoding"}
    assert now.keys() - FLAT.keys() == new
    assert [option.name for option in options()] == list(now)


@pytest.mark.parametrize("method", OF_METHODS)
def test_settings_of_before_are_the_same_run(method: str) -> None:
    """For all methods; a value that differs is reported."""
    alpha, ratio = OF_METHODS[method]
    before = FLAT | {"mix": method, "mix_alpha": alpha, "mix_ratio": ratio}

    def resumed(*given: str) -> None:
        config = resolve(parse(["--mix", method, "--device", "cpu", "--amp", "none", *given], Config()))
        now = settings(choose_decoding(config, Processes(), before))
        check_same(saved_settings(before), now, free=("workers",), may_grow=())

    resumed()
    with pytest.raises(ValueError, match=r"scaled_decoding off in the checkpoint, on here"):
        resumed("--scaled-decoding", "on")
    with pytest.raises(ValueError, match=r"mix_granularity sample in the checkpoint, batch here"):
        resumed("--mix-granularity", "batch")
    if alpha is not None:
        with pytest.raises(ValueError, match=rf"mix_alpha {alpha} in the checkpoint, 0.5 here"):
            resumed("--mix-alpha", "0.5")
    if method == "stochastic":
        with pytest.raises(ValueError, match=r"mix_switch_probability 0.5 in the checkpoint, 0.1 here"):
            resumed("--mix-switch-probability", "0.1")
        with pytest.raises(
            ValueError,
            match=r"mix_alpha 1.0 in the checkpoint, None here; mix_mixup_alpha None in the checkpoint, 0.1",
        ):
            resumed("--mix-mixup-alpha", "0.1")


def test_an_alpha_without_use_is_not_compared() -> None:
    assert saved_settings(FLAT | {"mix": "none", "mix_alpha": 2.0}) == saved_settings(
        FLAT | {"mix": "none", "mix_alpha": None}
    )


def test_a_checkpoint_of_before_is_resumed(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, with only the flat names; the run ends as if it had never stopped."""
    command = ["--data", photos, *SMALL, "--mix", "stochastic", "--output"]
    whole = ["--scaled-decoding", "off"]  # as all runs of before
    assert trainer.run(*command, tmp_path / "whole", *whole, model="restless").statuses == [0]
    plan = {"event": "step", "number": 2, "do": [int(signal.SIGTERM)]}
    stopped = trainer.run(*command, tmp_path / "run", *whole, model="restless", plan=plan)
    assert stopped.statuses == [128 + 15]
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        saved = unpack(path.read_bytes())
        settings = saved["run"]["settings"]
        assert settings["mix_alpha"] == 1.0
        saved["run"]["settings"] = {name: value for name, value in settings.items() if name in FLAT}
        path.unlink()
        path.write_bytes(pack(saved))
    other = trainer.run(*command, tmp_path / "run", "--resume", "auto", "--mix-alpha", "2", model="restless")
    assert other.statuses == [2]
    assert "--mix-alpha 1.0 in the checkpoint, 2.0 here" in other.said
    resumed = trainer.run(*command, tmp_path / "run", "--resume", "auto", model="restless")
    assert resumed.statuses == [0], resumed.said
    assert without_clock(tmp_path / "run") == without_clock(tmp_path / "whole")


@pytest.mark.parametrize(
    ("default", "given", "arguments"),
    [
        (Config(), ["--mix-alpha", "0.5"], {"alpha": 0.5, "ratio": 0.75}),
        (Config(), ["--mix", "gmix"], {"alpha": 1.0}),
        (Config(), ["--mix", "none"], {}),
        (Config(), ["--mix", "none", "--mix-alpha", "2"], {}),
        (named_run("imagenet_mixup"), ["--mix-alpha", "3"], {"alpha": 3.0}),
        # Another method than the named run's: its own defaults.
        (named_run("imagenet_mixup"), ["--mix", "hmix"], {"alpha": 1.0, "ratio": 0.75}),
        (named_run("imagenet_hmix"), ["--mix", "gmix"], {"alpha": 1.0}),
        (Config(mixing=mixing_of("puzzlemix", levels=2)), ["--mix", "gmix"], {"alpha": 1.0}),
        (
            named_run("imagenet_stochastic"),
            ["--mix-alpha", "2", "--mix-cutmix-alpha", "3"],
            {"mixup_alpha": 2.0, "cutmix_alpha": 3.0, "switch_probability": 0.5},
        ),
        (
            Config(mixing=Mixing("stochastic", switch_probability=0.1)),
            ["--mix-alpha", "2"],
            {"mixup_alpha": 2.0, "cutmix_alpha": 2.0, "switch_probability": 0.1},
        ),
    ],
)
def test_arguments_of_methods(default: Config, given: list[str], arguments: dict[str, float]) -> None:
    config = parse(given, default)
    assert dict(config.mixing.arguments) == arguments
    assert dataclasses.replace(config, mixing=default.mixing) == default


SCHEDULE = MixSchedule(alpha_start=0.1, probability_start=0.2, ramp_epochs=3.0, off_epoch=7)


@pytest.mark.parametrize(
    ("default", "given", "schedule"),
    [
        (SCHEDULE, [], SCHEDULE),
        (SCHEDULE, ["--mix", "cutmix"], SCHEDULE),
        (SCHEDULE, ["--mix", "none"], MixSchedule()),
        (SCHEDULE, ["--mix", "stripe"], MixSchedule(probability_start=0.2, ramp_epochs=3.0, off_epoch=7)),
        (MixSchedule(alpha_start=0.1, ramp_epochs=3.0), ["--mix", "stripe"], MixSchedule()),
        (
            MixSchedule(alpha_start=0.1, ramp_epochs=3.0, off_epoch=7),
            ["--mix", "stripe", "--mix-off-epoch", "8"],
            MixSchedule(off_epoch=8),
        ),
    ],
)
@pytest.mark.usefixtures("stripe")
def test_what_another_method_cannot_use_falls_away(
    default: MixSchedule, given: list[str], schedule: MixSchedule
) -> None:
    named = Config(mix_schedule=default)
    assert resolve(parse(["--device", "cpu", *given], named)).mix_schedule == schedule


@pytest.mark.parametrize(
    "given",
    [
        ["--mix", "none", "--mix-off-epoch", "8"],
        ["--mix", "stripe", "--mix-alpha-start", "2", "--mix-ramp-epochs", "1"],
    ],
)
@pytest.mark.usefixtures("stripe")
def test_what_is_asked_for_does_not_fall_away(given: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"{given[2]} must be left out with --mix {given[1]}; got"):
        resolve(parse(["--device", "cpu", *given], Config(mix_schedule=SCHEDULE)))


PADDED = Config(augmentation=Augmentation(crop_padding=2))
CUT = Config(augmentation=Augmentation(crop_area=(0.3, 0.4), crop_aspect_ratio=(1.0, 2.0)))
STEPS = Config(lr_schedule="step", lr_milestones=(3.0, 4.0))


@pytest.mark.parametrize(
    ("default", "given", "expected"),
    [
        (PADDED, ["--crop-padding", "3"], Augmentation(crop_padding=3)),
        (PADDED, ["--crop-area", "0.5", "1"], Augmentation(crop_area=(0.5, 1.0))),
        (PADDED, ["--crop_area", "0.08", "1"], Augmentation()),
        (PADDED, ["--crop-aspect-ratio", "1", "1"], Augmentation(crop_aspect_ratio=(1.0, 1.0))),
        (PADDED, ["--crop-padding", "None"], Augmentation()),
        (CUT, ["--crop-padding=3"], Augmentation(crop_padding=3)),
        (CUT, ["--crop-padding", "None"], CUT.augmentation),
        (CUT, ["--crop-area", "0.5", "1"], dataclasses.replace(CUT.augmentation, crop_area=(0.5, 1.0))),
    ],
)
def test_another_kind_of_crop_replaces_that_of_the_default(
    default: Config, given: list[str], expected: Augmentation
) -> None:
    assert parse(given, default) == dataclasses.replace(default, augmentation=expected)


@pytest.mark.parametrize(
    ("given", "schedule"),
    [
        (["--lr-schedule", "cosine"], ("cosine", None)),
        (["--lr-schedule", "step"], ("step", (3.0, 4.0))),
        (["--lr-milestones", "5"], ("step", (5.0,))),
        (["--lr-milestones", "None"], ("step", None)),
    ],
)
def test_another_schedule_replaces_that_of_the_default(given: list[str], schedule: tuple[str, Any]) -> None:
    config = resolve(parse(["--device", "cpu", *given], STEPS))
    assert (config.lr_schedule, config.lr_milestones) == schedule


def test_what_is_given_is_not_replaced() -> None:
    """But refused if it does not fit."""
    with pytest.raises(ValueError, match="--crop-area must be left out with crop_padding"):
        parse(["--crop-area", "0.5", "1", "--crop-padding", "2"], PADDED)
    with pytest.raises(ValueError, match="--lr-milestones must be used with --lr-schedule step"):
        resolve(parse(["--lr-schedule", "cosine", "--lr-milestones", "3", "4"], STEPS))


def test_help_is_that_of_the_records(capsys: pytest.CaptureFixture[str], stripe: Method) -> None:
    """Docstrings, defaults, differences without --data, and the methods now in the table."""
    with pytest.raises(SystemExit):
        train_imagenet.main(["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "{none,mixup,cutmix,stochastic,hmix,gmix,stripe,puzzlemix}" in said
    assert "--mix-width {None}|FLOAT Width of the stripe. In [0, 1]. Default: 0.25 for stripe." in said
    assert (
        "1 for cutmix, 1 for hmix, 1 for gmix, 1 for puzzlemix. Stands for all alphas of stochastic." in said
    )
    assert "--mix-levels {None}|INT Values of the mask" in said
    assert "Share of the area that a random crop keeps. Without --data: 0.5 1.0. (default: 0.08 1.0)" in said
    assert "learning-rate schedule spans them. Without --data: 8. (default: 300)" in said
    assert "Default: 0.1 for sgd, 0.001 for adamw, 0.005 for lamb. Without --data: 0.05." in said


def test_a_method_of_the_users_own(stripe: Method, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Registered before parsing: the command line takes its name and its arguments."""
    config = parse(["--mix", "stripe", "--mix-width", "0.5"], Config())
    assert config.mixing == Mixing("stripe", width=0.5)
    assert settings(config)["mix_width"] == 0.5
    assert settings(Config())["mix_width"] is None
    for given, words in (
        (["--mix", "stripe", "--mix-width", "2"], "--mix-width must be in [0, 1]; got 2.0"),
        (
            ["--mix", "stripe", "--mix-alpha", "1"],
            "--mix-alpha must be left out with 'stripe', which takes width",
        ),
        (["--mix-width", "1"], "--mix-width must be left out with 'hmix', which takes alpha, ratio and"),
    ):
        assert status(photos, photos / "none", *given) == 2
        assert words in capsys.readouterr().err


def test_an_argument_with_the_name_of_another_option(stripe: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(stripe.arguments[0], name="off_epoch")
    monkeypatch.setitem(TABLE, "stripe", dataclasses.replace(stripe, arguments=(wrong,)))
    with pytest.raises(ValueError, match=r"the argument off_epoch of a method .*--mix-off-epoch"):
        options()


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("mixing", Mixing),
        ("mix_schedule", MixSchedule),
        ("augmentation", Augmentation),
        ("optimization", Optimization),
    ],
)
def test_a_record_must_be_one(field: str, kind: type) -> None:
    wrong: dict[str, Any] = {field: "gmix"}
    with pytest.raises(TypeError, match=f"{field} must be of type {kind.__name__}; got 'gmix'"):
        Config(**wrong)


def test_settings_are_json() -> None:
    made = settings(Config(data=Path("here")))
    assert json.loads(json.dumps(made)) == made
    assert made["data"] == "here"
