"""Checks of a run's files and folders, before anything heavy is imported."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pipelines.datasets import check_dataset, list_split
from pipelines.listing import describe
from pipelines.names import shown
from pipelines.sources import Source

from .config import Config
from .published import require_downloaded
from .ranks import Ranks
from .storage import TRANSIENT
from .weight_files import read_weight_file

METRICS = "metrics.jsonl"
RECORD = "config.json"
FOLDER = "checkpoints"

# The images of each split, by its name: train and val, or val alone.
Listing = dict[str, Source]


def list_dataset(config: Config, data: Path, ranks: Ranks) -> Listing:
    """List the images that a run needs.

    Raises
    ------
    ValueError
        `data` is not a data set, or has too few images for --batch-size.
    """
    options: dict[str, Any] = {
        "val_labels": config.val_labels,
        "allow_empty_classes": config.allow_empty_classes,
    }
    if config.eval_only:
        return {"val": list_split(data, "val", config.file_list, **options)}
    all_classes = config.absent_classes is None
    train, val = check_dataset(data, config.file_list, all_classes=all_classes, **options)
    largest = len(train) // ranks.size * ranks.size
    if largest < config.batch_size:
        raise ValueError(
            f"--batch-size must be at most the number of training images ({largest}); got {config.batch_size}"
        )
    return {"train": train, "val": val}


def left_out_line(images: Listing) -> str:
    """What the folders hold besides usable images, in one line; empty if nothing."""
    described = {split: describe(source.left_out) for split, source in images.items()}
    parts = [f"{split}/: {text}" for split, text in described.items() if text]
    return f"Left out of {'; '.join(parts)}" if parts else ""


def check_output(config: Config, ranks: Ranks) -> None:
    """Raise ValueError if --output, --resume or --init-weights name something unusable.

    With several processes the main one checks the output later, for all of them: the first to arrive creates
    the folder, and a process that exits now would leave the others waiting.
    """
    if config.init_weights is not None:
        require_downloaded(config.init_weights, config.arch)
        read_weight_file(config.init_weights)
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and config.resume != "auto" and not config.eval_only:
        raise ValueError(
            f"--resume must be auto with torchrun's --max-restarts {restarts}; got {config.resume}: a restart"
            " would not resume from the newest checkpoint"
        )
    if config.resume == "auto":
        if config.output is None:
            raise ValueError("--resume auto needs --output; got none")
        if ranks.size == 1:
            require_usable(config.output)
    elif config.resume is not None:
        if not Path(config.resume).is_file():
            raise ValueError(f"--resume must be auto or a checkpoint; there is no file {config.resume}")
    elif config.output is not None and config.eval_only:
        require_writable(config.output)
    elif config.output is not None and ranks.size == 1:
        require_new(config.output)


def require_new(folder: Path) -> None:
    """Raise ValueError unless `folder` is new or empty, and writable."""
    require_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"--output must be a new or empty folder; {folder} holds another run or other files"
            " (--resume auto resumes a run)"
        )


def require_usable(folder: Path) -> None:
    """Raise ValueError unless a run can start in `folder`, or the one in it can resume."""
    require_writable(folder)
    read_record(folder)


def require_writable(folder: Path) -> None:
    """Raise ValueError unless `folder` is a writable folder, or can be created.

    Raises
    ------
    OSError
        It cannot be reached now, but may come back.
    """
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"--output must be a folder; {shown(above)} is a file")
    for path in (above, folder / FOLDER, folder / METRICS):
        try:
            if path.is_dir():
                tempfile.TemporaryFile(dir=path).close()
            elif path.exists():
                path.open("ab").close()
        except OSError as error:
            if error.errno in TRANSIENT:
                raise
            reason = f"{shown(path)}: {error.strerror}"
            raise ValueError(f"--output must be a writable folder; {reason}") from None


def read_record(folder: Path) -> dict[str, Any]:
    """What the run in `folder` wrote to its config.json; empty if there is none.

    Raises
    ------
    ValueError
        The file holds something else; the message names it.
    """
    file = folder / RECORD
    return read_json(file, "--resume needs the config.json of its run, or none") if file.exists() else {}


def read_json(file: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    ValueError
        It holds no object; the message has `expected`, the file, and what is wrong with it.
    """
    data = file.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        found = f"is not JSON: {error}" if data.strip() else "is empty"
    else:
        if isinstance(content, dict):
            return content
        found = "holds no JSON object"
    raise ValueError(f"{expected}; {shown(file)} {found}")
