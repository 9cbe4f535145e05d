"""What --grad-checkpointing must leave as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.model import checkpoint_activations


def assert_checkpointing_changes_nothing(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Same gradients and statistics, to the bit, for images of that shape; fewer activations are kept."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = build()
        if checkpointing:
            checkpoint_activations(model)
        kept: list[int] = []

        def count(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(torch.randn(*shape)).square().sum()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append(([*gradients, *model.state_dict().values()], sum(kept)))
    (values, most), (again, fewer) = found
    for before, after in zip(values, again, strict=True):
        assert before is not None
        assert after is not None
        assert torch.equal(before, after)
    assert fewer < most / 1.5
