"""Settings of the pipelines: records for augmentation, output, sharding and execution.

Each record checks its fields when it is made. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from dali_msda.validation import (
    ArgumentTypeError,
    ArgumentValueError,
    check_choice,
    check_fraction,
    check_integer,
    check_interval,
)

from .constants import MAGNITUDE_BINS, MOST_OPERATIONS

AutoAugment = Literal["none", "rand", "trivial"]
Layout = Literal["CHW", "HWC"]
FloatType = Literal["float32", "float16"]
ScaledDecoding = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of single images before mixing.

    Raises
    ------
    ValueError, TypeError
        Naming the field, what came and what is expected.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Share of the area that a random crop keeps."""

    crop_aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a random crop."""

    crop_padding: int | None = None
    """Instead of a random crop by area: resize the shorter side to the image size, add this many black pixels
    on every side, and cut a square at a random place, as is usual for CIFAR."""

    mirror_probability: float = 0.5
    """Probability of a horizontal mirror."""

    auto_augment: AutoAugment = "none"
    """DALI's RandAugment or TrivialAugment (wide), before mixing."""

    rand_augment: tuple[int, int] = (2, 9)
    """Number of operations (at most 16) and magnitude, of 31 steps, for auto_augment "rand"."""

    color_jitter: float = 0.0
    """Brightness, contrast and saturation are scaled by up to 1 +- this, before mixing."""

    def __post_init__(self) -> None:
        check_interval("crop_area", self.crop_area, 1.0)
        check_interval("crop_aspect_ratio", self.crop_aspect_ratio)
        if self.crop_padding is not None:
            check_integer("crop_padding", self.crop_padding, 0)
            for name in ("crop_area", "crop_aspect_ratio"):
                value = getattr(self, name)
                if tuple(value) != getattr(Augmentation, name):
                    raise ArgumentValueError(name, "left out with crop_padding, which replaces it", value)
        check_fraction("mirror_probability", self.mirror_probability)
        check_choice("auto_augment", self.auto_augment, get_args(AutoAugment))
        pair = self.rand_augment
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(n, Integral) for n in pair):
            raise ArgumentTypeError("rand_augment", "two integers (n, m)", pair)
        if not 1 <= pair[0] <= MOST_OPERATIONS or not 0 <= pair[1] < MAGNITUDE_BINS:
            expected = f"two numbers 1 <= n <= {MOST_OPERATIONS} and 0 <= m < {MAGNITUDE_BINS}"
            raise ArgumentValueError("rand_augment", expected, pair)
        check_fraction("color_jitter", self.color_jitter)

    def check_fits(self, image_size: int) -> None:
        """Raise ValueError if a crop of that size could show nothing but padding."""
        if self.crop_padding is not None and self.crop_padding >= image_size:
            raise ArgumentValueError(
                "crop_padding", f"below the image size ({image_size})", self.crop_padding
            )


@dataclass(frozen=True, kw_only=True)
class Output:
    """Size, layout and type of the images that a pipeline returns.

    Raises
    ------
    ValueError, TypeError
        Naming the field, what came and what is expected.
    """

    image_size: int = 224
    """Side of the square images in pixels."""

    layout: Layout = "CHW"
    """HWC suits models in ``channels_last`` format, see :class:`.loader.DALILoader`."""

    dtype: FloatType = "float32"
    """Type of the normalised images."""

    def __post_init__(self) -> None:
        check_integer("image_size", self.image_size, 1)
        check_choice("layout", self.layout, get_args(Layout))
        check_choice("dtype", self.dtype, get_args(FloatType))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of the data that a pipeline reads.

    Raises
    ------
    ValueError, TypeError
        Naming the field, what came and what is expected.
    """

    index: int = 0
    """Number of the shard, counted from 0."""

    count: int = 1
    """Number of shards."""

    def __post_init__(self) -> None:
        check_integer("count", self.count, 1)
        check_integer("index", self.index, 0)
        if self.index >= self.count:
            raise ArgumentValueError("index", f"in [0, {self.count})", self.index)

    def part(self, size: int) -> range:
        """The places of this shard among `size` places; together, the shards have each place once."""
        return range(size * self.index // self.count, size * (self.index + 1) // self.count)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How DALI runs a pipeline.

    Raises
    ------
    ValueError, TypeError
        Naming the field, what came and what is expected.
    """

    device_id: int = 0
    """Number of the GPU for ``device="gpu"``."""

    hw_decoder_load: float = 0.8
    """Share of the JPEGs for the GPU's hardware decoder, if it has one; docs/gpu.md has measurements."""

    prefetch_queue_depth: int | None = None
    """Number of prefetched batches. None: 3 on a GPU (docs/gpu.md has measurements), 2 on the CPU."""

    scaled_decoding: ScaledDecoding = "auto"
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size, on the CPU, if the part that is used stays at least as
    large as the output (:mod:`.scaled_decoding`). "auto": in CPU pipelines, if simplejpeg and Numba are
    installed."""

    def __post_init__(self) -> None:
        check_integer("device_id", self.device_id, 0)
        check_fraction("hw_decoder_load", self.hw_decoder_load)
        if self.prefetch_queue_depth is not None:
            check_integer("prefetch_queue_depth", self.prefetch_queue_depth, 1)
        check_choice("scaled_decoding", self.scaled_decoding, get_args(ScaledDecoding))

    def prefetched_on(self, device: str) -> int:
        """Number of prefetched batches on "cpu" or "gpu"."""
        if self.prefetch_queue_depth is not None:
            return self.prefetch_queue_depth
        return 3 if device == "gpu" else 2
