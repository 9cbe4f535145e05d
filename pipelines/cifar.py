"""CIFAR's binary files: listed and checked before work starts, read record by record.

The files have raw pixels, plane by plane. A record becomes a PPM file in memory, a short header before its
pixels, so that the pipelines decode it like every other image, without loss.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .names import match_classes, shown
from .sources import Order, find_substitutes

if TYPE_CHECKING:
    import numpy as np
    from nvidia.dali.pipeline import DataNode

SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_HEADER = f"P6\n{SIDE} {SIDE}\n255\n".encode()


@dataclass(frozen=True)
class Version:
    """A published data set.

    Attributes
    ----------
    title : str
    folder : str
        The folder in its archive.
    names : str
        The file with a class name per line.
    train, val : tuple of str
        The files with the images of each split.
    label_bytes : int
        Bytes before the pixels of a record; the last of them is the label.
    """

    title: str
    folder: str
    names: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    label_bytes: int

    def files_of(self, split: str) -> tuple[str, ...]:
        """The files with the images of "train" or "val"."""
        return self.train if split == "train" else self.val

    @property
    def record_bytes(self) -> int:
        """Length of a record."""
        return self.label_bytes + _PIXELS


VERSIONS = (
    Version(
        "CIFAR-10",
        "cifar-10-batches-bin",
        "batches.meta.txt",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        ("test_batch.bin",),
        1,
    ),
    # The first label byte is the superclass.
    Version("CIFAR-100", "cifar-100-binary", "fine_label_names.txt", ("train.bin",), ("test.bin",), 2),
)
_PYTHON_VERSIONS = ("cifar-10-batches-py", "cifar-100-python")


@dataclass(frozen=True)
class CifarRecords:
    """The images of one split, a :class:`.sources.Source`.

    Attributes
    ----------
    folder : Path
    version : Version
    classes : tuple of str
        Class names; the position is the class id.
    counts : dict
        The number of records in each file, in the order of the positions.
    labels : bytes
        Class id of every record.
    stand_ins : frozenset of int
        Positions where another record replaces one that cannot be used; see :meth:`without`.
    left_out : mapping
        Empty: other files in the folder are not counted.
    """

    folder: Path
    version: Version
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    labels: bytes
    stand_ins: frozenset[int] = frozenset()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return shown(self.folder)

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[DataNode, ...]:
        """See :meth:`.sources.Source.read`; uses DALI's external source, without state."""
        from nvidia.dali import fn

        batches = _Batches(self, order, report_stand_ins)
        nodes: tuple[DataNode, ...] = tuple(
            fn.external_source(batches, num_outputs=2 + report_stand_ins, batch_info=True)
        )
        return nodes

    def upcoming(
        self, order: Order, *, batches: int, epoch: int, taken: int, checkpoint: bytes | None
    ) -> list[int]:
        """See :meth:`.sources.Source.upcoming`; the position in the epoch says all."""
        first = epoch * order.batches + taken
        return [position for number in range(first, first + batches) for position in order.positions(number)]

    def name(self, position: int) -> str:
        """The path of the file, and the number of the record in it, counted from 0."""
        name, record = self._place(self._substitutes.get(position, position))
        return f"{shown(self.folder / name)}:{record}"

    def encoded(self, position: int) -> bytes:
        """The image as a PPM file."""
        return bytes(self.encode([self._substitutes.get(position, position)])[0].tobytes())

    def encode(self, records: Sequence[int]) -> np.ndarray:
        """Read records as PPM files.

        The system keeps the files in memory, once for all processes. Reading a record from there takes
        microseconds and, unlike mapped memory, does not end the process if a file has become shorter.

        Returns
        -------
        ndarray
            uint8, a row for each record.

        Raises
        ------
        OSError
            A file cannot be read, is missing, or has become shorter.
        """
        import numpy as np

        raw = np.empty((len(records), _PIXELS), np.uint8)
        with contextlib.ExitStack() as stack:
            opened: dict[str, int] = {}
            for row, record in zip(raw, records, strict=True):
                name, number = self._place(record)
                if name not in opened:
                    # At every batch: after an outage of the storage, older descriptors may be stale.
                    opened[name] = stack.enter_context(self._open(name)).fileno()
                start = number * self.version.record_bytes + self.version.label_bytes
                if os.preadv(opened[name], [row.data], start) < _PIXELS:
                    raise self._error(name, "file has become shorter")
        encoded = np.empty((len(records), len(_HEADER) + _PIXELS), np.uint8)
        encoded[:, : len(_HEADER)] = np.frombuffer(_HEADER, np.uint8)
        planes = raw.reshape(len(records), 3, SIDE * SIDE)
        encoded[:, len(_HEADER) :] = planes.transpose(0, 2, 1).reshape(len(records), _PIXELS)
        return encoded

    def _open(self, name: str) -> Any:
        try:
            return open(self.folder / name, "rb", buffering=0)
        except FileNotFoundError:
            # A missing image file is a bad sample; a missing file with a fifth of the images is an outage.
            raise self._error(name, "no such file") from None

    def _error(self, name: str, reason: str) -> OSError:
        return OSError(errno.EIO, reason, str(self.folder / name))

    def _place(self, record: int) -> tuple[str, int]:
        """The file with a record, and its number in that file."""
        number = bisect.bisect_right(self._ends, record)
        return list(self.counts)[number], record - (self._ends[number - 1] if number else 0)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(self.counts.values()))

    @functools.cached_property
    def _substitutes(self) -> dict[int, int]:
        return find_substitutes(self, self.stand_ins) if self.stand_ins else {}

    def without(self, bad: Iterable[int]) -> CifarRecords:
        """See :meth:`.sources.Source.without`."""
        changed = dataclasses.replace(self, stand_ins=self.stand_ins.union(bad))
        find_substitutes(changed, changed.stand_ins)  # raises if no record is left
        return changed

    @property
    def labels_present(self) -> frozenset[int]:
        """See :attr:`.sources.Source.labels_present`."""
        return frozenset(self.labels)

    def digest(self) -> str:
        """SHA-256 of classes, files, labels and stand-ins; does not depend on the location of the folder."""
        listing = [self.classes, list(self.counts.items()), list(self.labels), sorted(self.stand_ins)]
        return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()


