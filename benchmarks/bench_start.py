"""Start-up times: the command line's answers, imports, a pipeline's first batch.

    python -m benchmarks.bench_start [--against CHECKOUT]

Each is timed in a new process, after a warm-up run that compiles the kernels and caches the files. With
another checkout the two take turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.common import save, spread
from benchmarks.tables import show
from pipelines.demo_data import make_demo_dataset
from training.machine import describe_code

ROOT = Path(__file__).resolve().parent.parent

_DALI = "from nvidia.dali import fn, math, types, pipeline_def"
_PIPELINE = """
import sys, time
from pipelines.imagenet import train_pipeline
start = time.perf_counter()
pipeline = train_pipeline(sys.argv[1], mix=sys.argv[2], num_classes=10, batch_size=64, num_threads=2)
pipeline.build()
built = time.perf_counter()
pipeline.run()
print(built - start, time.perf_counter() - built)
"""
_IMPORT = f"{_DALI}\nimport time\nstart = time.perf_counter()\n%s\nprint(time.perf_counter() - start)"
# Stage and method: the index of its time in the process's output (-1: time the whole process); its command.
_STAGES: dict[tuple[str, str | None], tuple[int, list[str]]] = {
    ("help", None): (-1, ["train_imagenet.py", "--help"]),
    ("error_folder", None): (-1, ["train_imagenet.py", "--data", "nowhere"]),
    ("error_number", None): (-1, ["train_imagenet.py", "--lr", "high"]),
    ("import_dali", None): (-1, ["-c", _DALI]),
    ("import_dali_msda", None): (0, ["-c", _IMPORT % "import dali_msda"]),
}


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    against: Path | None = None
    """Another checkout of the project, to measure in turn with this one."""

    rounds: int = 5
    """Processes of every kind, after one for warm-up."""


def seconds(root: Path, figure: int, command: list[str]) -> float:
    """Run one process in a checkout; return the time that it prints, or its own run time."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    elapsed = time.perf_counter() - start
    return elapsed if figure < 0 else float(process.stdout.split()[figure])


def main() -> None:
    """Measure, print a table, write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    roots = {"here": ROOT} | ({} if settings.against is None else {"against": settings.against.resolve()})
    commits = {name: describe_code(root)["commit"] for name, root in roots.items()}
    found: dict[tuple[str, str | None], dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        data = make_demo_dataset(Path(temporary) / "set", train_per_class=20, val_per_class=1)
        stages = dict(_STAGES)
        for mix in ("none", "hmix", "gmix"):
            command = ["-c", _PIPELINE, str(data), mix]
            stages["build", mix] = 0, command
            stages["first_batch", mix] = 1, command
        for number in range(settings.rounds + 1):
            for stage, (figure, command) in stages.items():
                for name, root in roots.items():
                    value = seconds(root, figure, command)
                    if number:
                        found.setdefault(stage, {}).setdefault(name, []).append(value)
    records = [
        {"stage": stage, "mix": mix, "checkout": name, "commit": commits[name], "seconds": spread(values)}
        for (stage, mix), each in found.items()
        for name, values in each.items()
    ]
    path = save("bench_start", vars(settings), records)
    print(f"{show('start', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
