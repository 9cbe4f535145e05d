"""Common settings of the runs in the paper's Table 3.

From the paper (section 5): ResNet-50, 300 epochs, SGD with a learning rate of 0.1, and alpha and r of each
method, which are in the files of the runs.

Settings marked "CutMix's recipe" are not in the paper. They come from CutMix's published ImageNet recipe (its
train.py and the command in its README; two authors of the paper are also authors of CutMix).

Differences from that recipe: there is no PCA lighting noise (standard deviation 0.1), and residual branches
start at zero.
"""

from dali_msda import Mixing
from pipelines.records import Augmentation
from training.config import Config
from training.optimization import Optimization


def imagenet(method: str, **arguments: float) -> Config:
    """Make the settings for a mixing method with its arguments."""
    return Config(
        arch="resnet50",  # the paper
        epochs=300,  # the paper
        optimization=Optimization(
            "sgd",  # the paper
            lr=0.1,  # the paper
            momentum=0.9,  # CutMix's recipe: with Nesterov's momentum
            weight_decay=1e-4,  # CutMix's recipe
        ),
        batch_size=256,  # CutMix's recipe
        decay_all=True,  # CutMix's recipe
        warmup_epochs=0.0,  # CutMix's recipe
        lr_schedule="step",  # CutMix's recipe
        lr_step_epochs=75.0,  # CutMix's recipe
        image_size=224,  # CutMix's recipe
        augmentation=Augmentation(
            crop_area=(0.08, 1.0),  # CutMix's recipe: torchvision's RandomResizedCrop
            color_jitter=0.4,  # CutMix's recipe
        ),
        mixing=Mixing(
            method,
            arguments=arguments,
            probability=1.0,  # CutMix's recipe
            label_smoothing=0.0,  # CutMix's recipe
        ),
    )
