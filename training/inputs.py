"""What a run finds on the disk, looked at before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipelines.folders import check_dataset, list_split
from pipelines.listing import describe
from pipelines.sources import Source

from .config import Config
from .ranks import Ranks
from .weight_files import read_weight_file

METRICS = "metrics.jsonl"

# The images of each split, by its name: train and val, or val alone.
Listing = dict[str, Source]


def list_dataset(config: Config, data: Path, ranks: Ranks) -> Listing:
    """List the images that a run needs.

    Raises
    ------
    ValueError
        `data` is no data set, or has too few images for --batch-size.
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
    """What the folders hold besides images that can be taken, in one line; empty where there is nothing."""
    described = {split: describe(source.left_out) for split, source in images.items()}
    parts = [f"{split}/: {text}" for split, text in described.items() if text]
    return f"Left out of {'; '.join(parts)}" if parts else ""


def check_output(config: Config, ranks: Ranks) -> None:
    """Raise ValueError where --output, --resume or --init-weights name what cannot be taken.

    With several processes the main one looks once more, for all of them: the folder is made by the first that
    comes, and a process that leaves now would let the others wait.
    """
    if config.init_weights is not None:
        read_weight_file(config.init_weights)
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and config.resume != "auto" and not config.eval_only:
        raise ValueError(
            f"--resume must be auto with torchrun's --max-restarts {restarts}; got {config.resume}: a restart"
            " would not go on from the newest checkpoint"
        )
    if config.resume == "auto":
        if config.output is None:
            raise ValueError("--resume auto needs --output, the folder to look into; got none")
    elif config.resume is not None:
        if not Path(config.resume).is_file():
            raise ValueError(f"--resume must be auto or a checkpoint; there is no file {config.resume}")
    elif config.output is not None and not config.eval_only and ranks.size == 1:
        require_new(config.output)


def require_new(folder: Path, option: str = "--output") -> None:
    """Raise ValueError unless `folder` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{option} must be a new or empty folder; {folder} holds another run or other files"
            " (--resume auto goes on with a run)"
        )
