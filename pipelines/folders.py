"""Class folders on disk: what is in them, checked before anything is decoded."""

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
from .names import positions, shown
from .shuffling import READER, training_order
from .sources import Order, substitutes
from .val_labels import ACCEPTED, list_labelled

if TYPE_CHECKING:
    from nvidia.dali.pipeline import DataNode


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split, a :class:`.sources.Source`.

    Attributes
    ----------
    root : Path
        The folder of class folders.
    classes : tuple of str
        Names of the classes; the position is the class id.
    files : list of str
        Paths below `root`, sorted by class where there are class folders.
    labels : list of int
        Class id of every file.
    stand_ins : frozenset of int
        Positions where another file stands in for one that cannot be decoded; see :meth:`without`.
    left_out : mapping
        How many other entries the folder holds, by extension or by what they are.
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
        """See :meth:`.sources.Source.read`; DALI's file reader, which takes the paths as a list."""
        from nvidia.dali import fn, types

        classes = len(self.classes)
        listed = training_order(len(self), order.seed) if order.shuffle else range(len(self))
        encoded, labels = fn.readers.file(
            file_root=utf8_path(str(self.root)),
            files=[self._readable(self.files[i]) for i in listed],
            # A label is all that the reader hands on: that of a stand-in is higher than those of the classes.
            labels=[self.labels[i] + classes * (int(i) in self.stand_ins) for i in listed],
            shard_id=order.shard.index,
            num_shards=order.shard.count,
            pad_last_batch=True,
            shuffle_after_epoch=order.shuffle,
            stick_to_shard=not order.shuffle,
            # A file that is cut while it is mapped ends the process (SIGBUS); reading it is no slower.
            dont_use_mmap=True,
            name=READER,
        )
        if not report_stand_ins:
            return encoded, labels
        kept = fn.cast(labels < classes, dtype=types.INT32)
        return encoded, labels - classes * (1 - kept), kept

    def _readable(self, file: str) -> str:
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
        from .upcoming import upcoming

        return upcoming(
            len(self),
            checkpoint,
            batches=batches,
            batch_size=order.batch_size,
            shard=order.shard,
            seed=order.seed,
        )

    def name(self, position: int) -> str:
        """The path of a file, legibly."""
        return shown(self.root / self.files[position])

    def encoded(self, position: int) -> bytes:
        """The content of a file."""
        return (self.root / self.files[position]).read_bytes()

    def without(self, bad: Iterable[int]) -> ImageFolder:
        """See :meth:`.sources.Source.without`."""
        gone = self.stand_ins.union(bad)
        files, labels = list(self.files), list(self.labels)
        for position, other in substitutes(self, gone).items():
            files[position], labels[position] = self.files[other], self.labels[other]
        return dataclasses.replace(self, files=files, labels=labels, stand_ins=gone)

    @property
    def labels_present(self) -> frozenset[int]:
        """See :attr:`.sources.Source.labels_present`."""
        return frozenset(self.labels)

    def digest(self) -> str:
        """SHA-256 of the classes, files and labels, wherever the folder lies."""
        listing = json.dumps([self.classes, self.files, self.labels], separators=(",", ":"))
        return hashlib.sha256(listing.encode()).hexdigest()


def split_folder(data_dir: str | os.PathLike[str], split: str) -> Path:
    """The folder of class folders: ``data_dir/split`` where it exists, else `data_dir` itself."""
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
    """List ``train/`` and ``val/`` of a dataset and check that they belong together.

    Classes are matched by name, in whichever Unicode form. Where ``val/`` has all of them, they are numbered
    as those of the training images; where it has some, by themselves.

    Parameters
    ----------
    data_dir : path
        A folder with ``train/`` and ``val/`` in it.
    file_list : path, optional
        A folder with ``train.txt`` and ``val.txt``, which name the images to take; see :func:`list_images`.
    all_classes : bool
        Whether ``val/`` must have all classes of ``train/``; otherwise some are enough.
    val_labels : path, optional
        The labels of a ``val/`` without class folders; see :func:`.val_labels.list_labelled`.
    allow_empty_classes : bool
        Take classes without images; see :func:`list_images`.

    Raises
    ------
    ValueError
        A folder is missing or empty, the splits have different classes, or a list of images or labels does
        not fit; the message names it.
    """
    for split in ("train", "val"):
        _require_split(Path(data_dir), split)  # both before the listing of either, which may take long
    train, val = (
        list_split(data_dir, split, file_list, val_labels=labels, allow_empty_classes=allow_empty_classes)
        for split, labels in (("train", None), ("val", val_labels))
    )
    places = positions(val.classes, train.classes)
    unknown = [name for name, place in zip(val.classes, places, strict=True) if place is None]
    present = set(places)
    absent = [name for place, name in enumerate(train.classes) if place not in present]
    for split, missing in (("val", absent), ("train", unknown)):
        if missing and (all_classes or split == "train"):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                "train/ and val/ must hold the same classes (--absent-classes takes a val/ with some);"
                f" {shown(Path(data_dir) / split)} lacks"
                f" {shown(missing[0])}{more}"
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
    """List ``train/`` or ``val/`` of a dataset; arguments and errors are those of :func:`check_dataset`."""
    data_dir = Path(data_dir)
    _require_split(data_dir, split)
    return list_images(
        data_dir / split,
        None if file_list is None else _split_list(Path(file_list), split),
        val_labels=val_labels,
        allow_empty_classes=allow_empty_classes,
    )


