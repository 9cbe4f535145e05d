"""A run's model and its training step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from .classes import known_classes, require_same_classes
from .config import Config
from .distributed import Processes
from .hardware import autocast
from .model import Average, build_model, build_schedule, checkpoint_activations, outputs_of
from .progress import Progress
from .state import Stateful
from .weight_files import read_weight_file
from .weight_settings import About
from .weights import load_weights

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": functional.cross_entropy,
    "bce": functional.binary_cross_entropy_with_logits,
}


def create_model(
    config: Config, classes: Sequence[str], device: torch.device, processes: Processes, weights: Path | None
) -> nn.Module:
    """The model on its device, with random weights from --seed or those of the file `weights`."""
    torch.manual_seed(config.seed)
    model = build_model(config.arch, len(classes), aux_heads=bool(config.aux_loss_weight))
    if weights is not None:
        processes.say(f"Starting from the {_load_initial_weights(model, config, classes, weights)}")
    if config.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def _load_initial_weights(model: nn.Module, config: Config, classes: Sequence[str], weights: Path) -> str:
    """Load the initial weights; return a description of what was loaded."""
    file = read_weight_file(weights)
    known = None if config.new_classifier else known_classes(config, file)
    remedy = "--new-classifier starts a new one"
    rows: list[int] | None = None
    if known is not None:
        rows = require_same_classes(
            classes, known, f"--init-weights must have the classes of train/ ({remedy}); with {weights}"
        )
    taken = load_weights(
        model,
        file,
        config.arch,
        entry=config.init_entry,
        new_classifier=config.new_classifier,
        rows=rows,
        remedy=f"; {remedy}",
    )
    unnamed = known is None and not config.new_classifier
    names = "it names no classes: using the order of the folders" * unnamed
    about = About.of_file(file).compare(config)
    return "; ".join(filter(None, (f"{taken.kind} of {weights}{taken.except_for}", about, taken.left, names)))


def create_schedule(config: Config, optimizer: torch.optim.Optimizer, progress: Progress) -> LRScheduler:
    """The learning-rate schedule of the settings, at the current step of the run."""
    decays: dict[str, Any] = {}
    if config.lr_milestones is not None:
        decays = {"decay_at": [round(epoch * progress.steps_per_epoch) for epoch in config.lr_milestones]}
    elif config.lr_schedule == "step":
        decays = {"decay_every": max(1, round(config.lr_step_epochs * progress.steps_per_epoch))}
    return build_schedule(
        optimizer,
        round(config.warmup_epochs * progress.steps_per_epoch),
        progress.total_steps,
        progress.step,
        **decays,
    )


class BatchMixer(Stateful, Protocol):
    """Mixes batches with the help of the model, see :mod:`.mixers`."""

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the next batch."""

    def preview(self, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mix the next batch, NxHxWx3, without taking it; return it with its masks, NxHxWx1."""


class Learner:
    """Takes training steps.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes
        They average their gradients.
    model : Module
        As it is evaluated and saved; on its device.
    optimizer, scaler, schedule
        Of its parameters.
    average : Average, optional
        Of its weights.
    mixer : BatchMixer, optional
        Mixes the batches, if they do not come mixed.

    Attributes
    ----------
    right : Tensor
        The number of images of the last step whose highest output was the dominant label, the one with the
        highest weight in the mix; int64, still on the device.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: GradScaler,
        schedule: LRScheduler,
        average: Average | None = None,
        mixer: BatchMixer | None = None,
    ) -> None:
        self.model = model
        self.average = average
        self.mixer = mixer
        self.schedule = schedule
        self._optimizer = optimizer
        self._scaler = scaler
        self._config = config
        self._processes = processes
        self.device = next(model.parameters()).device
        if config.grad_checkpointing:
            checkpoint_activations(model)
        # Two images are enough to find the order of the layers.
        example = torch.zeros(2, 3, config.image_size, config.image_size, device=self.device)
        self._replica = processes.wrap(model, example)
        self.right = torch.zeros((), dtype=torch.int64, device=self.device)
        self._forward = torch.compile(self._replica) if config.compile else self._replica

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        return autocast(self._config, self.device)

    def train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """Take one step of the optimiser and the schedule, on the next --accumulate batches.

        Returns
        -------
        Tensor
            The loss of this process, a float32 scalar, still on the device: nothing here waits for it, except
            a mixer.
        """
        config, losses, right = self._config, [], []
        loss_of = LOSSES[config.loss]
        self._optimizer.zero_grad(set_to_none=True)
        for left in reversed(range(config.accumulate)):
            images, targets = next(batches)
            if self.mixer is not None:
                images, targets = self.mixer(images, targets)
            # Each process adds up its gradients; the last pass averages them over the processes.
            with self._processes.without_reduction(self._replica) if left else contextlib.nullcontext():
                with self.autocast():
                    logits, *of_aux_heads = outputs_of(self._forward(images))
                # The loss in float32; the targets are already mixed and smoothed.
                loss = loss_of(logits.float(), targets)
                for other in of_aux_heads:
                    loss = loss + (config.aux_loss_weight or 0.0) * loss_of(other.float(), targets)
                loss = loss / config.accumulate
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            right.append((logits.detach().argmax(1) == targets.argmax(1)).sum())
        if (limit := config.optimization.clip_grad_norm) is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update(self.schedule.last_epoch)  # which counts steps
        self.right = right[0] if len(right) == 1 else torch.stack(right).sum()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
