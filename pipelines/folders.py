"""Class folders on disk: listed and checked before anything is decoded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .aliases import utf8_path
from .listing import STRAY_IMAGE, Tree, describe, list_classes, list_tree
from .names import match_classes, shown
from .shuffling import READER, training_order
from .sources import Order, Source, find_substitutes
from .val_labels import ACCEPTED, list_labelled

if TYPE_CHECKING:
    from nvidia.dali.pipeline import DataNode


def has_class_folders(source: Source) -> bool:
    """Whether a source reads class folders, one file per image."""
    return isinstance(source, ImageFolder)


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split, a :class:`.sources.Source`.

    Attributes
    ----------
    root : Path
        The folder of class folders.
    classes : tuple of str
        Class names; the position is the class id.
    files : list of str
        Paths below `root`, sorted by class if there are class folders.
    labels : list of int
        Class id of every file.
    stand_ins : frozenset of int
        Positions where another file replaces one that cannot be decoded; see :meth:`without`.
    left_out : mapping
        Counts of the other entries in the folder, by extension or kind.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]
    stand_ins: frozenset[int] = frozenset()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def __str__(self) -> str:
        return shown(self.root)

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[DataNode, ...]:
        """See :meth:`.sources.Source.read`; uses DALI's file reader with a list of paths."""
        from nvidia.dali import fn, types

        classes = len(self.classes)
        listed = training_order(len(self), order.seed) if order.shuffle else range(len(self))
        encoded, labels = fn.readers.file(
            file_root=utf8_path(str(self.root)),
            files=[self._utf8_file(self.files[i]) for i in listed],
            # The reader returns nothing but a label, so labels of stand-ins are raised by `classes`.
            labels=[self.labels[i] + classes * (int(i) in self.stand_ins) for i in listed],
            shard_id=order.shard.index,
            num_shards=order.shard.count,
            pad_last_batch=True,
            shuffle_after_epoch=order.shuffle,
            stick_to_shard=not order.shuffle,
            # Truncating a mapped file ends the process (SIGBUS); reading is as fast.
            dont_use_mmap=True,
            name=READER,
        )
        if not report_stand_ins:
            return encoded, labels
        kept = fn.cast(labels < classes, dtype=types.INT32)
        return encoded, labels - classes * (1 - kept), kept

    def _utf8_file(self, file: str) -> str:
        if file.isascii():
            return file
        path = str(self.root / file)
        other = utf8_path(path)
        return file if other == path else other

    def upcoming(
        self, order: Order, *, batches: int, epoch: int, taken: int, checkpoint: bytes | None
    ) -> list[int]:
        """See :meth:`.sources.Source.upcoming`."""
        if not order.shuffle:
            first = order.part.start + taken * order.batch_size
            return list(range(first, min(first + batches * order.batch_size, len(self))))
        from .upcoming import predict_upcoming

        return predict_upcoming(
            len(self),
            checkpoint,
            batches=batches,
            batch_size=order.batch_size,
            shard=order.shard,
            seed=order.seed,
        )

    def name(self, position: int) -> str:
        """The path of a file, for messages."""
        return shown(self.root / self.files[position])

    def encoded(self, position: int) -> bytes:
        """The content of a file."""
        return (self.root / self.files[position]).read_bytes()

    def without(self, bad: Iterable[int]) -> ImageFolder:
        """See :meth:`.sources.Source.without`."""
        gone = self.stand_ins.union(bad)
        files, labels = list(self.files), list(self.labels)
        for position, other in find_substitutes(self, gone).items():
            files[position], labels[position] = self.files[other], self.labels[other]
        return dataclasses.replace(self, files=files, labels=labels, stand_ins=gone)

    @property
    def labels_present(self) -> frozenset[int]:
        """See :attr:`.sources.Source.labels_present`."""
        return frozenset(self.labels)

    def digest(self) -> str:
        """SHA-256 of classes, files and labels; does not depend on the location of the folder."""
        listing = json.dumps([self.classes, self.files, self.labels], separators=(",", ":"))
        return hashlib.sha256(listing.encode()).hexdigest()


