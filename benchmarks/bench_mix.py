"""Time of mixing one batch: this project's kernel, a plain copy of the same bytes, and the peers.

    python -m benchmarks.bench_mix [--batch-sizes 64 256] [--cores 1 2]
    python -m benchmarks.bench_mix --device gpu

On the CPU the kernel is called on arrays, as DALI calls it, one image after the other on each core. Peers
mix the same images as float32 tensors N x C x H x W, and as uint8 where they can. All take turns, round by
round. On the GPU the DALI graph mixes uint8 batches that lie on the GPU already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
import torch
import tyro

import dali_msda as msda
from benchmarks.common import save, spread, table
from dali_msda import draws as slot
from dali_msda.backends.numba.kernels import mix_image
from dali_msda.methods import MIXING

Mix = Callable[[], Any]


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    batch_sizes: tuple[int, ...] = (64, 256)
    """Images per batch."""

    cores: tuple[int, ...] = (1, 2)
    """Threads for the kernel, the copy and PyTorch."""

    image_size: int = 224
    """Side of the images in pixels."""

    rounds: int = 15
    """Turns of every contender, after two that do not count."""

    device: Literal["cpu", "gpu"] = "cpu"
    """gpu: the DALI graph on the GPU, against a copy on the GPU."""


@numba.njit(nogil=True)
def _mix_images(mixed: Any, own: Any, draws: Any, partner: Any, layout: Any, start: int, stop: int) -> None:
    info, fault = np.empty(2, np.float32), np.empty(1, np.int32)
    for i in range(start, stop):
        mix_image(mixed[i], info, fault, own[i], draws[i], own[partner[i]], layout)


def _draws(method: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws as a pipeline packs them, alpha = 1 and r = 0.75."""
    draws = np.zeros((count, slot.SLOTS))
    draws[:, slot.LAM] = rng.uniform(size=count)
    draws[:, slot.LAM_MIXUP] = rng.uniform(size=count)
    draws[:, slot.RATIO] = 0.75
    draws[:, slot.CENTER_ROW : slot.SWITCH_COIN + 1] = rng.uniform(size=(count, 4))
    draws[:, slot.PROBABILITY] = 1.0
    draws[:, slot.SWITCH_PROBABILITY] = 0.5
    draws[:, slot.PI] = np.pi
    draws[:, slot.METHOD] = msda.METHODS.index(method)
    return draws


def _in_threads(work: Callable[[int, int], Any], count: int, pool: ThreadPoolExecutor, cores: int) -> None:
    """Call `work` on equal parts of range(count), one per core."""
    edges = np.linspace(0, count, cores + 1).astype(int)
    list(pool.map(work, edges[:-1], edges[1:]))


def contenders(
    batch_size: int, cores: int, size: int, pool: ThreadPoolExecutor, *, peers: bool = True
) -> dict[str, Mix]:
    """Everything that is timed, by name: ``ours-METHOD`` on uint8, ``PEER-METHOD-DTYPE``, ``copy-DTYPE``."""
    rng = np.random.default_rng(0)
    own = rng.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    mixed = np.empty_like(own)
    partner = rng.permutation(batch_size)
    no_layout = np.zeros(0, np.uint8)
    found: dict[str, Mix] = {}

    def copy(start: int, stop: int) -> None:
        mixed[start:stop] = own[start:stop]

    found["copy-uint8"] = lambda: _in_threads(copy, batch_size, pool, cores)
    for method in MIXING:
        draws = _draws(method, batch_size, rng)

        def mix(start: int, stop: int, draws: np.ndarray = draws) -> None:
            _mix_images(mixed, own, draws, partner, no_layout, start, stop)

        found[f"ours-{method}"] = lambda mix=mix: _in_threads(mix, batch_size, pool, cores)  # type: ignore[misc]

    if not peers:
        return found
    labels = torch.tensor(rng.integers(0, 1000, batch_size))
    as_uint8 = torch.tensor(own).permute(0, 3, 1, 2).contiguous()
    as_float = as_uint8.float()
    out = torch.empty_like(as_float)
    found["copy-float32"] = lambda: out.copy_(as_float)
    found |= _timm(as_float, labels) | _torchvision(as_float, as_uint8, labels) | _kornia(as_float, labels)
    return found


