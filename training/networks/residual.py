"""The ResNets for CIFAR (He et al., Deep residual learning for image recognition, 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .layers import convolution, stage


class CifarResNet(nn.Module):
    """A ResNet of 6n + 2 layers: a convolution, three stages of n blocks, a linear layer.

    Shortcuts are the paper's option A, which it uses in all its networks for CIFAR: where a stage begins, a
    shortcut takes every other pixel and adds channels of zeros. So shortcuts have no parameters, and the
    number of parameters is that of the paper's Table 6. Residual branches do not start at zero.

    Parameters
    ----------
    depth : int
        Number of layers with weights: 6n + 2, such as 8, 20 or 56.
    num_classes : int
    width : int
        Channels of the first stage; each of the other two has twice as many as the one before it.

    Raises
    ------
    ValueError
        `depth` is not 6n + 2.
    """

    def __init__(self, depth: int, num_classes: int, *, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2, at least 8; got {depth}")
        blocks = (depth - 2) // 6
        self.conv = convolution(3, width)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            stage(Block, [width] * (blocks + 1), 1),
            stage(Block, [width] + [2 * width] * blocks, 2),
            stage(Block, [2 * width] + [4 * width] * blocks, 2),
        )
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, Nx`num_classes`, of images Nx3xHxW."""
        features = self.stages(functional.relu(self.norm(self.conv(images)), inplace=True))
        return self.classifier(features.mean((2, 3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two convolutions, each with a norm; the input is added before the second ReLU."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(before, after, stride=stride)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = convolution(after, after)
        self.norm2 = nn.BatchNorm2d(after)
        self._stride = stride
        self._new_channels = after - before

    def forward(self, inputs: Tensor) -> Tensor:
        features = functional.relu(self.norm1(self.conv1(inputs)), inplace=True)
        return functional.relu(self.norm2(self.conv2(features)) + self._shortcut(inputs), inplace=True)

    def _shortcut(self, inputs: Tensor) -> Tensor:
        if self._stride > 1:
            inputs = inputs[:, :, :: self._stride, :: self._stride]
        # Last dimension first: columns, rows, channels.
        return functional.pad(inputs, (0, 0, 0, 0, 0, self._new_channels)) if self._new_channels else inputs
