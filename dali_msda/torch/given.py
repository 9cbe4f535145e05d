"""Masks from draws made on the CPU: what the drop-ins for timm and torchvision share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..methods import TABLE
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
        self._base = np.ones(count, np.float32)
        self._rows = np.zeros((count, height), np.float32)
        self._columns = np.zeros((count, width), np.float32)

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
            chosen = values[order].astype(np.float32, copy=False)
            return torch.from_numpy(chosen).to(device, non_blocking=True)

        boxes = self._boxes
        return Masks(
            lam=place(self.lam),
            base=place(self._base),
            rows=place(self._rows) if boxes else None,
            columns=place(self._columns) if boxes else None,
            dense=None,
        )
