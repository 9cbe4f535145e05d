"""The files that a check decodes, the result for each, and the report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali

from ._decoding import DIGEST_BYTES, Item, Result, read_content
from .cifar import CifarRecords, Version, find_cifar, list_cifar
from .folders import ImageFolder, find_images
from .listing import describe
from .names import normalize_unicode, shown

_MAX_SHOWN = 10  # findings of a kind on the terminal


@dataclass
class Split:
    """The files of a folder of class folders, or the records of CIFAR's files, and the results so far."""

    name: str
    root: Path
    classes: list[str]
    files: list[str]
    labels: list[int]
    unusable: dict[str, str]  # paths that might lead to images but cannot be listed
    left_out: dict[str, int]  # counts of other entries
    errors: dict[int, str] = field(default_factory=dict)
    warnings: dict[int, tuple[str, ...]] = field(default_factory=dict)
    records: CifarRecords | None = None

    def __post_init__(self) -> None:
        # Arrays, since there may be millions of files.
        self.done = np.zeros(len(self.files), bool)
        self.digests = np.zeros((len(self.files), DIGEST_BYTES), np.uint8)

    def store(self, position: int, result: Result) -> None:
        self.done[position] = True
        if result.digest:
            self.digests[position] = np.frombuffer(bytes.fromhex(result.digest), np.uint8)
        if result.error is not None:
            self.errors[position] = result.error
        if result.warnings:
            self.warnings[position] = result.warnings

    def item(self, position: int) -> Item:
        """What to decode: the path of a file, or a record."""
        if self.records is None:
            return self.path(position)
        status = self.status(position)
        content = self.records.encoded(position)
        return read_content(self.shown(position), content, status.st_size, status.st_mtime_ns)

    def path(self, position: int) -> str:
        """The path of a file, or of the one with a record."""
        name = self.files[position]
        return str(self.root / (name if self.records is None else name.rpartition(":")[0]))

    def status(self, position: int) -> os.stat_result:
        """The status of that file, which shows whether it has changed."""
        return os.stat(self.path(position))

    def shown(self, position: int) -> str:
        """The path of a file below the folder, for messages."""
        return shown(self.files[position])

    def images(self) -> ImageFolder | None:
        """The files that decode, as a source; None for CIFAR's records."""
        if self.records is not None:
            return None
        fine = self.usable()
        files, labels = [self.files[position] for position in fine], [self.labels[p] for p in fine]
        return ImageFolder(self.root, tuple(self.classes), files, labels)

    def usable(self) -> np.ndarray:
        """Positions of the files that decode."""
        fine = self.done.copy()
        fine[list(self.errors)] = False
        return np.flatnonzero(fine)


def _list_split(name: str, root: Path, val_labels: Path | None = None) -> Split:
    tree = find_images(root, val_labels)
    files: list[str] = []
    labels: list[int] = []
    unusable = dict(tree.unusable)
    for path, label in zip(tree.images, tree.labels, strict=True):
        if "\n" in path:
            unusable[path] = "line break in the name, which a file list cannot hold"
        else:
            files.append(path)
            labels.append(label)
    return Split(name, root, tree.classes, files, labels, unusable, dict(tree.left_out))


def _list_records(folder: Path, version: Version, split: str) -> Split:
    records = list_cifar(folder, version, split, allow_empty_classes=True)  # the report has the empty ones
    names = [f"{name}:{number}" for name, count in records.counts.items() for number in range(count)]
    return Split(split, folder, list(records.classes), names, list(records.labels), {}, {}, records=records)


def find_splits(folder: Path, val_labels: Path | None = None) -> list[Split]:
    if not folder.is_dir():
        raise ValueError(f"DIR must be an existing folder; got {shown(folder)}")
    if found := find_cifar(folder):
        if val_labels is not None:
            raise ValueError(
                f"--val-labels must not be given for CIFAR's binary files; got {shown(val_labels)}"
            )
        return [_list_records(*found, split) for split in ("train", "val")]
    present = [name for name in ("train", "val") if (folder / name).is_dir()]
    if len(present) == 1:
        missing = "val" if present == ["train"] else "train"
        raise ValueError(
            f"DIR must have both train/ and val/, or class folders; got {shown(folder)} without {missing}/"
            f" (to check one of them, give {shown(folder / present[0])})"
        )
    if present:
        splits = [_list_split(name, folder / name, val_labels if name == "val" else None) for name in present]
    else:
        splits = [_list_split(shown(folder.resolve().name), folder, val_labels)]
    if not any(split.files or split.unusable for split in splits):
        raise ValueError(f"DIR must have images in its class folders; got none in {shown(folder)}")
    return splits


# -- The report ------------------------------------------------------------------------------------------


