"""How good a model is on the validation images, over all processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from .bad_files import GuardedLoader
from .distributed import Processes


def evaluate(
    model: nn.Module,
    loader: GuardedLoader,
    num_classes: int,
    processes: Processes,
    autocast: Callable[[], AbstractContextManager[object]],
    has_to_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Top-1, top-5 in percent and the cross-entropy over the validation images, each counted once.

    Parameters
    ----------
    model : Module
        Its buffers become those of the main process, in all of them.
    loader : GuardedLoader
        The shard of this process.
    num_classes : int
    processes : Processes
    autocast : callable
        The precision of the forward pass, a context.
    has_to_stop : callable
        Asked before every batch, in all processes alike.

    Returns
    -------
    dict or None
        ``top1``, ``top5``, ``loss``; None where there was a reason to stop.
    """
    device = next(model.parameters()).device
    accuracy: dict[str, Metric | MetricCollection] = {
        # Labels are in range, or the loader would not have given them; checking it would wait for the device.
        f"top{k}": MulticlassAccuracy(
            num_classes, top_k=min(k, num_classes), average="micro", validate_args=False
        )
        for k in (1, 5)
    }
    # They add up over the processes by themselves.
    metrics = MetricCollection(accuracy).to(device)
    mean_loss = MeanMetric(nan_strategy="disable").to(device)
    processes.copy_buffers_of_main(model)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast():
            batches = iter(loader)
            # Shards may differ by a batch, but all processes have to ask as often whether to stop.
            for _ in range(loader.longest):
                if has_to_stop():
                    return None
                if (batch := next(batches, None)) is None:
                    continue
                images, labels = batch
                logits = model(images).float()
                metrics.update(logits, labels)
                # One by one: without the check for NaN, MeanMetric takes all weights for 1.
                mean_loss.update(functional.cross_entropy(logits, labels, reduction="none"))
            next(batches, None)  # lets the loader finish its epoch
    finally:
        model.train(was_training)
    result = {name: 100 * float(value) for name, value in metrics.compute().items()}
    return result | {"loss": float(mean_loss.compute())}
