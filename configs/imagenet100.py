"""The paper's Table 1: 100 classes of ImageNet at 64 x 64 pixels, with large or with small crops.

    python train_imagenet.py --config imagenet100_large_crop_cutmix --data DIR

| run                             | top-1 in the paper, % | here    |
|---------------------------------|-----------------------|---------|
| `imagenet100_large_crop_mixup`  | 58.3                  | not run |
| `imagenet100_large_crop_cutmix` | 64.4                  | not run |
| `imagenet100_small_crop_mixup`  | 67.7                  | not run |
| `imagenet100_small_crop_cutmix` | 67.0                  | not run |

What the table is about: CutMix minus Mixup is +6.1 with large crops and -0.7 with small ones. The paper gives
neither time nor hardware. With `--mix` the other methods run in the same two scenarios.

DIR holds train/ and val/ with the folders of the 100 classes. Those that the paper cites (Tian et al.,
Contrastive multiview coding) are listed in imagenet100.txt of github.com/HobbitLong/CMC. With that list, a
folder of links to the full ImageNet will do:

    mkdir -p imagenet100/train imagenet100/val
    for split in train val; do
        while read -r wnid; do ln -s "/data/imagenet/$split/$wnid" imagenet100/$split/; done < imagenet100.txt
    done

From the paper (section 4): the data, the image size, and the area of the crops, 80 to 100 % or 25 to 40 %.
Its main text says nothing else. Settings marked "Table 3" are assumed to be those of the paper's other runs
on ImageNet, and those marked "assumed" are our choice. Validation images are resized and cut as usual, in
both scenarios.
"""

import dataclasses

from dali_msda import Mixing
from pipelines.records import Augmentation

from .imagenet import CONFIGS as TABLE_3

CROPS = {"large_crop": (0.8, 1.0), "small_crop": (0.25, 0.4)}

CONFIGS = {
    f"{name}_{method}": dataclasses.replace(
        TABLE_3[
            method
        ],  # Table 3: ResNet-50, 300 epochs, SGD, learning rate and schedule, batch, weight decay
        image_size=64,  # the paper
        augmentation=Augmentation(
            crop_area=area,  # the paper
            color_jitter=0.0,  # assumed: the paper names crops only
        ),
        mixing=Mixing(
            method,
            alpha=1.0,  # assumed: the same for both, so that they differ in nothing but the masks
        ),
    )
    for name, area in CROPS.items()
    for method in ("mixup", "cutmix")
}
