"""The optimisers, and which parameters decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .config import Config, plain

# Modules that multiply their inputs by a matrix, in `weight`.
_LINEAR = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def create_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the settings, of the parameters of `model`.

    Raises
    ------
    ValueError
        LAMB is asked for, and the installed timm cannot be imported.
    """
    chosen = config.optimization
    groups = parameter_groups(model, chosen.weight_decay, decay_all=config.decay_all)
    if chosen.method == "sgd":
        momentum = chosen.momentum or 0.0
        return torch.optim.SGD(groups, lr=chosen.lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    assert chosen.betas is not None
    assert chosen.eps is not None
    if chosen.method == "adamw":
        return torch.optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=True)
    try:
        from timm.optim import Lamb  # only here: users without LAMB need no timm
    except ImportError as error:
        raise ValueError(f"--optimizer lamb needs a timm that can be imported; got {plain(error)}") from error
    # It clips nothing itself: the step does, for all optimisers, see Learner.
    optimizer: torch.optim.Optimizer = Lamb(
        groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, max_grad_norm=None
    )
    return optimizer


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_all: bool = False
) -> list[dict[str, Any]]:
    """The matrices of linear, convolution and attention layers with decay, all other parameters without.

    Found by the types of the layers: no bias decays, nor the gain of a normalisation or of a residual branch,
    a position embedding or table, a class token. With `decay_all` these decay as well.
    """
    matrices = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _is_matrix(module, name)
    }
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": weight_decay},
        {
            "params": [p for p in parameters if id(p) not in matrices],
            "weight_decay": weight_decay if decay_all else 0.0,
        },
    ]


def _is_matrix(module: nn.Module, name: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return name in _PROJECTIONS
    return isinstance(module, _LINEAR) and name == "weight"
