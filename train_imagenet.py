#!/usr/bin/env python
"""Train an image classifier on batches that DALI decodes, crops and mixes.

    python train_imagenet.py --mix hmix --data /path/to/imagenet

DIR holds train/ and val/, each with one folder of images per class. Without --data, a demonstration run
generates a small set of photo-like images once and trains on them, scaled to this machine.

The output folder holds config.json (all settings, versions, the commit), metrics.jsonl (one JSON object
per line), TensorBoard events, first_batch.png (mixed images, their masks and labels), checkpoints/, last.pt
(the newest checkpoint) and best.pt (the best top-1).

On SIGTERM, SIGINT, SIGUSR1 or SIGHUP, training finishes the step, saves and exits with status 128 + signal;
--resume auto continues from there, bit for bit. Use torchrun for several processes. Other exit statuses: 0
the run is complete; 1 too many files cannot be decoded, DALI failed, or a value was NaN or infinite; 2 bad
input; 75 the images or the output could not be reached for longer than --storage-patience (try again later
with --resume auto).
"""

from __future__ import annotations

import dataclasses
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends the process without a traceback, also before and after `main` handles it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from configs import named_run, option_from_argv
from pipelines.files import expand_home
from pipelines.screen import keep_printing
from training.config import ALIASES, DEMO, Config, complain, resolve
from training.inputs import Listing, check_output, list_dataset
from training.options import parse, recorded_run
from training.ranks import Ranks
from training.signals import StopSignals
from training.storage import STATUS, TRANSIENT, Patience, StorageError
from training.weight_files import read_weight_file
from training.weight_settings import About

_WEIGHTS = ("--init-weights", *ALIASES["init_weights"])


def settings_of(arguments: list[str]) -> Config:
    """The settings for a command line.

    A setting that it does not give comes from --init-weights, else from --from-config or --config, the run
    without data, or the defaults.
    """
    name, repeated = option_from_argv(arguments, "--config"), option_from_argv(arguments, "--from-config")
    if repeated is not None:
        if name is not None:
            raise ValueError(f"--from-config must be left out with --config {name}; got {repeated}")
        default = recorded_run(expand_home(repeated))
    elif name is not None:
        default = dataclasses.replace(named_run(name), config=name)
    else:
        default = Config() if _names(arguments, "--data", "--help", "-h") else DEMO
    weights = option_from_argv(arguments, *_WEIGHTS)
    if weights is not None and (file := expand_home(weights)).is_file():
        sized = _names(arguments, "--image-size")
        val_sized = sized or _names(arguments, "--val-image-size")
        about = About.of_file(read_weight_file(file))
        default = dataclasses.replace(default, **about.defaults(sized=sized, val_sized=val_sized))
    return parse(arguments, default, prog="train_imagenet.py", description=__doc__)


def _names(arguments: list[str], *options: str) -> bool:
    return any(argument.split("=")[0].replace("_", "-") in options for argument in arguments)


def _check_inputs(config: Config, ranks: Ranks) -> Listing | None:
    """Check the folders and files; list the images if --data is given."""
    check_output(config, ranks)
    return None if config.data is None else list_dataset(config, config.data, ranks)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status, see above."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_printing()
    ranks = Ranks.from_environment()
    with StopSignals(quiet=not ranks.is_main) as stop:
        return _run(arguments, ranks, stop)


def _run(arguments: list[str], ranks: Ranks, stop: StopSignals) -> int:
    try:
        config = resolve(settings_of(arguments), ranks)
        listing = Patience(config.storage_patience).keep_trying(
            lambda: _check_inputs(config, ranks), at_once=lambda error: error.errno not in TRANSIENT
        )
    except StorageError as error:
        complain(error, ranks)
        return STATUS
    except (ValueError, OSError) as error:
        complain(error, ranks)
        return 2
    # Only now: importing PyTorch and DALI takes seconds, too long to wait to learn of a typing mistake.
    from training.commands import run
    from training.distributed import Processes

    # Without --data and without a size of its own, the run is scaled to the speed of this machine.
    sizes = ("--image-size", "--epochs", "--max-steps", "--from-config", *_WEIGHTS)
    fit = config.data is None and not _names(arguments, *sizes)
    return run(config, Processes.from_environment(), stop, listing, fit=fit)


if __name__ == "__main__":
    sys.exit(main())
