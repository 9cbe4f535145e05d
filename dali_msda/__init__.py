"""Mixup, CutMix, Stochastic Mixup & CutMix, HMix and GMix inside NVIDIA DALI pipelines.

    import dali_msda as msda

    images, targets = msda.hmix(images, labels, num_classes=1000, alpha=1.0, ratio=0.75)

inside any ``@pipeline_def``, on the CPU or the GPU. :func:`mix` takes the method by name and describes all
arguments. The methods are those of Park, Yun and Chun, "A Unified Analysis of Mixed Sample Data
Augmentation: A Loss Function Perspective", NeurIPS 2022.
"""

import sys as _sys

try:
    try:
        import nvidia.dali as _dali  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "dali_msda needs NVIDIA DALI: install the build of your CUDA version,"
            " for example: pip install 'dali-msda[cuda12]'"
        ) from error

    from ._arguments import METHODS, MixParams
    from .operators import cutmix, gmix, hmix, mix, mixup, stochastic
except Exception:
    # The doctor is there to say what is missing, on a whole page.
    if "dali_msda.doctor" not in _sys.orig_argv:
        raise

__version__ = "0.1.0"

__all__ = ["METHODS", "MixParams", "cutmix", "gmix", "hmix", "mix", "mixup", "stochastic"]
