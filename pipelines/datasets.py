"""Data sets on disk, in every form that the pipelines read: class folders, and CIFAR's binary files."""

from __future__ import annotations

import os
from pathlib import Path

from . import folders
from .cifar import find_cifar, list_cifar, read_cifar_classes
from .names import shown
from .sources import Source


def check_dataset(
    data_dir: str | os.PathLike[str],
    file_list: str | os.PathLike[str] | None = None,
    *,
    all_classes: bool = True,
    val_labels: str | os.PathLike[str] | None = None,
    allow_empty_classes: bool = False,
) -> tuple[Source, Source]:
    """List and check the training and the validation images of a data set.

    Parameters
    ----------
    data_dir : path
        A folder with ``train/`` and ``val/``; or CIFAR's binary files, or the folder that their archive was
        unpacked in.
    file_list, all_classes, val_labels
        For class folders only; see :func:`.folders.check_dataset`.
    allow_empty_classes : bool
        Accept classes without images.

    Raises
    ------
    ValueError
        See :func:`.folders.check_dataset` and :func:`.cifar.list_cifar`.
    """
    train = _list_cifar(data_dir, "train", file_list, val_labels, allow_empty_classes)
    val = _list_cifar(data_dir, "val", file_list, val_labels, allow_empty_classes)
    if train is not None and val is not None:
        return train, val
    return folders.check_dataset(
        data_dir,
        file_list,
        all_classes=all_classes,
        val_labels=val_labels,
        allow_empty_classes=allow_empty_classes,
    )


def list_split(
    data_dir: str | os.PathLike[str],
    split: str,
    file_list: str | os.PathLike[str] | None = None,
    *,
    val_labels: str | os.PathLike[str] | None = None,
    allow_empty_classes: bool = False,
) -> Source:
    """List the images of "train" or "val"; arguments and errors as in :func:`check_dataset`."""
    return _list_cifar(data_dir, split, file_list, val_labels, allow_empty_classes) or folders.list_split(
        data_dir, split, file_list, val_labels=val_labels, allow_empty_classes=allow_empty_classes
    )


def list_source(data_dir: str | os.PathLike[str], split: str) -> Source:
    """List the images for one pipeline: as :func:`list_split`, or of a folder of class folders itself."""
    return _list_cifar(data_dir, split) or folders.list_images(folders.find_split_folder(data_dir, split))


def list_class_names(path: Path) -> list[str]:
    """List the class names of class folders or of CIFAR's binary files.

    Raises
    ------
    ValueError
        It is neither, or a file is missing.
    """
    found = find_cifar(path)
    return folders.list_class_folders(path) if found is None else list(read_cifar_classes(*found))


def _list_cifar(
    data_dir: str | os.PathLike[str],
    split: str,
    file_list: str | os.PathLike[str] | None = None,
    val_labels: str | os.PathLike[str] | None = None,
    allow_empty_classes: bool = False,
) -> Source | None:
    """List a split of CIFAR's binary files; None if `data_dir` has none."""
    found = find_cifar(Path(data_dir))
    if found is None:
        return None
    for option, value in (("--file-list", file_list), ("--val-labels", val_labels)):
        if value is not None:
            raise ValueError(
                f"{option} must not be given for CIFAR's binary files; got {shown(value)} and"
                f" {shown(found[0])}"
            )
    return list_cifar(*found, split, allow_empty_classes=allow_empty_classes)
