"""Weight files published by torchvision: their models, and how torchvision evaluates them.

The files do not say so themselves, but their names identify them. Nothing is downloaded here. A test compares
this table with torchvision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

_FOLDER = "https://download.pytorch.org/models"


class Published(NamedTuple):
    """Weights from torchvision.

    Attributes
    ----------
    arch, weights : str
        The model, and the member of its weights enum.
    crop_size, resize_size : int
        Side of the evaluated images in pixels, and shorter side before the crop.
    is_default : bool
        Whether they are the enum's DEFAULT.
    interpolation : str
        Interpolation of the resize.
    half : bool
        Whether mean and standard deviation of the pixels are 0.5, not ImageNet's.
    """

    arch: str
    weights: str
    crop_size: int
    resize_size: int
    is_default: bool = True
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    half: bool = False


def find_published(path: Path) -> Published | None:
    """The published weights with this file name, as torchvision and torch.hub save them."""
    return _PUBLISHED.get(path.name)


def require_downloaded(path: Path, arch: str) -> None:
    """Raise ValueError, saying what to download, if torchvision weights are given that are not on disk."""
    if path.exists():
        return
    enum, _, member = path.name.rpartition(".")
    wanted = enum.removesuffix("_Weights").lower().replace("_", "") or arch.replace("_", "")
    found = [
        f"{it.weights} of {it.arch} is {_FOLDER}/{name}"
        for name, it in _PUBLISHED.items()
        if path.name == name
        or (
            it.arch.replace("_", "") == wanted
            and (it.weights == member or (it.is_default and member == "DEFAULT"))
        )
    ]
    if found:
        raise ValueError(
            f"--init-weights must be a file, because nothing is downloaded here; there is no file {path}:"
            f" {found[0]}"
        )


# By file name.
_PUBLISHED: dict[str, Published] = {
    "alexnet-owt-7be5be79.pth": Published("alexnet", "IMAGENET1K_V1", 224, 256),
    "convnext_base-6075fbad.pth": Published("convnext_base", "IMAGENET1K_V1", 224, 232),
    "convnext_large-ea097f82.pth": Published("convnext_large", "IMAGENET1K_V1", 224, 232),
    "convnext_small-0c510722.pth": Published("convnext_small", "IMAGENET1K_V1", 224, 230),
    "convnext_tiny-983f1562.pth": Published("convnext_tiny", "IMAGENET1K_V1", 224, 236),
    "densenet121-a639ec97.pth": Published("densenet121", "IMAGENET1K_V1", 224, 256),
    "densenet161-8d451a50.pth": Published("densenet161", "IMAGENET1K_V1", 224, 256),
    "densenet169-b2777c0a.pth": Published("densenet169", "IMAGENET1K_V1", 224, 256),
    "densenet201-c1103571.pth": Published("densenet201", "IMAGENET1K_V1", 224, 256),
    "efficientnet_b0_rwightman-7f5810bc.pth": Published(
        "efficientnet_b0", "IMAGENET1K_V1", 224, 256, interpolation="bicubic"
    ),
    "efficientnet_b1_rwightman-bac287d4.pth": Published(
        "efficientnet_b1", "IMAGENET1K_V1", 240, 256, False, interpolation="bicubic"
    ),
    "efficientnet_b1-c27df63c.pth": Published("efficientnet_b1", "IMAGENET1K_V2", 240, 255),
    "efficientnet_b2_rwightman-c35c1473.pth": Published(
        "efficientnet_b2", "IMAGENET1K_V1", 288, 288, interpolation="bicubic"
    ),
    "efficientnet_b3_rwightman-b3899882.pth": Published(
        "efficientnet_b3", "IMAGENET1K_V1", 300, 320, interpolation="bicubic"
    ),
    "efficientnet_b4_rwightman-23ab8bcd.pth": Published(
        "efficientnet_b4", "IMAGENET1K_V1", 380, 384, interpolation="bicubic"
    ),
    "efficientnet_b5_lukemelas-1a07897c.pth": Published(
        "efficientnet_b5", "IMAGENET1K_V1", 456, 456, interpolation="bicubic"
    ),
    "efficientnet_b6_lukemelas-24a108a5.pth": Published(
        "efficientnet_b6", "IMAGENET1K_V1", 528, 528, interpolation="bicubic"
    ),
    "efficientnet_b7_lukemelas-c5b4e57e.pth": Published(
        "efficientnet_b7", "IMAGENET1K_V1", 600, 600, interpolation="bicubic"
    ),
    "efficientnet_v2_l-59c71312.pth": Published(
        "efficientnet_v2_l", "IMAGENET1K_V1", 480, 480, interpolation="bicubic", half=True
    ),
    "efficientnet_v2_m-dc08266a.pth": Published("efficientnet_v2_m", "IMAGENET1K_V1", 480, 480),
    "efficientnet_v2_s-dd5fe13b.pth": Published("efficientnet_v2_s", "IMAGENET1K_V1", 384, 384),
    "googlenet-1378be20.pth": Published("googlenet", "IMAGENET1K_V1", 224, 256, half=True),
    "inception_v3_google-0cc3c7bd.pth": Published("inception_v3", "IMAGENET1K_V1", 299, 342, half=True),
    "maxvit_t-bc5ab103.pth": Published("maxvit_t", "IMAGENET1K_V1", 224, 224, interpolation="bicubic"),
    "mnasnet0.5_top1_67.823-3ffadce67e.pth": Published("mnasnet0_5", "IMAGENET1K_V1", 224, 256),
    "mnasnet0_75-7090bc5f.pth": Published("mnasnet0_75", "IMAGENET1K_V1", 224, 232),
    "mnasnet1.0_top1_73.512-f206786ef8.pth": Published("mnasnet1_0", "IMAGENET1K_V1", 224, 256),
    "mnasnet1_3-a4c69d6f.pth": Published("mnasnet1_3", "IMAGENET1K_V1", 224, 232),
    "mobilenet_v2-b0353104.pth": Published("mobilenet_v2", "IMAGENET1K_V1", 224, 256, False),
    "mobilenet_v2-7ebf99e0.pth": Published("mobilenet_v2", "IMAGENET1K_V2", 224, 232),
    "mobilenet_v3_large-8738ca79.pth": Published("mobilenet_v3_large", "IMAGENET1K_V1", 224, 256, False),
    "mobilenet_v3_large-5c1a4163.pth": Published("mobilenet_v3_large", "IMAGENET1K_V2", 224, 232),
    "mobilenet_v3_small-047dcff4.pth": Published("mobilenet_v3_small", "IMAGENET1K_V1", 224, 256),
    "regnet_x_16gf-2007eb11.pth": Published("regnet_x_16gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_x_16gf-ba3796d7.pth": Published("regnet_x_16gf", "IMAGENET1K_V2", 224, 232),
    "regnet_x_1_6gf-e3633e7f.pth": Published("regnet_x_1_6gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_x_1_6gf-a12f2b72.pth": Published("regnet_x_1_6gf", "IMAGENET1K_V2", 224, 232),
    "regnet_x_32gf-9d47f8d0.pth": Published("regnet_x_32gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_x_32gf-6eb8fdc6.pth": Published("regnet_x_32gf", "IMAGENET1K_V2", 224, 232),
    "regnet_x_3_2gf-f342aeae.pth": Published("regnet_x_3_2gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_x_3_2gf-7071aa85.pth": Published("regnet_x_3_2gf", "IMAGENET1K_V2", 224, 232),
    "regnet_x_400mf-adf1edd5.pth": Published("regnet_x_400mf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_x_400mf-62229a5f.pth": Published("regnet_x_400mf", "IMAGENET1K_V2", 224, 232),
    "regnet_x_800mf-ad17e45c.pth": Published("regnet_x_800mf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_x_800mf-94a99ebd.pth": Published("regnet_x_800mf", "IMAGENET1K_V2", 224, 232),
    "regnet_x_8gf-03ceed89.pth": Published("regnet_x_8gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_x_8gf-2b70d774.pth": Published("regnet_x_8gf", "IMAGENET1K_V2", 224, 232),
    "regnet_y_128gf_swag-c8ce3e52.pth": Published(
        "regnet_y_128gf", "IMAGENET1K_SWAG_E2E_V1", 384, 384, interpolation="bicubic"
    ),
    "regnet_y_128gf_lc_swag-cbe8ce12.pth": Published(
        "regnet_y_128gf", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, False, interpolation="bicubic"
    ),
    "regnet_y_16gf-9e6ed7dd.pth": Published("regnet_y_16gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_y_16gf-3e4a00f9.pth": Published("regnet_y_16gf", "IMAGENET1K_V2", 224, 232),
    "regnet_y_16gf_swag-43afe44d.pth": Published(
        "regnet_y_16gf", "IMAGENET1K_SWAG_E2E_V1", 384, 384, False, interpolation="bicubic"
    ),
    "regnet_y_16gf_lc_swag-f3ec0043.pth": Published(
        "regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, False, interpolation="bicubic"
    ),
    "regnet_y_1_6gf-b11a554e.pth": Published("regnet_y_1_6gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_y_1_6gf-0d7bc02a.pth": Published("regnet_y_1_6gf", "IMAGENET1K_V2", 224, 232),
    "regnet_y_32gf-4dee3f7a.pth": Published("regnet_y_32gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_y_32gf-8db6d4b5.pth": Published("regnet_y_32gf", "IMAGENET1K_V2", 224, 232),
    "regnet_y_32gf_swag-04fdfa75.pth": Published(
        "regnet_y_32gf", "IMAGENET1K_SWAG_E2E_V1", 384, 384, False, interpolation="bicubic"
    ),
    "regnet_y_32gf_lc_swag-e1583746.pth": Published(
        "regnet_y_32gf", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, False, interpolation="bicubic"
    ),
    "regnet_y_3_2gf-b5a9779c.pth": Published("regnet_y_3_2gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_y_3_2gf-9180c971.pth": Published("regnet_y_3_2gf", "IMAGENET1K_V2", 224, 232),
    "regnet_y_400mf-c65dace8.pth": Published("regnet_y_400mf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_y_400mf-e6988f5f.pth": Published("regnet_y_400mf", "IMAGENET1K_V2", 224, 232),
    "regnet_y_800mf-1b27b58c.pth": Published("regnet_y_800mf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_y_800mf-58fc7688.pth": Published("regnet_y_800mf", "IMAGENET1K_V2", 224, 232),
    "regnet_y_8gf-d0d0e4a8.pth": Published("regnet_y_8gf", "IMAGENET1K_V1", 224, 256, False),
    "regnet_y_8gf-dc2b1b54.pth": Published("regnet_y_8gf", "IMAGENET1K_V2", 224, 232),
    "resnet101-63fe2227.pth": Published("resnet101", "IMAGENET1K_V1", 224, 256, False),
    "resnet101-cd907fc2.pth": Published("resnet101", "IMAGENET1K_V2", 224, 232),
    "resnet152-394f9c45.pth": Published("resnet152", "IMAGENET1K_V1", 224, 256, False),
    "resnet152-f82ba261.pth": Published("resnet152", "IMAGENET1K_V2", 224, 232),
    "resnet18-f37072fd.pth": Published("resnet18", "IMAGENET1K_V1", 224, 256),
    "resnet34-b627a593.pth": Published("resnet34", "IMAGENET1K_V1", 224, 256),
    "resnet50-0676ba61.pth": Published("resnet50", "IMAGENET1K_V1", 224, 256, False),
    "resnet50-11ad3fa6.pth": Published("resnet50", "IMAGENET1K_V2", 224, 232),
    "resnext101_32x8d-8ba56ff5.pth": Published("resnext101_32x8d", "IMAGENET1K_V1", 224, 256, False),
    "resnext101_32x8d-110c445d.pth": Published("resnext101_32x8d", "IMAGENET1K_V2", 224, 232),
    "resnext101_64x4d-173b62eb.pth": Published("resnext101_64x4d", "IMAGENET1K_V1", 224, 232),
    "resnext50_32x4d-7cdf4587.pth": Published("resnext50_32x4d", "IMAGENET1K_V1", 224, 256, False),
    "resnext50_32x4d-1a0047aa.pth": Published("resnext50_32x4d", "IMAGENET1K_V2", 224, 232),
    "shufflenetv2_x0.5-f707e7126e.pth": Published("shufflenet_v2_x0_5", "IMAGENET1K_V1", 224, 256),
    "shufflenetv2_x1-5666bf0f80.pth": Published("shufflenet_v2_x1_0", "IMAGENET1K_V1", 224, 256),
    "shufflenetv2_x1_5-3c479a10.pth": Published("shufflenet_v2_x1_5", "IMAGENET1K_V1", 224, 232),
    "shufflenetv2_x2_0-8be3c8ee.pth": Published("shufflenet_v2_x2_0", "IMAGENET1K_V1", 224, 232),
    "squeezenet1_0-b66bff10.pth": Published("squeezenet1_0", "IMAGENET1K_V1", 224, 256),
    "squeezenet1_1-b8a52dc0.pth": Published("squeezenet1_1", "IMAGENET1K_V1", 224, 256),
    "swin_b-68c6b09e.pth": Published("swin_b", "IMAGENET1K_V1", 224, 238, interpolation="bicubic"),
    "swin_s-5e29d889.pth": Published("swin_s", "IMAGENET1K_V1", 224, 246, interpolation="bicubic"),
    "swin_t-704ceda3.pth": Published("swin_t", "IMAGENET1K_V1", 224, 232, interpolation="bicubic"),
    "swin_v2_b-781e5279.pth": Published("swin_v2_b", "IMAGENET1K_V1", 256, 272, interpolation="bicubic"),
    "swin_v2_s-637d8ceb.pth": Published("swin_v2_s", "IMAGENET1K_V1", 256, 260, interpolation="bicubic"),
    "swin_v2_t-b137f0e2.pth": Published("swin_v2_t", "IMAGENET1K_V1", 256, 260, interpolation="bicubic"),
    "vgg11-8a719046.pth": Published("vgg11", "IMAGENET1K_V1", 224, 256),
    "vgg11_bn-6002323d.pth": Published("vgg11_bn", "IMAGENET1K_V1", 224, 256),
    "vgg13-19584684.pth": Published("vgg13", "IMAGENET1K_V1", 224, 256),
    "vgg13_bn-abd245e5.pth": Published("vgg13_bn", "IMAGENET1K_V1", 224, 256),
    "vgg16-397923af.pth": Published("vgg16", "IMAGENET1K_V1", 224, 256),
    "vgg16_bn-6c64b313.pth": Published("vgg16_bn", "IMAGENET1K_V1", 224, 256),
    "vgg19-dcbb9e9d.pth": Published("vgg19", "IMAGENET1K_V1", 224, 256),
    "vgg19_bn-c79401a0.pth": Published("vgg19_bn", "IMAGENET1K_V1", 224, 256),
    "vit_b_16-c867db91.pth": Published("vit_b_16", "IMAGENET1K_V1", 224, 256),
    "vit_b_16_swag-9ac1b537.pth": Published(
        "vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384, 384, False, interpolation="bicubic"
    ),
    "vit_b_16_lc_swag-4e70ced5.pth": Published(
        "vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, False, interpolation="bicubic"
    ),
    "vit_b_32-d86f8d99.pth": Published("vit_b_32", "IMAGENET1K_V1", 224, 256),
    "vit_h_14_swag-80465313.pth": Published(
        "vit_h_14", "IMAGENET1K_SWAG_E2E_V1", 518, 518, interpolation="bicubic"
    ),
    "vit_h_14_lc_swag-c1eb923e.pth": Published(
        "vit_h_14", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, False, interpolation="bicubic"
    ),
    "vit_l_16-852ce7e3.pth": Published("vit_l_16", "IMAGENET1K_V1", 224, 242),
    "vit_l_16_swag-4f3808c9.pth": Published(
        "vit_l_16", "IMAGENET1K_SWAG_E2E_V1", 512, 512, False, interpolation="bicubic"
    ),
    "vit_l_16_lc_swag-4d563306.pth": Published(
        "vit_l_16", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, False, interpolation="bicubic"
    ),
    "vit_l_32-c7638314.pth": Published("vit_l_32", "IMAGENET1K_V1", 224, 256),
    "wide_resnet101_2-32ee1156.pth": Published("wide_resnet101_2", "IMAGENET1K_V1", 224, 256, False),
    "wide_resnet101_2-d733dc28.pth": Published("wide_resnet101_2", "IMAGENET1K_V2", 224, 232),
    "wide_resnet50_2-95faca4d.pth": Published("wide_resnet50_2", "IMAGENET1K_V1", 224, 256, False),
    "wide_resnet50_2-9ba9bcbe.pth": Published("wide_resnet50_2", "IMAGENET1K_V2", 224, 232),
}
