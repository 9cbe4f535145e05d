"""The settings of a loader in :mod:`.bench_loader`, and what a contender is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dali_msda.processors import usable_processors

Batches = Iterator[tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of all loaders, without the images."""

    batch_size: int = 64
    """Images per batch."""

    image_size: int = 224
    """Side of the images in pixels."""

    workers: int = field(default_factory=usable_processors)
    """Threads or worker processes."""

    images: int = 1024
    """Images per pass, after the batches that the loaders had made ahead."""

    cores: int | None = None
    """Limit every loader to this many cores. Default: all."""

    prefetch_queue_depth: int | None = None
    """Batches that this project's pipelines make ahead. Default: their own."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where batches must end up. DALI decodes, mixes and normalises there; the others load on the CPU."""

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the device."""
        return "cuda" if self.device == "gpu" else "cpu"


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The settings of a loader."""

    data: Path
    """Folder of class folders with JPEGs."""

    scratch: Path | None = None
    """Where loaders may pack the data set. Default: the folder of temporary files."""


class Contender(NamedTuple):
    """A loader with a mixing method."""

    loader: str
    mix: str
    batches: Callable[[Settings], Batches]
    package: str = "nvidia.dali"

    @property
    def is_installed(self) -> bool:
        """Whether its package can be imported."""
        return find_spec(self.package) is not None
