"""What a line of metrics.jsonl says of the steps since the one before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .distributed import Processes

EMPTY: dict[str, float] = {"loss": 0.0, "right": 0, "images": 0, "steps": 0}


class Window:
    """Sums over steps: of the losses and accuracies on the device, so that no step waits for it.

    They are saved and restored, for a run that stops between two lines to log what one that goes on does;
    what a clock measured is not.

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
        """A step of this process: its loss, and of how many images the model had the class right."""
        self._loss += loss
        self._right += right
        self._images += images
        self._steps += 1

    def add_time(self, elapsed_s: float, waited_s: float, images: int) -> None:
        """Seconds that the steps of so many images took, and of that those that they waited for images."""
        self._elapsed_s += elapsed_s
        self._waited_s += waited_s
        self._timed_images += images

    def close(self, processes: Processes) -> dict[str, float]:
        """The means over the steps and the processes, by the names that they are logged with.

        Begins a new window. Waits for the device.
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
