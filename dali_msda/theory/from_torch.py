"""A PyTorch model, expanded for Theorem 1. PyTorch is imported when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .losses import Expansion

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def expand(
    model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, *, hessian: bool = True
) -> Expansion:
    """Value, gradient and Hessian of a model with one output, by ``torch.func``.

    Parameters
    ----------
    model : callable
        From inputs [n, ...] to outputs [n] or [n, 1], each of which depends on its own input only, such as a
        module in evaluation mode. For one of several outputs: ``lambda x: model(x)[:, 3]``.
    inputs : tensor
        [m, ...], floating-point.
    hessian : bool, optional
        Whether to compute the Hessian, of m d^2 numbers. Without it R3 is 0.

    Returns
    -------
    Expansion
        float64, with the inputs flattened to d numbers.
    """
    import torch

    shape = inputs.shape[1:]

    def output(flat: torch.Tensor) -> torch.Tensor:
        return model(flat.reshape(1, *shape)).reshape(())

    flat = inputs.detach().flatten(start_dim=1)
    wanted = [output, torch.func.grad(output)]
    if hessian:
        wanted.append(torch.func.jacfwd(torch.func.jacrev(output)))
    parts = [torch.func.vmap(function)(flat) for function in wanted]
    return Expansion(*(part.detach().cpu().double().numpy() for part in parts))
