"""Evaluation of a model on the validation images, over all processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from .bad_files import GuardedLoader
from .classes import ClassMap
from .distributed import Processes


def evaluate(
    model: nn.Module,
    loader: GuardedLoader,
    processes: Processes,
    autocast: Callable[[], AbstractContextManager[object]],
    has_to_stop: Callable[[], bool] = lambda: False,
    classes: ClassMap | None = None,
) -> dict[str, float] | None:
    """Top-1 and top-5 in percent, and the cross-entropy, over the validation images, each counted once.

    Parameters
    ----------
    model : Module
        Its buffers become those of the main process, in all processes.
    loader : GuardedLoader
        The shard of this process.
    processes : Processes
    autocast : callable
        The precision of the forward pass, a context.
    has_to_stop : callable
        Called before every batch, in all processes. If one cannot get its batch, all raise its error.
    classes : ClassMap, optional
        Which outputs of the model the labels mean, if they are not the positions themselves.

    Returns
    -------
    dict or None
        ``top1``, ``top5``, ``loss``; None if it had to stop.
    """
    device = next(model.parameters()).device
    mapped = None if classes is None or classes.changes_nothing else _LabelMapper(classes, device)
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    processes.copy_buffers_of_main(model)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast():
            batches = iter(loader)
            following = functools.partial(next, batches, None)
            # Shards may differ by a batch, but all processes must call has_to_stop equally often.
            for _ in range(loader.longest):
                if has_to_stop():
                    return None
                if (batch := processes.together(following)) is None:
                    continue
                images, labels = batch
                logits = model(images).float()
                totals = totals + _sum_hits_and_losses(
                    *((logits, labels) if mapped is None else mapped(logits, labels))
                )
            processes.together(following)  # lets the loader finish its epoch
    finally:
        model.train(was_training)
    top1, top5, loss, count = map(float, processes.mean(totals).cpu())
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count}


class _LabelMapper:
    """Turns labels into positions of the outputs; with a mask, absent classes never win."""

    def __init__(self, classes: ClassMap, device: torch.device) -> None:
        self._positions = torch.tensor(classes.positions, device=device)
        absent = [place not in classes.present for place in range(classes.num_outputs)]
        self._absent = torch.tensor(absent, device=device) if classes.mask_absent else None

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._absent is not None:
            logits = logits.masked_fill(self._absent, -torch.inf)
        return logits, self._positions[labels]


def _sum_hits_and_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over a batch: top-1 hits, top-5 hits, losses, and images; float64 [4].

    They stay on the device: nothing here waits for them.
    """
    right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    losses = functional.cross_entropy(logits, labels, reduction="none")
    rows = (right[:, 0], right.any(1), losses, torch.ones_like(losses))
    return torch.stack([row.double() for row in rows]).sum(1)
