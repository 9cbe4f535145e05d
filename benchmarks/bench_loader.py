"""Images per second and peak memory of whole training loaders on the same folder of JPEGs.

    python -m benchmarks.bench_loader [--data DIR] [--source-sizes 500 4000x3000] [--loaders dali-none ...]

Every loader reads, decodes, crops (the same random resized crop), mirrors, mixes and returns normalised
float32 images N x 3 x S x S with soft labels, on the CPU (with ``--device gpu``, on the GPU), with the same
number of threads or worker processes. Each runs in its own process and does one pass at a time, in turns, so
that changes in the machine's speed affect all of them; between its turns a loader is stopped (SIGSTOP), so it
neither slows the others down nor makes batches ahead. ``dali-plain`` is DALI without this library and
without mixing, ``dali-decoder`` its decoder alone.

Images are linked repeatedly until an epoch has 64 batches, so that work done once per epoch (padding,
starting threads) does not count for more than on a real data set.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tyro

from benchmarks import loader_tables, tables
from benchmarks.common import Record, save, spread
from benchmarks.loaders import PEERS, Options, Settings, contenders
from benchmarks.photos import ORIGINAL, mean_size, parse_size, prepare_images
from benchmarks.tables import show
from dali_msda.methods import TABLE
from dali_msda.processors import usable_processors

# Batches that the fastest loaders make between the end of a pass and the signal that stops them.
_WHILE_STOPPING = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Options):
    """What to compare."""

    data: Path | None = None
    """Folder of class folders with JPEGs. Default: this project's generated images."""

    loaders: list[str] = dataclasses.field(
        default_factory=lambda: ["dali-plain", *(f"dali-{mix}" for mix in TABLE)]
    )
    """Loaders to compare; "all" for every one that is installed."""

    source_sizes: list[str] = dataclasses.field(default_factory=lambda: [ORIGINAL])
    """Sizes of the JPEGs: "original" as they are, N for the longest side (FFCV's recipe for ImageNet has
    500), WIDTHxHEIGHT; all loaders take turns with one size, then with the next."""

    photos: int | None = None
    """Use only so many different images of the folder. Default: all."""

    epoch_batches: int = 64
    """Batches in an epoch, at least."""

    rounds: int = 7
    """Passes of every loader, after one for warm-up."""


def serve(name: str, settings: Settings, pipe: Connection, *, stops: bool = False) -> None:
    """Build a loader, then time a pass of N images for every message N, until the pipe closes.

    Parameters
    ----------
    name : str
        The contender.
    settings : Settings
    pipe : Connection
        Answers with the seconds to the first batch, then with images/s and the peak memory in MiB.
    stops : bool
        Whether this process is stopped between passes. If not, it makes batches ahead then, and takes as many
        before the next pass.
    """
    import torch

    if stops:
        os.setpgid(0, 0)  # signals to this process group reach the worker processes too
    # Worker processes start as they do on Linux outside this benchmark.
    multiprocessing.set_start_method("fork", force=True)
    if settings.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.cores])
    torch.set_num_threads(1)  # only the loaders' own threads are compared
    began = time.perf_counter()
    batches = contenders()[name].batches(settings)
    next(batches)
    pipe.send(time.perf_counter() - began)
    ahead = _ahead(settings)
    while True:
        try:
            steps = max(1, pipe.recv() // settings.batch_size)
        except EOFError:
            return
        for _ in range(ahead):
            images, _ = next(batches)
        ahead = _WHILE_STOPPING if stops else ahead
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


class Server:
    """A loader's process group, which runs during its turns only."""

    def __init__(self, name: str, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(name, settings, theirs), kwargs={"stops": True}, name=name
        )
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.first_batch_s: float = self._answer()
        self._signal(signal.SIGSTOP)

    def time(self, images: int) -> tuple[float, float]:
        """Images per second of a pass, and the peak memory in MiB so far."""
        self._signal(signal.SIGCONT)
        self._pipe.send(images)
        rate, peak = self._answer()
        self._signal(signal.SIGSTOP)
        return rate, peak

    def end(self) -> None:
        """End the processes."""
        self._pipe.close()
        if self._process.is_alive():
            self._signal(signal.SIGCONT)
            self._process.join(timeout=10)
        # The server may have ended with worker processes left.
        self._signal(signal.SIGKILL)
        self._process.join()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(
                f"{self._process.name}: its process ended with status {self._process.exitcode}"
            ) from None

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has ended, which _answer reports
            return


def measure(turns: Sequence[tuple[str, Settings]], rounds: int) -> list[Record]:
    """Images per second of every contender with its settings, in turns."""
    every = contenders()
    servers: list[tuple[Server, Record, Settings]] = []
    try:
        for name, settings in turns:
            server = Server(name, settings)
            record: Record = {
                "loader": every[name].loader,
                "mix": every[name].mix,
                "device": settings.device,
                "batch_size": settings.batch_size,
                "image_size": settings.image_size,
                "workers": settings.workers,
                "cores": settings.cores or usable_processors(),
                "first_batch_s": server.first_batch_s,
                "rates": [],
            }
            servers.append((server, record, settings))
        for round_number in range(rounds + 1):
            for server, record, settings in servers:
                rate, peak = server.time(settings.images)
                if round_number:
                    record["rates"].append(rate)
                    record["peak_MiB"] = peak
    finally:
        for server, *_ in servers:
            server.end()
    for _, record, _ in servers:
        record["images_per_s"] = spread(record["rates"])
    return [record for _, record, _ in servers]


def _compare(comparison: Comparison, source_size: str) -> list[Record]:
    """Measure all loaders with one size of the JPEGs."""
    shared = {field.name: getattr(comparison, field.name) for field in dataclasses.fields(Options)}
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_images(
            comparison.data,
            Path(folder),
            batch_size=comparison.batch_size,
            source_size=source_size,
            photos=comparison.photos,
            batches=comparison.epoch_batches,
        )
        settings = Settings(data=data, scratch=Path(folder), **shared)
        about = {"source_size": source_size, "kB_per_file": mean_size(data) / 1000}
        records = measure([(name, settings) for name in comparison.loaders], comparison.rounds)
    return [record | about for record in records]


def _check(comparison: Comparison) -> None:
    """Exit if an option is wrong."""
    if comparison.data is not None and not comparison.data.is_dir():
        raise SystemExit(
            f"--data must be a folder of class folders; got {comparison.data}, which is not a folder"
        )
    every = contenders()
    for name in comparison.loaders:
        if name not in every:
            raise SystemExit(f"--loaders must be of {', '.join(every)}; got {name}")
        if not every[name].is_installed:
            raise SystemExit(
                f"--loaders must be installed; got {name}, and there is no {every[name].package}"
            )
    for source_size in comparison.source_sizes:
        try:
            parse_size(source_size)
        except ValueError as error:
            raise SystemExit(str(error).replace("source_sizes", "--source-sizes")) from None


def main() -> None:
    """Measure, print a table, write the results."""
    comparison = tyro.cli(Comparison, description=__doc__)
    if comparison.loaders == ["all"]:
        names = [name for name, contender in contenders().items() if contender.is_installed]
        comparison = dataclasses.replace(comparison, loaders=names)
    _check(comparison)
    records = [
        record for source_size in comparison.source_sizes for record in _compare(comparison, source_size)
    ]
    path = save("bench_loader", vars(comparison), records, packages=PEERS)
    name = "loader" if len(comparison.source_sizes) == 1 else "loader_sizes"
    print(f"{show(name, path, tables=tables.TABLES | loader_tables.TABLES)}\nwrote {path}")


if __name__ == "__main__":
    main()
