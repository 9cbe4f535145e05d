"""What makes a run repeatable, apart from DALI: generators and algorithms."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

# NumPy's global generator counts too: a user's model or augmentation may draw from it.


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed all generators, differently in every rank."""
    words = np.random.SeedSequence([seed, rank]).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])  # noqa: NPY002
    random.seed(int(words[3]))


def choose_algorithms(*, deterministic: bool) -> None:
    """Let PyTorch use the fastest algorithms, or those that give the same result every time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(deterministic)
    # All batches have one size, so benchmarking cuDNN's convolutions pays, but its choice may vary.
    torch.backends.cudnn.benchmark = not deterministic


class RandomStates:
    """The global generators of Python, NumPy and PyTorch, as a part of a run that checkpoints keep."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        """Their states, in types that a checkpoint can hold."""
        kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
        return {
            "python": random.getstate(),
            "numpy": (kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore the states, undoing any draws since :meth:`state_dict`."""
        version, internal, gauss_next = state_dict["python"]
        random.setstate((version, tuple(internal), gauss_next))
        kind, keys, *rest = state_dict["numpy"]
        np.random.set_state((kind, np.array(keys, np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state_dict["torch"])
        if state_dict["cuda"] is not None:
            torch.cuda.set_rng_state(state_dict["cuda"], self._device)
