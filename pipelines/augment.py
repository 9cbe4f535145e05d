"""Augmentations of single images, before they are mixed: DALI's own."""

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
    """DALI's own tables use names that DALI itself calls deprecated, at every call and past all filters."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def augmented(images: DataNode, augmentation: Augmentation) -> DataNode:
    """RandAugment or TrivialAugment, then colour jitter, each sample with its own draws.

    To be called in a pipeline with ``enable_conditionals=True`` unless `auto_augment` is "none". Images are
    uint8 HxWx3.
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
        # One draw each: an argument that two operators shared would couple them.
        result = fn.color_twist(
            result,
            brightness=fn.random.uniform(range=[1 - jitter, 1 + jitter]),
            contrast=fn.random.uniform(range=[1 - jitter, 1 + jitter]),
            saturation=fn.random.uniform(range=[1 - jitter, 1 + jitter]),
        )
    return result
