"""Masks from draws made on the CPU: what the drop-ins for timm and torchvision share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..methods import TABLE
from .arguments import to_device
from .draws import Draws
from .masks import Masks, make_masks


class GivenMasks:
    """The masks of some samples, filled one after the other.

    At first every mask is 1: nothing is mixed.

    Parameters
    ----------
    count : int
        Number of masks.
    size : (int, int)
        Height and width of the images.

    Attributes
    ----------
    lam : ndarray
        The label weights, float64 [count].
    """

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        height, width = size
        self.size = size
        self.lam = np.ones(count)
        # One array, so that it moves to a device at once.
        self._numbers = np.zeros((count, 1 + height + width), np.float32)
        self._base, self._rows = self._numbers[:, 0], self._numbers[:, 1 : 1 + height]
        self._columns = self._numbers[:, 1 + height :]
        self._base[:] = 1.0

    @property
    def mix(self) -> bool:
        """Whether any mask is below 1 anywhere."""
        return bool((self._base != 1.0).any() or self._boxes)

    @property
    def _boxes(self) -> bool:
        return bool(self._rows.any() and self._columns.any())

    def set_constant(self, sample: int, lam: float) -> None:
        """Mixup: the mask is `lam` everywhere."""
        self._base[sample] = self.lam[sample] = lam

    def set_box(self, sample: int, box: tuple[int, int, int, int], lam: float) -> None:
        """CutMix: 0 in a box (first row, row after the last, and the columns likewise), 1 outside."""
        top, bottom, left, right = box
        self._rows[sample, top:bottom] = -1.0
        self._columns[sample, left:right] = 1.0
        self.lam[sample] = lam

    def set_formula(
        self,
        samples: Sequence[int],
        method: str,
        lams: Sequence[float],
        centers: Sequence[tuple[int, int]],
        arguments: Mapping[str, float],
        correct_lam: bool = True,
    ) -> None:
        """The masks of HMix or GMix, for each sample's drawn lam and centre, (row, column)."""
        row, column = torch.tensor(centers, dtype=torch.float64).T
        # "_coin" is below "_probability": all are mixed.
        one = {**TABLE[method].defaults, **arguments, "_coin": 0.0, "_probability": 1.0}
        values = {name: torch.tensor([value], dtype=torch.float64) for name, value in one.items()}
        values |= {"lam": torch.tensor(lams, dtype=torch.float64), "_row": row, "_column": column}
        draws = Draws(values, paper=False, given=True)
        masks = make_masks(TABLE[method], draws, len(samples), self.size, torch.device("cpu"))
        assert masks.rows is not None
        assert masks.columns is not None
        self._base[samples] = masks.base.numpy()
        self._rows[samples] = masks.rows.numpy()
        self._columns[samples] = masks.columns.numpy()
        self.lam[samples] = masks.lam.numpy() if correct_lam else lams

    def on(self, device: torch.device, order: np.ndarray[Any, Any]) -> Masks:
        """The masks on a device, one for each index in `order`."""

        def place(values: np.ndarray[Any, Any]) -> torch.Tensor:
            single = len(values) == 1  # for all samples: the device repeats it
            placed = to_device(torch.from_numpy(values if single else values[order]), device)
            return placed.expand(len(order), *placed.shape[1:]).contiguous()

        lam = place(self.lam.astype(np.float32))
        if not self._boxes:
            return Masks(lam, place(self._base), None, None, None)
        numbers = place(self._numbers)
        base, (rows, columns) = numbers[:, 0], torch.split(numbers[:, 1:], list(self.size), dim=1)
        return Masks(lam, base.contiguous(), rows.contiguous(), columns.contiguous(), None)
