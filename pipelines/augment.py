"""Augmentations of single images, before they are mixed: DALI's own."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from nvidia.dali import fn
from nvidia.dali.auto_aug.rand_augment import rand_augment as dali_rand_augment
from nvidia.dali.auto_aug.trivial_augment import trivial_augment_wide
from nvidia.dali.pipeline import DataNode

from dali_msda.arguments import check_choice, check_fraction, check_integer

from .constants import MAGNITUDE_BINS

AUTO_AUGMENTS = ("none", "rand", "trivial")


def check_augmentation(auto_augment: str, rand_augment: Sequence[int], color_jitter: float) -> None:
    """Raise ValueError or TypeError unless :func:`augmented` can take the arguments."""
    check_choice("auto_augment", auto_augment, AUTO_AUGMENTS)
    if isinstance(rand_augment, str) or not isinstance(rand_augment, Sequence) or len(rand_augment) != 2:
        raise TypeError(f"rand_augment must be two integers (n, m); got {rand_augment!r}")
    check_integer("rand_augment's n", rand_augment[0], 1)
    check_integer("rand_augment's m", rand_augment[1], 0)
    if rand_augment[1] >= MAGNITUDE_BINS:
        raise ValueError(f"rand_augment's m must be below {MAGNITUDE_BINS}; got {rand_augment[1]}")
    check_fraction("color_jitter", color_jitter, node_allowed=False)


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """DALI's own tables use names that DALI itself calls deprecated, at every call and past all filters."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def augmented(
    images: DataNode, auto_augment: str, rand_augment: Sequence[int], color_jitter: float
) -> DataNode:
    """RandAugment or TrivialAugment, then colour jitter, each sample with its own draws.

    To be called in a pipeline with ``enable_conditionals=True`` unless `auto_augment` is "none".
    The arguments are those of :func:`.imagenet.train_pipeline`; images are uint8 HxWx3.
    """
    result: Any = images
    with _without_deprecations():
        if auto_augment == "rand":
            result = dali_rand_augment(
                result, n=rand_augment[0], m=rand_augment[1], num_magnitude_bins=MAGNITUDE_BINS
            )
        elif auto_augment == "trivial":
            result = trivial_augment_wide(result, num_magnitude_bins=MAGNITUDE_BINS)
    if color_jitter > 0:
        # One draw each: an argument that two operators shared would couple them.
        result = fn.color_twist(
            result,
            brightness=fn.random.uniform(range=[1 - color_jitter, 1 + color_jitter]),
            contrast=fn.random.uniform(range=[1 - color_jitter, 1 + color_jitter]),
            saturation=fn.random.uniform(range=[1 - color_jitter, 1 + color_jitter]),
        )
    return result
