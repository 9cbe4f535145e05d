"""Labels of a folder of images without class folders, as ILSVRC ships its validation images."""

from __future__ import annotations

import codecs
import csv
import os
import re
from pathlib import Path

from .listing import Tree, list_flat
from .names import shown

ACCEPTED = (
    "LOC_val_solution.csv of Kaggle's ImageNet, ILSVRC2012_validation_ground_truth.txt with meta.mat or"
    " map_clsloc.txt of the development kit beside it, or a text with an image and its class in each line"
)
# A place in ILSVRC's ground truth, counted from 1.
_ILSVRC_NAME = re.compile(r"ILSVRC20\d\d_val_(\d{8})\.\w+")
_CSV_HEADER = "ImageId,PredictionString"


def list_labelled(root: Path, path: Path) -> Tree:
    """List a folder of images, at any depth, with the classes that a file of labels gives them.

    Parameters
    ----------
    root : path
        The images. Where they lie below it is of no interest.
    path : path
        One of ``ACCEPTED``; or one class name a line, in the order of the images' sorted file names.

    Returns
    -------
    Tree
        Its classes are those of the images, sorted; the images are sorted by path.

    Raises
    ------
    ValueError
        `path` is none of these, or does not fit the images; the message says which image or line.
    """
    if not path.is_file():
        raise ValueError(f"--val-labels must be a file: {ACCEPTED}; there is no file {shown(path)}")
    tree = list_flat(root)
    if not tree.images:
        raise ValueError(f"--val-labels must be of the images in {shown(root)}; there are none")
    names = _names_of(path, tree.images)
    tree.classes = sorted(set(names))
    label_of = {name: label for label, name in enumerate(tree.classes)}
    tree.labels = [label_of[name] for name in names]
    return tree


def _names_of(path: Path, images: list[str]) -> list[str]:
    """The class name of each image."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [os.fsdecode(line.strip()) for line in content.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"--val-labels must be {ACCEPTED}; {shown(path)} is empty")
    if lines[0].startswith(_CSV_HEADER):
        return _by_name(path, images, _read_csv(path, lines[1:]))
    if all(line.isascii() and line.isdigit() for line in lines):
        classes = _ilsvrc_classes(path)
        if unknown := [line for line in lines if int(line) not in classes]:
            raise ValueError(
                f"--val-labels must hold class ids that are in {shown(path.parent)}'s meta.mat or"
                f" map_clsloc.txt; {shown(path)} holds {unknown[0]}"
            )
        return _by_place(path, images, [classes[int(line)] for line in lines])
    pairs = [line.split("\t" if "\t" in line else None) for line in lines]
    known = {os.path.basename(image) for image in images}
    if len(pairs[0]) > 1 and (pairs[0][0] in known or any(pair[0] in known for pair in pairs)):
        short = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) < 2), None)
        if short is not None:
            raise ValueError(
                f"--val-labels must hold an image and its class in each line; {shown(path)} holds"
                f" {shown(short)!r}"
            )
        return _by_name(path, images, {pair[0]: pair[1] for pair in pairs})
    return _by_place(path, images, lines)


def _read_csv(path: Path, lines: list[str]) -> dict[str, str]:
    """Classes by name of the image: the class and the box of each object follow it."""
    found: dict[str, str] = {}
    for row in csv.reader(lines):
        objects = row[1].split() if len(row) > 1 else []
        if not objects or len(objects) % 5 or len(set(objects[::5])) > 1:
            raise ValueError(
                "--val-labels must hold, in each line after the first, the name of an image and objects of"
                f" one class, each the class and four numbers; {shown(path)} holds {shown(','.join(row))!r}"
            )
        found[row[0]] = objects[0]
    return found


def _by_name(path: Path, images: list[str], classes: dict[str, str]) -> list[str]:
    """Classes of the images by file name, with the extension or without."""
    names, missing = [], []
    for image in images:
        base = os.path.basename(image)
        name = classes.get(base) or classes.get(os.path.splitext(base)[0])
        if name is None:
            missing.append(image)
        else:
            names.append(name)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"--val-labels must name every image; {shown(path)} does not name {shown(missing[0])}{more}"
        )
    return names


def _by_place(path: Path, images: list[str], classes: list[str]) -> list[str]:
    """Classes of the images by their place in the order of file names."""
    bases = [os.path.basename(image) for image in images]
    numbers = [int(match[1]) for base in bases if (match := _ILSVRC_NAME.fullmatch(base))]
    if len(numbers) == len(images):  # not all of them need be there
        if not 1 <= min(numbers) <= max(numbers) <= len(classes):
            raise ValueError(
                f"--val-labels must have a line for every image; {shown(path)} has {len(classes)}, and"
                f" images are numbered {min(numbers)} to {max(numbers)}"
            )
        return [classes[number - 1] for number in numbers]
    if len(classes) != len(images):
        raise ValueError(
            f"--val-labels must have as many lines as there are images ({len(images)}); {shown(path)} has"
            f" {len(classes)}"
        )
    order = sorted(range(len(images)), key=bases.__getitem__)
    names = [""] * len(images)
    for place, name in zip(order, classes, strict=True):
        names[place] = name
    return names


def _ilsvrc_classes(path: Path) -> dict[int, str]:
    """Class names (WordNet ids) by ILSVRC's class ids, from the development kit's file beside `path`."""
    text, binary = path.parent / "map_clsloc.txt", path.parent / "meta.mat"
    if text.is_file():
        rows = [
            line.split() for line in text.read_text(errors="surrogateescape").splitlines() if line.strip()
        ]
        if all(len(row) >= 2 and row[1].isascii() and row[1].isdigit() for row in rows):
            return {int(row[1]): row[0] for row in rows}
        raise ValueError(
            "--val-labels needs a map_clsloc.txt with a class name and its id in each line beside it; got"
            f" {shown(text)}"
        )
    if binary.is_file():
        return _read_meta(binary)
    raise ValueError(
        "--val-labels needs meta.mat or map_clsloc.txt of ILSVRC's development kit beside it where it holds"
        f" class ids, which do not follow the order of class names; {shown(path.parent)} has neither (another"
        " way: LOC_val_solution.csv, which names the classes)"
    )


def _read_meta(path: Path) -> dict[int, str]:
    # Only here: it takes longer to import than a folder to list.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return {
            int(number): str(name)
            for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    except (MatReadError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise ValueError(
            f"--val-labels needs the meta.mat of ILSVRC2012's development kit beside it; {shown(path)} cannot"
            f" be read as one ({type(error).__name__}: {error})"
        ) from None