class _Batches:
    """The batches of an order, by their numbers."""

    def __init__(self, source: CifarRecords, order: Order, report_stand_ins: bool) -> None:
        self._source, self._order, self._report = source, order, report_stand_ins
        self._substitutes = source._substitutes

    def __call__(self, info: Any) -> tuple[np.ndarray, ...]:
        import numpy as np

        positions = self._order.positions(info.iteration)
        records = [self._substitutes.get(position, position) for position in positions]
        labels = np.array([[self._source.labels[record]] for record in records], np.int32)
        encoded = self._source.encode(records)
        if not self._report:
            return encoded, labels
        kept = np.array([[position not in self._substitutes] for position in positions], np.int32)
        return encoded, labels, kept


def find_cifar(data_dir: Path) -> tuple[Path, Version] | None:
    """Find CIFAR's binary files in a folder, or in the folder of the archive below it.

    A folder with train/ or val/ is a data set of class folders, whatever else is in it.

    Raises
    ------
    ValueError
        There are two data sets, or only CIFAR's Python version.
    """
    if (data_dir / "train").is_dir() or (data_dir / "val").is_dir():
        return None
    found = [
        (folder, version)
        for version in VERSIONS
        for folder in (data_dir, data_dir / version.folder)
        if _holds(folder, version)
    ]
    if len(found) > 1:
        (first, _), (second, _) = found[:2]
        raise ValueError(
            f"the data must be one data set; got {shown(data_dir)} with two: give"
            f" {shown(first)} or {shown(second)}"
        )
    for folder in (data_dir, *(data_dir / name for name in _PYTHON_VERSIONS)):
        if not found and folder.name in _PYTHON_VERSIONS and folder.is_dir():
            raise ValueError(
                f"CIFAR must be the binary version, {' or '.join(v.folder for v in VERSIONS)}; got"
                f" {shown(folder)}, the Python version (pickles can run code)"
            )
    return found[0] if found else None


def _holds(folder: Path, version: Version) -> bool:
    """Whether a folder has files of this version; one stray file beside class folders is not enough."""
    if not folder.is_dir():
        return False
    present = sum((folder / name).is_file() for name in (version.names, *version.train, *version.val))
    return present > 1 or (present == 1 and not any(entry.is_dir() for entry in folder.iterdir()))


def list_cifar(
    folder: Path, version: Version, split: str, *, allow_empty_classes: bool = False
) -> CifarRecords:
    """List the records of a split, after checking the files.

    Parameters
    ----------
    folder, version
        As :func:`find_cifar` returns them.
    split : {"train", "val"}
        "val" are the test images.
    allow_empty_classes : bool
        Accept classes without images.

    Raises
    ------
    ValueError
        A file is missing, does not hold whole records, or has a label without a class name; or a class has no
        images. The message names the file.
    """
    classes = read_cifar_classes(folder, version, *version.files_of(split))
    sizes: dict[str, int] = {}
    labels = b""
    for name in version.files_of(split):
        own = _read_labels(folder / name, version, len(classes))
        sizes[name] = len(own)
        labels += own
    counts = Counter(labels)
    empty = [name for label, name in enumerate(classes) if not counts[label]]
    if empty and not allow_empty_classes:
        more = f" (nor of {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise ValueError(
            f"{', '.join(sizes)} in {shown(folder)} must have images of every class; got none of"
            f" {shown(empty[0])}{more}. --allow-empty-classes accepts empty classes"
        )
    return CifarRecords(folder, version, classes, sizes, labels)


def read_cifar_classes(folder: Path, version: Version, *needed: str) -> tuple[str, ...]:
    """Read the class names of a data set that has the files `needed`.

    Raises
    ------
    ValueError
        A file is missing, or the one with the names has none, or one twice. The message names it.
    """
    missing = [name for name in (version.names, *needed) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{shown(folder)} must have the files of {version.title}'s binary version; got no"
            f" {', '.join(missing)}"
        )
    path = folder / version.names
    names = tuple(line.strip() for line in os.fsdecode(path.read_bytes()).splitlines() if line.strip())
    if not names:
        raise ValueError(f"{shown(path)} must have a class name per line; got none")
    try:
        match_classes(names, names)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}") from None
    return names


def _read_labels(path: Path, version: Version, classes: int) -> bytes:
    content = path.read_bytes()
    if not content or len(content) % version.record_bytes:
        raise ValueError(
            f"{shown(path)} must hold whole records of {version.record_bytes} bytes; got {len(content)} bytes"
        )
    labels = content[version.label_bytes - 1 :: version.record_bytes]
    if max(labels) >= classes:
        record = next(number for number, label in enumerate(labels) if label >= classes)
        raise ValueError(
            f"labels in {shown(path)} must be in [0, {classes}), the names in {version.names}; got"
            f" {labels[record]} in record {record}"
        )
    return labels
