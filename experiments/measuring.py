"""Measures networks on images that were perturbed or attacked; its object goes to other processes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dali_msda.processors import usable_processors
from experiments.attacks import ATTACKS, attack
from experiments.networks import load_network
from experiments.perturbations import Images, perturb
from experiments.scores import brier_scores, expected_calibration_error
from pipelines.constants import MEAN, STD
from pipelines.imagenet import val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Output
from pipelines.sources import Source

_BATCH = 100


class Column(NamedTuple):
    """What is done to the images: its kind, and how much of it; a radius is in 1/255."""

    kind: str
    level: float

    def __str__(self) -> str:
        return f"{self.kind} {self.level:g}"


def load_pixels(
    images: Source, chosen: Sequence[int], image_size: int, resize_size: int | None
) -> tuple[Images, list[int]]:
    """Images as the validation pipeline makes them, before the normalisation, and their labels.

    `chosen` are positions in the source; the images are uint8 N x H x W x 3.
    The pipeline resizes to uint8 and normalises in float32, so rounding its inverse gives the exact values.
    """
    pipeline = val_pipeline(
        images,
        batch_size=_BATCH,
        num_threads=usable_processors(),
        resize_size=resize_size,
        output=Output(image_size=image_size, layout="HWC"),
    )
    mean, std = np.array(MEAN), np.array(STD)
    parts, labels, start = [], [], 0
    for batch, own in DALILoader(pipeline, layout="HWC"):
        kept = np.isin(np.arange(start, start + len(batch)), chosen)
        parts.append(np.rint(batch.permute(0, 2, 3, 1).numpy()[kept] * std + mean).astype(np.uint8))
        labels += own.numpy()[kept].tolist()
        start += len(batch)
    return np.concatenate(parts), labels


def pack_hits(right: npt.NDArray[np.bool_]) -> str:
    """One bit per image, as hexadecimal text."""
    return np.packbits(right).tobytes().hex()


def unpack_hits(text: str, count: int) -> npt.NDArray[np.bool_]:
    """The inverse of :func:`pack_hits`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


@dataclass(frozen=True)
class Measure:
    """Measures a cell: a network on the images of a column.

    Attributes
    ----------
    files : mapping
        Of the networks, by name.
    sizes : mapping
        Their image and resize sizes, by name.
    pixels : mapping
        The images, by those sizes: uint8 N x H x W x 3.
    labels : mapping
        For each network the output that is each image's class.
    steps, seed : int
        Of PGD; of all draws.
    device : str
    """

    files: Mapping[str, Path]
    sizes: Mapping[str, tuple[int, int | None]]
    pixels: Mapping[tuple[int, int | None], Images]
    labels: Mapping[str, list[int]]
    steps: int
    seed: int
    device: str

    def __call__(self, key: str) -> dict[str, Any]:
        """Measure ``NAME KIND LEVEL``.

        Returns
        -------
        dict
            ``hits``, see :func:`unpack_hits`; without an attack also ``ece``, ``brier`` and ``nll``.
        """
        torch.set_num_threads(1)  # whether in a process of its own or not: sums depend on it
        name, kind, level = key.split()
        model = load_network(self.files[name]).of_pixels().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        labels = torch.tensor(self.labels[name])
        pixels = self.pixels[self.sizes[name]]
        if kind in ATTACKS:
            return self._attack(model, pixels, labels, kind, float(level))
        logits = self._logits(model, _perturbed(pixels, kind, float(level), self.seed))
        if not logits.isfinite().all():
            raise ValueError(
                f"logits must be finite; {self.files[name]} gives NaN or infinity ({kind} {level})"
            )
        return _score(logits, labels)

    def _logits(self, model: nn.Module, pixels: Images) -> Tensor:
        with torch.inference_mode():
            parts = [
                model(_to_tensor(pixels[start : start + _BATCH], self.device)).double().cpu()
                for start in range(0, len(pixels), _BATCH)
            ]
        return torch.cat(parts)

    def _attack(
        self, model: nn.Module, pixels: Images, labels: Tensor, method: str, radius: float
    ) -> dict[str, Any]:
        right = []
        for start in range(0, len(labels), _BATCH):
            images = _to_tensor(pixels[start : start + _BATCH], self.device)
            wanted = labels[start : start + _BATCH].to(self.device)
            seed = zlib.crc32(f"{self.seed} {method} {radius:g} {start}".encode())
            _, hits = attack(
                model, images, wanted, method=method, radius=radius / 255, steps=self.steps, seed=seed
            )
            right.append(hits.cpu().numpy())
        return {"hits": pack_hits(np.concatenate(right))}


_last: tuple[Any, ...] = ()


def _perturbed(pixels: Images, kind: str, level: float, seed: int) -> Images:
    """:func:`.perturb`, once for all networks: the next cell is usually another one on the same images."""
    global _last
    key = (id(pixels), kind, level, seed)
    if not _last or _last[0] != key:
        _last = (key, perturb(pixels, kind, level, seed), pixels)
    return _last[1]  # type: ignore[no-any-return]


def _score(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    probabilities = logits.softmax(1).numpy()
    right = logits.argmax(1) == labels
    return {
        "hits": pack_hits(right.numpy()),
        "ece": expected_calibration_error(probabilities, right.numpy()),
        "brier": float(brier_scores(probabilities, labels.numpy()).mean()),
        "nll": float(nn.functional.cross_entropy(logits, labels)),
    }


def _to_tensor(pixels: Images, device: str) -> Tensor:
    """Float images N x 3 x H x W in [0, 1], in channels_last format."""
    return (torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255).contiguous(
        memory_format=torch.channels_last
    )
