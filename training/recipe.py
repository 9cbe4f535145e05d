"""The recipe: what a training run does, in order."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from torch.amp.grad_scaler import GradScaler

from .bad_files import Quarantine
from .checkpoints import Checkpoints, SaveError
from .classes import map_classes
from .config import Config, complain
from .demo import choose_size, data_folder
from .distributed import Processes
from .hardware import choose_decoding, choose_hardware, start_device
from .inputs import Listing, list_dataset
from .learner import Learner, create_model, create_schedule
from .loaders import Loaders
from .mixers import create_mixer
from .model import Average
from .nonfinite import FiniteWatch, NotFiniteError
from .optimizers import create_optimizer
from .output import Claim, Output
from .progress import Progress
from .random_states import RandomStates, seed_all
from .resume import Identity, find_start
from .run import Run
from .signals import StopSignals
from .state import RunState
from .storage import STATUS, Patience, StorageError
from .trial import try_model
from .window import Window


def train(
    config: Config,
    processes: Processes,
    stop: StopSignals,
    listing: Listing | None = None,
    *,
    fit: bool = False,
) -> int:
    """Train a model, with an evaluation and a checkpoint after every epoch, until the end or a signal.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes
    stop : StopSignals
        Entered.
    listing : dict, optional
        The images of train/ and val/, if already listed.
    fit : bool
        Choose image size and epochs by the speed of this machine; a resumed run keeps its own.

    Returns
    -------
    int
        Exit status: 0 at the end, 128 + signal if stopped; 1 or the status of `training.storage` after an
        error, which has been printed.

    Raises
    ------
    ValueError, TypeError, OSError, BadFileError, PipelineError
        Bad input, before the first step; includes SaveError and StorageError.
    """
    with Claim() as claim:
        return _train(config, processes, stop, claim, listing, fit=fit)


def _train(
    config: Config,
    processes: Processes,
    stop: StopSignals,
    claim: Claim,
    listing: Listing | None,
    *,
    fit: bool,
) -> int:
    """:func:`train`, with the claim on the output folder, which is taken on the way."""
    # Hardware and images.
    config = choose_hardware(config, processes)
    device = start_device(config, processes)
    images = listing or list_dataset(config, data_folder(config, processes), processes)
    identity = Identity.of(config, images, processes)
    identity.require_same()
    val_classes = map_classes(
        images["val"], identity.classes, absent=config.absent_classes, split="val/", model="train/"
    )

    # The checkpoint to resume, if any. Every part gets its state back when it is registered.
    start = processes.from_main(lambda: find_start(config.resume, config.output, _new_folder(config), claim))
    state = RunState(processes, start.content())
    config = choose_decoding(config, processes, state.saved and state.saved["run"]["settings"])
    config, minutes = choose_size(config, processes, images, state.saved) if fit else (config, 0.0)
    state.register("run", replace(identity, config=config))
    progress = state.register("progress", Progress())

    # Model, and its weight average.
    weights = config.init_weights if state.saved is None else None
    model = state.register("model", create_model(config, identity.classes, device, processes, weights))
    try_model(model, config, device, processes)
    average = None
    if config.ema_decay is not None:
        average = state.register("ema", Average(model, config.ema_decay, warmup=config.ema_warmup))

    # Batches.
    patience = Patience(config.storage_patience)
    quarantine = Quarantine(
        start.folder / "quarantine.jsonl",
        skip=config.bad_files == "skip",
        limit=config.bad_files_limit,
        patience=patience,
    )
    quarantine.hold()
    loaders = Loaders(config, processes, quarantine, lambda: progress.position | {"rank": processes.rank})
    large = None
    if start.source is None:  # a resumed run has said it, and its images should stay the same
        large = processes.from_main(lambda: loaders.find_large_images(images["train"]))
    train_loader = state.register("loader", loaders.train(images["train"]), per_rank=True)
    val_loader = processes.together(lambda: loaders.val(images["val"]))
    progress.plan(config, processes.together(lambda: len(train_loader)))
    if (note := progress.describe_new_schedule()) is not None:
        processes.say(note)

    # Optimiser, schedule, and mixing that needs the model.
    optimizer = state.register("optimizer", create_optimizer(config, model, processes))
    scaler = state.register("scaler", GradScaler(device.type, enabled=config.amp == "fp16"))
    schedule = create_schedule(config, optimizer, progress)
    batches = progress.steps_per_epoch * config.accumulate
    if (mixer := create_mixer(config, processes, model, scaler, batches)) is not None:
        state.register("mixer", mixer, per_rank=True)
    learner = Learner(config, processes, model, optimizer, scaler, schedule, average, mixer)

    # Output: late, so that bad input leaves no folder behind. The random draws that matter come after it.
    window = state.register("window", Window(device), per_rank=True)
    output = state.register("output", Output(start.folder, start.source, claim, patience))
    checkpoints = Checkpoints(start.folder, config.keep)
    watch = FiniteWatch(device, train_loader, config.accumulate, checkpoints, processes, progress.step)
    run = Run(
        *(config, processes, progress, state, learner, train_loader, val_loader),
        *(val_classes, checkpoints, watch, window, output, patience),
    )
    processes.from_main(partial(run.open_output, start, loaders))
    processes.together(quarantine.release)
    run.announce(images, minutes, large)
    seed_all(config.seed, processes.rank)  # for dropout and the like
    state.register("random", RandomStates(device), per_rank=True)
    del start, state.saved  # the checkpoint, as large as all trained state

    # Epochs: steps, an evaluation, a checkpoint.
    try:
        finished = True
        with stop.finishing_steps(), run.progress_bar() as bar:
            patience.interrupted = lambda: stop.number > 0
            while finished and not progress.is_complete:
                finished = run.epoch(stop, bar)
                run.save()
                run.print_result(bar)
                progress.epoch += int(finished)
        return run.end(finished=finished)
    except NotFiniteError as error:
        complain(error, processes)
        return 1
    except (SaveError, StorageError) as error:
        complain(error, processes)
        processes.say(run.how_to_resume())
        return STATUS
    finally:
        output.release()


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    arch = config.arch.replace("/", "-")  # of timm/NAME
    return Path("outputs") / f"{stamp}-{arch}-{config.mixing.method}"
