"""The study: what is run, that it continues to the same numbers, and what its comparisons say."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.study_tables import TABLES
from experiments import study
from experiments.statistics import adjust_holm, compare_pairs, mean_interval
from experiments.study import CROPS, METHODS, QUICK, Key, Plan, cifar_mixing, keys, main
from experiments.study_report import summarize
from pipelines.demo_data import make_demo_dataset
from pipelines.folders import list_images

# -- Statistics ---------------------------------------------------------------------------------------


def test_intervals_and_paired_tests() -> None:
    random = np.random.default_rng(0)
    for count in (2, 3, 5, 20):
        one, other = random.normal(size=(2, count))
        found = compare_pairs(one, other)
        expected = stats.ttest_rel(one, other)
        interval = expected.confidence_interval(0.95)
        assert found["p"] == pytest.approx(expected.pvalue, rel=1e-9)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert mean_interval(one)["se"] == pytest.approx(stats.sem(one), rel=1e-12)
        assert mean_interval(one)["mean"] == pytest.approx(one.mean(), rel=1e-12)


def test_what_has_no_interval_or_p() -> None:
    assert mean_interval([0.5]) == {"mean": 0.5, "count": 1, "se": None, "low": None, "high": None}
    assert compare_pairs([0.5], [0.25])["p"] is None
    # 0.3 - 0.2 and 0.2 - 0.1 differ by rounding.
    assert compare_pairs([0.3, 0.2], [0.2, 0.1])["p"] is None


def test_holm() -> None:
    """Against the procedure itself: the smallest level at which each hypothesis is rejected."""

    def rejected(p_values: list[float], level: float) -> set[int]:
        found: set[int] = set()
        for rank, position in enumerate(np.argsort(p_values)):
            if p_values[position] > level / (len(p_values) - rank):
                break
            found.add(int(position))
        return found

    p_values = [0.01, 0.04, 0.03, 0.005, 0.6]
    adjusted = adjust_holm(p_values)
    for position, p in enumerate(adjusted):
        assert p is not None
        assert position in rejected(p_values, p + 1e-9)
        assert position not in rejected(p_values, p - 1e-9)
    assert adjust_holm([0.02, None, 0.03]) == [0.04, None, 0.04]
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]


# -- Plan ---------------------------------------------------------------------------------------------


def test_every_run_is_there_once() -> None:
    found = keys(3, "all")
    assert len(set(found)) == len(found) == 3 * 9
    assert set(keys(3, "methods")) | set(keys(3, "crops")) == set(found)
    assert {(it.method, it.crop) for it in found if it.crop == "large"} == {(it, "large") for it in METHODS}
    assert keys(5, "all")[: len(found)] == found, "more seeds come after those that are there"


def test_methods_have_the_values_for_cifar() -> None:
    """Section 5: alpha is 1, GMix's is 0.5, and r is 0.5."""
    values = {method: dict(cifar_mixing(method).arguments) for method in METHODS}
    assert values["hmix"] == {"alpha": 1.0, "ratio": 0.5}
    assert values["gmix"] == {"alpha": 0.5}
    assert values["mixup"] == values["cutmix"] == {"alpha": 1.0}


# -- Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_dataset(tmp_path_factory.mktemp("data"), train_per_class=6, val_per_class=1)


def make_plan(data: Path, output: Path) -> Plan:
    for folder in ("runs", "networks", "states"):
        (output / folder).mkdir(parents=True)
    return Plan(output, list_images(data / "train"), list_images(data / "val"), QUICK.recipe)


@pytest.fixture
def stop_after_an_epoch() -> Iterator[threading.Event]:
    """Makes this process one of the study, which is asked to stop as soon as it reports an epoch."""
    stop = threading.Event()

    class Epochs:
        def put(self, key: Key) -> None:
            stop.set()

    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    study._start_process(stop, Epochs())  # type: ignore[arg-type]
    yield stop
    study._stop = study._epochs = None
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)


def test_a_stopped_run_continues_to_the_same_network(
    data: Path, tmp_path: Path, stop_after_an_epoch: threading.Event
) -> None:
    key = Key("hmix", "small", 3)
    plan = make_plan(data, tmp_path / "stopped")
    with pytest.raises(study.Stopped):
        study.run(plan, key)
    assert (plan.state(key).is_file(), plan.result(key).exists()) == (True, False)
    with pytest.raises(study.Stopped):  # a run that has not started does nothing
        study.run(plan, key)
    stop_after_an_epoch.clear()
    study.run(plan, key)
    assert not plan.state(key).exists()

    whole = make_plan(data, tmp_path / "whole")
    study._stop = None
    study.run(whole, key)
    one, other = (json.loads(it.result(key).read_text()) for it in (plan, whole))
    for name in ("losses", "training", "validation", "settings", "arguments", "method", "crop", "seed"):
        assert one[name] == other[name], name
    networks = [torch.load(it.network(key), weights_only=True) for it in (plan, whole)]
    assert networks[0]["recipe"]["crop_area"] == CROPS["small"]
    for name, values in networks[0]["model"].items():
        assert torch.equal(values, networks[1]["model"][name]), name


