"""The recipe: what a training run does, in its order."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from torch.amp.grad_scaler import GradScaler

from .bad_files import BadFileError, Quarantine
from .checkpoints import Checkpoints, SaveError
from .classes import map_classes
from .config import Config, complain
from .demo import choose_size, data_folder
from .distributed import Processes
from .hardware import choose_hardware, start_device
from .inputs import Listing, list_dataset
from .learner import Learner, create_model, create_optimizer, create_schedule
from .loaders import Loaders
from .model import Average
from .nonfinite import FiniteWatch, NotFiniteError
from .output import Output
from .progress import Progress
from .random_states import RandomStates, seed_all
from .resume import Identity, find_start
from .run import Run
from .signals import StopSignals
from .state import RunState


def train(config: Config, processes: Processes, listing: Listing | None = None, *, fit: bool = False) -> int:
    """Train a model, with an evaluation and a checkpoint after every epoch, to the end or until a signal.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes
    listing : dict, optional
        The images of train/ and val/, where they were listed already.
    fit : bool
        Choose image size and epochs by the speed of this machine; a run that is resumed keeps its own.

    Returns
    -------
    int
        Exit status: 0 at the end, 128 + signal before, 1 after an error that was printed.

    Raises
    ------
    ValueError, TypeError, OSError, BadFileError
        Bad input, before the first step.
    """
    # Hardware and images.
    config = choose_hardware(config, processes)
    device = start_device(config, processes)
    images = listing or list_dataset(config, data_folder(config, processes), processes)
    identity = Identity.of(config, images, processes)
    identity.require_same()
    val_classes = map_classes(
        *(images["val"].classes, identity.classes),
        absent=config.absent_classes,
        split="val/",
        model="train/",
    )

    # The checkpoint to resume, if there is one. Every part gets its state back from it when it is registered.
    start = processes.from_main(lambda: find_start(config.resume, config.output, _new_folder(config)))
    state = RunState(processes, start.content())
    config, minutes = choose_size(config, processes, images, state.saved) if fit else (config, 0.0)
    state.register("run", replace(identity, config=config))
    progress = state.register("progress", Progress())

    # Model, and the average of its weights.
    weights = config.init_weights if state.saved is None else None
    model = state.register("model", create_model(config, identity.classes, device, processes, weights))
    average = None if config.ema_decay is None else state.register("ema", Average(model, config.ema_decay))

    # Batches.
    quarantine = Quarantine(start.folder / "quarantine.jsonl", skip=config.bad_files == "skip")
    loaders = Loaders(config, processes, quarantine, lambda: progress.position | {"rank": processes.rank})
    train_loader = state.register("loader", loaders.train(images["train"]), per_rank=True)
    val_loader = loaders.val(images["val"])
    progress.plan(config, len(train_loader))

    # Optimiser and schedule.
    optimizer = state.register("optimizer", create_optimizer(config, model))
    scaler = state.register("scaler", GradScaler(device.type, enabled=config.amp == "fp16"))
    schedule = create_schedule(config, optimizer, progress)
    learner = Learner(config, processes, model, optimizer, scaler, schedule, average)

    # Output: late, so that bad input leaves no folder behind. The random draws that count come after it.
    output = state.register("output", Output(start.folder, start.source))
    checkpoints = Checkpoints(start.folder, config.keep)
    watch = FiniteWatch(device, train_loader, config.accumulate, checkpoints, processes, progress.step)
    run = Run(
        *(config, processes, progress, state, learner, train_loader, val_loader),
        *(val_classes, checkpoints, watch, output),
    )
    processes.from_main(partial(run.open_output, start, loaders))
    run.announce(images, minutes)
    seed_all(config.seed, processes.rank)  # for dropout and the like
    state.register("random", RandomStates(device), per_rank=True)
    del start, state.saved  # the checkpoint, as large as all that is trained

    # Epochs: steps, an evaluation, a checkpoint.
    try:
        finished = True
        with StopSignals(quiet=not processes.is_main) as stop, run.progress_bar() as bar:
            while finished and not progress.is_complete:
                finished = run.train_epoch(stop, bar) and run.evaluate_epoch(stop, bar)
                run.save()
                progress.epoch += int(finished)
        return run.end(finished=finished)
    except (SaveError, BadFileError, NotFiniteError) as error:
        complain(getattr(error, "strerror", None) or error)
        return 1


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("outputs") / f"{stamp}-{config.arch}-{config.mixing.method}"