def _require_split(data_dir: Path, split: str) -> None:
    if not data_dir.is_dir():
        raise ValueError(
            f"--data must be a folder with train/ and val/ in it; there is no folder {shown(data_dir)}"
        )
    if not (data_dir / split).is_dir():
        found = ", ".join(sorted(shown(entry.name) for entry in data_dir.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"--data must hold train/ and val/; {shown(data_dir)} has no {split}/ (it holds {found})"
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
        One folder per class, images in it at any depth. Names that start with a dot, and folders that
        systems add, are passed over.
    file_list : path, optional
        A text file with the images to take, one ``class/name label`` a line, in this order (what DALI's
        ``fn.readers.file`` takes as ``file_list``). The label is the position of the class folder.
    val_labels : path, optional
        The labels of images without class folders; see :func:`.val_labels.list_labelled`.
    allow_empty_classes : bool
        Take class folders without images, which have a class id as all others have.

    Returns
    -------
    ImageFolder

    Raises
    ------
    ValueError
        `root` is no folder, holds no class folders, or a class folder holds no images; or a line of
        `file_list` or `val_labels` is not as expected, and the message says which.
    """
    root = Path(root)
    tree = find_images(root, val_labels)
    if tree.empty and not allow_empty_classes:
        more = f" (nor do {len(tree.empty) - 1} others)" if len(tree.empty) > 1 else ""
        left_out = f"; left out of {shown(root)}: {describe(tree.left_out)}" if tree.left_out else ""
        raise ValueError(
            f"class folder {shown(root / tree.empty[0])} holds no images{more}{left_out}."
            " --allow-empty-classes keeps classes without images"
        )
    if not tree.images:
        raise ValueError(f"expected images in the class folders of {shown(root)}; there are none")
    listing = ImageFolder(root, tuple(tree.classes), tree.images, tree.labels, left_out=dict(tree.left_out))
    return listing if file_list is None else _restricted(listing, Path(file_list))


def find_images(root: Path, val_labels: str | os.PathLike[str] | None = None) -> Tree:
    """What lies in a folder of class folders, or of images with labels in a file.

    Raises
    ------
    ValueError
        `root` is no folder or holds no class folders, or `val_labels` does not fit.
    """
    if val_labels is not None:
        return list_labelled(root, Path(val_labels))
    tree = list_tree(root)
    _require_classes(root, tree)
    return tree


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, sorted.

    Raises
    ------
    ValueError
        `root` is no folder, or holds none.
    """
    tree = list_classes(root)
    _require_classes(root, tree)
    return tree.classes


def _require_classes(root: Path, tree: Tree) -> None:
    if tree.classes:
        return
    if count := tree.left_out[STRAY_IMAGE]:
        raise ValueError(
            f"expected one folder per class in {shown(root)}; it holds {count} images and no folders. Move"
            f" the images into class folders, or give labels of val/ as --val-labels: {ACCEPTED}"
        )
    raise ValueError(f"expected one folder per class in {shown(root)}; it holds no folders")


def _split_list(folder: Path, split: str) -> Path:
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            "--file-list must be a folder with train.txt and val.txt, as python -m pipelines.check writes"
            f" them; there is no file {shown(path)}"
        )
    return path


def _restricted(listing: ImageFolder, path: Path) -> ImageFolder:
    """The images of `listing` that the file list `path` names, in its order."""
    # The listing is at hand: looking a line up in it spares a system call for each.
    known = dict(zip(listing.files, listing.labels, strict=True))
    files: list[str] = []
    labels: list[int] = []
    lines: dict[str, int] = {}
    # As bytes: a name may hold what other places take for the end of a line.
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{shown(path)}, line {number}"
            if not line.strip():
                continue
            # A name may begin with a space and hold others; the label is what follows the last.
            *head, tail = line.rsplit(None, 1)
            name, last = os.fsdecode(b"".join(head)), os.fsdecode(tail)
            if not name:
                raise ValueError(f"{where}: expected 'class/image label'; got {shown(last)!r}")
            if not (last.isascii() and last.isdigit()):
                raise ValueError(
                    f"{where}: expected an integer label at the end of the line; got {shown(last)!r}"
                )
            label = int(last)
            if label >= len(listing.classes):
                raise ValueError(
                    f"{where}: expected a label in [0, {len(listing.classes)}), the class folders of"
                    f" {listing}; got {label}"
                )
            if name not in known:
                raise ValueError(f"{where}: expected an image in {listing}; there is no {shown(name)}")
            if known[name] != label:
                raise ValueError(
                    f"{where}: expected label {known[name]}, the position of the class folder of"
                    f" {shown(name)}; got {label} (a class folder has come or gone since the"
                    " list was written)"
                )
            if name in lines:
                raise ValueError(
                    f"{where}: expected every image once; {shown(name)} is in line {lines[name]} too"
                )
            lines[name] = number
            files.append(name)
            labels.append(label)
    if not files:
        raise ValueError(f"expected at least one image in the file list {shown(path)}; it is empty")
    return dataclasses.replace(listing, files=files, labels=labels)
