"""NaN or infinite losses: reported, with their batch saved, and never in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer_process import Trainer
from tests.training_runs import SMALL, status
from training.learner import Learner


def poisoned(monkeypatch: pytest.MonkeyPatch, at_step: int, value: float) -> list[tuple[Tensor, Tensor]]:
    """Set the loss of one step to `value`; return the batches of all steps."""
    batches: list[tuple[Tensor, Tensor]] = []
    step = Learner.train_step

    def poisoning(self: Learner, loader: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        def noted() -> Iterator[tuple[Tensor, Tensor]]:
            for images, targets in loader:
                batches.append((images.clone(), targets.clone()))
                yield images, targets

        loss = step(self, noted())
        return loss * value if self.schedule.last_epoch == at_step else loss

    monkeypatch.setattr(Learner, "train_step", poisoning)
    return batches


@pytest.mark.usefixtures("plain_model")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("at_step", "accumulate"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 1)])
def test_loss_that_is_no_number(
    at_step: int,
    accumulate: int,
    value: float,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The next check finds it, with its step and that step's batches; also in the second epoch."""
    batches = poisoned(monkeypatch, at_step, value)
    output = tmp_path / "run"
    extra = ["--log-every", 100, "--batch-size", 4, "--accumulate", accumulate, "--checkpoint-every", 2]
    assert status(photos, output, *extra) == 1
    error = capsys.readouterr().err
    assert f"The loss was not finite in step {at_step}; its batch is in" in error
    good = sorted((output / "checkpoints").iterdir())
    step = (at_step - 1) // 2 * 2
    assert (f"the last good checkpoint is {good[-1]}" if step else "there is no checkpoint yet") in error
    assert [path.name for path in good][-1:] == ([f"step-{step:08d}.pt"] if step else [])
    (saved,) = output.glob("not-finite-*.pt")
    content = torch.load(saved, weights_only=True)
    assert (content["step"], content["rank"]) == (at_step, 0)
    wanted = batches[(at_step - 1) * accumulate : at_step * accumulate]
    assert len(content["images"]) == accumulate
    for number, (images, targets) in enumerate(wanted):
        assert torch.equal(content["images"][number], images)
        assert torch.equal(content["targets"][number], targets)


@pytest.mark.usefixtures("plain_model")
@pytest.mark.parametrize("log_every", [1, 100])
def test_weight_that_is_no_number(
    log_every: int,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The step's loss was finite, its update was not: no checkpoint, but the batch of that step."""
    batches = poisoned(monkeypatch, -1, 1.0)
    step = Learner.train_step

    def breaking(self: Learner, batches: Any) -> Tensor:
        loss = step(self, batches)
        if self.schedule.last_epoch == 4:
            with torch.no_grad():
                next(self.model.parameters())[0, 0, 0, 0] = math.nan
        return loss

    monkeypatch.setattr(Learner, "train_step", breaking)
    output = tmp_path / "run"
    assert status(photos, output, "--batch-size", 4, "--checkpoint-every", 2, "--log-every", log_every) == 1
    assert "A weight was not finite in step 4" in capsys.readouterr().err
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000002.pt"]
    (saved,) = output.glob("not-finite-step-00000004-*.pt")
    content = torch.load(saved, weights_only=True)
    assert torch.equal(content["images"][0], batches[3][0])
    assert torch.equal(content["targets"][0], batches[3][1])


@pytest.mark.usefixtures("plain_model")
def test_a_rate_far_too_high(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real divergence: the run ends, and any checkpoint is finite."""
    output = tmp_path / "run"
    assert status(photos, output, "--warmup-epochs", 0, "--lr", 1e30, "--checkpoint-every", 1) == 1
    assert "was not finite in step" in capsys.readouterr().err
    for path in (output / "checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        assert all(bool(torch.isfinite(value).all()) for value in content["model"].values())


def test_one_of_two_processes(trainer: Trainer, photos: Path, tmp_path: Path) -> None:
    """Both exit; the one with the bad loss saves its batch."""
    output = tmp_path / "run"
    plan = {"event": "step", "number": 2, "rank": 1, "do": ["bad loss"]}
    outcome = trainer.run("--data", photos, "--output", output, *SMALL, processes=2, plan=plan)
    assert outcome.statuses == [1, 1], outcome.said
    assert outcome.said.count("error: ") == 1
    (saved,) = output.glob("not-finite-*")
    assert saved.name == "not-finite-step-00000002-rank-1.pt"
    assert f"its batch is in {saved}" in outcome.said
