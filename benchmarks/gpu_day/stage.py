"""The input of every stage, and how it records results.

A stage is a module in this folder with a function ``run(job)``. It runs in its own process
(``python -m benchmarks.gpu_day.stage NAME JOB.json``), so a crash, too little memory or a used-up time box
affects only that stage. Results are written line by line, so none is lost when it is stopped.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.common import Record, spread
from pipelines.files import write_whole

Device = Literal["cpu", "gpu"]


class Missing(ImportError):
    """A stage, or a part of it, needs a package that is not installed; the message names it."""


@dataclass(frozen=True)
class Job:
    """The work of one stage.

    Parameters
    ----------
    records : Path
        File of records, one JSON object per line; earlier records are kept.
    scratch : Path
        Folder for the stage's own files.
    data : Path
        Folder with ``train/`` and ``val/``, class folders of JPEGs.
    device : {"cpu", "gpu"}
    quick : bool
        Small sizes and few rounds, to check that everything runs.
    seconds : float
        The time box. A stage plans with it, and is stopped when it is used up.
    """

    records: Path
    scratch: Path
    data: Path
    device: Device
    quick: bool
    seconds: float

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the device."""
        return "cuda" if self.device == "gpu" else "cpu"

    @property
    def device_id(self) -> int | None:
        """DALI's number of the device."""
        return 0 if self.device == "gpu" else None

    def found(self) -> list[Record]:
        """The records so far."""
        if not self.records.exists():
            return []
        return [json.loads(line) for line in self.records.read_text().splitlines() if line.endswith("}")]

    def has(self, **fields: Any) -> bool:
        """Whether a record with these fields exists; a restarted stage skips those."""
        return any(all(record.get(key) == value for key, value in fields.items()) for record in self.found())

    def forget_errors(self) -> None:
        """Drop failed records, so that they are tried again."""
        good = [record for record in self.found() if "error" not in record]
        if self.records.exists():
            write_whole(self.records, "".join(json.dumps(record) + "\n" for record in good).encode())

    def add(self, **record: Any) -> None:
        """Write a record."""
        self.records.parent.mkdir(parents=True, exist_ok=True)
        with self.records.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record)[:300], flush=True)

    @contextmanager
    def part(self, **fields: Any) -> Any:
        """Run a part of the stage; if it fails, record the fields and the error and continue."""
        try:
            yield
        except Exception as error:
            self.add(**fields, error=f"{type(error).__name__}: {error}"[:2000])

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "gpu":
            import torch

            torch.cuda.synchronize()

    def write(self, path: Path) -> None:
        """Write the job for the stage's process."""
        values = {
            key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()
        }
        path.write_text(json.dumps(values))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what :meth:`write` wrote."""
        values = json.loads(path.read_text())
        for key in ("records", "scratch", "data"):
            values[key] = Path(values[key])
        return cls(**values)


@dataclass(frozen=True)
class Timed:
    """Something to time in turns with others."""

    fields: Record
    run: Callable[[], Any]
    """One call; it need not wait for the device."""
    repeat: int = 1
    """Calls in one turn, before waiting for the device."""


def in_turns(job: Job, contenders: Sequence[Timed], rounds: int, warm_up: int = 2) -> list[dict[str, float]]:
    """Time one call of each contender, in seconds, as the spread over the rounds."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for number in range(rounds + warm_up):
        for contender, own in zip(contenders, seconds, strict=True):
            job.synchronize()
            began = time.perf_counter()
            for _ in range(contender.repeat):
                contender.run()
            job.synchronize()
            if number >= warm_up:
                own.append((time.perf_counter() - began) / contender.repeat)
            _settle(job)
    return [spread(own) for own in seconds]


def _settle(job: Job) -> None:
    """Let a pipeline finish its prefetched batches, which must not run in the next one's turn."""
    if job.device == "gpu":
        time.sleep(0.03)
        job.synchronize()


def device_work(job: Job, run: Callable[[], Any], calls: int) -> dict[str, Any]:
    """Measure how long the GPU works for one call, and on which kernels, with CUPTI.

    Returns
    -------
    dict
        ``gpu_ms``: the sum of kernels and copies, per call. ``kernels``: the longest, ms per call by name.
        Both None without a GPU.
    """
    if job.device == "cpu":
        run()
        return {"gpu_ms": None, "kernels": None}
    from torch.profiler import ProfilerActivity, profile

    _settle(job)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            run()
        job.synchronize()
    sums: dict[str, float] = {}
    for event in profiler.events() or ():
        if event.device_type.name == "CUDA":
            name = event.name.split("(")[0][-80:]
            sums[name] = sums.get(name, 0.0) + event.time_range.elapsed_us() / 1000 / calls
    longest = sorted(sums.items(), key=lambda entry: -entry[1])[:8]
    return {
        "gpu_ms": round(sum(sums.values()), 5),
        "kernels": [{"name": name, "ms": round(ms, 5)} for name, ms in longest],
    }


def used_memory(job: Job) -> int | None:
    """Bytes of the GPU's memory in use, by all processes; None without a GPU."""
    if job.device == "cpu":
        return None
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def release_memory(job: Job) -> None:
    """Release cached memory."""
    gc.collect()
    if job.device == "gpu":
        import torch
        from nvidia.dali import backend

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        backend.ReleaseUnusedMemory()


def main() -> None:
    """Run the stage that the command line names."""
    name, path = sys.argv[1:]
    job = Job.read(Path(path))
    job.scratch.mkdir(parents=True, exist_ok=True)
    try:
        importlib.import_module(f"benchmarks.gpu_day.{name}").run(job)
    except ImportError as error:
        print(f"missing: {error}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(MISSING_STATUS)
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip the teardown of running pipelines and worker processes: everything is written.
    os._exit(0)


MISSING_STATUS = 3

if __name__ == "__main__":
    main()
