"""Networks for small images, written from the papers that describe them.

=============== =============================================================================================
file            contents
=============== =============================================================================================
`residual`      :class:`CifarResNet`: the ResNets of 6n + 2 layers for CIFAR
`preactivation` :class:`PreActResNet` and :class:`WideResNet`, whose blocks begin with norm and ReLU
`layers`        the convolution that all of them are made of
=============== =============================================================================================

They accept images of any size. `NETWORKS` has those that ``--arch`` takes, by name; depth and width of the
classes are free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from .preactivation import PreActResNet, WideResNet
from .residual import CifarResNet

__all__ = ["NETWORKS", "CifarResNet", "PreActResNet", "WideResNet"]

# The names are those of `training.architectures.SMALL_IMAGES`. Each is called with the number of classes.
NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "cifar_resnet20": partial(CifarResNet, 20),
    "cifar_resnet56": partial(CifarResNet, 56),
    "cifar_resnet110": partial(CifarResNet, 110),
    "preact_resnet18": partial(PreActResNet, 18),
    "preact_resnet34": partial(PreActResNet, 34),
    "preact_resnet50": partial(PreActResNet, 50),
    "wrn_28_2": partial(WideResNet, 28, 2),
    "wrn_28_10": partial(WideResNet, 28, 10),
}
