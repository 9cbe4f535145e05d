"""Class folders on disk: what is in them, checked before anything is decoded."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

# What DALI's decoders read; case does not matter.
EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pnm", ".ppm", ".jp2")


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split.

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
    """

    root: Path
    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]

    def digest(self) -> str:
        """SHA-256 of the classes, files and labels, wherever the folder lies."""
        listing = json.dumps([self.classes, self.files, self.labels], separators=(",", ":"))
        return hashlib.sha256(listing.encode()).hexdigest()


def split_folder(data_dir: str | os.PathLike[str], split: str) -> Path:
    """The folder of class folders: ``data_dir/split`` where it exists, else `data_dir` itself."""
    data_dir = Path(data_dir)
    return data_dir / split if (data_dir / split).is_dir() else data_dir


def check_dataset(data_dir: str | os.PathLike[str]) -> tuple[ImageFolder, ImageFolder]:
    """List ``train/`` and ``val/`` of a dataset and check that they belong together.

    Raises
    ------
    ValueError
        A folder is missing or empty, or the splits have different classes; the message names it.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise ValueError(f"--data must be a folder with train/ and val/ in it; there is no folder {data_dir}")
    for split in ("train", "val"):
        if not (data_dir / split).is_dir():
            found = ", ".join(sorted(entry.name for entry in data_dir.iterdir())[:5]) or "nothing"
            raise ValueError(
                f"--data must hold train/ and val/; {data_dir} has no {split}/ (it holds {found})"
            )
    train, val = list_images(data_dir / "train"), list_images(data_dir / "val")
    for name, missing in (
        ("val", sorted(set(train.classes) - set(val.classes))),
        ("train", sorted(set(val.classes) - set(train.classes))),
    ):
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"train/ and val/ must hold the same classes; {data_dir / name} lacks {missing[0]}{more}"
            )
    return train, val


def list_images(root: str | os.PathLike[str]) -> ImageFolder:
    """List a folder of class folders.

    Parameters
    ----------
    root : path
        One folder per class, images directly in it. Names that start with a dot are passed over.

    Returns
    -------
    ImageFolder

    Raises
    ------
    ValueError
        `root` is no folder, holds no class folders, or a class folder holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"expected a folder of class folders; there is no folder {root}")
    classes = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise ValueError(f"expected one folder per class in {root}; it holds no folders")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(
            entry.name
            for entry in os.scandir(root / name)
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
        )
        if not images:
            raise ValueError(f"class folder {root / name} holds no images ({' '.join(EXTENSIONS)})")
        files += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
    return ImageFolder(root, tuple(classes), files, labels)
