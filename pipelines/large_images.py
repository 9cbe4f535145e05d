"""Find images that are much larger than the training needs, and measure what smaller copies would gain.

A sample is enough: its sizes come from the headers. Only if they are large, the training pipeline is timed on
some of these images and on smaller copies of them, as :mod:`.pack` would make them.
"""

from __future__ import annotations

import dataclasses
import io
import os
import random
import shlex
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nvidia.dali.pipeline import Pipeline
from PIL import Image

from .formats import detect_format
from .imagenet import train_pipeline
from .memory import MemorySource
from .records import Augmentation, Execution, Output
from .shrinking import QUALITY, CannotShrink, shrink
from .sources import Source

# Smaller copies for 224 pixels have sides of at most 512, as most of ImageNet's images do.
_SIDE_FOR, _SIDE = 224, 512
# Sides of copies are multiples of this.
_STEP = 32
# Images with fewer pixels than this many times those of the copies are not worth a measurement, and a gain
# below this one is not worth saying.
_MIN_PIXELS_RATIO, _MIN_GAIN = 3.0, 1.5

_SAMPLE, _CHUNK, _SAMPLE_BYTES = 64, 8, 128 << 20
# Seconds after which reading, shrinking and timing begin nothing more.
_READING_S, _SHRINKING_S, _TIMING_S = 1.0, 0.6, 1.2
# Batches before timing starts, which allocate; timing ends sooner if the larger images had this many batches
# in this many seconds.
_WARM_UP, _ENOUGH_RUNS, _ENOUGH_S = 2, 4, 0.4
# Images in a batch for each thread; with half as many, DALI's decoders may use one thread only.
_PER_THREAD = 8