def test_more_seeds_train_only_those(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the whole of it: processes, results, summary, figure."""
    command = ["--quick", "--data", str(data), "--output", str(tmp_path), "--part=crops", "--workers=1"]
    plan = make_plan(data, tmp_path)
    for key in keys(1, "crops")[:-1]:
        fake = {**key._asdict(), "settings": plan.settings(), **measured(0.5, 0.25)}
        plan.result(key).write_text(json.dumps(fake))
    assert main([*command, "--seeds=1"]) == 0
    content = json.loads((tmp_path / "study.json").read_text())
    trained = content["results"][-1]
    assert (trained["method"], trained["crop"]) == ("cutmix", "small")
    run = json.loads(plan.result(keys(1, "crops")[-1]).read_text())
    assert len(run["losses"]) == QUICK.recipe.epochs
    assert [it["validation"]["accuracy"] for it in content["results"][:-1]] == [0.5] * 5
    assert (tmp_path / "study.png").stat().st_size > 10_000
    assert "CutMix - Mixup, points" in capsys.readouterr().out
    assert main([*command, "--seeds=2", "--report"]) == 0
    assert "6 of 12 runs" in capsys.readouterr().out

    fake["settings"]["recipe"]["epochs"] += 1
    plan.result(keys(1, "crops")[0]).write_text(json.dumps(fake))
    with pytest.raises(SystemExit, match=r"none-large-0\.json has other settings or images"):
        main([*command, "--seeds=1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--data must be a folder with train/ and val/; got none, and no --quick"),
        (["--quick", "--seeds=0"], "--seeds must be at least 1; got 0"),
        (["--quick", "--workers=-1"], "--workers must be at least 1; got -1"),
        (["--quick", "--part=some"], "invalid choice: 'some'"),
        (["--data=."], "--data must be a folder with train/; got ."),
    ],
)
def test_bad_arguments(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main([f"--output={tmp_path / 'out'}", *options])
    assert message in str(raised.value) + capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- What it says -------------------------------------------------------------------------------------


def measured(accuracy: float, training_error: float) -> dict[str, Any]:
    return {
        "validation": {"accuracy": accuracy, "loss": 1.0},
        "training": {"accuracy": 1 - training_error, "loss": 0.1},
        "epoch_seconds": 1.0,
        "epoch_cpu_seconds": 1.0,
    }


def test_the_summary_pairs_runs_by_seed() -> None:
    """Differences are taken seed by seed, whatever the order and where a run is missing."""
    accuracies = {
        ("none", "large"): {0: 0.50, 1: 0.60, 2: 0.40},
        ("mixup", "large"): {2: 0.43, 0: 0.52, 1: 0.61},
        ("cutmix", "large"): {0: 0.53, 1: 0.63},
        ("mixup", "small"): {0: 0.50, 1: 0.51, 2: 0.50},
        ("cutmix", "small"): {0: 0.48, 1: 0.48, 2: 0.49},
    }
    results = [
        {"method": method, "crop": crop, "seed": seed, **measured(accuracy, 0.0)}
        for (method, crop), by_seed in accuracies.items()
        for seed, accuracy in by_seed.items()
    ]
    found = summarize(results)
    pairs = {(it["method"], it["other"]): it for it in found["pairs"]}
    assert pairs["mixup", "none"]["mean"] == pytest.approx(0.02)
    assert pairs["mixup", "none"]["count"] == 3
    assert pairs["cutmix", "none"]["mean"] == pytest.approx(0.03)
    assert pairs["cutmix", "none"]["count"] == 2
    crops = {it["crop"]: it for it in found["crops"]}
    assert crops["small"]["mean"] == pytest.approx(-0.02)
    assert crops["large"]["mean"] == pytest.approx(0.015)
    assert crops["change"]["mean"] == pytest.approx(((-0.02 - 0.01) + (-0.03 - 0.02)) / 2)
    known = [it["p"] for it in found["pairs"] if it["p"] is not None]
    assert min(it["p_holm"] for it in found["pairs"] if it["p"] is not None) == pytest.approx(
        min(1.0, min(known) * len(known))
    )
    rows = TABLES["study_methods"](found)
    assert rows[1][:3] == ["no mixing", "50.00 ± 5.77", ""]
    assert rows[2][2].startswith("+2.00 (")
    assert TABLES["study_crops"](found)[-1][0] == "*25-40 % less 80-100 %*"
