"""The numbers of a run: what decays."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from training.architectures import TORCHVISION
from training.model import build_model, parameter_groups

# -- Weight decay -------------------------------------------------------------------------------------------

# torchvision's references (references/classification/utils.py, set_weight_decay) with the weight decay of
# norms, biases and transformer embeddings 0, as its recipes for Swin have it: a parameter of one of these
# layers, or with exactly one of these names, does not decay.
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
)
NAMES = ("bias", "class_token", "position_embedding", "relative_position_bias_table")
# What those names miss: attention's bias; the position embedding, which torchvision itself calls otherwise;
# and gains that the authors of ConvNeXt and of Swin V2 did not let decay.
MISSED = {
    "vit": {"in_proj_bias", "pos_embedding"},
    "convnext": {"layer_scale"},
    "swin_v2": {"logit_scale"},
}


class WithoutMemory(TorchFunctionMode):
    """Layers made inside have weights on the meta device.

    As a device context it would take numbers along that models compute their sizes with.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        on_meta = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **(kwargs or {}) | on_meta)


def names_without_decay(model: nn.Module) -> set[str]:
    decayed, plain = parameter_groups(model, 1e-4)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-4, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {*decayed["params"], *plain["params"]} == names.keys()
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    return {names[parameter] for parameter in plain["params"]}


def test_what_decays_in_every_architecture() -> None:
    for arch in TORCHVISION:
        with WithoutMemory():
            model = build_model(arch, 10)
        missed = next((names for family, names in MISSED.items() if arch.startswith(family)), set())
        expected, met = set(), set()
        for path, module in model.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                if isinstance(module, NORMS) or name in NAMES or name in missed:
                    expected.add(f"{path}.{name}".lstrip("."))
                    met.add(name)
        assert names_without_decay(model) == expected, arch
        assert missed <= met, arch


def test_what_decays_is_found_by_type() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.Linear(2, 2)
            self.weight = nn.BatchNorm1d(2)
            self.other = nn.InstanceNorm1d(2, affine=True)
            self.bias = nn.Bilinear(2, 2, 2)
            self.norm = nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True)
            self.up = nn.ConvTranspose1d(2, 2, 1)

    model = Odd()
    decaying = {"bn.weight", "bias.weight", "up.weight", "norm.out_proj.weight"}
    decaying |= {f"norm.{each}_proj_weight" for each in "qkv"}
    assert {name for name, _ in model.named_parameters()} - names_without_decay(model) == decaying