# What Pillow raises for headers that it cannot read.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# What DALI raises; files that Pillow can read and DALI cannot are among the reasons.
_FAILURES = (RuntimeError, ValueError, IndexError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second of the training pipeline, without mixing, on images in memory.

    Attributes
    ----------
    now, smaller : float
        For the images as they are, and for their smaller copies.
    images : int
        Number of different images in the measurement.
    seconds : float
        How long they were timed.
    """

    now: float
    smaller: float
    images: int
    seconds: float

    @property
    def gain(self) -> float:
        """How many times as fast the copies load."""
        return self.smaller / self.now

    @property
    def share(self) -> float:
        """Share of the loading time that goes into the size of the images."""
        return 1 - self.now / self.smaller


@dataclass(frozen=True, kw_only=True)
class LargeImages:
    """Images that are much larger than the training needs.

    Attributes
    ----------
    longer, shorter : int
        Medians of the sample's longer and shorter sides.
    megapixels : float
        Mean of the sample.
    sampled : int
        Number of images whose sizes were read.
    image_size : int
        Side of the training images.
    max_side : int
        Longest side of the copies to make.
    speed : Speed or None
        None if it was not measured: on a GPU, or because the images could not be decoded.
    """

    longer: int
    shorter: int
    megapixels: float
    sampled: int
    image_size: int
    max_side: int
    speed: Speed | None

    def report(self, data: Path) -> dict[str, Any]:
        """All of it for JSON, with the command that makes copies of the class folders in `data`."""
        return {**dataclasses.asdict(self), "command": pack_command(data, self.max_side)}

    def lines(self, data: Path) -> list[str]:
        """Describe it, with the command that makes copies of the class folders in `data`."""
        size = self.image_size
        found = (
            f"The images have {self.megapixels:.1f} megapixels on average (median {self.longer} x"
            f" {self.shorter}), far more than training at {size} x {size} needs"
        )
        command = pack_command(data, self.max_side)
        if self.speed is None:
            return [f"{found}.", f"Smaller copies may load faster (not measured): {command}"]
        gain = f"{self.speed.gain:.1f}" if self.speed.gain < 10 else f"{self.speed.gain:.0f}"
        return [
            f"{found}: about {100 * self.speed.share:.0f} % of the loading time goes into their size.",
            f"Smaller copies load about {gain} times as fast (timed on {self.speed.images} images for"
            f" {self.speed.seconds:.1f} s): {command}",
        ]


def find_large_images(
    source: Source,
    *,
    num_threads: int,
    batch_size: int,
    device: str = "cpu",
    augmentation: Augmentation = Augmentation(),
    output: Output = Output(),
    execution: Execution = Execution(),
    largest_size: int = 0,
) -> LargeImages | None:
    """Find out whether images are much larger than needed, and what smaller copies would gain.

    Takes milliseconds for images of the usual size, and about three seconds for large ones, if the compiled
    operators of the training pipeline are in Numba's cache. Files that cannot be read are skipped.

    Parameters
    ----------
    source : Source
        Training images.
    num_threads, batch_size, device, augmentation, output, execution
        Of the training pipeline, see :func:`.imagenet.train_pipeline`.
    largest_size : int
        Side of the validation images, if they may be larger than the output's.

    Returns
    -------
    LargeImages or None
        None if smaller copies would gain little.
    """
    max_side = side_of_copies(max(output.image_size, largest_size))
    wanted = min(batch_size, _PER_THREAD * num_threads)
    pairs: list[tuple[bytes, bytes]] = []
    with ThreadPoolExecutor(num_threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged and very large images
        images, sizes = _read_sample(source, pool)
        if not sizes or _pixels_ratio(sizes, max_side) < _MIN_PIXELS_RATIO:
            return None
        if device == "cpu":
            pairs = _make_copies(images[:wanted], max_side, pool, num_threads)
            if not pairs:
                return None  # of a kind that cannot be packed
    speed = None
    if pairs:
        speed = _time_both(
            pairs,
            batch_size=len(pairs) * (wanted // len(pairs)),
            num_threads=num_threads,
            augmentation=augmentation,
            output=output,
            execution=dataclasses.replace(execution, prefetch_queue_depth=1),
        )
        if speed is not None and speed.gain < _MIN_GAIN:
            return None
    return LargeImages(
        longer=round(statistics.median(map(max, sizes))),
        shorter=round(statistics.median(map(min, sizes))),
        megapixels=round(statistics.fmean(width * height for width, height in sizes) / 1e6, 2),
        sampled=len(sizes),
        image_size=output.image_size,
        max_side=max_side,
        speed=speed,
    )


def side_of_copies(image_size: int) -> int:
    """The longest side of copies for training at `image_size`."""
    return -(-_SIDE * image_size // (_SIDE_FOR * _STEP)) * _STEP


def pack_command(data: Path, max_side: int) -> str:
    """The command that makes copies of the class folders in `data`, beside them."""
    if data.name in ("", ".."):
        data = data.resolve()
    target = f"{data}-{max_side}"
    return f"python -m pipelines.pack {_quote(os.fspath(data))} {_quote(target)} --max-side {max_side}"


def _quote(text: str) -> str:
    """Quote an argument for a shell: for Bash, if it has characters that a screen cannot show."""
    if text.isprintable():
        return shlex.quote(text)
    shown = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(shown)}'"


def _read_sample(source: Source, pool: ThreadPoolExecutor) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Read images at fixed places, in random order; return them with their widths and heights."""
    positions = random.Random(0).sample(range(len(source)), min(_SAMPLE, len(source)))
    images: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    deadline, read = time.perf_counter() + _READING_S, 0
    while positions and read < _SAMPLE_BYTES and time.perf_counter() < deadline:
        chunk, positions = positions[:_CHUNK], positions[_CHUNK:]
        for encoded in pool.map(partial(_read, source), chunk):
            read += len(encoded)
            if (size := _read_size(encoded)) is not None:
                images.append(encoded)
                sizes.append(size)
    return images, sizes


def _read(source: Source, position: int) -> bytes:
    """Read an image; empty if it cannot be read."""
    try:
        return source.encoded(position)
    except OSError:
        return b""


def _read_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height from the header of an image that DALI reads; None for other files."""
    form = detect_format(encoded)
    if form is None or not form.extensions:
        return None
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size
    except _UNREADABLE:
        return None


def _pixels_ratio(sizes: Iterable[tuple[int, int]], max_side: int) -> float:
    """How many times as many pixels the images have as their copies."""
    pairs = [(width * height, min(1.0, max_side / max(width, height)) ** 2) for width, height in sizes]
    return sum(pixels for pixels, _ in pairs) / sum(pixels * left for pixels, left in pairs)


def _make_copies(
    images: Sequence[bytes], max_side: int, pool: ThreadPoolExecutor, num_threads: int
) -> list[tuple[bytes, bytes]]:
    """Pairs of an image and its smaller copy, as many as the time allows, but one at least."""
    pairs: list[tuple[bytes, bytes]] = []
    deadline = time.perf_counter() + _SHRINKING_S
    while images and (not pairs or time.perf_counter() < deadline):
        chunk, images = images[:num_threads], images[num_threads:]
        copies = pool.map(partial(_make_copy, max_side=max_side), chunk)
        pairs += [(image, copy) for image, copy in zip(chunk, copies, strict=True) if copy]
    return pairs


def _make_copy(encoded: bytes, max_side: int) -> bytes:
    """The image that the packer would write; empty if it cannot be decoded."""
    try:
        if (smaller := shrink(encoded, max_side, QUALITY)) is not None:
            return smaller
        shrink(encoded, 1, QUALITY)  # decodes it, if that has not been done
    except (CannotShrink, MemoryError):
        return b""
    return encoded


def _time_both(pairs: Sequence[tuple[bytes, bytes]], *, batch_size: int, **options: Any) -> Speed | None:
    """Time the training pipeline on images and on their copies; None if they cannot be decoded."""
    repeated = batch_size // len(pairs)
    sources = [MemorySource(list(images) * repeated) for images in zip(*pairs, strict=True)]
    try:
        slower, faster = (
            train_pipeline(images, mix="none", num_classes=1, batch_size=batch_size, seed=0, **options)
            for images in sources
        )
        for pipeline in (slower, faster):
            pipeline.build()
            for _ in range(_WARM_UP):
                pipeline.run()
        began = time.perf_counter()
        seconds = _time_in_turns(slower, faster)
    except _FAILURES:
        return None
    now, smaller = (round(batch_size / median, 2) for median in seconds)
    return Speed(now=now, smaller=smaller, images=len(pairs), seconds=round(time.perf_counter() - began, 1))


def _time_in_turns(slower: Pipeline, faster: Pipeline) -> tuple[float, float]:
    """Median seconds for a batch. The faster pipeline gets a third of the time of the slower one."""
    deadline = time.perf_counter() + _TIMING_S
    slow: list[float] = []
    fast: list[float] = []
    while time.perf_counter() < deadline and (len(slow) < _ENOUGH_RUNS or sum(slow) < _ENOUGH_S):
        slow.append(_time_batch(slower))
        fast.append(_time_batch(faster))
        while sum(fast) < sum(slow) / 3:
            fast.append(_time_batch(faster))
    return statistics.median(slow), statistics.median(fast)


def _time_batch(pipeline: Pipeline) -> float:
    began = time.perf_counter()
    pipeline.run()
    return time.perf_counter() - began
