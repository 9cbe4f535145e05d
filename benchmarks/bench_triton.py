"""The fused kernel on a GPU, compared with a copy and with other ways to mix a batch.

    python -m benchmarks.bench_triton

Measures :mod:`dali_msda.torch.triton_kernel` for several element types and both layouts, PyTorch's operators
with the same masks, and the transforms of timm and torchvision if they are installed. The kernel's results
must be equal to those of the operators, to the bit. Needs PyTorch, Triton and a GPU, but not DALI.

Times of the kernel, the operators and the copy are the GPU's alone: calls are recorded in a CUDA graph, and
take turns with inputs and outputs that are together larger than the L2 cache. "Call" and the times of
libraries include the host's work, if that takes longer: one call follows another, as in a training loop.
Bandwidth counts own image, partner and result, whether they came from DRAM or not: where a mask has whole
tiles of weight 0 or 1 the kernel reads less, and a partner of the same batch may still be in the L2 cache.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Record, save, spread, table
from dali_msda.masks import Axis, Grid
from dali_msda.methods import TABLE
from dali_msda.torch.triton_kernel import mix_images

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CALLS = 20  # per measurement
# Of images and results; a result of another type is normalised.
DTYPES = (
    (torch.uint8, torch.uint8),
    (torch.uint8, torch.bfloat16),
    (torch.uint8, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
)
METHODS = ("mixup", "cutmix", "hmix")
_NUMPY: Any = SimpleNamespace(**vars(np), constant=float)

Call = Callable[[int], Any]  # with the index of a set of inputs


@dataclass(frozen=True)
class Sets:
    """Batches of random images that take turns."""

    images: list[Tensor]
    partner: Tensor
    masks: dict[str, tuple[Tensor, Tensor | None, Tensor | None]]
    """Base, rows and columns, by method."""
    factors: Tensor
    """Mean and 1 / std."""


def parse() -> argparse.Namespace:
    """Parse the command line; without tyro, which may be missing on a machine with a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each time")
    parser.add_argument("--sets", type=int, default=4, help="inputs and outputs that take turns")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"), help="of the results")
    return parser.parse_args()


