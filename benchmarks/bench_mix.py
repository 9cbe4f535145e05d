"""Time to mix one batch: this project's kernel, a plain copy of the same bytes, and other libraries.

    python -m benchmarks.bench_mix [--batch-sizes 64 256] [--cores 1 2]
    python -m benchmarks.bench_mix --device gpu

On the CPU the kernel is called on arrays, as DALI calls it, one image after another on each core.
`dali_msda.torch` and other libraries mix the same images as float32 tensors N x C x H x W, and as uint8 if
they can; these include labels. All take turns, round by round. On the GPU the DALI graph mixes uint8 batches
that are already there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro

import dali_msda as msda
from benchmarks.common import Record, mixing, save, spread
from benchmarks.tables import show
from dali_msda.backends.numba.arrays import mix_batch, write_masks
from dali_msda.methods import TABLE
from dali_msda.torch import Mix

Run = Callable[[], Any]

# PyTorch's threads go on looking for work for some ms, and would do so during the next contender's turn.
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    batch_sizes: tuple[int, ...] = (64, 256)
    """Images per batch."""

    cores: tuple[int, ...] = (1, 2)
    """Threads for the kernel, the copy and PyTorch."""

    image_size: int = 224
    """Side of the images in pixels."""

    rounds: int = 15
    """Turns of every contender, after two for warm-up."""

    device: Literal["cpu", "gpu"] = "cpu"
    """gpu: the DALI graph on the GPU, against a copy on the GPU."""


def _kernel(
    method: str, own: Any, partner: Any, mixed: Any, cores: int, rng: np.random.Generator
) -> Callable[[], None]:
    """The compiled kernels: every image's mask, from draws like a pipeline's, and its mixing.

    lam is uniform; the method's own arguments have their defaults.
    """
    entry, count, size = TABLE[method], len(own), own.shape[1]
    names = [*entry.values, "_row", "_column", "_coin", "_probability", "_paper", "_given"]
    drawn = {name: rng.uniform(size=count) for name in (*entry.draws, "_row", "_column", "_coin")}
    fixed = entry.defaults | {"_probability": 1.0, "_paper": 0.0, "_given": 0.0}
    numbers = np.stack([drawn.get(name, np.full(count, fixed.get(name, 0.0))) for name in names], axis=1)
    slots = {name: place for place, name in enumerate(names)}

    def mix() -> None:
        masks = write_masks(entry, numbers, slots, (size, size), threads=cores)
        mix_batch(own, partner, masks, mixed, channels_first=False, threads=cores)

    return mix


def _in_threads(work: Callable[[int, int], Any], count: int, pool: ThreadPoolExecutor, cores: int) -> None:
    """Call `work` for equal parts of range(count), one per core."""
    edges = np.linspace(0, count, cores + 1).astype(int)
    list(pool.map(work, edges[:-1], edges[1:]))


class Contender(NamedTuple):
    """Something that mixes, or copies, one batch."""

    library: str
    mix: str
    """A method, or "copy"."""
    dtype: str
    run: Run
    mode: str | None = None
    """timm has two: a draw per "batch" or per "elem"."""

    def fields(self) -> Record:
        """Its description, as fields of a record."""
        return {"library": self.library, "mix": self.mix, "dtype": self.dtype, "mode": self.mode}


def contenders(
    batch_size: int, cores: int, size: int, pool: ThreadPoolExecutor, *, peers: bool = True
) -> list[Contender]:
    """The contenders on the CPU."""
    rng = np.random.default_rng(0)
    own = rng.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    mixed = np.empty_like(own)
    partner = rng.permutation(batch_size)

    def copy(start: int, stop: int) -> None:
        mixed[start:stop] = own[start:stop]

    found = [Contender("numpy", "copy", "uint8", lambda: _in_threads(copy, batch_size, pool, cores))]
    for method in mixing():
        run = _kernel(method, own, partner, mixed, cores, rng)
        found.append(Contender("dali-msda", method, "uint8", run))

    if not peers:
        return found
    labels = torch.tensor(rng.integers(0, 1000, batch_size))
    as_uint8 = torch.tensor(own).permute(0, 3, 1, 2).contiguous()
    as_float = as_uint8.float()
    out = torch.empty_like(as_float)
    return [
        *found,
        Contender("torch", "copy", "float32", lambda: out.copy_(as_float)),
        *_ours(as_float, as_uint8, labels),
        *_timm(as_float, labels),
        *_torchvision(as_float, as_uint8, labels),
        *_kornia(as_float, labels),
    ]


def _ours(as_float: torch.Tensor, as_uint8: torch.Tensor, labels: torch.Tensor) -> list[Contender]:
    """This project on tensors."""
    return [
        Contender("dali-msda-torch", method, dtype, partial(Mix(method, num_classes=1000), images, labels))
        for dtype, images in (("float32", as_float), ("uint8", as_uint8))
        for method in mixing()
    ]


def _timm(images: torch.Tensor, labels: torch.Tensor) -> list[Contender]:
    try:
        from timm.data import Mixup
    except ImportError:
        return []
    found = []
    for method, alphas in (("mixup", (1.0, 0.0)), ("cutmix", (0.0, 1.0)), ("stochastic", (1.0, 1.0))):
        for mode in ("batch", "elem"):
            mix = Mixup(*alphas, mode=mode, num_classes=1000, label_smoothing=0.0)
            # It mixes in place; mixing the result again takes the same time.
            found.append(Contender("timm", method, "float32", partial(mix, images, labels), mode))
    return found


def _torchvision(images: torch.Tensor, as_uint8: torch.Tensor, labels: torch.Tensor) -> list[Contender]:
    from torchvision.transforms import v2

    mixup, cutmix = v2.MixUp(num_classes=1000), v2.CutMix(num_classes=1000)
    return [
        Contender("torchvision", "mixup", "float32", partial(mixup, images, labels)),
        Contender("torchvision", "cutmix", "float32", partial(cutmix, images, labels)),
        Contender("torchvision", "cutmix", "uint8", partial(cutmix, as_uint8, labels)),
    ]


def _kornia(images: torch.Tensor, labels: torch.Tensor) -> list[Contender]:
    try:
        from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
    except ImportError:
        return []
    mixup = RandomMixUpV2(p=1.0, data_keys=["input", "class"])
    cutmix = RandomCutMixV2(p=1.0, data_keys=["input", "class"], use_correct_lambda=True)
    return [
        Contender("kornia", "mixup", "float32", partial(mixup, images, labels)),
        Contender("kornia", "cutmix", "float32", partial(cutmix, images, labels)),
    ]


def gpu_contenders(batch_size: int, size: int) -> list[Contender]:
    """The graph on a GPU, one pipeline per method, and PyTorch's copy of the same bytes."""
    from nvidia.dali import Pipeline, fn, types

    if not torch.cuda.is_available():
        raise SystemExit("--device must be cpu without a GPU; got gpu")
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8, device="cuda")
    out = torch.empty_like(images)
    labels = [np.array([i], np.int32) for i in range(batch_size)]

    def copy() -> None:
        out.copy_(images)
        torch.cuda.synchronize()

    found = [Contender("torch", "copy", "uint8", copy)]
    for method in mixing():
        pipeline = Pipeline(batch_size, 4, 0, prefetch_queue_depth=2)
        with pipeline:
            data = fn.external_source(
                source=lambda: images, device="gpu", layout="HWC", dtype=types.UINT8, no_copy=True
            )
            targets = fn.external_source(source=lambda: labels, dtype=types.INT32)
            pipeline.set_outputs(*msda.mix(data, targets, method=method, num_classes=1000))
        pipeline.build()

        def run(pipeline: Any = pipeline) -> None:
            pipeline.run()
            torch.cuda.synchronize()

        found.append(Contender("dali-msda", method, "uint8", run))
    return found


