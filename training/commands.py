"""What the command line starts: a training, or an evaluation of weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from pipelines.sources import Source

from .bad_files import BadFileError, PipelineError, Quarantine
from .checkpoints import SaveError
from .classes import ClassMap, known_classes, map_classes
from .config import Config, complain
from .demo import data_folder
from .distributed import Processes, has_lost_another, lost
from .evaluation import evaluate
from .hardware import autocast, choose_decoding, choose_hardware, start_device
from .inputs import Listing, left_out_line, list_dataset
from .loaders import Loaders
from .model import build_model
from .nonfinite import NotFiniteError, require_finite
from .recipe import train
from .signals import StopSignals
from .storage import STATUS, Patience, StorageError
from .trial import try_evaluation
from .weight_files import read_weight_file
from .weight_settings import About
from .weights import load_weights


def evaluate_only(config: Config, processes: Processes, listing: Listing | None) -> None:
    """Evaluate ``--init-weights`` on val/ and print the result."""
    config = choose_hardware(config, processes)
    device = start_device(config, processes)
    config = choose_decoding(config, processes, None)
    listing = listing or list_dataset(config, data_folder(config, processes), processes)
    if line := left_out_line(listing):
        processes.say(line)
    images = listing["val"]
    model, said, classes = _load(config, images, processes)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try_evaluation(model, config, device)
    folder = Path(os.devnull) if config.output is None else config.output / "quarantine.jsonl"
    quarantine = Quarantine(
        folder,
        skip=config.bad_files == "skip",
        limit=config.bad_files_limit,
        patience=Patience(config.storage_patience),
    )
    quarantine.hold()
    loaders = Loaders(config, processes, quarantine, lambda: {"epoch": 0, "step": 0, "rank": processes.rank})
    loader = processes.together(lambda: loaders.val(images))
    result = evaluate(model, loader, processes, lambda: autocast(config, device), classes=classes)
    processes.together(quarantine.release)
    assert result is not None
    require_finite(result, f"of {config.init_weights}")
    bad = sorted(set().union(*processes.gather(loader.left_out)))  # each process knows those it found
    if bad:
        processes.say(f"Left out, because they cannot be decoded: {', '.join(bad)}")
    processes.say(
        f"{said}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, loss {result['loss']:z.4f} on"
        f" {len(images) - len(bad)} images of {config.val_image_size} pixels and of {classes}",
    )


def _load(config: Config, images: Source, processes: Processes) -> tuple[nn.Module, str, ClassMap]:
    """The model with its weights; their description; how the images' classes map to its outputs."""
    assert config.init_weights is not None
    file = read_weight_file(config.init_weights)
    known = known_classes(config, file)
    outputs = images.classes if known is None else known
    classes = map_classes(
        images,
        outputs,
        absent=config.absent_classes,
        split="val/",
        model=str(config.class_names or config.init_weights),
    )
    model = build_model(config.arch, len(outputs))
    remedy = (
        " folders in val/; --class-names says which they are"
        if known is None
        else f" names of classes in {config.class_names or 'it'}"
    )
    taken = load_weights(model, file, config.arch, entry=config.init_entry, remedy=remedy)
    said = f"{taken.kind} of {config.init_weights}"
    about = About.of_file(file)
    names = "it names no classes: using those of val/, in their order" if known is None else ""
    if names and about.published is not None:
        names += ", because torchvision's are those of ImageNet, ordered by folder name (wnid)"
    notes = filter(None, (about.compare(config), taken.left, names))
    processes.say(f"Evaluating the {'; '.join((said, *notes))}")
    return model, said, classes


def run(
    config: Config, processes: Processes, stop: StopSignals, listing: Listing | None, *, fit: bool = False
) -> int:
    """Train, or evaluate with ``--eval-only``; print errors and return the trainer's exit status.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes
    stop, listing, fit
        See :func:`.recipe.train`.
    """
    try:
        if config.eval_only:
            evaluate_only(config, processes, listing)
            status = 0
        else:
            # train() frees its model by returning: freed after the connections, it could wait for threads.
            status = train(config, processes, stop, listing, fit=fit)
    except (StorageError, SaveError) as error:
        complain(error, processes)
        status = STATUS
    except (BadFileError, PipelineError, NotFiniteError) as error:
        complain(error, processes)
        status = 1
    except (ValueError, TypeError, OSError) as error:
        complain(error, processes)
        status = 2
    except RuntimeError as error:
        if not has_lost_another(error, processes):
            raise
        # No processes.stop(), which would wait for the one that has died.
        complain(lost(error), processes)
        return 1
    processes.stop()
    return status