def _timm(images: torch.Tensor, labels: torch.Tensor) -> dict[str, Mix]:
    try:
        from timm.data import Mixup
    except ImportError:
        return {}
    found: dict[str, Mix] = {}
    for method, alphas in (("mixup", (1.0, 0.0)), ("cutmix", (0.0, 1.0)), ("stochastic", (1.0, 1.0))):
        for mode in ("batch", "elem"):
            mix = Mixup(*alphas, mode=mode, num_classes=1000, label_smoothing=0.0)
            # It mixes in place; mixing the same images again costs the same.
            found[f"timm-{method}-float32-{mode}"] = lambda mix=mix: mix(images, labels)  # type: ignore[misc]
    return found


def _torchvision(images: torch.Tensor, as_uint8: torch.Tensor, labels: torch.Tensor) -> dict[str, Mix]:
    from torchvision.transforms import v2

    mixup, cutmix = v2.MixUp(num_classes=1000), v2.CutMix(num_classes=1000)
    return {
        "torchvision-mixup-float32": lambda: mixup(images, labels),
        "torchvision-cutmix-float32": lambda: cutmix(images, labels),
        "torchvision-cutmix-uint8": lambda: cutmix(as_uint8, labels),
    }


def _kornia(images: torch.Tensor, labels: torch.Tensor) -> dict[str, Mix]:
    try:
        from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
    except ImportError:
        return {}
    mixup = RandomMixUpV2(p=1.0, data_keys=["input", "class"])
    cutmix = RandomCutMixV2(p=1.0, data_keys=["input", "class"], use_correct_lambda=True)
    return {
        "kornia-mixup-float32": lambda: mixup(images, labels),
        "kornia-cutmix-float32": lambda: cutmix(images, labels),
    }


def gpu_contenders(batch_size: int, size: int) -> dict[str, Mix]:
    """The graph on a GPU, each method in a pipeline of its own, and PyTorch's copy of the same bytes."""
    from nvidia.dali import Pipeline, fn, types

    if not torch.cuda.is_available():
        raise SystemExit("--device gpu: there is no GPU here")
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8, device="cuda")
    out = torch.empty_like(images)
    labels = [np.array([i], np.int32) for i in range(batch_size)]

    def copy() -> None:
        out.copy_(images)
        torch.cuda.synchronize()

    found: dict[str, Mix] = {"copy-uint8": copy}
    for method in MIXING:
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

        found[f"ours-{method}"] = run
    return found


def in_turns(found: dict[str, Mix], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every contender."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 2):
        for name, mix in found.items():
            began = time.perf_counter()
            mix()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure, print a table per setting, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    results: dict[str, Any] = {}
    for cores in settings.cores if settings.device == "cpu" else (0,):
        torch.set_num_threads(max(1, cores))
        with ThreadPoolExecutor(max(1, cores)) as pool:
            for batch_size in settings.batch_sizes:
                found = (
                    contenders(batch_size, cores, settings.image_size, pool)
                    if settings.device == "cpu"
                    else gpu_contenders(batch_size, settings.image_size)
                )
                seconds = in_turns(found, settings.rounds)
                copy = spread(seconds["copy-uint8"])["median"]
                title = f"batch {batch_size}, {settings.device}" + (f", {cores} cores" if cores else "")
                results[title] = {name: spread(values) for name, values in seconds.items()}
                rows = [
                    [
                        name,
                        f"{1e3 * value['median']:.2f} ({1e3 * value['q1']:.2f}-{1e3 * value['q3']:.2f})",
                        f"{value['median'] / copy:.1f}",
                    ]
                    for name, value in results[title].items()
                ]
                print(f"\n{title}\n")
                print(table(["mixing", "ms (quartiles)", "ratio to a copy of the uint8 bytes"], rows))
    content = {"settings": vars(settings), "seconds": results}
    print(f"\nwrote {save('bench_mix', content)}")


if __name__ == "__main__":
    main()
