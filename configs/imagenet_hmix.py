"""HMix on ImageNet, ResNet-50, 300 epochs: a row of the paper's Table 3.

    python train_imagenet.py --config imagenet_hmix --data DIR

Top-1 in the paper: 78.38 %; time and hardware not given. This configuration has not been run to the end yet,
so there is no result, time or hardware of this project.
"""

from ._imagenet import imagenet

CONFIG = imagenet("hmix", alpha=1.0, ratio=0.75)