def find_split_folder(data_dir: str | os.PathLike[str], split: str) -> Path:
    """Find the folder of class folders: ``data_dir/split`` if it exists, else `data_dir` itself."""
    data_dir = Path(data_dir)
    return data_dir / split if (data_dir / split).is_dir() else data_dir


def check_dataset(
    data_dir: str | os.PathLike[str],
    file_list: str | os.PathLike[str] | None = None,
    *,
    all_classes: bool = True,
    val_labels: str | os.PathLike[str] | None = None,
    allow_empty_classes: bool = False,
) -> tuple[ImageFolder, ImageFolder]:
    """List ``train/`` and ``val/`` of a dataset and check that their classes match.

    Classes are matched by name, in any Unicode form. If ``val/`` has all classes, it gets the class ids of
    ``train/``; if it has only some, it keeps ids of its own.

    Parameters
    ----------
    data_dir : path
        A folder with ``train/`` and ``val/``.
    file_list : path, optional
        A folder with ``train.txt`` and ``val.txt``, which list the images to use; see :func:`list_images`.
    all_classes : bool
        Whether ``val/`` must have all classes of ``train/``, or may have only some.
    val_labels : path, optional
        The labels of a ``val/`` without class folders; see :func:`.val_labels.list_labelled`.
    allow_empty_classes : bool
        Accept classes without images; see :func:`list_images`.

    Raises
    ------
    ValueError
        A folder is missing or empty, the splits have different classes, or a list of images or labels does
        not match the images. The message names the folder or file.
    """
    for split in ("train", "val"):
        _require_split(Path(data_dir), split)  # check both first: a listing may take long
    train, val = (
        list_split(data_dir, split, file_list, val_labels=labels, allow_empty_classes=allow_empty_classes)
        for split, labels in (("train", None), ("val", val_labels))
    )
    places = match_classes(val.classes, train.classes)
    unknown = [name for name, place in zip(val.classes, places, strict=True) if place is None]
    present = set(places)
    absent = [name for place, name in enumerate(train.classes) if place not in present]
    for split, missing in (("val", absent), ("train", unknown)):
        if missing and (all_classes or split == "train"):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                "train/ and val/ must have the same classes (--absent-classes allows fewer in val/); got"
                f" {shown(Path(data_dir) / split)} without {shown(missing[0])}{more}"
            )
    if absent:
        return train, val
    labels = [place for label in val.labels if (place := places[label]) is not None]
    return train, dataclasses.replace(val, classes=train.classes, labels=labels)


def list_split(
    data_dir: str | os.PathLike[str],
    split: str,
    file_list: str | os.PathLike[str] | None = None,
    *,
    val_labels: str | os.PathLike[str] | None = None,
    allow_empty_classes: bool = False,
) -> ImageFolder:
    """List ``train/`` or ``val/`` of a dataset; arguments and errors as in :func:`check_dataset`."""
    data_dir = Path(data_dir)
    _require_split(data_dir, split)
    return list_images(
        data_dir / split,
        None if file_list is None else _find_split_list(Path(file_list), split),
        val_labels=val_labels,
        allow_empty_classes=allow_empty_classes,
    )


