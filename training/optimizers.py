"""The optimisers, and which parameters get weight decay."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from .config import Config, plain
from .distributed import Processes

# Modules that multiply their inputs by a matrix, in `weight`.
_LINEAR = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def create_optimizer(config: Config, model: nn.Module, processes: Processes) -> torch.optim.Optimizer:
    """Create the optimiser that the settings choose, for the parameters of `model`.

    It also loads checkpoints from before the layer type decided which parameters decay.

    Raises
    ------
    ValueError
        LAMB is chosen, and timm cannot be imported.
    """
    optimizer = _create(config, model)
    optimizer.register_load_state_dict_pre_hook(functools.partial(_restore_old_groups, model, processes))
    return optimizer


def _create(config: Config, model: nn.Module) -> torch.optim.Optimizer:
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
        from timm.optim import Lamb  # only here: SGD and AdamW need no timm
    except ImportError as error:
        raise ValueError(f"--optimizer lamb needs timm, whose import failed: {plain(error)}") from error
    # Lamb does not clip here: Learner clips for all optimisers.
    optimizer: torch.optim.Optimizer = Lamb(
        groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, max_grad_norm=None
    )
    return optimizer


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_all: bool = False
) -> list[dict[str, Any]]:
    """Group the matrices of linear, convolution and attention layers, which decay, and all other parameters.

    The layer type decides: biases, gains of normalisations and residual branches, position embeddings and
    tables, and class tokens do not decay. With `decay_all` these decay as well.
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


# -- Checkpoints from earlier versions --------------------------------------------------------------------

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def _restore_old_groups(
    model: nn.Module, processes: Processes, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> None:
    """Group the parameters as in the checkpoint, if it is from a version where more of them decayed.

    An optimiser state belongs to a parameter by its place in the groups. A run keeps the groups it began
    with: which parameters decay does not change midway.
    """
    sizes = [len(group["params"]) for group in state_dict["param_groups"]]
    before = _old_groups(model)
    if sizes == [len(group["params"]) for group in optimizer.param_groups] or sizes != list(map(len, before)):
        return
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in model.named_parameters()}
    spared = {id(parameter) for parameter in optimizer.param_groups[1]["params"]}
    kept = [names[id(parameter)] for parameter in before[0] if id(parameter) in spared]
    processes.say(
        f"The checkpoint is from an earlier version, in which {len(kept)} more parameters"
        f" ({', '.join(sorted(set(kept)))}) had weight decay: they keep it in this run"
    )
    for group, parameters in zip(optimizer.param_groups, before, strict=True):
        group["params"] = parameters


def _old_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that used to decay, all except biases (by name) and normalisations; and the others."""
    without = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, _NORMS) or name == "bias"
    }
    parameters = list(model.parameters())
    return [p for p in parameters if id(p) not in without], [p for p in parameters if id(p) in without]
