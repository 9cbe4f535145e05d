"""PuzzleMix: every block of a mixed image comes from the image of the pair that is more salient there.

Kim, Choo and Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020; not
its adversarial training. The saliency of a pixel is the norm of the loss's gradient with respect to it, so
each batch takes a forward and a backward pass more. :mod:`.puzzle_cut` chooses masks and moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional

from dali_msda.mixing import Scheduled
from pipelines.constants import STD

from .config import Config
from .hardware import autocast
from .learner import LOSSES
from .methods import GRIDS
from .model import outputs_of
from .puzzle_cut import cut, prior_costs, transport
from .ranks import Ranks

# Sets these draws apart from others of the same seed.
_STREAM = 0x70757A7A6C65
# The most patches per side that are moved: an assignment of 16 x 16 patches takes half a millisecond.
_MOST_PATCHES = 16


class Draws(NamedTuple):
    """What is drawn for a batch of N images.

    Attributes
    ----------
    grid : int
        Blocks per side.
    partner : ndarray
        int64 [N], a permutation.
    lam : ndarray
        float64 [N].
    mixed : ndarray
        bool [N].
    """

    grid: int
    partner: NDArray[np.int64]
    lam: NDArray[np.float64]
    mixed: NDArray[np.bool_]


class Costs(NamedTuple):
    """The costs of the masks of N images, on a grid of blocks.

    Attributes
    ----------
    own, other : Tensor
        [N, grid, grid]: of a block that shows the image itself, or its partner.
    down, across : Tensor
        [N, grid - 1, grid] and [N, grid, grid - 1]: of a mask that changes by 1 between two neighbours.
    """

    own: Tensor
    other: Tensor
    down: Tensor
    across: Tensor


class PuzzleMixer:
    """Mixes batches; a part of a run that checkpoints keep.

    The draws of a batch depend on the seed, the rank and the number of the batch alone.

    Parameters
    ----------
    config : Config
        Resolved, with ``--mix puzzlemix``.
    ranks : Ranks
    model : Module
        On its device, not wrapped. Its saliency pass is in evaluation mode, as in the authors' code: it uses
        BatchNorm's running statistics and changes none, and draws nothing for dropout. No parameter gets a
        gradient.
    scaler : GradScaler
        Keeps the gradients of fp16 from vanishing.
    batches : int
        Batches per epoch and process, for ``--mix-ramp-epochs`` and ``--mix-off-epoch``.
    """

    def __init__(
        self, config: Config, ranks: Ranks, model: nn.Module, scaler: GradScaler, batches: int
    ) -> None:
        self._config = config
        self._mixing = config.mix_schedule.apply_to(config.mixing, batches)
        self._rank = ranks.rank
        self._model = model
        self._forward = torch.compile(model) if config.compile else model
        self._scaler = scaler
        self._device = next(model.parameters()).device
        self._grids = [grid for grid in GRIDS if config.image_size % grid == 0]
        self._batch = 0

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch."""
        return {"batch": self._batch}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Continue with this batch."""
        self._batch = state_dict["batch"]

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the next batch.

        Waits once for the device, whose costs the CPU needs; a batch of which no image is mixed does not.

        Parameters
        ----------
        images : Tensor
            [N, 3, size, size], normalised.
        targets : Tensor
            [N, K].

        Returns
        -------
        images, targets : Tensor
            In the same form.
        """
        draws = self._draw(self._batch, len(images))
        self._batch += 1
        return self._mix(images, targets, draws)[:2] if draws.mixed.any() else (images, targets)

    def preview(self, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mix the next batch without taking it: :meth:`__call__` will mix it the same way.

        Parameters
        ----------
        images, targets : ndarray
            float32 NxHxWx3, normalised; NxK.

        Returns
        -------
        images, targets, masks : ndarray
            As before, and float32 NxHxWx1: the weight of the image itself.
        """
        draws = self._draw(self._batch, len(images))
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device)
        mixed, mixed_targets, masks = self._mix(batch, torch.from_numpy(targets).to(self._device), draws)
        return (
            mixed.permute(0, 2, 3, 1).cpu().numpy(),
            mixed_targets.cpu().numpy(),
            masks[..., None].cpu().numpy(),
        )

    def _draw(self, batch: int, size: int) -> Draws:
        rng = np.random.default_rng([_STREAM, self._config.seed, self._rank, batch])
        grid = int(rng.choice(self._grids))
        partner = rng.permutation(size)
        count = 1 if self._mixing.granularity == "batch" else size
        alpha = _value(self._mixing.arguments["alpha"], batch)
        coins = rng.random(count) < _value(self._mixing.probability, batch)
        lam = rng.beta(alpha, alpha, count) if alpha > 0 else np.ones(count)
        return Draws(grid, partner, np.resize(lam, size), np.resize(coins & (alpha > 0), size))

    def _mix(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The mixed images, their targets, and the masks, [N, size, size]."""
        size, side = len(images), images.shape[-1]
        saliency = self._saliency(images, targets)
        partner = torch.from_numpy(draws.partner).to(self._device, non_blocking=True)
        arguments = self._mixing.arguments
        patches = self._patches(draws.grid)
        costs = costs_of(
            images,
            saliency,
            partner,
            draws.grid,
            **{name: _number(arguments[name]) for name in ("beta", "gamma")},
            neighbor_size=int(_number(arguments["neighbor_size"])),
        )
        found = [each.float() for each in (*costs, pool_saliency(saliency, patches))]
        # The one copy that waits for the device.
        flat = torch.cat([each.flatten() for each in found]).cpu().numpy().astype(np.float64)
        ends = np.cumsum([each.numel() for each in found])[:-1]
        shaped = [part.reshape(it.shape) for part, it in zip(np.split(flat, ends), found, strict=True)]
        grids = self._choose_masks(shaped[:4], draws)
        places = self._choose_places(grids, shaped[4], draws)

        masks = _to(grids, self._device).repeat_interleave(side // draws.grid, 1)
        masks = masks.repeat_interleave(side // draws.grid, 2).to(images.dtype)
        own, other = images, images[partner]
        if places is not None:
            own, other = (
                move_patches(source, torch.from_numpy(each).to(self._device, non_blocking=True), patches)
                for source, each in zip((own, other), places, strict=True)
            )
        weight = masks[:, None]
        mixed = torch.empty_like(images).copy_(weight * own + (1 - weight) * other)  # keeps channels_last
        ratio = _to(grids.reshape(size, -1).mean(1), self._device).to(targets.dtype)[:, None]
        return mixed, ratio * targets + (1 - ratio) * targets[partner], masks

    def _saliency(self, images: Tensor, targets: Tensor) -> Tensor:
        """The norm of each pixel's gradient over the channels, but for a factor; [N, size, size]."""
        pixels = images.detach().requires_grad_()
        with _frozen(self._model):
            with autocast(self._config, self._device):
                logits, *_ = outputs_of(self._forward(pixels))
            loss = LOSSES[self._config.loss](logits.float(), targets)
            (gradient,) = torch.autograd.grad(self._scaler.scale(loss), pixels)
        return gradient.float().square().mean(1).sqrt()

    def _patches(self, grid: int) -> int:
        """The patches per side that are moved."""
        size, side = int(_number(self._mixing.arguments["transport_size"])), self._config.image_size
        fits = size > 0 and side // grid % size == 0 and side // size <= _MOST_PATCHES
        return side // size if fits else grid

    def _choose_masks(self, costs: list[NDArray[np.float64]], draws: Draws) -> NDArray[np.float64]:
        """The weight of the image itself in each block, [N, grid, grid]; 1 where nothing is mixed."""
        own, other, down, across = (each[draws.mixed] for each in costs)
        arguments = self._mixing.arguments
        levels = int(_number(arguments["levels"]))
        weights = np.linspace(0.0, 1.0, levels)
        eta = _number(arguments["eta"]) / draws.grid**2
        unary = weights * own[..., None] + (1.0 - weights) * other[..., None]
        unary = unary + eta * prior_costs(draws.lam[draws.mixed], levels)[:, None, None, :]
        masks = np.ones_like(costs[0])
        masks[draws.mixed] = cut(unary, down, across) / (levels - 1)
        return masks

    def _choose_places(
        self, masks: NDArray[np.float64], saliency: NDArray[np.float64], draws: Draws
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The former places of the patches of images and of partners, int64 [N, patches**2] each."""
        if _number(self._mixing.arguments["transport_size"]) == 0:
            return None
        cost = _number(self._mixing.arguments["transport_cost"])
        patches = saliency.shape[-1]
        repeat = patches // draws.grid
        masks = masks.repeat(repeat, 1).repeat(repeat, 2)
        own, other = (
            np.stack([transport(*image, cost) for image in zip(salient, seen, strict=True)])
            for salient, seen in ((saliency, masks > 0), (saliency[draws.partner], masks < 1))
        )
        return own, other


def pool_saliency(saliency: Tensor, grid: int) -> Tensor:
    """Saliency per block, with a sum of 1 per image; even where the gradient is zero or not finite.

    Parameters
    ----------
    saliency : Tensor
        float32 [N, size, size].
    grid : int
        Blocks per side.

    Returns
    -------
    Tensor
        [N, grid, grid].
    """
    pooled = functional.avg_pool2d(saliency[:, None], saliency.shape[-1] // grid)[:, 0]
    total = pooled.sum((1, 2), keepdim=True)
    usable = torch.isfinite(total) & (total > 0)
    return torch.where(usable, pooled / total, 1.0 / grid**2)


def costs_of(
    images: Tensor,
    saliency: Tensor,
    partner: Tensor,
    grid: int,
    *,
    beta: float,
    gamma: float,
    neighbor_size: int,
) -> Costs:
    """The costs of masks on a grid.

    A block that shows one image costs the saliency of the other one there. Two neighbours cost beta times the
    squared difference of their weights, plus beta gamma times the mean difference of pixels where the shown
    images meet. The latter depends on which image each of the two shows: four numbers, divided here into
    costs of each block alone and a part for the squared difference, exact for weights of 0 and 1.

    Parameters
    ----------
    images : Tensor
        [N, 3, size, size], normalised.
    saliency : Tensor
        [N, size, size].
    partner : Tensor
        int64 [N].
    grid : int
        Blocks per side.
    beta, gamma : float
        At least 0, and in [0, 1].
    neighbor_size : int
        Side of the squares of pixels that are averaged first, where it divides that of the blocks; otherwise
        the largest common divisor.

    Returns
    -------
    Costs
    """
    salient = pool_saliency(saliency, grid)
    own, other = salient[partner], salient.clone()
    beta = beta / grid / 16  # as in the authors' code: the saliency of a block is smaller on a finer grid
    block = images.shape[-1] // grid
    square = int(np.gcd(neighbor_size, block))
    scale = torch.tensor(STD, device=images.device) / 255.0
    pixels = functional.avg_pool2d(images.float() * scale[:, None, None], square)
    run = block // square
    weights = []
    # Down, then across: the same, with rows and columns exchanged.
    for turn in (_as_it_is, _transposed):
        ends = turn(pixels)[:, :, run - 1 : -1 : run]
        begins = turn(pixels)[:, :, run::run]
        # The first index is of the upper block, the second of the lower: 1 for the image itself.
        shown = {1: (ends, begins), 0: (ends[partner], begins[partner])}
        meets = {
            (a, b): beta * gamma * _mean_difference(shown[a][0], shown[b][1], run)
            for a in (0, 1)
            for b in (0, 1)
        }
        turn(own)[:, :-1] += (meets[1, 0] + meets[1, 1]) / 2
        turn(own)[:, 1:] += (meets[0, 1] + meets[1, 1]) / 2
        turn(other)[:, :-1] += (meets[0, 1] + meets[0, 0]) / 2
        turn(other)[:, 1:] += (meets[1, 0] + meets[0, 0]) / 2
        weights.append(turn(beta + (meets[1, 0] + meets[0, 1] - meets[1, 1] - meets[0, 0]) / 2))
    # Pixels differ by at most 1 and gamma is at most 1, so only rounding makes a weight negative.
    return Costs(own, other, *(weight.clamp_min(0.0) for weight in weights))


def _as_it_is(maps: Tensor) -> Tensor:
    return maps


def _transposed(maps: Tensor) -> Tensor:
    return maps.transpose(-1, -2)


def _mean_difference(upper: Tensor, lower: Tensor, run: int) -> Tensor:
    """Mean absolute difference along the borders of blocks; from [N, 3, R, C run] to [N, R, C]."""
    return functional.avg_pool2d((upper - lower).abs().mean(1, keepdim=True), (1, run))[:, 0]


def move_patches(images: Tensor, places: Tensor, patches: int) -> Tensor:
    """Rearrange the patches of images.

    Parameters
    ----------
    images : Tensor
        [N, C, size, size].
    places : Tensor
        int64 [N, patches**2]: the former place of the patch in each place.
    patches : int
        Per side.

    Returns
    -------
    Tensor
        [N, C, size, size].
    """
    size, channels, side = images.shape[:3]
    length = side // patches
    cells = images.reshape(size, channels, patches, length, patches, length).permute(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(size, patches**2, channels, length, length)
    cells = cells[torch.arange(size, device=images.device)[:, None], places]
    cells = cells.reshape(size, patches, patches, channels, length, length).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(images.shape)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients of parameters."""
    was_training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(was_training)


def _value(scheduled: Scheduled, batch: int) -> float:
    return scheduled(batch) if callable(scheduled) else scheduled


def _number(value: Scheduled) -> float:
    if callable(value):
        raise TypeError(f"only alpha and the probability may be functions of the batch; got {value!r}")
    return value


def _to(values: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)
