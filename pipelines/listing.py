"""What lies in a folder of class folders: images at any depth, and what is no image. Nothing is opened.

The class is the first level, and the order of the images that of torchvision's ``ImageFolder``. One entry
costs no system call of its own, unless it is a link.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .formats import EXTENSIONS
from .names import comparable, shown

# Folders that systems and programs add, by their names in lower case; so are all that begin with a dot.
_SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network storage
        *("__macosx", "$recycle.bin", "system volume information", "lost+found"),
    )
)
_MOST_KINDS = 10  # in one line
_EXTENSION = re.compile(r"\.(?!\d+$)\w{1,10}", re.ASCII)
BROKEN_LINK, SPECIAL_FILE, STRAY_IMAGE, NO_EXTENSION = (
    "broken link",
    "special file",
    "stray image",  # beside the class folders
    "file without extension",
)


@dataclass
class Tree:
    """What was found in a folder of class folders.

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
        Why it cannot be used, for each path that might lead to images.
    left_out : Counter
        How many entries are no images, by extension, or by what they are.
    """

    classes: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def list_tree(root: Path) -> Tree:
    """List a folder of class folders.

    Names that start with a dot, and folders that systems add, are passed over. Links are followed; one that
    leads nowhere or in a circle is unusable.

    Raises
    ------
    ValueError
        `root` is no folder, or two class folders have names that look the same.
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
    """As :func:`list_tree`, without a look into the class folders: a tree without images."""
    tree = Tree()
    _read_classes(root, tree)
    return tree


def list_flat(root: Path) -> Tree:
    """List a folder of images without classes, at any depth: a :class:`Tree` without labels."""
    tree = Tree()
    tree.images = _walk(str(root), "", (os.path.realpath(root),), tree)
    return tree


def describe(left_out: Mapping[str, int]) -> str:
    """What was left out, for people: "9 .avif, 3 .gif, 2 broken links"; empty where nothing was."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {_plural(kind) if count > 1 else kind}" for kind, count in ordered[:_MOST_KINDS]]
    if rest := sum(count for _, count in ordered[_MOST_KINDS:]):
        parts.append(f"{rest} of other kinds")
    return ", ".join(parts)


def _plural(kind: str) -> str:
    if kind.startswith("."):
        return kind
    return kind.replace("file", "files") if kind == NO_EXTENSION else f"{kind}s"


@dataclass
class _Folder:
    """Images of one folder, and its folders with the real paths of all above them that links led from."""

    images: list[str] = field(default_factory=list)
    folders: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _read_classes(root: Path, tree: Tree) -> _Folder:
    if not root.is_dir():
        raise ValueError(f"expected a folder of class folders; there is no folder {shown(root)}")
    found = _read_folder(str(root), (os.path.realpath(root),), tree, "")
    # Beside class folders lie texts and archives as well, which are nobody's images.
    tree.left_out = +Counter({STRAY_IMAGE: len(found.images), BROKEN_LINK: len(tree.unusable)})
    tree.classes = sorted(found.folders)
    _require_distinct(root, tree.classes)
    return found


def _walk(path: str, prefix: str, above: tuple[str, ...], tree: Tree) -> list[str]:
    """The images in a folder and those below it, each as `prefix` and the rest of its path."""
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
                # First what most entries are.
                if is_image and entry.is_file():
                    add_image(name)
                elif entry.is_dir():
                    if name.lower() in _SYSTEM_FOLDERS:
                        continue
                    if not entry.is_symlink():
                        found.folders[name] = above
                        continue
                    # Real paths only where there are links: without them there is no circle.
                    here = (*above, os.path.realpath(path))
                    if _contains(os.path.realpath(entry.path), here):
                        _refuse(tree, _join(prefix, name), "a link to a folder that it lies in")
                    else:
                        found.folders[name] = here
                elif entry.is_file():
                    tree.left_out[_kind(name)] += 1
                elif entry.is_symlink():
                    _refuse(tree, _join(prefix, name), "broken link")
                else:
                    tree.left_out[SPECIAL_FILE] += 1
                    if is_image:
                        tree.unusable[_join(prefix, name)] = "not a regular file"
            except OSError as error:
                _refuse(tree, _join(prefix, name), f"broken link ({error.strerror})")
    return found


def _kind(name: str) -> str:
    """The extension in lower case; what follows the last dot of "image.0001" is none."""
    extension = os.path.splitext(name)[1].lower()
    return extension if _EXTENSION.fullmatch(extension) else NO_EXTENSION


def _refuse(tree: Tree, path: str, reason: str) -> None:
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
        if seen.setdefault(comparable(name), name) != name:
            raise ValueError(
                f"class folders must have names that differ; {shown(root)} holds {shown(name)} twice, in two"
                " Unicode forms (NFC and NFD): move the images of one into the other"
            )
