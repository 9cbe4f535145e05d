"""The model of a run, its learning rate, its weight average."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
import torchvision
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .architectures import AUXILIARY, SMALL_IMAGES, TIMM
from .networks import NETWORKS


def build_model(arch: str, num_classes: int, *, aux_heads: bool = False) -> nn.Module:
    """Build a classifier with random weights; with `aux_heads`, keep its auxiliary heads, if any.

    Raises
    ------
    ValueError
        timm cannot build the model here.
    """
    if arch.startswith(TIMM):
        return _build_timm(arch, num_classes)
    if arch in SMALL_IMAGES:
        return NETWORKS[arch](num_classes)
    extra: dict[str, Any] = {}
    if arch in AUXILIARY:
        extra = {"aux_logits": aux_heads, "init_weights": True}
    elif "resne" in arch:
        # Every residual branch starts at zero, as in the usual ImageNet recipes (Goyal et al., 2017).
        extra = {"zero_init_residual": True}
    model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **extra)
    return model


def _build_timm(arch: str, num_classes: int) -> nn.Module:
    import timm  # optional

    try:
        model: nn.Module = timm.create_model(arch.removeprefix(TIMM), num_classes=num_classes)
    except (RuntimeError, ValueError, AssertionError, TypeError, ImportError) as error:
        raise ValueError(f"--arch must be a model that timm can build here; got {arch}: {error}") from error
    return model


def outputs_of(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The logits that a model returned: its own, then, in training only, those of auxiliary heads."""
    return (found,) if isinstance(found, Tensor) else tuple(found)


# -- Schedule, average -----------------------------------------------------------------------------------


def build_schedule(
    optimizer: torch.optim.Optimizer,
    warmup_steps: int,
    total_steps: int,
    steps_done: int = 0,
    *,
    decay_every: int | None = None,
    decay_at: Sequence[int] | None = None,
) -> LRScheduler:
    """Linear warm-up to the optimiser's learning rate, then a half cosine down to 0, per step.

    With `decay_every`, divide it by 10 after every `decay_every` steps instead, counted from the first; with
    `decay_at`, after each of these numbers of steps.

    The rate depends on the step alone, so a resumed run needs only its step, and one with more epochs
    joins the longer curve at that step.
    """
    warmup_steps = min(warmup_steps, total_steps - 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if decay_at is not None:
            return float(0.1 ** bisect.bisect_right(decay_at, step))
        if decay_every is not None:
            return float(0.1 ** (step // decay_every))
        return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2

    return LambdaLR(optimizer, factor, last_epoch=steps_done - 1)


class Average:
    """A moving average of a model's weights and of BatchNorm's statistics; the first update copies them.

    Parameters
    ----------
    model : Module
        What is averaged, on its device; every update reads these same parameters and buffers.
    decay : float
        In [0, 1): the weight that the old average keeps in each update.
    warmup : bool
        Use (1 + step) / (10 + step) until it reaches `decay`, so that the random initial weights are
        soon forgotten. The formula is that of TensorFlow's ``ExponentialMovingAverage``.

    Attributes
    ----------
    module : Module
        The average.
    started : bool
        Whether it has been updated.

    Notes
    -----
    torch.optim.swa_utils computes it. Its ``AveragedModel.update_parameters`` is not called: it copies its
    counter between host and device, and so waits for the device at every step.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = False) -> None:
        self.module: nn.Module = AveragedModel(model).module
        self.started = False
        self._decay = decay
        self._warmup = warmup
        averages = itertools.chain(self.module.parameters(), self.module.buffers())
        values = itertools.chain(model.parameters(), model.buffers())
        self._groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for average, value in zip(averages, values, strict=True):
            group = self._groups.setdefault(average.dtype, ([], []))
            group[0].append(average.detach())
            group[1].append(value.detach())

    def update(self, step: int) -> None:
        """Add the model's current values to the average; `step` counts from 1."""
        # A function of the step, so that a resumed run needs nothing else.
        decay = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        for averages, values in self._groups.values():
            if self.started:
                update(averages, values, 0)  # the last argument is for other averages
            else:
                torch._foreach_copy_(averages, values)
        self.started = True

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights by name; none before the first update."""
        return self.module.state_dict() if self.started else {}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Continue from these averaged weights."""
        self.started = bool(state_dict)
        if state_dict:
            self.module.load_state_dict(state_dict)


# -- Less memory --------------------------------------------------------------------------------------


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of the model's blocks, and recompute the rest during backward.

    Blocks are the members of an ``nn.Sequential`` that contain layers, such as a ResNet's bottlenecks. timm's
    models have their own switch, which counts every batch twice in BatchNorm's statistics: it is used for
    models without BatchNorm only. Gradients and statistics do not change, bit for bit.

    Raises
    ------
    ValueError
        The model has no such blocks.
    """
    if hasattr(model, "set_grad_checkpointing") and not any(map(_has_statistics, model.modules())):
        with contextlib.suppress(AssertionError):  # some models do not support it
            model.set_grad_checkpointing()  # type: ignore[operator]
            return
    blocks = set(_blocks(model))
    if not blocks:
        raise ValueError("--grad-checkpointing needs a model made of blocks, and --arch has none; got True")
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=lambda block: checkpoint_wrapper(
            block, context_fn=functools.partial(_contexts, block)
        ),
        check_fn=blocks.__contains__,
    )


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of Sequentials that contain layers, except stages, which are Sequentials of blocks."""
    for child in module.children():
        inner = list(_blocks(child))
        is_block = isinstance(module, nn.Sequential) and any(True for _ in child.children())
        if is_block and not (inner and isinstance(child, nn.Sequential)):
            yield child
        else:
            yield from inner


def _has_statistics(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._NormBase]:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], ...]:
    return contextlib.nullcontext(), _freeze_statistics(block)


@contextlib.contextmanager
def _freeze_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the second pass over a batch out of the running statistics."""
    norms = [
        (module, module.momentum, module.num_batches_tracked)
        for module in block.modules()
        if _has_statistics(module)
    ]
    for norm, _, _ in norms:
        # The statistics are still passed: autograd needs the same tensors as in the first pass.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count
