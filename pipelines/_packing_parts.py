"""The images that packing copies, what became of each, and the report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from ._decoding import UNSURE
from ._packing import Packed, Task
from .cifar import find_cifar
from .formats import FORMATS
from .listing import describe, list_classes, list_flat
from .names import shown

_MAX_SHOWN = 10  # findings of a kind on the terminal
_JPEG_EXTENSIONS = next(form.extensions for form in FORMATS if form.name == "JPEG")


class Part:
    """The images below one folder, and what became of each."""

    def __init__(self, name: str, source: Path, target: Path) -> None:
        self.name, self.source, self._target = name, source, target
        listed = list_flat(source)
        self.classes = list_classes(source).classes  # empty ones have class ids too
        self.images, self.unusable, self.left_out = listed.images, listed.unusable, dict(listed.left_out)
        count = len(self.images)
        self.done = np.zeros(count, bool)
        self.shrunk = np.zeros(count, bool)
        self.ours = np.zeros(count, bool)  # the target was written by packing
        self.sizes = np.zeros((count, 2), np.int64)  # before and after
        self.errors: dict[int, str] = {}
        self.whole: dict[int, str] = {}

    def item(self, position: int) -> Task:
        """What a process needs for an image."""
        image = self.images[position]
        return Task(
            os.path.join(self.source, image), os.path.join(self._target, image), bool(self.ours[position])
        )

    def shown(self, position: int) -> str:
        """The path of an image below SRC, for messages and the state."""
        image = self.images[position]
        return shown(f"{self.name}/{image}" if self.name else image)

    def store(self, position: int, packed: Packed) -> None:
        self.done[position] = True
        self.ours[position] |= packed.packed_size != UNSURE
        self.shrunk[position] = packed.shrunk
        self.sizes[position] = max(packed.size, 0), max(packed.packed_size, 0)
        for kind, reason in ((self.errors, packed.error), (self.whole, packed.whole)):
            kind.pop(position, None)
            if reason is not None:
                kind[position] = reason

    def restore(self, position: int, packed: Packed) -> None:
        """Store an earlier result, if neither the source nor the target has changed since."""
        task = self.item(position)
        self.ours[position], self.done[position] = True, False
        try:
            source, size = os.stat(task.source), os.stat(task.target).st_size
        except OSError:
            return
        if (source.st_size, source.st_mtime_ns, size) == (packed.size, packed.mtime_ns, packed.packed_size):
            self.store(position, packed)

    def make_class_folders(self) -> None:
        for name in self.classes:
            (self._target / name).mkdir(parents=True, exist_ok=True)


def find_parts(source: Path, target: Path) -> list[Part]:
    if not source.is_dir():
        raise ValueError(f"SRC must be an existing folder; got {shown(source)}")
    if find_cifar(source):
        raise ValueError(f"SRC must have image files; got {shown(source)} with CIFAR's binary files")
    present = [name for name in ("train", "val") if (source / name).is_dir()]
    if len(present) == 1:
        missing = "val" if present == ["train"] else "train"
        raise ValueError(
            f"SRC must have both train/ and val/, or class folders; got {shown(source)} without {missing}/"
            f" (to pack one of them, give {shown(source / present[0])})"
        )
    roots = [source / name for name in present] or [source]
    _require_apart(source, target, roots)
    parts = [Part(name, root, target / name) for name, root in zip(present or [""], roots, strict=True)]
    if not any(len(part.images) or part.unusable for part in parts):
        raise ValueError(f"SRC must have images; got none in {shown(source)}")
    return parts


def _require_apart(source: Path, target: Path, roots: list[Path]) -> None:
    """Raise ValueError if DST is SRC, or in it, or in a folder that it links to."""
    place = target.resolve()
    folders = [entry for root in roots for entry in root.iterdir() if entry.is_symlink() and entry.is_dir()]
    for folder in (source, *roots, *folders):
        real = folder.resolve()
        if place == real or real in place.parents:
            raise ValueError(f"DST must be outside SRC; got {shown(target)}, which is in {shown(folder)}")


def format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# -- The report ------------------------------------------------------------------------------------------


def make_report(parts: list[Part], gone: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, the counts, and everything that a user should know of."""
    unusable = {
        shown(f"{part.name}/{path}" if part.name else path): reason
        for part in parts
        for path, reason in part.unusable.items()
    }
    unusable |= {part.shown(i): part.errors[i] for part in parts for i in sorted(part.errors)}
    return {
        **settings,
        "pillow": PIL.__version__,
        "parts": {
            part.name or ".": {
                "images": len(part.images),
                "shrunk": int(part.shrunk.sum()),
                "copied": int((part.ours & ~part.shrunk).sum()),
                "bytes_before": int(part.sizes[:, 0].sum()),
                "bytes_after": int(part.sizes[:, 1].sum()),
                "left_out": part.left_out,
            }
            for part in parts
        },
        "unusable": unusable,
        "large_but_copied": {part.shown(i): part.whole[i] for part in parts for i in sorted(part.whole)},
        "no_longer_in_source": gone,
        "not_copied": _list_beside(parts),
    }


def _list_beside(parts: list[Part]) -> list[str]:
    """What is beside train/ and val/, such as labels."""
    names = {part.name for part in parts}
    if names == {""}:
        return []
    return sorted(shown(name) for name in {*os.listdir(parts[0].source.parent)} - names)


def report_lines(report: dict[str, Any], parts: list[Part], path: Path) -> Iterator[str]:
    """The report for the terminal; `path` is that of the file."""
    for name, numbers in report["parts"].items():
        yield (
            f"{name}: {numbers['images']} images,"
            f" {numbers['shrunk']} made smaller, {numbers['copied']} copied;"
            f" {format_bytes(numbers['bytes_before'])} -> {format_bytes(numbers['bytes_after'])}"
        )
        if left_out := describe(numbers["left_out"]):
            yield f"{name}: skipped: {left_out}"
    if renamed := sum(
        int(part.shrunk[i])
        for part in parts
        for i, image in enumerate(part.images)
        if os.path.splitext(image)[1].lower() not in _JPEG_EXTENSIONS
    ):
        yield f"{renamed} files with names of other formats are JPEG now, which DALI sees by the content."
    for kind, said in (
        ("unusable", "cannot be used, and are copied as they are if they can be read"),
        ("large_but_copied", "are large but copied"),
        ("no_longer_in_source", "were packed earlier and are no longer in SRC; they remain in DST"),
        ("not_copied", "beside train/ and val/ are not copied"),
    ):
        found = report[kind]
        if found:
            yield f"{len(found)} {said}:"
            names = [f"{name}: {found[name]}" for name in found] if isinstance(found, dict) else found
            yield from (f"  {name}" for name in names[:_MAX_SHOWN])
            if len(names) > _MAX_SHOWN:
                yield f"  and {len(names) - _MAX_SHOWN} more"
    yield f"Report: {shown(path)}"
