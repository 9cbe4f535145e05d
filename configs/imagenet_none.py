"""No mixing on ImageNet, ResNet-50, 300 epochs: a row of the paper's Table 3.

    python train_imagenet.py --config imagenet_none --data DIR

Top-1 in the paper: 75.68 %; time and hardware not given. This configuration has not been run to the end yet,
so there is no result, time or hardware of this project.
"""

from ._imagenet import imagenet

CONFIG = imagenet("none")
