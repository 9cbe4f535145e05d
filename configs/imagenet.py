"""The paper's Table 3: ImageNet, ResNet-50, 300 epochs.

    python train_imagenet.py --config imagenet_hmix --data DIR

| run                   | top-1 in the paper, % | here    |
|-----------------------|-----------------------|---------|
| `imagenet_none`       | 75.68                 | not run |
| `imagenet_mixup`      | 77.78                 | not run |
| `imagenet_cutmix`     | 78.04                 | not run |
| `imagenet_stochastic` | 78.13                 | not run |
| `imagenet_hmix`       | 78.38                 | not run |
| `imagenet_gmix`       | 78.13                 | not run |

The paper gives neither time nor hardware.

From the paper (section 5): network, epochs, learning rate, and alpha and r of each method.

Settings marked "CutMix's recipe" are not in the paper. They come from CutMix's published ImageNet recipe (its
train.py and the command in its README; two authors of the paper are also authors of CutMix).

Differences from that recipe: there is no PCA lighting noise (standard deviation 0.1), and residual branches
start at zero.
"""

from dali_msda import Mixing
from pipelines.records import Augmentation
from training.config import Config
from training.optimization import Optimization

METHODS: dict[str, dict[str, float]] = {
    "none": {},
    "mixup": {"alpha": 0.8},
    "cutmix": {"alpha": 1.0},
    "stochastic": {"alpha": 1.0},
    "hmix": {"alpha": 1.0, "ratio": 0.75},
    "gmix": {"alpha": 1.0},
}

CONFIGS = {
    method: Config(
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
            arguments=arguments,  # the paper
            probability=1.0,  # CutMix's recipe
            label_smoothing=0.0,  # CutMix's recipe
        ),
    )
    for method, arguments in METHODS.items()
}
