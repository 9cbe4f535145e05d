"""PuzzleMix: every block of a mixed image comes from the image of the pair that is more salient there.

Kim, Choo and Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020; not
its adversarial training. The saliency of a pixel is the norm of the loss's gradient with respect to it, so
each batch takes a forward and a backward pass more. :mod:`.puzzle_costs` has what a mask costs,
:mod:`.puzzle_cut` chooses the best.
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

from dali_msda.mixing import Scheduled

from .config import Config
from .hardware import autocast
from .learner import LOSSES
from .methods import GRIDS
from .model import outputs_of
from .puzzle_costs import costs_of, move_patches, pool_saliency
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
