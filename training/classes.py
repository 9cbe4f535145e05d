"""Class names: which output of a model is which class of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.datasets import list_class_names
from pipelines.names import match_classes, shown
from pipelines.sources import Source

from .config import Config
from .weight_files import WeightFile
from .weight_settings import About


@dataclass(frozen=True)
class ClassMap:
    """Which outputs of a model the labels of a split mean.

    Attributes
    ----------
    positions : tuple of int
        For each label of the split, the position of its class among the outputs; -1 for a class that the
        model does not have, and no image has.
    num_outputs : int
    present : frozenset of int
        The outputs whose classes have images.
    mask_absent : bool
        Whether the logits of the other outputs are masked.
    """

    positions: tuple[int, ...]
    num_outputs: int
    present: frozenset[int]
    mask_absent: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether the split has images of every class of the model."""
        return len(self.present) == self.num_outputs

    @property
    def changes_nothing(self) -> bool:
        """Whether the labels already are the positions of the outputs, and nothing is masked."""
        in_order = self.positions == tuple(range(self.num_outputs))
        return in_order and (self.is_complete or not self.mask_absent)

    def __str__(self) -> str:
        """How many classes a result covers."""
        if self.is_complete:
            return f"{self.num_outputs} classes"
        absent = "masked" if self.mask_absent else "kept"
        return f"{len(self.present)} of {self.num_outputs} classes, the logits of the others {absent}"


def map_classes(
    images: Source, outputs: Sequence[str], *, absent: str | None, split: str, model: str
) -> ClassMap:
    """Match the classes of a split with those of a model, by names that look the same.

    Parameters
    ----------
    images : Source
        The split.
    outputs : sequence of str
        The classes of the model.
    absent : "keep", "mask" or None
        What to do with the logits of classes that the split lacks.
    split, model : str
        Their names in errors.

    Raises
    ------
    ValueError
        The split has images of classes that the model does not have.
    """
    found, present = match_classes(images.classes, outputs), images.labels_present
    unknown = [images.classes[label] for label in sorted(present) if found[label] is None]
    if unknown:
        known = f" beside {len(present) - len(unknown)} of those" if len(present) > len(unknown) else ""
        raise ValueError(
            f"{split} must hold classes of {model}, which are {few(outputs)}; got {few(unknown)}{known}"
        )
    places = tuple(-1 if place is None else place for place in found)
    seen = frozenset(places[label] for label in present)
    return ClassMap(places, len(outputs), seen, mask_absent=absent == "mask")


def require_same_classes(names: Sequence[str], outputs: Sequence[str], message: str) -> list[int]:
    """The position of each of `names` in `outputs`, which must be the same classes in any order.

    Raises
    ------
    ValueError
        They differ: `message`, and the missing and the unknown ones.
    """
    missing = [
        name for name, place in zip(outputs, match_classes(outputs, names), strict=True) if place is None
    ]
    unknown = [
        name for name, place in zip(names, match_classes(names, outputs), strict=True) if place is None
    ]
    said = [f"train/ lacks {few(missing)}"] * bool(missing)
    said += [f"it does not know {few(unknown)}"] * bool(unknown)
    if said:
        raise ValueError(f"{message} {' and '.join(said)}")
    return [place for place in match_classes(names, outputs) if place is not None]


def known_classes(config: Config, file: WeightFile) -> tuple[str, ...] | None:
    """The class of each output: from ``--class-names``, or from the file of weights; None if neither."""
    if config.class_names is not None:
        return read_class_names(config.class_names)
    return About.of_file(file).classes


def few(names: Sequence[str], count: int = 5) -> str:
    """The first names for a message, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(shown, names[:count])) + more


def read_class_names(path: Path) -> tuple[str, ...]:
    """The classes of ``--class-names``: the folders in a folder, or the lines of a text file.

    Raises
    ------
    ValueError
        There is no such file or folder, or it names no class, or one twice.
    """
    if path.is_dir():
        return tuple(list_class_names(path))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(
            "--class-names must be a text file with a class a line, or a folder of class folders; got"
            f" {path}: {reason}"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ValueError(f"--class-names must name at least one class; {path} is empty")
    match_classes(names, names)  # refuses duplicate names
    return names