def make_masks(method: str, count: int, side: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Base, rows and columns of random masks."""
    rng, entry = np.random.default_rng(0), TABLE[method]
    found: list[Any] = []
    pixels = np.arange(side, dtype=np.float64)
    for _ in range(count):
        down, across = rng.uniform(size=2)
        axes = Axis(float(side), pixels[:, None], down), Axis(float(side), pixels[None], across)
        values = {name: rng.uniform() for name in entry.draws} | entry.defaults
        found.append(entry.mask(_NUMPY, Grid(*axes, False, False), *(values[name] for name in entry.values)))

    def stack(parts: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack(parts).astype(np.float32)).cuda()

    base = stack([mask.base for mask in found])
    if found[0].rows is None:
        return base, None, None
    rows = [mask.scale * mask.rows[:, 0] for mask in found]
    return base, stack(rows), stack([mask.columns[0] for mask in found])


def make_sets(settings: argparse.Namespace, dtype: torch.dtype, layout: torch.memory_format) -> Sets:
    """Make all inputs for one type and layout."""
    count, side = settings.batch_size, settings.image_size
    images = []
    for seed in range(settings.sets):
        generator = torch.Generator("cuda").manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, device="cuda")
        images.append(pixels.to(dtype).contiguous(memory_format=layout))
    factors = np.array([MEAN, STD], np.float32).astype(np.float64)
    factors[1] = 1.0 / factors[1]
    return Sets(
        images=images,
        partner=torch.randperm(count, generator=torch.Generator().manual_seed(0)).cuda(),
        masks={method: make_masks(method, count, side) for method in METHODS},
        factors=torch.from_numpy(factors.astype(np.float32)).cuda()[:, :, None, None],
    )


def mix_with_kernel(
    sets: Sets, method: str, out_dtype: torch.dtype, other: int, outputs: list[Tensor]
) -> Call:
    """A call of the kernel; partners come from the set `other` places further on."""

    def call(index: int) -> Tensor:
        images = sets.images[index]
        source = sets.images[(index + other) % len(sets.images)]
        asked: dict[str, Any] = {} if out_dtype == images.dtype else {"mean": MEAN, "std": STD}
        return mix_images(
            images,
            source,
            sets.partner,
            *sets.masks[method],
            None,
            out_dtype=out_dtype,
            out=outputs[index],
            **asked,
        )

    return call


def mix_with_operators(sets: Sets, method: str, out_dtype: torch.dtype, *, exact: bool = False) -> Call:
    """The same with PyTorch's operators, within a batch; with `exact` equal floats mix to themselves."""
    base, rows, columns = sets.masks[method]

    def call(index: int) -> Tensor:
        images = sets.images[index]
        weight = base[:, None, None, None]
        if rows is not None and columns is not None:
            weight = weight + rows[:, None, :, None] * columns[:, None, None, :]
        own, other = images.to(torch.float32), images[sets.partner].to(torch.float32)
        mixed = weight * own + (1.0 - weight) * other
        if not images.dtype.is_floating_point:
            whole = mixed.floor()
            mixed = whole + (mixed - whole >= 0.5)
        elif exact:
            mixed = torch.where(own == other, own, mixed)
        if out_dtype != images.dtype:
            mixed = (mixed - sets.factors[0]) * sets.factors[1]
        return mixed.to(out_dtype)

    return call


def mix_with_library(mix: Callable[[Tensor, Tensor], object], sets: Sets, labels: Tensor) -> Call:
    """A call of another library's transform; timm's mixes in place."""
    return lambda index: mix(sets.images[index], labels)


def library_calls(sets: Sets, classes: int = 1000) -> dict[str, Call]:
    """Whole transforms of other libraries, labels included, on batches of floats."""
    calls: dict[str, Call] = {}
    labels = torch.randint(classes, (len(sets.partner),), device="cuda")
    try:
        mixup = importlib.import_module("timm.data").Mixup
    except ImportError:
        print("timm is not installed", file=sys.stderr)
    else:
        for name, alphas in (("mixup", (1.0, 0.0)), ("cutmix", (0.0, 1.0))):
            for mode in ("batch", "elem"):
                mix = mixup(*alphas, mode=mode, num_classes=classes)
                calls[f"timm {name}, {mode}"] = mix_with_library(mix, sets, labels)
    try:
        v2 = importlib.import_module("torchvision.transforms.v2")
    except ImportError:
        print("torchvision is not installed", file=sys.stderr)
    else:
        for name in ("MixUp", "CutMix"):
            mix = getattr(v2, name)(num_classes=classes)
            calls[f"torchvision {name}"] = mix_with_library(mix, sets, labels)
    return calls


def measure(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds per call of `run`, which makes CALLS calls."""
    run()
    events = []
    for _ in range(rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()  # type: ignore[no-untyped-call]
        run()
        stop.record()  # type: ignore[no-untyped-call]
        events.append((start, stop))
    torch.cuda.synchronize()
    milliseconds = [start.elapsed_time(stop) for start, stop in events]  # type: ignore[no-untyped-call]
    return spread([total / 1e3 / CALLS for total in milliseconds])


def measure_gpu(call: Call, settings: argparse.Namespace) -> dict[str, float]:
    """Seconds per call on the GPU alone."""
    side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side_stream):  # a graph's first calls are made outside it
        for index in range(settings.sets):
            call(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(CALLS):
            call(index % settings.sets)
    return measure(graph.replay, settings.rounds)


def measure_calls(call: Call, settings: argparse.Namespace, rounds: int | None = None) -> dict[str, float]:
    """Seconds per call, one after the other."""

    def run() -> None:
        for index in range(CALLS):
            call(index % settings.sets)

    return measure(run, rounds or settings.rounds)


def name_of(dtype: torch.dtype) -> str:
    """A type without "torch."."""
    return str(dtype).removeprefix("torch.")


def measure_copy(size: int, settings: argparse.Namespace) -> dict[str, float]:
    """Seconds for copies that read and write `size` bytes in total."""
    pairs = torch.empty((settings.sets, 2, size // 2), dtype=torch.uint8, device="cuda")
    return measure_gpu(lambda index: pairs[index, 1].copy_(pairs[index, 0]), settings)


def measure_kernel(
    sets: Sets, method: str, out_dtype: torch.dtype, copy: dict[str, float], settings: argparse.Namespace
) -> Record:
    """Compare the kernel's result with the operators' and measure both."""
    outputs = [torch.empty_like(images, dtype=out_dtype) for images in sets.images]
    within = mix_with_kernel(sets, method, out_dtype, 0, outputs)
    between = mix_with_kernel(sets, method, out_dtype, 1, outputs)
    operators = mix_with_operators(sets, method, out_dtype)
    equal = torch.equal(within(0), mix_with_operators(sets, method, out_dtype, exact=True)(0))
    seconds = measure_gpu(between, settings)
    return {
        "equal": equal,
        "gpu_s": seconds,
        "within_batch_gpu_s": measure_gpu(within, settings),
        "call_s": measure_calls(within, settings),
        "operators_gpu_s": measure_gpu(operators, settings),
        "copy_gpu_s": copy,
        "share_of_copy": copy["median"] / seconds["median"],
    }


def measure_all(settings: argparse.Namespace) -> list[Record]:
    """Measure everything."""
    records: list[Record] = []
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
        for dtype in dict.fromkeys(first for first, _ in DTYPES):
            sets = make_sets(settings, dtype, memory_format)
            common = {"layout": layout, "images": name_of(dtype)}
            for out_dtype in (second for first, second in DTYPES if first == dtype):
                moved = sets.images[0].numel() * (2 * dtype.itemsize + out_dtype.itemsize)
                copy = measure_copy(moved, settings)
                for method in METHODS:
                    record: Record = {"what": "kernel", **common, "result": name_of(out_dtype), "mix": method}
                    record |= measure_kernel(sets, method, out_dtype, copy, settings)
                    record["bytes_per_s"] = moved / record["gpu_s"]["median"]
                    records.append(record)
            if dtype == torch.float32:
                for name, call in library_calls(sets).items():
                    records.append({"what": name, **common, "call_s": measure_calls(call, settings, 5)})
    return records


def show(records: Sequence[Record]) -> str:
    """The table: times are medians in milliseconds."""

    def milliseconds(record: Record, key: str) -> str:
        return f"{record[key]['median'] * 1e3:.3f}" if key in record else ""

    header = (
        *("what", "layout", "images", "result", "mix"),
        *(
            "equal",
            "share of a copy's bandwidth",
            "TB/s",
            "GPU [ms]",
            "partner in the batch [ms]",
            "call [ms]",
        ),
        "PyTorch's operators [ms]",
    )
    times = ("gpu_s", "within_batch_gpu_s", "call_s", "operators_gpu_s")
    rows = [
        [
            *(record.get(key, "") for key in ("what", "layout", "images", "result", "mix")),
            {True: "yes", False: "NO", None: ""}[record.get("equal")],
            f"{record['share_of_copy']:.0%}" if "share_of_copy" in record else "",
            f"{record['bytes_per_s'] / 1e12:.2f}" if "bytes_per_s" in record else "",
            *(milliseconds(record, key) for key in times),
        ]
        for record in records
    ]
    return table(header, rows)


def main() -> None:
    """Measure, write the results, print a table."""
    settings = parse()
    if not torch.cuda.is_available():
        sys.exit("bench_triton needs a GPU")
    records = measure_all(settings)
    path = save("bench_triton", vars(settings), records, settings.folder)
    print(f"wrote {path}\n{show(records)}")
    if differing := [record for record in records if not record.get("equal", True)]:
        sys.exit(f"{len(differing)} results of the kernel differ from the operators'")


if __name__ == "__main__":
    main()
