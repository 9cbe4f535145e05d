"""The trainer on a fake GPU: everything on one device, and no step waits for it needlessly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from tests.fake_gpu import GPU, Waits, fake_gpu
from training.config import Config, resolve
from training.distributed import Processes
from training.learner import Learner
from training.loaders import Loaders
from training.model import build_model
from training.optimization import Optimization
from training.recipe import train
from training.run import Run
from training.signals import StopSignals

STEPS = 7
TWO_DEVICES = r"cuda:0, cpu|cpu, cuda:0|different devices"


class Batches:
    """Like a guarded loader: batches on a device."""

    images, resumable = None, True

    def __init__(self, count: int, size: int, device: torch.device, *, labels: bool = False) -> None:
        self._count, self._size, self._device, self._labels = count, size, device, labels
        self.longest = count

    def __len__(self) -> int:
        return self._count

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        raise AssertionError("no run is resumed here")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self._count):
            images = torch.zeros(self._size, 32, 32, 3, device=GPU).permute(0, 3, 1, 2)
            if self._labels:
                yield images, torch.zeros(self._size, dtype=torch.int64, device=self._device)
            else:
                yield images, torch.zeros(self._size, 3, device=self._device)


@pytest.fixture
def make_run(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Run, Waits]]]:
    """Make a run on the fake GPU: the recipe up to the first epoch, without files."""

    def make(waits: Waits, device: torch.device = GPU, evaluation: int = 2, **options: Any) -> Run:
        settings = {"arch": "resnet18", "image_size": 32, "batch_size": 8, "amp": "bf16", "log_every": 3}
        config = Config(data=coded, device="cuda", output=tmp_path / "run", **{**settings, **options})
        size, count = config.batch_size // config.accumulate, STEPS * config.accumulate
        monkeypatch.setattr(Loaders, "train", lambda *_: Batches(count, size, device))
        monkeypatch.setattr(Loaders, "val", lambda *_: Batches(evaluation, size, device, labels=True))
        runs: list[Run] = []

        def keep(run: Run, *_: Any) -> bool:
            runs.append(run)
            return False

        with monkeypatch.context() as patch:
            patch.setattr(Run, "open_output", lambda *_: None)
            patch.setattr(Run, "save", lambda _: None)
            patch.setattr(Run, "train_epoch", keep)
            with StopSignals(quiet=True) as stop:
                assert train(resolve(config), Processes(), stop) == 128  # stopped, but not by a signal
        waits.found.clear()
        return runs[0]

    with fake_gpu() as waits:
        yield functools.partial(make, waits), waits  # type: ignore[misc]


def waits_by_step(run: Run, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Train an epoch; return the steps, from 1, in which the CPU waited."""
    found: list[int] = []
    step = Learner.train_step

    def watched(self: Learner, batches: Any) -> Tensor:
        # Waits after a step count as part of it: the check, the log.
        if waits.found:
            found.append(run.progress.step)
            waits.found.clear()
        return step(self, batches)

    monkeypatch.setattr(Learner, "train_step", watched)
    with StopSignals(quiet=True) as stop, tqdm(disable=True) as bar:
        assert run.train_epoch(stop, bar)
    if waits.found:
        found.append(run.progress.step)
    return found


CLIPPING = Optimization(clip_grad_norm=1.0)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float32": {"amp": "none"},
    "everything": {"ema_decay": 0.9, "optimization": CLIPPING, "accumulate": 2, "loss": "bce"},
    "fp16": {"amp": "fp16", "optimization": CLIPPING, "ema_decay": 0.9},
    "adamw": {"optimization": Optimization("adamw")},
    "adamw, fp16": {"amp": "fp16", "optimization": Optimization("adamw", clip_grad_norm=1.0)},
    "lamb": {"optimization": Optimization("lamb")},
    "checkpointing": {"grad_checkpointing": True},
    "other model": {"arch": "mobilenet_v3_small", "ema_decay": 0.9},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_waits_where_it_logs_and_nowhere_else(
    options: dict[str, Any], make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs are due at steps 3 and 6; the end of the epoch is step 7."""
    make, waits = make_run
    run = make(**options)
    assert waits_by_step(run, waits, monkeypatch) == [3, 6, 7]
    for value in (*run.learner.model.parameters(), *run.learner.model.buffers()):
        assert value.device == GPU


@pytest.mark.parametrize("average", [None, 0.9])
def test_an_evaluation_reads_its_results_once(average: float | None, make_run: Any) -> None:
    make, waits = make_run
    counts = []
    for batches in (1, 5):
        run = make(evaluation=batches, ema_decay=average)
        assert run.evaluate() is not None
        counts.append(list(waits.found))
    assert counts == [["a copy from cuda to cpu"] * (1 if average is None else 2)] * 2


# Known waits are found.


def test_a_batch_on_the_cpu_is_an_error(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make, waits = make_run
    run = make(device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        waits_by_step(run, waits, monkeypatch)
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        run.evaluate()


def test_a_model_on_the_cpu_is_an_error(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make, waits = make_run
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    # The model's trial finds it, before the first step.
    with pytest.raises(ValueError, match=TWO_DEVICES):
        waits_by_step(make(), waits, monkeypatch)


def test_an_average_on_the_cpu_is_an_error(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make, waits = make_run
    run = make(ema_decay=0.9)
    average = run.learner.average
    for averages, _ in average._groups.values():
        averages[:] = [value.to("cpu") for value in averages]
    average.started = True
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        waits_by_step(run, waits, monkeypatch)


@pytest.mark.parametrize("wait", [float, Tensor.item, Tensor.cpu, bool])
def test_waits_are_counted(wait: Callable[[Tensor], Any], make_run: Any) -> None:
    make, waits = make_run
    run = make()
    loss = run.learner.train_step(iter(run.train_loader))
    assert waits.found == []
    wait(loss)
    assert len(waits.found) == 1


def test_what_torchs_own_update_of_the_average_costs(make_run: Any) -> None:
    """It waits for the device; training.model.Average, which does not, gives the same (test_ema)."""
    _, waits = make_run
    model = build_model("resnet18", 3).to(GPU)
    update = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=update)
    for _ in range(2):
        waits.found.clear()
        average.update_parameters(model)
    assert waits.found != []
