"""A trial pass of the model before a run: input it cannot take is refused before anything is written."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .config import Config, option, plain
from .hardware import autocast
from .limits import free_memory, require_memory
from .model import outputs_of
from .ranks import Ranks

# What torchvision's models and PyTorch's operators raise for a shape they do not accept.
_REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
# Passes whose images take less than this share of the memory are not worth checking.
_SMALL = 1e-3


def try_model(model: nn.Module, config: Config, device: torch.device, ranks: Ranks) -> None:
    """Run a model as a training step and an evaluation do, and restore it afterwards.

    Random generators are not restored: a run seeds them later.

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
        It does not accept images of --image-size or --val-image-size, or so few images per pass; memory is
        too small for them; or PyTorch cannot compile here.
    """
    passes = ranks.size * config.accumulate
    _check_memory(model, config, ranks)
    if config.compile:
        try_compiler(device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        with refusals(config, "image_size"):
            _train(model, config, device, images=2)
        if config.batch_size == passes:
            try:
                _train(model, config, device, images=1)
            except _REFUSALS as error:
                raise ValueError(
                    f"--batch-size must be at least {2 * passes}: --arch {config.arch} needs more than one"
                    f" image in a pass, and a step has {passes}; got {config.batch_size} ({plain(error)})"
                ) from error
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
    try_evaluation(model, config, device)


def try_evaluation(model: nn.Module, config: Config, device: torch.device) -> None:
    """Run a model on one image as an evaluation does.

    Raises
    ------
    ValueError
        It does not accept images of --val-image-size.
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


def try_compiler(device: torch.device) -> None:
    """Compile one line of code, as --compile compiles the model at the first step.

    Raises
    ------
    ValueError
        There is no compiler, or it does not work.
    """
    new = time.time()  # a new value: cached code would need no compiler
    try:
        torch.compile(lambda numbers: numbers + new)(torch.zeros(2, device=device))
    except RuntimeError as error:
        words = plain(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
        raise ValueError(
            f"--compile must be left out where PyTorch cannot compile; got True ({words})"
        ) from error


def _check_memory(model: nn.Module, config: Config, ranks: Ranks) -> None:
    """Refuse images too large for memory on a CPU, where the system would kill the process."""
    size, images = config.image_size, config.batch_size // ranks.size // config.accumulate
    free = free_memory()
    if config.device != "cpu" or free is None or images * size**2 * 12 < _SMALL * free:
        return
    with refusals(config, "image_size"):
        kept = _kept_bytes(model, size)
    # Half, because fused attention, which only real computation uses, keeps less; bf16 halves it again.
    kept //= 2 if config.amp == "none" else 4
    # With recomputed blocks only one of them is kept, whose size is unknown here.
    if not config.grad_checkpointing:
        require_memory(
            *(kept, images, ranks.local_size),
            sized=("--image-size", size),
            batch=("--batch-size", config.batch_size),
            purpose=f"--arch {config.arch}",
        )


def _kept_bytes(model: nn.Module, size: int) -> int:
    """Bytes that a float32 training pass keeps for the gradients, per image; nothing is computed."""
    kept: dict[int, Tensor] = {}  # by storage; references keep addresses unique

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    shapes = copy.deepcopy(model).to("meta").train()
    weights = {parameter.untyped_storage()._cdata for parameter in shapes.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shapes(torch.empty(2, 3, size, size, device="meta"))
    sizes = (it.untyped_storage().nbytes() for key, it in kept.items() if key not in weights)
    return sum(sizes) // 2


@contextlib.contextmanager
def refusals(config: Config, name: str) -> Iterator[None]:
    """Turn a model's error for the image size in setting `name` into an error of that option."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        # The auxiliary heads of inception_v3 accept no images below 299 pixels.
        without = "; --aux-loss-weight 0 trains without auxiliary heads"
        raise ValueError(
            f"{option(name)} must be one that --arch {config.arch} takes; got {getattr(config, name)}"
            f" ({plain(error)}){without if config.aux_loss_weight else ''}"
        ) from error


def _train(model: nn.Module, config: Config, device: torch.device, images: int) -> None:
    size = config.image_size
    with autocast(config, device):
        found = model(torch.zeros(images, 3, size, size, device=device))
    torch.stack(outputs_of(found)).float().sum().backward()  # type: ignore[no-untyped-call]
