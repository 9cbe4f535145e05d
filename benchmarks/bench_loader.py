"""Images per second and peak memory of whole training loaders on the same folder of JPEGs.

    python -m benchmarks.bench_loader --data DIR [--longest-side 500] [--loaders dali-none timm-cutmix ...]

Every loader reads, decodes, crops (the same random resized crop), mirrors, mixes and returns normalised
float32 images N x 3 x S x S with soft labels, on the CPU (with ``--device gpu``, on the GPU), with the same
number of threads or worker processes. Each runs in its own process and does one pass at a time, in turns, so
that changes in the machine's speed affect all of them. ``dali-plain`` is DALI without this library and
without mixing.

Images are linked repeatedly until an epoch has 64 batches, so that work done once per epoch (padding,
starting threads) does not count for more than on a real data set.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tyro

from benchmarks.common import Record, save, spread
from benchmarks.loaders import Settings, contenders
from benchmarks.tables import show
from dali_msda.processors import usable_processors

# After its turn a loader still makes some batches ahead, which must not slow down the next one.
_REFILL_S = 1.0


def prepare_images(settings: Settings, folder: Path) -> Path:
    """Link the images into `folder`, enough for 64 batches, made smaller if the settings say so."""
    from PIL import Image

    from pipelines.folders import list_images

    listed = list_images(settings.data)
    repeats = -(-64 * settings.batch_size // len(listed.files))
    for number, name in enumerate(listed.files):
        path = (listed.root / name).resolve()
        if settings.longest_side is not None:
            with Image.open(path) as image:
                if max(image.size) > settings.longest_side:
                    path = folder / "smaller" / f"{number}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    small = image.convert("RGB")
                    small.thumbnail((settings.longest_side,) * 2, Image.Resampling.LANCZOS)
                    small.save(path, quality=90)
        for repeat in range(repeats):
            link = folder / "images" / Path(name).with_name(f"{repeat}-{Path(name).name}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder / "images"


def serve(name: str, settings: Settings, pipe: Connection) -> None:
    """Build a loader, then time a pass of N images for every message N, until the pipe closes."""
    import torch

    # Worker processes start as they do on Linux outside this benchmark.
    multiprocessing.set_start_method("fork", force=True)
    if settings.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.cores])
    torch.set_num_threads(1)  # only the loaders' own threads are compared
    began = time.perf_counter()
    batches = contenders()[name].batches(settings)
    next(batches)
    pipe.send(time.perf_counter() - began)
    while True:
        try:
            steps = max(1, pipe.recv() // settings.batch_size)
        except EOFError:
            return
        for _ in range(_ahead(settings)):
            images, _ = next(batches)
        float(images.sum())  # waits for the device
        began = time.perf_counter()
        for _ in range(steps):
            images, _ = next(batches)
            # Like a training step, read every value.
            total = images.sum()
        float(total)
        rate = steps * settings.batch_size / (time.perf_counter() - began)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((rate, (own + _children_peak()) / 1024))


def _ahead(settings: Settings) -> int:
    """At least as many batches as a loader has made before a pass: PyTorch's make two for each worker."""
    return 2 * settings.workers + 2


def _children_peak() -> int:
    """Peak memory of the live worker processes, in KiB; shared pages count in each."""
    total = 0
    for child in multiprocessing.active_children():
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                total += int(line.split()[1])
    return total


def measure(turns: Sequence[tuple[str, Settings]], rounds: int) -> list[Record]:
    """Images per second of every contender with its settings, in turns."""
    context = multiprocessing.get_context("spawn")
    every = contenders()
    servers: list[tuple[Any, Connection, Record, Settings]] = []
    for name, settings in turns:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, settings, theirs))
        process.start()
        theirs.close()
        record: Record = {
            "loader": every[name].loader,
            "mix": every[name].mix,
            "device": settings.device,
            "batch_size": settings.batch_size,
            "image_size": settings.image_size,
            "workers": settings.workers,
            "cores": settings.cores or usable_processors(),
            "first_batch_s": ours.recv(),
            "rates": [],
        }
        servers.append((process, ours, record, settings))
    for round_number in range(rounds + 1):
        for _, pipe, record, settings in servers:
            pipe.send(settings.images)
            rate, peak = pipe.recv()
            time.sleep(_REFILL_S)
            if round_number:
                record["rates"].append(rate)
                record["peak_MiB"] = peak
    for process, pipe, record, _ in servers:
        pipe.close()
        process.join(timeout=10)
        process.kill()
        record["images_per_s"] = spread(record["rates"])
    return [record for _, _, record, _ in servers]


def _mean_size(files: list[Path]) -> float:
    return sum(path.stat().st_size for path in files) / len(files)


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.loaders == ["all"]:
        settings = dataclasses.replace(settings, loaders=list(contenders()))
    if not settings.data.is_dir():
        raise SystemExit(
            f"--data must be a folder of class folders; got {settings.data}, which is not a folder"
        )
    unknown = [name for name in settings.loaders if name not in contenders()]
    if unknown:
        raise SystemExit(f"--loaders must be of {', '.join(contenders())}; got {unknown[0]}")
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_images(settings, Path(folder))
        files = [path for path in data.rglob("*") if path.is_file()]
        size = _mean_size(files)
        placed = dataclasses.replace(settings, data=data)
        records = measure([(name, placed) for name in settings.loaders], settings.rounds)
    records = [record | {"kB_per_file": size / 1000} for record in records]
    path = save("bench_loader", vars(settings), records)
    print(f"{show('loader', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
