"""A pass of the model before a run begins: what it does not take is refused while nothing is written yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from .config import Config, option, plain
from .hardware import autocast
from .model import outputs_of
from .ranks import Ranks

# What models of torchvision and the operators of PyTorch raise for a shape that they do not take.
_REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)


def try_model(model: nn.Module, config: Config, device: torch.device, ranks: Ranks) -> None:
    """Let a model take images as a step and an evaluation do; it is as before afterwards.

    Random numbers that it draws are not put back: a run seeds its generators later.

    Parameters
    ----------
    model : Module
        On its device.
    config : Config
        Resolved.
    device : torch.device
    ranks : Ranks

    Raises
    ------
    ValueError
        It does not take images of --image-size or --val-image-size, or not so few of them in a pass.
    """
    passes = ranks.size * config.accumulate
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        with refusals(config, "image_size"):
            _train(model, config, device, images=2)
        if config.batch_size == passes:
            try:
                _train(model, config, device, images=1)
            except _REFUSALS as error:
                raise ValueError(
                    f"--batch-size must be at least {2 * passes}: --arch {config.arch} does not take a single"
                    f" image in a pass, and a step has {passes}; got {config.batch_size} ({plain(error)})"
                ) from error
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
    try_evaluation(model, config, device)


def try_evaluation(model: nn.Module, config: Config, device: torch.device) -> None:
    """Let a model take an image as an evaluation does.

    Raises
    ------
    ValueError
        It does not take images of --val-image-size.
    """
    size = config.val_image_size
    assert size is not None  # resolved
    was_training = model.training
    model.eval()
    try:
        with refusals(config, "val_image_size"), torch.inference_mode(), autocast(config, device):
            model(torch.zeros(1, 3, size, size, device=device))
    finally:
        model.train(was_training)


@contextlib.contextmanager
def refusals(config: Config, name: str) -> Iterator[None]:
    """What a model raises for the image size that the setting `name` holds, as an error of that option."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        # Those of inception_v3 are what takes no images below 299 pixels.
        without = "; --aux-loss-weight 0 does without auxiliary heads"
        raise ValueError(
            f"{option(name)} must be one that --arch {config.arch} takes; got {getattr(config, name)}"
            f" ({plain(error)}){without if config.aux_loss_weight else ''}"
        ) from error


def _train(model: nn.Module, config: Config, device: torch.device, images: int) -> None:
    size = config.image_size
    with autocast(config, device):
        found = model(torch.zeros(images, 3, size, size, device=device))
    torch.stack(outputs_of(found)).float().sum().backward()  # type: ignore[no-untyped-call]
