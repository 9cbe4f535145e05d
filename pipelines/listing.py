"""List a folder of class folders: images at any depth, and other entries. No file is opened.

The first level is the class, and the images are in the order of torchvision's ``ImageFolder``. Only links
need a system call of their own.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .formats import EXTENSIONS
from .names import normalize_unicode, shown

# Folders added by operating systems and programs, in lower case. Names that start with a dot are skipped too.
_SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storage
        *("__macosx", "$recycle.bin", "system volume information", "lost+found"),
    )
)
_MAX_KINDS = 10  # in one line
_EXTENSION = re.compile(r"\.(?!\d+$)\w{1,10}", re.ASCII)
BROKEN_LINK, SPECIAL_FILE, STRAY_IMAGE, NO_EXTENSION = (
    "broken link",
    "special file",
    "stray image",  # beside the class folders
    "file without extension",
)


@dataclass
class Tree:
    """The contents of a folder of class folders.

    Attributes
    ----------
    classes : list of str
        Names of the class folders, sorted.
    images : list of str
        Paths of the images below the folder, by class.
    labels : list of int
        Position of each image's class in `classes`.
    empty : list of str
        Classes without images.
    unusable : dict
        The reason for each path that might lead to images but cannot be used.
    left_out : Counter
        Counts of entries that are not images, by extension or kind.
    """

    classes: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def list_tree(root: Path) -> Tree:
    """List a folder of class folders.

    Names that start with a dot, and folders added by operating systems, are skipped. Links are followed;
    broken and circular links are unusable.

    Raises
    ------
    ValueError
        `root` is not a folder, or two class folders have names that look the same.
    OSError
        A folder in it cannot be read.
    """
    tree = Tree()
    found = _read_classes(root, tree)
    for label, name in enumerate(tree.classes):
        images = _walk(os.path.join(root, name), name, found.folders[name], tree)
        tree.images += images
        tree.labels += [label] * len(images)
        if not images:
            tree.empty.append(name)
    return tree


def list_classes(root: Path) -> Tree:
    """Like :func:`list_tree`, but do not enter the class folders: a tree without images."""
    tree = Tree()
    _read_classes(root, tree)
    return tree


def list_flat(root: Path) -> Tree:
    """List a folder of images without classes, at any depth: a :class:`Tree` without labels."""
    tree = Tree()
    tree.images = _walk(str(root), "", (os.path.realpath(root),), tree)
    return tree


def describe(left_out: Mapping[str, int]) -> str:
    """Describe what was left out: "9 .avif, 3 .gif, 2 broken links"; empty if nothing was."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {_plural(kind) if count > 1 else kind}" for kind, count in ordered[:_MAX_KINDS]]
    if rest := sum(count for _, count in ordered[_MAX_KINDS:]):
        parts.append(f"{rest} of other kinds")
    return ", ".join(parts)


def _plural(kind: str) -> str:
    if kind.startswith("."):
        return kind
    return kind.replace("file", "files") if kind == NO_EXTENSION else f"{kind}s"


@dataclass
class _Folder:
    """Images of one folder, and its subfolders, each with the real paths of the folders links came from."""

    images: list[str] = field(default_factory=list)
    folders: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _read_classes(root: Path, tree: Tree) -> _Folder:
    if not root.is_dir():
        raise ValueError(f"the data must be a folder of class folders; got {shown(root)} (no such folder)")
    found = _read_folder(str(root), (os.path.realpath(root),), tree, "")
    # Other files beside the class folders, such as texts and archives, are not counted.
    tree.left_out = +Counter({STRAY_IMAGE: len(found.images), BROKEN_LINK: len(tree.unusable)})
    tree.classes = sorted(found.folders)
    _require_distinct(root, tree.classes)
    return found


def _walk(path: str, prefix: str, above: tuple[str, ...], tree: Tree) -> list[str]:
    """List the images in and below a folder, as `prefix` plus the path below it."""
    parts: list[tuple[str, list[str]]] = []
    waiting = [(path, prefix, above)]
    while waiting:
        path, prefix, above = waiting.pop()
        found = _read_folder(path, above, tree, prefix)
        found.images.sort()
        parts.append((prefix, found.images))
        for name, above_it in found.folders.items():
            waiting.append((os.path.join(path, name), _join(prefix, name), above_it))
    parts.sort()
    return [f"{prefix}/{image}" if prefix else image for prefix, images in parts for image in images]


def _read_folder(path: str, above: tuple[str, ...], tree: Tree, prefix: str) -> _Folder:
    found = _Folder()
    add_image = found.images.append
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            is_image = name[name.rfind(".") :].lower() in EXTENSIONS
            try:
                # The most frequent case first.
                if is_image and entry.is_file():
                    add_image(name)
                elif entry.is_dir():
                    if name.lower() in _SYSTEM_FOLDERS:
                        continue
                    if not entry.is_symlink():
                        found.folders[name] = above
                        continue
                    # Only links can form a circle, so real paths are needed only here.
                    here = (*above, os.path.realpath(path))
                    if _contains(os.path.realpath(entry.path), here):
                        _add_unusable(tree, _join(prefix, name), "link to a folder that contains it")
                    else:
                        found.folders[name] = here
                elif entry.is_file():
                    tree.left_out[_kind(name)] += 1
                elif entry.is_symlink():
                    _add_unusable(tree, _join(prefix, name), "broken link")
                else:
                    tree.left_out[SPECIAL_FILE] += 1
                    if is_image:
                        tree.unusable[_join(prefix, name)] = "not a regular file"
            except OSError as error:
                _add_unusable(tree, _join(prefix, name), f"broken link ({error.strerror})")
    return found


def _kind(name: str) -> str:
    """The extension in lower case; digits as in "image.0001" are not an extension."""
    extension = os.path.splitext(name)[1].lower()
    return extension if _EXTENSION.fullmatch(extension) else NO_EXTENSION


def _add_unusable(tree: Tree, path: str, reason: str) -> None:
    tree.unusable[path] = reason
    tree.left_out[BROKEN_LINK] += 1


def _contains(target: str, places: tuple[str, ...]) -> bool:
    """Whether one of `places` is `target` or lies in it."""
    return any(os.path.commonpath((target, place)) == target for place in places)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


def _require_distinct(root: Path, classes: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        if seen.setdefault(normalize_unicode(name), name) != name:
            raise ValueError(
                f"class folders must have different names; got {shown(name)} twice in {shown(root)}, in two"
                " Unicode forms (NFC and NFD): move the images of one into the other"
            )
