"""What runs the methods of :data:`.methods.WITH_MODEL`: each mixes a batch between loader and step."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.amp.grad_scaler import GradScaler

from .config import Config
from .learner import BatchMixer
from .methods import needs_model
from .puzzlemix import PuzzleMixer
from .ranks import Ranks

MIXERS: dict[str, Callable[[Config, Ranks, nn.Module, GradScaler, int], BatchMixer]] = {
    "puzzlemix": PuzzleMixer
}


def create_mixer(
    config: Config, ranks: Ranks, model: nn.Module, scaler: GradScaler, batches: int
) -> BatchMixer | None:
    """The mixer of ``--mix``, if it needs the model; None if the pipeline mixes.

    Parameters
    ----------
    config : Config
        Resolved.
    ranks : Ranks
    model : Module
        As it is evaluated and saved; on its device.
    scaler : GradScaler
    batches : int
        Batches per epoch and process.
    """
    if not needs_model(config.mixing):
        return None
    return MIXERS[config.mixing.method](config, ranks, model, scaler, batches)
