"""The records of settings: what they refuse, and what they hold."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from dali_msda import Mixing
from dali_msda.methods import TABLE
from dali_msda.validation import ArgumentError
from pipelines.records import Augmentation, Execution, Output, Shard
from tests.own_method import STRIPE
from training.mix_schedule import MixSchedule

SEVEN = "'none', 'mixup', 'cutmix', 'stochastic', 'hmix', 'gmix'"
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (Mixing, {"method": "mixdown"}, ValueError, f"method must be one of {SEVEN}; got 'mixdown'"),
    (Mixing, {"method": 3}, ValueError, f"method must be one of {SEVEN}; got 3"),
    (Mixing, {"alpha": -1.0}, ValueError, "alpha must be at least 0; got -1.0"),
    (Mixing, {"alpha": float("nan")}, ValueError, "alpha must be at least 0; got nan"),
    (Mixing, {"alpha": "1"}, TypeError, "alpha must be a number of at least 0; got '1'"),
    (Mixing, {"alpha": True}, TypeError, "alpha must be a number of at least 0; got True"),
    (Mixing, {"method": "none", "alpha": -1}, ValueError, "alpha must be at least 0; got -1"),
    (Mixing, {"method": "stochastic", "alpha": -1}, ValueError, "alpha must be at least 0; got -1"),
    (
        Mixing,
        {"method": "stochastic", "cutmix_alpha": -1},
        ValueError,
        "cutmix_alpha must be at least 0; got -1",
    ),
    (Mixing, {"ratio": 1.5}, ValueError, "ratio must be in [0, 1]; got 1.5"),
    (
        Mixing,
        {"method": "gmix", "ratio": 0.5},
        TypeError,
        "ratio must be left out with 'gmix', which takes alpha and the common arguments (it belongs"
        " to 'hmix'); got 0.5",
    ),
    (
        Mixing,
        {"method": "none", "arguments": {"ratio": 0.5}},
        TypeError,
        "ratio must be left out with 'none', which takes the common arguments (it belongs to 'hmix');"
        " got 0.5",
    ),
    (
        Mixing,
        {"probabilty": 0.5},
        TypeError,
        "probabilty must be left out with 'hmix', which takes alpha, ratio and the common arguments; got 0.5",
    ),
    (Mixing, {"probability": 2}, ValueError, "probability must be in [0, 1]; got 2"),
    (Mixing, {"probability": None}, TypeError, "probability must be a number in [0, 1]; got None"),
    (Mixing, {"label_smoothing": -0.1}, ValueError, "label_smoothing must be in [0, 1]; got -0.1"),
    (
        Mixing,
        {"convention": "ours"},
        ValueError,
        "convention must be one of 'reference', 'paper'; got 'ours'",
    ),
    (
        Mixing,
        {"granularity": "pixel"},
        ValueError,
        "granularity must be one of 'sample', 'batch'; got 'pixel'",
    ),
    (
        Augmentation,
        {"crop_area": (0, 2)},
        ValueError,
        "crop_area must be two numbers 0 < a <= b <= 1; got (0, 2)",
    ),
    (
        Augmentation,
        {"crop_area": (0.5, 0.1)},
        ValueError,
        "crop_area must be two numbers 0 < a <= b <= 1; got (0.5, 0.1)",
    ),
    (Augmentation, {"crop_area": 0.5}, TypeError, "crop_area must be two numbers; got 0.5"),
    (Augmentation, {"crop_area": "01"}, TypeError, "crop_area must be two numbers; got '01'"),
    (
        Augmentation,
        {"crop_aspect_ratio": (-1, 2)},
        ValueError,
        "crop_aspect_ratio must be two numbers 0 < a <= b; got (-1, 2)",
    ),
    (
        Augmentation,
        {"crop_aspect_ratio": (1, float("inf"))},
        ValueError,
        "crop_aspect_ratio must be two numbers 0 < a <= b; got (1, inf)",
    ),
    (Augmentation, {"mirror_probability": -1}, ValueError, "mirror_probability must be in [0, 1]; got -1"),
    (
        Augmentation,
        {"auto_augment": "auto"},
        ValueError,
        "auto_augment must be one of 'none', 'rand', 'trivial'; got 'auto'",
    ),
    (
        Augmentation,
        {"rand_augment": (0, 9)},
        ValueError,
        "rand_augment must be two numbers 1 <= n <= 16 and 0 <= m < 31; got (0, 9)",
    ),
    (
        Augmentation,
        {"rand_augment": (2, 31)},
        ValueError,
        "rand_augment must be two numbers 1 <= n <= 16 and 0 <= m < 31; got (2, 31)",
    ),
    (Augmentation, {"rand_augment": 9}, TypeError, "rand_augment must be two integers (n, m); got 9"),
    (
        Augmentation,
        {"rand_augment": (2, 9.5)},
        TypeError,
        "rand_augment must be two integers (n, m); got (2, 9.5)",
    ),
    (Augmentation, {"color_jitter": 1.5}, ValueError, "color_jitter must be in [0, 1]; got 1.5"),
    (Output, {"image_size": 0}, ValueError, "image_size must be at least 1; got 0"),
    (Output, {"image_size": 8.5}, TypeError, "image_size must be an integer; got 8.5"),
    (Output, {"layout": "NCHW"}, ValueError, "layout must be one of 'CHW', 'HWC'; got 'NCHW'"),
    (Output, {"dtype": "uint8"}, ValueError, "dtype must be one of 'float32', 'float16'; got 'uint8'"),
    (Shard, {"count": 0}, ValueError, "count must be at least 1; got 0"),
    (Shard, {"index": 2, "count": 2}, ValueError, "index must be in [0, 2); got 2"),
    (Shard, {"index": -1}, ValueError, "index must be at least 0; got -1"),
    (Shard, {"index": "0"}, TypeError, "index must be an integer; got '0'"),
    (Execution, {"device_id": -1}, ValueError, "device_id must be at least 0; got -1"),
    (Execution, {"hw_decoder_load": 2}, ValueError, "hw_decoder_load must be in [0, 1]; got 2"),
    (Execution, {"prefetch_queue_depth": 0}, ValueError, "prefetch_queue_depth must be at least 1; got 0"),
    (
        Execution,
        {"scaled_decoding": "always"},
        ValueError,
        "scaled_decoding must be one of 'auto', 'on', 'off'; got 'always'",
    ),
    (
        Execution,
        {"scaled_decoding": True},
        ValueError,
        "scaled_decoding must be one of 'auto', 'on', 'off'; got True",
    ),
    (
        MixSchedule,
        {"ramp_epochs": -1.0},
        ValueError,
        "ramp_epochs must be a number of at least 0; got -1.0",
    ),
    (
        MixSchedule,
        {"alpha_start": -1.0, "ramp_epochs": 1},
        ValueError,
        "alpha_start must be at least 0; got -1.0",
    ),
    (
        MixSchedule,
        {"probability_start": 2, "ramp_epochs": 1},
        ValueError,
        "probability_start must be in [0, 1]; got 2",
    ),
    (MixSchedule, {"off_epoch": -1}, ValueError, "off_epoch must be at least 0; got -1"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[0].__name__} {case[1]}")
def test_errors(case: tuple[Any, dict[str, Any], type[Exception], str]) -> None:
    """One form, of the usual exception type; the argument's name is kept and can be changed."""
    record, changes, kind, message = case
    with pytest.raises(kind) as caught:
        record(**changes)
    error = caught.value
    assert str(error) == message
    assert isinstance(error, ArgumentError)
    assert f"{error.name} must be {error.expected}; got {error.got!r}" == message
    assert str(error.renamed("--so")) == message.replace(error.name, "--so", 1)
    assert isinstance(error.renamed("--so"), kind)


