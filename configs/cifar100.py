"""The paper's Table 2: CIFAR-100, five networks, 300 epochs.

    python train_imagenet.py --config cifar100_preact_resnet18_hmix --data DIR

Top-1 in the paper, %; none of these runs has been completed here yet:

| run                       | resnet56 | wrn_28_2 | preact_resnet18 | preact_resnet34 | preact_resnet50 |
|---------------------------|----------|----------|-----------------|-----------------|-----------------|
| `cifar100_..._none`       | 73.23    | 73.50    | 76.73           | 77.68           | 79.07           |
| `cifar100_..._mixup`      | 73.12    | 74.05    | 77.21           | 79.02           | 79.34           |
| `cifar100_..._cutmix`     | 74.83    | 74.79    | 78.66           | 80.05           | 81.23           |
| `cifar100_..._stochastic` | 74.88    | 75.49    | 79.25           | 81.05           | 81.21           |
| `cifar100_..._hmix`       | 74.99    | 75.68    | 79.25           | 81.07           | 81.38           |
| `cifar100_..._gmix`       | 75.75    | 76.15    | 79.17           | 80.52           | 81.45           |
| `cifar100_..._puzzlemix`  | -        | 76.51    | 79.38           | 80.89           | 82.46           |

It gives neither time nor hardware.

DIR holds class folders in train/ and val/, or CIFAR's binary files.

From the paper (section 5): networks, epochs, SGD with its learning rate, and alpha and r of each method.

Settings marked "PuzzleMix" are not in the paper's main text and assumed to be those of PuzzleMix's code
(main.py and load_data.py of github.com/snu-mllab/PuzzleMix). The paper compares with it, and its shorter runs
have the same learning rate, 0.2. The schedule is that code's default for 300 epochs.

Differences from that code: pixels are normalised with ImageNet's mean and standard deviation, not CIFAR's;
every image has its own draws, not every batch; PuzzleMix's masks and moves are exact optima; convolutions
start as in He et al. 2015, not as PyTorch's do; the blocks of the wide network are those of its paper, with
the stride in the first convolution and no biases.
"""

from pipelines.records import Augmentation
from training.config import Config
from training.methods import mixing_of
from training.optimization import Optimization

NETWORKS = {
    "resnet56": "cifar_resnet56",
    "wrn_28_2": "wrn_28_2",
    "preact_resnet18": "preact_resnet18",
    "preact_resnet34": "preact_resnet34",
    "preact_resnet50": "preact_resnet50",
}

# Alpha, r: the paper. The arguments of PuzzleMix: its code.
METHODS: dict[str, dict[str, float]] = {
    "none": {},
    "mixup": {"alpha": 1.0},
    "cutmix": {"alpha": 1.0},
    "stochastic": {"alpha": 1.0},
    "hmix": {"alpha": 1.0, "ratio": 0.5},
    "gmix": {"alpha": 0.5},
    "puzzlemix": {
        "alpha": 1.0,
        "beta": 1.2,
        "gamma": 0.5,
        "eta": 0.2,
        "levels": 3,
        "neighbor_size": 4,
        "transport_size": 4,
        "transport_cost": 0.8,
    },
}

CONFIGS = {
    f"{network}_{method}": Config(
        arch=arch,  # the paper
        epochs=300,  # the paper
        optimization=Optimization(
            "sgd",  # the paper
            lr=0.2,  # the paper
            momentum=0.9,  # PuzzleMix: with Nesterov's momentum
            weight_decay=1e-4,  # PuzzleMix
        ),
        batch_size=100,  # PuzzleMix
        decay_all=True,  # PuzzleMix
        warmup_epochs=0.0,  # PuzzleMix
        lr_schedule="step",  # PuzzleMix
        lr_milestones=(150.0, 225.0),  # PuzzleMix
        image_size=32,  # CIFAR's own
        val_resize_size=32,  # PuzzleMix: nothing is cut off
        augmentation=Augmentation(
            # PuzzleMix: a mirror, then torchvision's RandomCrop(32, padding=2). Its padding is black, because
            # normalisation comes later.
            mirror_probability=0.5,
            crop_padding=2,
        ),
        mixing=mixing_of(
            method,
            arguments=arguments,
            probability=1.0,  # PuzzleMix
            label_smoothing=0.0,  # PuzzleMix
        ),
    )
    for network, arch in NETWORKS.items()
    for method, arguments in METHODS.items()
    if (network, method) != ("resnet56", "puzzlemix")  # not in the paper
}
