"""Trained networks from files: those of the study, and checkpoints of the trainer.

A file of the study is ``torch.save`` of ``{"study": 1, "method": "hmix", "seed": 0, "classes": [names],
"image_size": 32, "arch": NAME, "arch_settings": {...}, "mean": [...], "std": [...], "model": state_dict}``,
with mean and standard deviation for pixels in [0, 255], as in :mod:`pipelines.constants`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments import small_networks
from pipelines.constants import MEAN, STD
from training.architectures import AUXILIARY
from training.checkpoints import load_verified, upgrade
from training.model import build_model, outputs_of

STUDY_VERSION = 1


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes
    ----------
    model : Module
        Normalised images to logits, in evaluation mode, on the CPU.
    classes : tuple of str
        The class of each output.
    image_size, resize_size : int or None
        Side of the images, and their shorter side before the centre crop (None: 256/224 of it), in pixels.
    mean, std : tuple of float
        Per channel, of pixels in [0, 255].
    method : str
        The mixing method that it was trained with.
    seed : int
    arch : str
    crop : str or None
        The name of the random crops, if the study compares several.
    """

    model: nn.Module
    classes: tuple[str, ...]
    image_size: int
    resize_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    seed: int
    arch: str
    crop: str | None = None

    def of_pixels(self) -> nn.Module:
        """The network with the normalisation inside: float images N x 3 x H x W in [0, 1] to logits."""
        return _OfPixels(self.model, self.mean, self.std).eval()


class _OfPixels(nn.Module):
    def __init__(self, model: nn.Module, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return outputs_of(self.model((images * 255 - self.mean) / self.std))[0]


def find_networks(paths: Iterable[Path]) -> list[Path]:
    """The files that were given, and all ``*.pt`` of the folders.

    Raises
    ------
    ValueError
        There is no such file, or a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise ValueError(f"CHECKPOINT must be a file, or a folder with *.pt files; got {path}")
        found += [file for file in files if file not in found]
    return found


def load_network(path: Path) -> Network:
    """Read a network of the study, or a checkpoint of the trainer.

    Of a checkpoint, the averaged weights are used if it has any, as ``--eval-only`` does.

    Raises
    ------
    ValueError
        The file is damaged, or neither of both.
    OSError
        It cannot be read.
    """
    content = load_verified(path.read_bytes(), path)
    if isinstance(content, dict) and "study" in content:
        return _from_study(content, path)
    return _from_checkpoint(upgrade(content, path), path)


def _from_study(content: dict[str, Any], path: Path) -> Network:
    if content["study"] != STUDY_VERSION:
        raise ValueError(
            f"{path} must be a network of version {STUDY_VERSION} of the study; got {content['study']}"
        )
    try:
        classes, std = tuple(content["classes"]), tuple(content["std"])
        model = small_networks.build(content["arch"], len(classes), **content["arch_settings"])
        _load(model, content["model"], path)
        size = content["image_size"]
        found = Network(
            model=model,
            classes=classes,
            image_size=size,
            resize_size=content.get("resize_size", size),
            mean=tuple(content["mean"]),
            std=std,
            method=content["method"],
            seed=content["seed"],
            arch=content["arch"],
            crop=content.get("crop"),
        )
    except KeyError as error:
        raise ValueError(f"{path} must be a network of the study; it has no {error}") from None
    if min(std) <= 1:
        raise ValueError(f"the std in {path} must be of pixels from 0 to 255; got {std}")
    return found


def _from_checkpoint(content: dict[str, Any], path: Path) -> Network:
    run = content["run"]
    settings, classes = run["settings"], run["classes"]
    if classes is None:
        raise ValueError(
            f"{path} must name its classes; an early version of the trainer wrote it, without them"
        )
    arch = settings["arch"]
    model = build_model(arch, len(classes), aux_heads=arch in AUXILIARY)
    _load(model, content.get("ema") or content["model"], path)
    return Network(
        model=model,
        classes=tuple(classes),
        image_size=settings["val_image_size"] or settings["image_size"],
        resize_size=settings.get("val_resize_size"),
        mean=MEAN,
        std=STD,
        method=settings["mix"],
        seed=settings["seed"],
        arch=arch,
    )


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of its model: {error}") from None
    model.eval().requires_grad_(False)  # attacks differentiate by the images only