@pytest.mark.parametrize("record", [Mixing, Augmentation, Output, Shard, Execution, MixSchedule])
def test_records_are_values(record: Any) -> None:
    """Frozen, equal by content, usable as defaults and in other processes."""
    made = record()
    assert made == record() == pickle.loads(pickle.dumps(made)) == dataclasses.replace(made)
    assert hash(made) == hash(record())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(record)[0].name, None)


@pytest.mark.parametrize(
    ("mixing", "arguments"),
    [
        (Mixing(), {"alpha": 1.0, "ratio": 0.75}),
        (Mixing("mixup"), {"alpha": 0.8}),
        (Mixing("hmix", alpha=2.0), {"alpha": 2.0, "ratio": 0.75}),
        (Mixing("hmix", ratio=0.0, arguments={"alpha": 3.0}), {"alpha": 3.0, "ratio": 0.0}),
        (
            Mixing("stochastic", alpha=2.0),
            {"mixup_alpha": 2.0, "cutmix_alpha": 2.0, "switch_probability": 0.5},
        ),
        (
            Mixing("stochastic", alpha=2.0, mixup_alpha=3.0),
            {"mixup_alpha": 3.0, "cutmix_alpha": 2.0, "switch_probability": 0.5},
        ),
        (Mixing("none", alpha=2.0), {}),
    ],
)
def test_arguments_of_the_method(mixing: Mixing, arguments: dict[str, float]) -> None:
    assert dict(mixing.arguments) == arguments


def test_what_is_handed_in_can_change_afterwards() -> None:
    given = {"alpha": 2.0}
    mixing = Mixing("gmix", arguments=given)
    given["alpha"] = -1.0
    assert mixing.arguments["alpha"] == 2.0


def test_a_method_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is read when the record is made."""
    with pytest.raises(ValueError, match="method must be one of"):
        Mixing("stripe")
    monkeypatch.setitem(TABLE, "stripe", STRIPE)
    assert dict(Mixing("stripe").arguments) == {"width": 0.25}
    assert dict(Mixing("stripe", width=0.5).arguments) == {"width": 0.5}
    with pytest.raises(ValueError, match=r"width must be in \[0, 1\]; got 2"):
        Mixing("stripe", width=2)
    with pytest.raises(TypeError, match="alpha must be left out with 'stripe', which takes width and"):
        Mixing("stripe", alpha=1.0)


def test_numbers_of_a_function_are_checked_when_they_come() -> None:
    mixing = Mixing("hmix", ratio=lambda batch: batch / 2, probability=lambda batch: batch / 2)
    for name in ("ratio", "probability"):
        mixing.check_number(name, 1.0)
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]; got 1.5"):
            mixing.check_number(name, 1.5)
