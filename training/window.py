"""What a line of metrics.jsonl says about the steps since the line before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .distributed import Processes

EMPTY: dict[str, float] = {"loss": 0.0, "right": 0, "images": 0, "steps": 0}


class Window:
    """Sums over steps: losses and accuracies stay on the device, so that no step waits for it.

    They are saved and restored, so that a run stopped between two lines logs the same as an uninterrupted
    one; measured times are not.

    Parameters
    ----------
    device : torch.device
        Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._right = torch.zeros((), dtype=torch.int64, device=device)
        self._restart()

    def _restart(self) -> None:
        self._loss.zero_()
        self._right.zero_()
        self._images = self._steps = self._timed_images = 0
        self._elapsed_s = self._waited_s = 0.0

    def add(self, loss: Tensor, right: Tensor, images: int) -> None:
        """Add a step of this process: its loss, and how many of its images were classified correctly."""
        self._loss += loss
        self._right += right
        self._images += images
        self._steps += 1

    def add_time(self, elapsed_s: float, waited_s: float, images: int) -> None:
        """Add the seconds that the steps on `images` images took, and those spent waiting for images."""
        self._elapsed_s += elapsed_s
        self._waited_s += waited_s
        self._timed_images += images

    def close(self, processes: Processes) -> dict[str, float]:
        """The means over steps and processes, by their names in the log.

        Starts a new window. Waits for the device.
        """
        sums = processes.mean(torch.stack([self._loss, self._right.double()]))
        loss, right = sums.tolist()
        measured = {
            "loss": loss / self._steps,
            "dominant_top1": 100 * right / self._images,
            "images_per_s": self._timed_images * processes.size / self._elapsed_s,
            "data_wait": self._waited_s / self._elapsed_s,
        }
        self._restart()
        return measured

    def state_dict(self) -> dict[str, Any]:
        """The sums of this process."""
        return {
            "loss": float(self._loss),
            "right": int(self._right),
            "images": self._images,
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Continue from them."""
        self._loss.fill_(state_dict["loss"])
        self._right.fill_(state_dict["right"])
        self._images, self._steps = state_dict["images"], state_dict["steps"]
