"""The names that ``--arch`` takes, without importing torchvision or timm, which takes seconds.

Tests compare them with those that torchvision and timm register, and with `training.networks`.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
import sys
from pathlib import Path

# The prefix of timm's models. Without it, a name that both have is torchvision's.
TIMM = "timm/"

# Models with auxiliary heads, which are used in training only, and the loss weight of each head.
AUXILIARY: dict[str, float] = {
    "googlenet": 0.3,  # Szegedy et al., Going deeper with convolutions, 2014, section 5
    "inception_v3": 0.4,  # as in PyTorch's tutorial on fine-tuning torchvision's models
}

# The networks for small images of `training.networks`. No other library has a model of such a name.
SMALL_IMAGES: tuple[str, ...] = (
    "cifar_resnet110", "cifar_resnet20", "cifar_resnet56", "preact_resnet18", "preact_resnet34",
    "preact_resnet50", "wrn_28_10", "wrn_28_2",
)  # fmt: skip

TORCHVISION: tuple[str, ...] = (
    "alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny", "densenet121",
    "densenet161", "densenet169", "densenet201", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2",
    "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7",
    "efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_large",
    "mobilenet_v3_small", "regnet_x_16gf", "regnet_x_1_6gf", "regnet_x_32gf", "regnet_x_3_2gf",
    "regnet_x_400mf", "regnet_x_800mf", "regnet_x_8gf", "regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf",
    "regnet_y_32gf", "regnet_y_3_2gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_8gf", "resnet101",
    "resnet152", "resnet18", "resnet34", "resnet50", "resnext101_32x8d", "resnext101_64x4d",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1", "swin_b", "swin_s", "swin_t", "swin_v2_b",
    "swin_v2_s", "swin_v2_t", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19",
    "vgg19_bn", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32", "wide_resnet101_2",
    "wide_resnet50_2",
)  # fmt: skip


def full_name(arch: str) -> str:
    """The full name of an architecture: timm's as ``timm/NAME``, others unchanged.

    Raises
    ------
    ValueError
        Nobody has it.
    """
    if arch in SMALL_IMAGES or arch in TORCHVISION:
        return arch
    short, known = arch.removeprefix(TIMM), timm_names()
    if known is not None and short in known:
        return TIMM + short
    if known is None and arch.startswith(TIMM):
        raise ValueError(f"--arch {arch} needs timm, which is not installed here (pip install timm)")
    ours = () if arch.startswith(TIMM) else SMALL_IMAGES + TORCHVISION
    theirs = {name: TIMM + name for name in known or () if name not in ours}
    named = short.partition(".")[0]  # resnet50.a1_in1k is the name of weights
    if named in ours or named in theirs:
        close = [theirs.get(named, named)]
    else:
        close = difflib.get_close_matches(short, ours, n=2)
        close += [theirs[name] for name in difflib.get_close_matches(short, theirs, n=2)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    others = "as timm/NAME, of timm" if known is not None else "if timm is installed, of timm"
    raise ValueError(
        f"--arch must be a classification model of this trainer, of torchvision or, {others}; got {arch}"
        f" ({hint}the trainer has {', '.join(SMALL_IMAGES)}; torchvision has {', '.join(TORCHVISION)})"
    )


def timm_names() -> frozenset[str] | None:
    """timm's models; None if it is not installed."""
    if (module := sys.modules.get("timm")) is not None:
        return frozenset(module.list_models())
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return None
    return _registered_in(Path(spec.submodule_search_locations[0]) / "models")


@functools.cache
def _registered_in(folder: Path) -> frozenset[str]:
    """The functions registered as models in a folder's modules, found without importing them."""
    pattern = re.compile(r"^@register_model\b.*\n(?:[@#].*\n)*def (\w+)\(", re.MULTILINE)
    return frozenset(
        name for path in folder.glob("*.py") for name in pattern.findall(path.read_text(encoding="utf-8"))
    )
