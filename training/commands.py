"""What the command line starts: a training, or an evaluation of weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .bad_files import BadFileError, Quarantine
from .config import Config, complain
from .demo import data_folder
from .distributed import Processes
from .evaluation import evaluate
from .hardware import autocast, choose_hardware, start_device
from .inputs import Listing, list_dataset
from .loaders import Loaders
from .model import build_model, load_weights
from .recipe import train


def evaluate_only(config: Config, processes: Processes, listing: Listing | None) -> None:
    """Evaluate ``--init-weights`` on the images of val/ and print the result."""
    config = choose_hardware(config, processes)
    device = start_device(config, processes)
    images = (listing or list_dataset(config, data_folder(config, processes), processes))["val"]
    num_classes = len(images.classes)
    model = build_model(config.arch, num_classes)
    assert config.init_weights is not None
    said = load_weights(model, config.init_weights, new_classifier=False)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder = Path(os.devnull) if config.output is None else config.output / "quarantine.jsonl"
    loader = Loaders(
        config,
        processes,
        Quarantine(folder, skip=config.bad_files == "skip"),
        lambda: {"epoch": 0, "step": 0, "rank": processes.rank},
    ).val(images)
    result = evaluate(model, loader, processes, lambda: autocast(config, device))
    assert result is not None
    bad = sorted(set().union(*processes.gather(loader.left_out)))  # each knows those that it met
    if bad:
        processes.say(f"Left out, because they cannot be decoded: {', '.join(bad)}")
    processes.say(
        f"{said}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, loss {result['loss']:.4f} on"
        f" {len(images) - len(bad)} images of {config.val_image_size} pixels",
    )


def run(config: Config, processes: Processes, listing: Listing | None, *, fit: bool = False) -> int:
    """Train, or evaluate with ``--eval-only``; the exit status of the trainer, whose errors are printed.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes
    listing, fit
        See :func:`.recipe.train`.
    """
    try:
        if config.eval_only:
            evaluate_only(config, processes, listing)
            status = 0
        else:
            # After it nothing holds its model: let go of after the connections, that may wait for threads.
            status = train(config, processes, listing, fit=fit)
    except (ValueError, TypeError, OSError, BadFileError) as error:
        complain(error)
        status = 2
    processes.stop()
    return status
