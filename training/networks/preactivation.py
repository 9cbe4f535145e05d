"""Residual networks whose blocks begin with norm and ReLU.

He et al., Identity mappings in deep residual networks, 2016; Zagoruyko and Komodakis, Wide residual networks,
2016, whose blocks are the same.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .layers import convolution, stage

# Blocks per stage, and whether they are bottlenecks: those of the ResNets for ImageNet.
_BLOCKS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class PreActResNet(nn.Module):
    """A pre-activation ResNet with the depths of those for ImageNet, for small images.

    As in the code of Mixup, Manifold Mixup and PuzzleMix, which experiments on CIFAR with these networks come
    from: the first layer is a convolution of 3x3 pixels with stride 1, without pooling, and nothing follows
    the last block. He et al. end with a norm and a ReLU.

    Parameters
    ----------
    depth : int
        18, 34, 50, 101 or 152.
    num_classes : int
    width : int
        Channels of the first stage, before the expansion of bottlenecks; each of the other three has twice as
        many as the one before it.

    Raises
    ------
    ValueError
        No network has this depth.
    """

    def __init__(self, depth: int, num_classes: int, *, width: int = 64) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _BLOCKS))}; got {depth}")
        blocks, bottlenecks = _BLOCKS[depth]
        block = Bottleneck if bottlenecks else Block
        channels, stages = width, []
        for number, count in enumerate(blocks):
            after = width * 2**number * (Bottleneck.expansion if bottlenecks else 1)
            stages.append(stage(block, [channels] + [after] * count, 2 if number else 1))
            channels = after
        self.conv = convolution(3, width)
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, Nx`num_classes`, of images Nx3xHxW."""
        return self.classifier(self.stages(self.conv(images)).mean((2, 3)))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A wide ResNet, WRN-`depth`-`widening`, with blocks of two 3x3 convolutions and without dropout.

    Parameters
    ----------
    depth : int
        Number of convolutions, of shortcuts too: 6n + 4, such as 10, 16 or 28.
    widening : int
        The paper's k: the stages have 16k, 32k and 64k channels.
    num_classes : int

    Raises
    ------
    ValueError
        `depth` is not 6n + 4.
    """

    def __init__(self, depth: int, widening: int, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4, at least 10; got {depth}")
        blocks, width = (depth - 4) // 6, 16 * widening
        self.conv = convolution(3, 16)
        self.stages = nn.Sequential(
            stage(Block, [16] + [width] * blocks, 1),
            stage(Block, [width] + [2 * width] * blocks, 2),
            stage(Block, [2 * width] + [4 * width] * blocks, 2),
        )
        self.norm = nn.BatchNorm2d(4 * width)
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, Nx`num_classes`, of images Nx3xHxW."""
        features = functional.relu(self.norm(self.stages(self.conv(images))), inplace=True)
        return self.classifier(features.mean((2, 3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Norm, ReLU, convolution, twice; then the input is added.

    Where the shape changes, the shortcut is a 1x1 convolution of the first activation.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = convolution(before, after, stride=stride)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = convolution(after, after)
        self.shortcut = _projection(before, after, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        active = functional.relu(self.norm1(inputs), inplace=True)
        features = self.conv1(active)
        features = self.conv2(functional.relu(self.norm2(features), inplace=True))
        return features + (inputs if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """As :class:`Block`, with convolutions of 1x1, 3x3 and 1x1 pixels, the first two of fewer channels."""

    expansion = 4

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        width = after // self.expansion
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = convolution(before, width, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, stride=stride)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, after, 1)
        self.shortcut = _projection(before, after, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        active = functional.relu(self.norm1(inputs), inplace=True)
        features = self.conv1(active)
        features = self.conv2(functional.relu(self.norm2(features), inplace=True))
        features = self.conv3(functional.relu(self.norm3(features), inplace=True))
        return features + (inputs if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


def _projection(before: int, after: int, stride: int) -> nn.Conv2d | None:
    return None if before == after and stride == 1 else convolution(before, after, 1, stride)
