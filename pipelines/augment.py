"""DALI's augmentations of single images, applied before mixing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from nvidia.dali import fn
from nvidia.dali.auto_aug.rand_augment import rand_augment
from nvidia.dali.auto_aug.trivial_augment import trivial_augment_wide
from nvidia.dali.pipeline import DataNode

from .constants import MAGNITUDE_BINS
from .records import Augmentation


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hide deprecation warnings: DALI's tables use names that DALI deprecates, and bypass all filters."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def augment(images: DataNode, augmentation: Augmentation) -> DataNode:
    """Apply RandAugment or TrivialAugment, then colour jitter, with separate draws for each sample.

    Call it in a pipeline with ``enable_conditionals=True`` unless `auto_augment` is "none". Images are uint8
    HxWx3.
    """
    result: Any = images
    with _without_deprecations():
        if augmentation.auto_augment == "rand":
            n, m = augmentation.rand_augment
            result = rand_augment(result, n=n, m=m, num_magnitude_bins=MAGNITUDE_BINS)
        elif augmentation.auto_augment == "trivial":
            result = trivial_augment_wide(result, num_magnitude_bins=MAGNITUDE_BINS)
    jitter = augmentation.color_jitter
    if jitter > 0:
        # Separate draws: a shared one would couple the three factors.
        result = fn.color_twist(
            result,
            brightness=fn.random.uniform(range=[1 - jitter, 1 + jitter]),
            contrast=fn.random.uniform(range=[1 - jitter, 1 + jitter]),
            saturation=fn.random.uniform(range=[1 - jitter, 1 + jitter]),
        )
    return result
