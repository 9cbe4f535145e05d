"""Class folders on disk: what is in them, checked before anything is decoded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .shuffling import READER, training_order
from .sources import Order, substitutes

if TYPE_CHECKING:
    from nvidia.dali.pipeline import DataNode

# What DALI's decoders read; case does not matter.
EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pnm", ".ppm", ".jp2")


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split, a :class:`.sources.Source`.

    Attributes
    ----------
    root : Path
        The folder of class folders.
    classes : tuple of str
        Names of the class folders, sorted; the position is the class id.
    files : list of str
        Paths below `root`, sorted by class.
    labels : list of int
        Class id of every file.
    stand_ins : frozenset of int
        Positions where another file stands in for one that cannot be decoded; see :meth:`without`.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]
    stand_ins: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.files)

    def __str__(self) -> str:
        return str(self.root)

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[DataNode, ...]:
        """See :meth:`.sources.Source.read`; DALI's file reader, which takes the paths as a list."""
        from nvidia.dali import fn, types

        classes = len(self.classes)
        listed = training_order(len(self), order.seed) if order.shuffle else range(len(self))
        encoded, labels = fn.readers.file(
            file_root=str(self.root),
            files=[self.files[i] for i in listed],
            # A label is all that the reader hands on: that of a stand-in is higher than those of the classes.
            labels=[self.labels[i] + classes * (int(i) in self.stand_ins) for i in listed],
            shard_id=order.shard.index,
            num_shards=order.shard.count,
            pad_last_batch=True,
            shuffle_after_epoch=order.shuffle,
            stick_to_shard=not order.shuffle,
            name=READER,
        )
        if not report_stand_ins:
            return encoded, labels
        kept = fn.cast(labels < classes, dtype=types.INT32)
        return encoded, labels - classes * (1 - kept), kept

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
        """The path of a file."""
        return str(self.root / self.files[position])

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
) -> tuple[ImageFolder, ImageFolder]:
    """List ``train/`` and ``val/`` of a dataset and check that they belong together.

    Parameters
    ----------
    data_dir : path
        A folder with ``train/`` and ``val/`` in it.
    file_list : path, optional
        A folder with ``train.txt`` and ``val.txt``, which name the images to take; see :func:`list_images`.
    all_classes : bool
        Whether ``val/`` must have all classes of ``train/``; otherwise some are enough.

    Raises
    ------
    ValueError
        A folder is missing or empty, the splits have different classes, or a file list does not fit; the
        message names it.
    """
    for split in ("train", "val"):
        _require_split(Path(data_dir), split)  # both before the listing of either, which may take long
    train, val = (list_split(data_dir, split, file_list) for split in ("train", "val"))
    for name, missing in (
        ("val", sorted(set(train.classes) - set(val.classes))),
        ("train", sorted(set(val.classes) - set(train.classes))),
    ):
        if missing and (all_classes or name == "train"):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                "train/ and val/ must hold the same classes (--absent-classes takes a val/ with some);"
                f" {Path(data_dir) / name} lacks {missing[0]}{more}"
            )
    return train, val


def list_split(
    data_dir: str | os.PathLike[str], split: str, file_list: str | os.PathLike[str] | None = None
) -> ImageFolder:
    """List ``train/`` or ``val/`` of a dataset; arguments and errors are those of :func:`check_dataset`."""
    data_dir = Path(data_dir)
    _require_split(data_dir, split)
    return list_images(data_dir / split, None if file_list is None else _split_list(Path(file_list), split))


def _require_split(data_dir: Path, split: str) -> None:
    if not data_dir.is_dir():
        raise ValueError(f"--data must be a folder with train/ and val/ in it; there is no folder {data_dir}")
    if not (data_dir / split).is_dir():
        found = ", ".join(sorted(entry.name for entry in data_dir.iterdir())[:5]) or "nothing"
        raise ValueError(f"--data must hold train/ and val/; {data_dir} has no {split}/ (it holds {found})")


def list_images(root: str | os.PathLike[str], file_list: str | os.PathLike[str] | None = None) -> ImageFolder:
    """List a folder of class folders.

    Parameters
    ----------
    root : path
        One folder per class, images directly in it. Names that start with a dot are passed over.
    file_list : path, optional
        A text file with the images to take, one ``class/name label`` a line, in this order (what DALI's
        ``fn.readers.file`` takes as ``file_list``). The label is the position of the class folder.

    Returns
    -------
    ImageFolder

    Raises
    ------
    ValueError
        `root` is no folder, holds no class folders, or a class folder holds no images; or a line of
        `file_list` is not as expected, and the message says which.
    """
    root = Path(root)
    classes = class_folders(root)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images, _ = image_names(root / name)
        if not images:
            raise ValueError(f"class folder {root / name} holds no images ({' '.join(EXTENSIONS)})")
        files += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
    listing = ImageFolder(root, tuple(classes), files, labels)
    return listing if file_list is None else _restricted(listing, Path(file_list))


def _split_list(folder: Path, split: str) -> Path:
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            "--file-list must be a folder with train.txt and val.txt, as python -m pipelines.check writes"
            f" them; there is no file {path}"
        )
    return path


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, sorted.

    Raises
    ------
    ValueError
        `root` is no folder, or holds none.
    """
    if not root.is_dir():
        raise ValueError(f"expected a folder of class folders; there is no folder {root}")
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"expected one folder per class in {root}; it holds no folders")
    return classes


def image_names(folder: Path) -> tuple[list[str], list[str]]:
    """What has the name of an image in a class folder, sorted: the files, and what is no file."""
    with os.scandir(folder) as entries:
        named = [
            (entry.name, entry.is_file())
            for entry in entries
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
        ]
    named.sort()
    return [name for name, is_file in named if is_file], [name for name, is_file in named if not is_file]


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
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            # A name may begin with a space and hold others; the label is what follows the last.
            *head, tail = line.rsplit(None, 1)
            name, last = os.fsdecode(b"".join(head)), os.fsdecode(tail)
            if not name:
                raise ValueError(f"{where}: expected 'class/image label'; got {last!r}")
            if not (last.isascii() and last.isdigit()):
                raise ValueError(f"{where}: expected an integer label at the end of the line; got {last!r}")
            label = int(last)
            if label >= len(listing.classes):
                raise ValueError(
                    f"{where}: expected a label in [0, {len(listing.classes)}), the class folders of"
                    f" {listing.root}; got {label}"
                )
            if name not in known:
                raise ValueError(f"{where}: expected an image in {listing.root}; there is no {name}")
            if known[name] != label:
                raise ValueError(
                    f"{where}: expected label {known[name]}, the position of the class folder of {name}; got"
                    f" {label} (a class folder has come or gone since the list was written)"
                )
            if name in lines:
                raise ValueError(f"{where}: expected every image once; {name} is in line {lines[name]} too")
            lines[name] = number
            files.append(name)
            labels.append(label)
    if not files:
        raise ValueError(f"expected at least one image in the file list {path}; it is empty")
    return ImageFolder(listing.root, listing.classes, files, labels)
