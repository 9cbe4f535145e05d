"""What a weight file says about its model: architecture, image size, class names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .architectures import full_name
from .config import Config, option
from .inert_pickle import items_of
from .published import Published, find_published
from .weight_files import WeightFile

# Where settings are: in files of this trainer, torchvision's references and timm, Lightning, others.
_SETTINGS = ("settings", "args", "hyper_parameters", "hparams", "config", "cfg")
_ARCH = ("arch", "model", "model_name", "architecture", "backbone")
_IMAGE_SIZE = ("image_size", "img_size", "input_size", "train_crop_size", "crop_size")
_VAL_IMAGE_SIZE = ("val_image_size", "val_crop_size")
_CLASSES = ("classes", "class_names")


@dataclass(frozen=True)
class About:
    """What a weight file says; None if it does not.

    Attributes
    ----------
    arch : str
        A model that ``--arch`` accepts.
    other_arch : str
        The name of a model that it does not accept.
    image_size, val_image_size : int
        Side in pixels of the images in training and in evaluation.
    classes : tuple of str
        Class names in the order of the outputs.
    val_resize_size : int
        Shorter side of the images before the crop of an evaluation.
    published : Published
        torchvision's entry for them, from which the other attributes then come.
    """

    arch: str | None = None
    other_arch: str | None = None
    image_size: int | None = None
    val_image_size: int | None = None
    classes: tuple[str, ...] | None = None
    val_resize_size: int | None = None
    published: Published | None = None

    def compare(self, config: Config) -> str:
        """What the file says, for people, and where this run's settings differ; may be empty."""
        names = ("arch", "image_size", "val_image_size", "val_resize_size")
        said = {option(name): getattr(self, name) for name in names if getattr(self, name) is not None}
        here = {name: getattr(config, name[2:].replace("-", "_")) for name in said}
        here = {name: value for name, value in here.items() if value != said[name]}
        text = ", ".join(f"{name} {value}" for name, value in said.items())
        if here:
            text += f"; here: {', '.join(f'{name} {value}' for name, value in here.items())}"
        if self.published is None:
            return f"the file says {text}" if text else ""
        return f"by its name torchvision's {self.published.weights}, with {text}{self._describe_unused()}"

    def _describe_unused(self) -> str:
        """Parts of torchvision's evaluation that this one does not apply."""
        assert self.published is not None
        other = ["bicubic interpolation"] * (self.published.interpolation == "bicubic")
        other += ["mean and standard deviation 0.5 of the pixels"] * self.published.half
        return f"; not applied: {' and '.join(other)}, so results differ" if other else ""

    def defaults(self, *, sized: bool, val_sized: bool) -> dict[str, Any]:
        """The settings it implies where none are given.

        Parameters
        ----------
        sized, val_sized : bool
            Whether the size of all images, or of the validation images, is given.
        """
        found = {"arch": self.arch} | ({} if sized else {"image_size": self.image_size})
        if not sized and self.val_image_size != self.image_size:
            found["val_image_size"] = self.val_image_size
        if not val_sized:
            found["val_resize_size"] = self.val_resize_size
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def of_file(cls, file: WeightFile) -> About:
        """Read it from a file or, if that says nothing, from its name."""
        about, published = cls.of(file.content), find_published(file.path)
        if published is None or about.arch is not None or about.other_arch is not None:
            return about
        return replace(
            about,
            arch=published.arch,
            image_size=published.crop_size,
            val_image_size=published.crop_size,
            val_resize_size=published.resize_size,
            published=published,
        )

    @classmethod
    def of(cls, content: Any) -> About:
        """Read it from the content of a :class:`.weight_files.WeightFile`."""
        places = list(_places(content))
        named = [name for name in _values(places, _ARCH) if isinstance(name, str)]
        known = [arch for name in named if (arch := _find_arch(name))]
        sizes = [size for value in _values(places, _IMAGE_SIZE) if (size := _parse_size(value))]
        val_sizes = [size for value in _values(places, _VAL_IMAGE_SIZE) if (size := _parse_size(value))]
        return cls(
            arch=next(iter(known), None),
            other_arch=None if known else next(iter(named), None),
            image_size=next(iter(sizes), None),
            val_image_size=next(iter(val_sizes + sizes), None),
            classes=next(_class_lists(places), None),
        )


def _places(content: Any) -> Iterator[Mapping[Any, Any]]:
    """The dicts that may hold settings; the first that has a setting counts."""
    top = items_of(content)
    run = items_of(top.get("run"))  # of this trainer
    for holder in (run, top):
        for name in _SETTINGS:
            value = holder.get(name)
            # safetensors holds text only.
            yield items_of(_parse_json(value) if isinstance(value, str) else value)
    yield run
    yield top


def _find_arch(name: str) -> str | None:
    """The architecture of that name; timm's names add the weights: resnet50.a1_in1k"""
    try:
        return full_name(name.partition(".")[0])
    except ValueError:
        return None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _values(places: list[Mapping[Any, Any]], names: tuple[str, ...]) -> Iterator[Any]:
    for place in places:
        yield from (place[name] for name in names if place.get(name) is not None)


def _parse_size(value: Any) -> int | None:
    """The side of square images in 224, "224", [224, 224] or [3, 224, 224]; None for anything else."""
    if isinstance(value, (list, tuple)) and value and value[-1] == value[-2:][0]:
        value = value[-1]
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if type(value) is int and 0 < value < 2**15 else None


def _class_lists(places: list[Mapping[Any, Any]]) -> Iterator[tuple[str, ...]]:
    for value in _values(places, _CLASSES):
        names = _parse_json(value) if isinstance(value, str) else value
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            yield tuple(names)
    for value in _values(places, ("class_to_idx",)):  # of torchvision's ImageFolder
        numbered = _parse_json(value) if isinstance(value, str) else items_of(value)
        if isinstance(numbered, dict) and sorted(numbered.values(), key=str) == sorted(
            range(len(numbered)), key=str
        ):
            yield tuple(sorted(numbered, key=numbered.__getitem__))
