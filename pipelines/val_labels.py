"""Labels for images without class folders, such as ILSVRC's validation images."""

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
    " map_clsloc.txt of the development kit beside it, or a text file with an image and its class per line"
)
# The number is the line in ILSVRC's ground truth, counted from 1.
_ILSVRC_NAME = re.compile(r"ILSVRC20\d\d_val_(\d{8})\.\w+")
_CSV_HEADER = "ImageId,PredictionString"


def list_labelled(root: Path, path: Path) -> Tree:
    """List the images in a folder, at any depth, with classes from a file of labels.

    Parameters
    ----------
    root : path
        The folder of images. Subfolders do not matter.
    path : path
        One of ``ACCEPTED``; or one class name per line, in the order of the images' sorted file names.

    Returns
    -------
    Tree
        The classes of the images, sorted; the images, sorted by path.

    Raises
    ------
    ValueError
        `path` is none of these, or does not match the images. The message names the image or line.
    """
    if not path.is_file():
        raise ValueError(f"--val-labels must be {ACCEPTED}; got {shown(path)} (no such file)")
    tree = list_flat(root)
    if not tree.images:
        raise ValueError(f"--val-labels needs images in {shown(root)}; got none")
    names = _read_class_names(path, tree.images)
    tree.classes = sorted(set(names))
    label_of = {name: label for label, name in enumerate(tree.classes)}
    tree.labels = [label_of[name] for name in names]
    return tree


def _read_class_names(path: Path, images: list[str]) -> list[str]:
    """The class name of each image."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [os.fsdecode(line.strip()) for line in content.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"--val-labels must be {ACCEPTED}; got {shown(path)}, which is empty")
    if lines[0].startswith(_CSV_HEADER):
        return _match_by_name(path, images, _read_csv(path, lines[1:]))
    if all(line.isascii() and line.isdigit() for line in lines):
        classes = _read_ilsvrc_classes(path)
        if unknown := [line for line in lines if int(line) not in classes]:
            raise ValueError(
                f"--val-labels must have class ids of the meta.mat or map_clsloc.txt in {shown(path.parent)};"
                f" got {unknown[0]} in {shown(path)}"
            )
        return _match_by_position(path, images, [classes[int(line)] for line in lines])
    pairs = [line.split("\t" if "\t" in line else None) for line in lines]
    known = {os.path.basename(image) for image in images}
    if len(pairs[0]) > 1 and (pairs[0][0] in known or any(pair[0] in known for pair in pairs)):
        short = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) < 2), None)
        if short is not None:
            raise ValueError(
                f"--val-labels must have an image and its class in each line; got {shown(short)!r} in"
                f" {shown(path)}"
            )
        return _match_by_name(path, images, {pair[0]: pair[1] for pair in pairs})
    return _match_by_position(path, images, lines)


def _read_csv(path: Path, lines: list[str]) -> dict[str, str]:
    """Read class names by image name; each line has the image, then class and box of each object."""
    found: dict[str, str] = {}
    for row in csv.reader(lines):
        objects = row[1].split() if len(row) > 1 else []
        if not objects or len(objects) % 5 or len(set(objects[::5])) > 1:
            raise ValueError(
                "--val-labels must have, in each line after the first, an image and objects of one class,"
                f" each with the class and four numbers; got {shown(','.join(row))!r} in {shown(path)}"
            )
        found[row[0]] = objects[0]
    return found


def _match_by_name(path: Path, images: list[str], classes: dict[str, str]) -> list[str]:
    """Match classes to images by file name, with or without extension."""
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
            f"--val-labels must list every image; got {shown(path)} without {shown(missing[0])}{more}"
        )
    return names


def _match_by_position(path: Path, images: list[str], classes: list[str]) -> list[str]:
    """Match classes to images by position, in the order of file names."""
    bases = [os.path.basename(image) for image in images]
    numbers = [int(match[1]) for base in bases if (match := _ILSVRC_NAME.fullmatch(base))]
    if len(numbers) == len(images):  # some images may be missing
        if not 1 <= min(numbers) <= max(numbers) <= len(classes):
            raise ValueError(
                f"--val-labels must have a line for every image; got {len(classes)} lines in {shown(path)}"
                f" for images numbered {min(numbers)} to {max(numbers)}"
            )
        return [classes[number - 1] for number in numbers]
    if len(classes) != len(images):
        raise ValueError(
            f"--val-labels must have one line per image ({len(images)}); got {len(classes)} lines in"
            f" {shown(path)}"
        )
    order = sorted(range(len(images)), key=bases.__getitem__)
    names = [""] * len(images)
    for place, name in zip(order, classes, strict=True):
        names[place] = name
    return names


def _read_ilsvrc_classes(path: Path) -> dict[int, str]:
    """Read class names (WordNet ids) by ILSVRC class id, from the development kit's file beside `path`."""
    text, binary = path.parent / "map_clsloc.txt", path.parent / "meta.mat"
    if text.is_file():
        rows = [
            line.split() for line in text.read_text(errors="surrogateescape").splitlines() if line.strip()
        ]
        if all(len(row) >= 2 and row[1].isascii() and row[1].isdigit() for row in rows):
            return {int(row[1]): row[0] for row in rows}
        raise ValueError(
            "--val-labels needs a map_clsloc.txt beside it with a class name and its id in each line; got"
            f" {shown(text)}"
        )
    if binary.is_file():
        return _read_meta(binary)
    raise ValueError(
        "--val-labels with class ids needs meta.mat or map_clsloc.txt of ILSVRC's development kit beside it,"
        " because the ids do not follow the order of class names; got neither in"
        f" {shown(path.parent)} (or use LOC_val_solution.csv, which has class names)"
    )


def _read_meta(path: Path) -> dict[int, str]:
    # Imported here because the import takes longer than listing a folder.
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
            f"--val-labels needs the meta.mat of ILSVRC2012's development kit beside it; got {shown(path)},"
            f" which cannot be read ({type(error).__name__}: {error})"
        ) from None
