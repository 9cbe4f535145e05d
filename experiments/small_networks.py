"""Small networks trained through the project's DALI pipeline, for experiments on a CPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dali_msda import Mixing
from dali_msda.processors import usable_processors
from pipelines.folders import ImageFolder
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Augmentation, Output


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, one cosine from `lr` to 0."""

    network: str = "convolutions"
    """A key of :data:`NETWORKS`."""

    image_size: int = 32
    """Side of the images in pixels."""

    crop_area: tuple[float, float] = (0.5, 1.0)
    """Share of the area that a random crop keeps."""

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


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution of one pixel where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.branch(images) + self.shortcut(images))


def resnet8(classes: int, width: int) -> nn.Module:
    """A residual network of eight layers; the first one already halves the resolution, for speed."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"convolutions": small_network, "resnet8": resnet8}


def build(network: str, num_classes: int, width: int) -> nn.Module:
    """Build one of :data:`NETWORKS` with random weights.

    Raises
    ------
    ValueError
        There is no such network.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {network!r}")
    return NETWORKS[network](num_classes, width)


class Training:
    """A network in training, which can stop after any epoch and continue to the same network.

    Parameters
    ----------
    images : ImageFolder
        Training images.
    mix : str or Mixing
        A mixing method; a name alone means its default arguments.
    seed : int
        Of the initial weights, of the order and of all draws.
    recipe : Recipe
    threads : int
        Of DALI.
    state : dict, optional
        A result of :meth:`state`, from a training with the same arguments on the same machine.

    Attributes
    ----------
    model : nn.Module
    epoch : int
        Epochs done.
    """

    def __init__(
        self,
        images: ImageFolder,
        mix: str | Mixing,
        seed: int,
        recipe: Recipe,
        *,
        threads: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        pipeline = train_pipeline(
            images,
            mix=mix,
            num_classes=len(images.classes),
            batch_size=recipe.batch_size,
            num_threads=threads,
            seed=seed,
            augmentation=Augmentation(crop_area=recipe.crop_area),
            output=Output(image_size=recipe.image_size, layout="HWC"),
            enable_checkpointing=True,
            checkpoint=None if state is None else state["loader"]["pipeline"],
        )
        self._loader = DALILoader(
            pipeline, drop_last=True, layout="HWC", state=None if state is None else state["loader"]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build(recipe.network, len(images.classes), recipe.width)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
        )
        steps = recipe.epochs * len(self._loader)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
        )
        self.epoch = 0
        if state is not None:
            self.epoch = state["epoch"]
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])

    def run_epoch(self) -> float:
        """Train for an epoch; return the mean loss of its steps."""
        self.model.train()
        losses = []
        for batch, targets in self._loader:
            self._optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(self.model(batch), targets)
            torch.autograd.backward(loss)
            self._optimizer.step()
            self._schedule.step()
            losses.append(loss.detach())
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def state(self) -> dict[str, Any]:
        """All that a later training needs to continue."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "loader": self._loader.state(),
        }


def train(images: ImageFolder, mix: str, seed: int, recipe: Recipe) -> nn.Module:
    """Train a network; the same arguments give the same network on one machine.

    Parameters are those of :class:`Training`, with all cores. The network is in evaluation mode.
    """
    training = Training(images, mix, seed, recipe, threads=usable_processors())
    while training.epoch < recipe.epochs:
        training.run_epoch()
    return training.model.eval()


def batches(
    images: ImageFolder, recipe: Recipe, *, threads: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Validation batches: normalised images and class ids; by default with a thread per core."""
    pipeline = val_pipeline(
        images,
        batch_size=recipe.batch_size,
        num_threads=threads or usable_processors(),
        resize_size=recipe.image_size,
        output=Output(image_size=recipe.image_size, layout="HWC"),
    )
    yield from DALILoader(pipeline, layout="HWC")


def evaluate(
    model: nn.Module, images: ImageFolder, recipe: Recipe, *, threads: int | None = None
) -> dict[str, float]:
    """Top-1 ``accuracy``, 0 to 1, and mean cross-entropy, ``loss``; leaves the model in evaluation mode."""
    model.eval()
    right, losses = [], []
    with torch.no_grad():
        for batch, labels in batches(images, recipe, threads=threads):
            logits = model(batch)
            right.append(logits.argmax(1) == labels)
            losses.append(nn.functional.cross_entropy(logits, labels.long(), reduction="none"))
    return {"accuracy": float(torch.cat(right).double().mean()), "loss": float(torch.cat(losses).mean())}


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
