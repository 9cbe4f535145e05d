"""Small networks trained through the project's DALI pipeline, for experiments on a CPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dali_msda.processors import usable_processors
from pipelines.folders import ImageFolder
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Augmentation, Output


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, one cosine from `lr` to 0."""

    image_size: int = 32
    """Side of the images in pixels."""

    width: int = 16
    """Channels of the first layer."""

    epochs: int = 12
    """Passes over the training images."""

    batch_size: int = 64
    """Images per step."""

    lr: float = 0.1
    """Learning rate of the first step."""

    weight_decay: float = 5e-4
    """Weight decay of all parameters."""


def small_network(classes: int, width: int) -> nn.Module:
    """Four convolutions with batch normalisation and ReLU, the mean over positions, one linear layer.

    Averages make the resolution smaller, not strides, which would leave a grid in the input gradients.
    """

    def convolution(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *convolution(3, width),
        nn.AvgPool2d(2),
        *convolution(width, 2 * width),
        nn.AvgPool2d(2),
        *convolution(2 * width, 4 * width),
        *convolution(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def some_of_each(images: ImageFolder, per_class: int) -> ImageFolder:
    """The first `per_class` images of every class, or all if there are fewer."""
    seen = dict.fromkeys(range(len(images.classes)), 0)
    kept = []
    for position, label in enumerate(images.labels):
        seen[label] += 1
        if seen[label] <= per_class:
            kept.append(position)
    return dataclasses.replace(
        images, files=[images.files[i] for i in kept], labels=[images.labels[i] for i in kept]
    )


def train(images: ImageFolder, mix: str, seed: int, recipe: Recipe) -> nn.Module:
    """Train a network; the same arguments give the same network on one machine.

    Parameters
    ----------
    images : ImageFolder
        Training images.
    mix : str
        A mixing method with its default arguments.
    seed : int
        Of the initial weights, of the order and of all draws.
    recipe : Recipe

    Returns
    -------
    nn.Module
        In evaluation mode.
    """
    pipeline = train_pipeline(
        images,
        mix=mix,
        num_classes=len(images.classes),
        batch_size=recipe.batch_size,
        num_threads=usable_processors(),
        seed=seed,
        augmentation=Augmentation(crop_area=(0.5, 1.0)),
        output=Output(image_size=recipe.image_size, layout="HWC"),
    )
    loader = DALILoader(pipeline, drop_last=True, layout="HWC")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_network(len(images.classes), recipe.width)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    steps = recipe.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    for _ in range(recipe.epochs):
        for batch, targets in loader:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(nn.functional.cross_entropy(model(batch), targets))
            optimizer.step()
            schedule.step()
    return model.eval()


def batches(images: ImageFolder, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Validation batches: normalised images and class ids."""
    pipeline = val_pipeline(
        images,
        batch_size=recipe.batch_size,
        num_threads=usable_processors(),
        resize_size=recipe.image_size,
        output=Output(image_size=recipe.image_size, layout="HWC"),
    )
    yield from DALILoader(pipeline, layout="HWC")


def accuracy(model: nn.Module, images: ImageFolder, recipe: Recipe) -> float:
    """Top-1 accuracy, 0 to 1."""
    with torch.no_grad():
        right = [model(batch).argmax(1) == labels for batch, labels in batches(images, recipe)]
    return float(np.mean(torch.cat(right).numpy()))


def find_split(data: Path, names: tuple[str, ...]) -> Path:
    """The first of these folders in a dataset.

    Raises
    ------
    ValueError
        None of them exists.
    """
    for name in names:
        if (data / name).is_dir():
            return data / name
    raise ValueError(f"--data must be a folder with {' or '.join(names)}/; got {data}")
