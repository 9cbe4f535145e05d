"""The masks of a batch, made from what was drawn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..masks import Axis, Dense, Grid, chosen
from ..methods import Method
from .draws import Draws
from .functions import Functions, Number


class Masks(NamedTuple):
    """The own image's weight at every pixel, for N samples: ``base + rows * columns``, or `dense`."""

    lam: Tensor
    """The label weight, mean of the mask: float32 [N]."""
    base: Tensor
    """float32 [N]"""
    rows: Tensor | None
    """Times the scale: float32 [N, H]; None if the mask is the same at every pixel, and for `dense`."""
    columns: Tensor | None
    """float32 [N, W]; None together with `rows`."""
    dense: Tensor | None
    """float32 [N, H, W]; None for the other form."""

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """The weight of every pixel: float32 [N, H, W]."""
        if self.dense is not None:
            return self.dense
        base = self.base[:, None, None]
        if self.rows is None or self.columns is None:
            return base.expand(-1, *size)
        return base + self.rows[:, :, None] * self.columns[:, None, :]


def make_masks(
    method: Method, draws: Draws, count: int, size: tuple[int, int], device: torch.device
) -> Masks:
    """Make the masks of `count` images of a size, with PyTorch's operators, in float64 and then float32."""
    values = {name: value.reshape(-1, 1, 1) for name, value in draws.values.items()}
    height, width = size
    down = torch.arange(height, dtype=torch.float64, device=device).reshape(1, height, 1)
    across = torch.arange(width, dtype=torch.float64, device=device).reshape(1, 1, width)
    rows = Axis(float(height), down, values["_row"])
    columns = Axis(float(width), across, values["_column"])
    grid = Grid(rows, columns, draws.paper, draws.given)
    mask = method.mask(Functions(device), grid, *(values[name] for name in method.values))
    coin, probability = values["_coin"], values["_probability"]

    def spread(value: Number, *shape: int) -> Tensor:
        """A number or a tensor that broadcasts, as float64 [N, ...]."""
        if not isinstance(value, Tensor):
            return torch.full((count, *shape), value, dtype=torch.float64, device=device)
        return value.to(torch.float64).expand(count, *shape)

    if isinstance(mask, Dense):
        dense = chosen(spread(mask.values, height, width), 1.0, coin, probability).clamp(0.0, 1.0)
        dense = dense.to(torch.float32)
        lam = dense.mean(dim=(1, 2), dtype=torch.float64)
        return Masks(lam.to(torch.float32), torch.zeros_like(lam, dtype=torch.float32), None, None, dense)
    base = spread(chosen(mask.base, 1.0, coin, probability), 1, 1)
    if mask.rows is None or mask.columns is None:
        lam = base.reshape(count).to(torch.float32)
        return Masks(lam, lam, None, None, None)
    scale = spread(chosen(mask.scale, 0.0, coin, probability), 1, 1)
    vertical, horizontal = spread(mask.rows, height, 1), spread(mask.columns, 1, width)
    share = vertical.mean(dim=1, keepdim=True) * horizontal.mean(dim=2, keepdim=True)
    return Masks(
        lam=(base + scale * share).reshape(count).to(torch.float32),
        base=base.reshape(count).to(torch.float32),
        rows=(vertical * scale).reshape(count, height).to(torch.float32),
        columns=horizontal.reshape(count, width).to(torch.float32),
        dense=None,
    )