def _group_by_content(splits: list[Split]) -> list[list[tuple[int, int]]]:
    """Groups of files (split, position) that decode and have the same bytes."""
    positions = [split.usable() for split in splits]
    owners = np.concatenate([np.full(len(usable), i) for i, usable in enumerate(positions)])
    places = np.concatenate(positions)
    keys = np.concatenate([split.digests[usable] for split, usable in zip(splits, positions, strict=True)])
    halves = keys.view(np.uint64).reshape(-1, 2)
    order = np.lexsort((places, owners, halves[:, 1], halves[:, 0]))
    starts = np.ones(len(order), bool)
    starts[1:] = (halves[order[1:]] != halves[order[:-1]]).any(1)
    firsts = np.flatnonzero(starts)
    sizes = np.diff(np.append(firsts, len(order)))
    groups = [
        [(int(owners[i]), int(places[i])) for i in order[first : first + size]]
        for first, size in zip(firsts[sizes > 1], sizes[sizes > 1], strict=True)
    ]
    return sorted(groups)


def make_report(splits: list[Split], folder: Path, *, allow_empty_classes: bool = False) -> dict[str, Any]:
    """All findings. The report does not depend on when or how often the check was interrupted."""
    shared, within = [], {split.name: {"groups": 0, "files": 0} for split in splits}
    relabelled = []
    for group in _group_by_content(splits):
        named = {split.name: [split.shown(p) for i, p in group if splits[i] is split] for split in splits}
        if all(named.values()) and len(named) > 1:
            shared.append(named)
        for name, files in named.items():
            within[name]["groups"] += len(files) > 1
            within[name]["files"] += max(len(files) - 1, 0)
        if len({splits[i].classes[splits[i].labels[p]] for i, p in group}) > 1:
            relabelled.append([f"{splits[i].name}/{splits[i].shown(p)}" for i, p in group])
    unusable = {
        split.name: dict(
            sorted(
                {
                    **{shown(path): reason for path, reason in split.unusable.items()},
                    **{split.shown(p): error for p, error in split.errors.items()},
                }.items()
            )
        )
        for split in splits
    }
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for split in splits:
        labels = np.array(split.labels, np.int64)
        total = np.bincount(labels, minlength=len(split.classes))
        fine = np.bincount(labels[split.usable()], minlength=len(split.classes))
        counts[split.name] = {
            shown(name): {"files": int(total[i]), "decoded": int(fine[i])}
            for i, name in enumerate(split.classes)
        }
    classes = [{normalize_unicode(name): name for name in split.classes} for split in splits]
    known = {key: name for own in classes for key, name in own.items()}
    missing = {
        split.name: sorted(shown(known[key]) for key in known.keys() - own.keys())
        for split, own in zip(splits, classes, strict=True)
    }
    empty = {
        name: [label for label, count in content.items() if not count["decoded"]]
        for name, content in counts.items()
    }
    found = sum(map(len, unusable.values())) + len(shared)
    found += sum(map(len, missing.values()))
    found += 0 if allow_empty_classes else sum(map(len, empty.values()))
    return {
        "folder": shown(folder.resolve()),
        "dali": nvidia.dali.__version__,
        "found": found,
        "files": {split.name: len(split.files) for split in splits},
        "decoded": {split.name: len(split.usable()) for split in splits},
        "unusable": unusable,
        "left_out": {split.name: split.left_out for split in splits},
        "in_train_and_val": shared,
        "missing_classes": missing,
        "empty_classes": empty,
        "duplicates_within": within,
        "same_content_other_class": relabelled,
        "warnings": {
            split.name: {split.shown(p): split.warnings[p] for p in sorted(split.warnings)}
            for split in splits
        },
        "classes": counts,
    }


def report_lines(report: dict[str, Any], output: Path, *, lists: bool = True) -> Iterator[str]:
    """The report for the terminal."""
    for name, files in report["files"].items():
        unusable = report["unusable"][name]
        yield (
            f"{name}: {files} images in {len(report['classes'][name])} classes, {len(unusable)} cannot be"
            f" used, {len(report['warnings'][name])} with warnings,"
            f" {report['duplicates_within'][name]['files']} duplicates"
        )
        yield from _shorten([f"{name}/{file}: {reason}" for file, reason in unusable.items()])
        if left_out := describe(report["left_out"][name]):
            yield f"{name}: skipped: {left_out}"
        if missing := report["missing_classes"][name]:
            yield f"{name} has no folders for classes: {' '.join(missing[:_MAX_SHOWN])}"
        if empty := report["empty_classes"][name]:
            yield f"{name} has no usable images in classes: {' '.join(empty[:_MAX_SHOWN])}"
    if shared := report["in_train_and_val"]:
        yield f"{len(shared)} images are in both train and val:"
        yield from _shorten([f"train/{group['train'][0]} = val/{group['val'][0]}" for group in shared])
    if relabelled := report["same_content_other_class"]:
        yield f"{len(relabelled)} images are in several classes:"
        yield from _shorten([" = ".join(group) for group in relabelled])
    yield f"Report{' and file lists' if lists else ''}: {shown(output)}"


def _shorten(items: list[str]) -> list[str]:
    rest = [f"  and {len(items) - _MAX_SHOWN} more"] if len(items) > _MAX_SHOWN else []
    return [f"  {item}" for item in items[:_MAX_SHOWN]] + rest