def _require_split(data_dir: Path, split: str) -> None:
    if not data_dir.is_dir():
        raise ValueError(
            f"--data must be a folder with train/ and val/; got {shown(data_dir)} (no such folder)"
        )
    if not (data_dir / split).is_dir():
        found = ", ".join(sorted(shown(entry.name) for entry in data_dir.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"--data must have train/ and val/; got {shown(data_dir)} without {split}/ (it has {found})"
        )


def list_images(
    root: str | os.PathLike[str],
    file_list: str | os.PathLike[str] | None = None,
    *,
    val_labels: str | os.PathLike[str] | None = None,
    allow_empty_classes: bool = False,
) -> ImageFolder:
    """List a folder of class folders.

    Parameters
    ----------
    root : path
        One folder per class, with images at any depth. Names that start with a dot, and folders added by
        operating systems, are skipped.
    file_list : path, optional
        A text file with the images to use, one ``class/name label`` per line, in this order (the format of
        ``file_list`` of DALI's ``fn.readers.file``). The label is the position of the class folder.
    val_labels : path, optional
        The labels of images without class folders; see :func:`.val_labels.list_labelled`.
    allow_empty_classes : bool
        Accept class folders without images; they get a class id like all others.

    Returns
    -------
    ImageFolder

    Raises
    ------
    ValueError
        `root` is not a folder or has no class folders, a class folder has no images, or a line of
        `file_list` or `val_labels` is invalid. The message names the folder or line.
    """
    root = Path(root)
    tree = find_images(root, val_labels)
    if tree.empty and not allow_empty_classes:
        more = f" (nor in {len(tree.empty) - 1} others)" if len(tree.empty) > 1 else ""
        skipped = f"; skipped in {shown(root)}: {describe(tree.left_out)}" if tree.left_out else ""
        raise ValueError(
            f"class folder {shown(root / tree.empty[0])} must have images; got none{more}{skipped}."
            " --allow-empty-classes accepts empty classes"
        )
    if not tree.images:
        raise ValueError(f"class folders of {shown(root)} must have images; got none")
    listing = ImageFolder(root, tuple(tree.classes), tree.images, tree.labels, left_out=dict(tree.left_out))
    return listing if file_list is None else _select_listed(listing, Path(file_list))


def find_images(root: Path, val_labels: str | os.PathLike[str] | None = None) -> Tree:
    """List the entries of a folder of class folders, or of a folder of images with labels in a file.

    Raises
    ------
    ValueError
        `root` is not a folder or has no class folders, or `val_labels` does not match the images.
    """
    if val_labels is not None:
        return list_labelled(root, Path(val_labels))
    tree = list_tree(root)
    _require_classes(root, tree)
    return tree


def list_class_folders(root: Path) -> list[str]:
    """List the names of the class folders, sorted.

    Raises
    ------
    ValueError
        `root` is not a folder, or has no class folders.
    """
    tree = list_classes(root)
    _require_classes(root, tree)
    return tree.classes


def _require_classes(root: Path, tree: Tree) -> None:
    if tree.classes:
        return
    if count := tree.left_out[STRAY_IMAGE]:
        raise ValueError(
            f"{shown(root)} must have one folder per class; got {count} images and no folders. Move the"
            f" images into class folders, or give labels for val/ as --val-labels: {ACCEPTED}"
        )
    raise ValueError(f"{shown(root)} must have one folder per class; got no folders")


def _find_split_list(folder: Path, split: str) -> Path:
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            "--file-list must be a folder with train.txt and val.txt, as written by python -m"
            f" pipelines.check; got {shown(folder)} without {path.name}"
        )
    return path


def _select_listed(listing: ImageFolder, path: Path) -> ImageFolder:
    """Keep the images of `listing` that are in the file list `path`, in its order."""
    # Looking up lines in the listing saves a system call for each.
    known = dict(zip(listing.files, listing.labels, strict=True))
    files: list[str] = []
    labels: list[int] = []
    lines: dict[str, int] = {}
    # As bytes: a name may contain characters that text files treat as line breaks.
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{shown(path)}, line {number}"
            if not line.strip():
                continue
            # A name may contain spaces, even at the start; the label follows the last one.
            *head, tail = line.rsplit(None, 1)
            name, last = os.fsdecode(b"".join(head)), os.fsdecode(tail)
            if not name:
                raise ValueError(f"{where}: the line must be 'class/image label'; got {shown(last)!r}")
            if not (last.isascii() and last.isdigit()):
                raise ValueError(f"{where}: the label at the end must be an integer; got {shown(last)!r}")
            label = int(last)
            if label >= len(listing.classes):
                raise ValueError(
                    f"{where}: the label must be in [0, {len(listing.classes)}), the class folders of"
                    f" {listing}; got {label}"
                )
            if name not in known:
                raise ValueError(f"{where}: the image must be in {listing}; got {shown(name)}")
            if known[name] != label:
                raise ValueError(
                    f"{where}: the label of {shown(name)} must be {known[name]}, the position of its class"
                    f" folder; got {label} (a class folder was added or removed after the list was written)"
                )
            if name in lines:
                raise ValueError(
                    f"{where}: images must be listed once; got {shown(name)}, also in line {lines[name]}"
                )
            lines[name] = number
            files.append(name)
            labels.append(label)
    if not files:
        raise ValueError(f"file list {shown(path)} must have at least one image; got none")
    return dataclasses.replace(listing, files=files, labels=labels)