def in_turns(found: Sequence[Contender], rounds: int) -> list[list[float]]:
    """Time every contender in every round, in seconds."""
    seconds: list[list[float]] = [[] for _ in found]
    for number in range(rounds + 2):
        for contender, own in zip(found, seconds, strict=True):
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            contender.run()
            if number >= 2:
                own.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure, write the results, print a table."""
    settings = tyro.cli(Settings, description=__doc__)
    records: list[Record] = []
    on_gpu = settings.device == "gpu"
    for cores in (1,) if on_gpu else settings.cores:
        torch.set_num_threads(cores)
        with ThreadPoolExecutor(cores) as pool:
            for batch_size in settings.batch_sizes:
                found = (
                    gpu_contenders(batch_size, settings.image_size)
                    if on_gpu
                    else contenders(batch_size, cores, settings.image_size, pool)
                )
                where: Record = {
                    "batch_size": batch_size,
                    "image_size": settings.image_size,
                    "device": settings.device,
                    "cores": None if on_gpu else cores,
                }
                for contender, seconds in zip(found, in_turns(found, settings.rounds), strict=True):
                    records.append(contender.fields() | where | {"seconds": spread(seconds)})
    path = save("bench_mix", vars(settings), records)
    tables = [show("mix", path), *([] if on_gpu else [show("mix_tensors", path)])]
    print("\n\n".join([*tables, f"wrote {path}"]))


if __name__ == "__main__":
    main()
