"""The model of a run, its learning rate, the average of its weights."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
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

from .architectures import AUXILIARY, TIMM


def build_model(arch: str, num_classes: int, *, aux_heads: bool = False) -> nn.Module:
    """A classifier with random weights; with its auxiliary heads, for training, if it has any.

    Raises
    ------
    ValueError
        timm cannot build the model here.
    """
    if arch.startswith(TIMM):
        return _build_timm(arch, num_classes)
    extra: dict[str, Any] = {}
    if arch in AUXILIARY:
        extra = {"aux_logits": aux_heads, "init_weights": True}
    elif "resne" in arch:
        # Every residual branch starts at zero, as in the usual ImageNet recipes (Goyal et al., 2017).
        extra = {"zero_init_residual": True}
    model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **extra)
    return model


def _build_timm(arch: str, num_classes: int) -> nn.Module:
    import timm  # which need not be installed

    try:
        model: nn.Module = timm.create_model(arch.removeprefix(TIMM), num_classes=num_classes)
    except (RuntimeError, ValueError, AssertionError, TypeError, ImportError) as error:
        raise ValueError(f"--arch must be a model that timm can build here; got {arch}: {error}") from error
    return model


def outputs_of(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The logits that a model returned: its own, then those of auxiliary heads, which training alone has."""
    return (found,) if isinstance(found, Tensor) else tuple(found)


# -- Schedule, average -----------------------------------------------------------------------------------


def build_schedule(
    optimizer: torch.optim.Optimizer,
    warmup_steps: int,
    total_steps: int,
    steps_done: int = 0,
    *,
    decay_every: int | None = None,
) -> LRScheduler:
    """Linear warm-up to the optimiser's learning rate, then a half cosine down to 0, per step.

    With `decay_every` a tenth of it after every so many steps instead, counted from the first.

    The rate is a function of the step alone, so that a resumed run has it from its step, and one with more
    epochs joins the longer curve where it stands.
    """
    warmup_steps = min(warmup_steps, total_steps - 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if decay_every is not None:
            return float(0.1 ** (step // decay_every))
        return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2

    return LambdaLR(optimizer, factor, last_epoch=steps_done - 1)


class Average:
    """A moving average of a model's weights and of BatchNorm's statistics; the first update copies them.

    Parameters
    ----------
    model : Module
        What is averaged, on its device; its parameters and buffers are those that every update looks at.
    decay : float
        In [0, 1): the share of the average that stays.
    warmup : bool
        Until (1 + step) / (10 + step) reaches `decay`, that share stays instead, so that the random weights
        of the start are soon forgotten. It is the formula of TensorFlow's ``ExponentialMovingAverage``.

    Attributes
    ----------
    module : Module
        The average.
    started : bool
        Whether there was an update.

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
        """Take the model's values of now into the average; `step` is the number of the step, from 1."""
        # A function of the step, so that a resumed run has nothing else to know.
        decay = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        for averages, values in self._groups.values():
            if self.started:
                update(averages, values, 0)  # its last argument is for other kinds of averages
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
    """Let the model keep the inputs of its blocks only, and compute the rest anew on the way back.

    Blocks are the members of an ``nn.Sequential`` that have layers of their own, such as the bottlenecks of a
    ResNet. Models of timm know theirs, but count every batch twice in BatchNorm's statistics: those without
    BatchNorm do it themselves. Gradients and statistics are the same as without, bit for bit.

    Raises
    ------
    ValueError
        The model has no such blocks.
    """
    if hasattr(model, "set_grad_checkpointing") and not any(map(_has_statistics, model.modules())):
        with contextlib.suppress(AssertionError):  # some do not know it
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
    """Members of Sequentials that have layers of their own, but for stages: Sequentials of such."""
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
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second pass over the same batch does not count for the running statistics."""
    norms = [
        (module, module.momentum, module.num_batches_tracked)
        for module in block.modules()
        if _has_statistics(module)
    ]
    for norm, _, _ in norms:
        # The statistics stay in the call: autograd wants to see the same tensors as the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count
