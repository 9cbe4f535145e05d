"""Compares two checkouts of the project: images/s of the training pipeline, ms to mix a batch.

    python -m benchmarks.compare --before CHECKOUT --after CHECKOUT

Every round runs one process per checkout; they take turns at being first. It measures only public calls, so
the checkouts may differ inside: ``train_pipeline`` with every method over generated images, and ``msda.mix``
in a pipeline over a batch in memory: compiled, compiled with normalisation, and as DALI's operators. Both use
all processors. Ratios are taken round by round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.common import Record, save, spread
from benchmarks.tables import show
from dali_msda.methods import TABLE
from dali_msda.processors import usable_processors
from pipelines.demo_data import CLASSES, make_demo_dataset
from training.machine import describe_code

# Runs in one process of one checkout. Prints a list of [measure, method, speed], with speeds in images/s.
_MEASURE = """
import json, sys, time
import numpy as np
from nvidia.dali import Pipeline, fn, types
import dali_msda as msda, pipelines.imagenet

data, root, mixes, classes, batch_size, threads, batches = json.loads(sys.argv[1])
for module in (msda, pipelines.imagenet):
    assert module.__file__.startswith(root + "/"), f"{module.__file__} is not in {root}"
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (batch_size, 224, 224, 3), dtype=np.uint8)
labels = rng.integers(0, 1000, (batch_size, 1), dtype=np.int32)
normalise = dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], output_layout="CHW")
kinds = {"mix": dict(backend="kernel"), "mix_normalise": dict(backend="kernel", **normalise),
         "mix_graph": dict(backend="graph")}

def speed(pipeline, count):
    pipeline.build()
    for _ in range(8):
        pipeline.run()
    began = time.perf_counter()
    for _ in range(count):
        pipeline.run()
    return count * batch_size / (time.perf_counter() - began)

def mixing(mix, arguments):
    pipeline = Pipeline(batch_size, threads, None, seed=0)
    with pipeline:
        # Without a type in the graph, images would be mixed as float32.
        own = fn.external_source(source=lambda: images, layout="HWC", dtype=types.UINT8, no_copy=True)
        numbers = fn.external_source(source=lambda: labels, dtype=types.INT32, no_copy=True)
        pipeline.set_outputs(*msda.mix(own, numbers, method=mix, num_classes=1000, **arguments))
    return pipeline

found = []
for mix in mixes:
    pipeline = pipelines.imagenet.train_pipeline(
        data, mix=mix, num_classes=classes, batch_size=batch_size, num_threads=threads, device="cpu"
    )
    found.append(["loader", mix, speed(pipeline, batches)])
    if mix != "none":
        for kind, arguments in kinds.items():
            count = 4 if kind == "mix_graph" else 4 * batches
            found.append([kind, mix, speed(mixing(mix, arguments), count)])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Settings:
    """What to compare."""

    before: Path
    """A checkout of the project."""

    after: Path
    """Another one."""

    rounds: int = 9
    """Processes of each checkout, after one for warm-up; 5 or more."""

    batch_size: int = 64
    """Images per batch."""

    batches: int = 24
    """Batches of the training pipeline per method and process."""

    mixes: tuple[str, ...] = tuple(TABLE)
    """Methods that both checkouts have."""


def speeds(root: Path, data: Path, settings: Settings) -> dict[tuple[str, str], float]:
    """Run one process of a checkout; return images/s by measure and method."""
    sizes = [len(CLASSES), settings.batch_size, usable_processors(), settings.batches]
    argument = json.dumps([str(data), str(root), settings.mixes, *sizes])
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE, argument],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise SystemExit(f"the process of {root} failed:\n{process.stderr[-3000:]}")
    found = json.loads(process.stdout.splitlines()[-1])
    return {(measure, mix): speed for measure, mix, speed in found}


def main() -> None:
    """Measure, write the results, print a table."""
    settings = tyro.cli(Settings, description=__doc__)
    roots = {"before": settings.before.resolve(), "after": settings.after.resolve()}
    for name, root in roots.items():
        if not (root / "dali_msda" / "__init__.py").is_file():
            raise SystemExit(f"--{name} must be a checkout of the project; got {root}")
    if settings.rounds < 5:
        raise SystemExit(f"--rounds must be at least 5; got {settings.rounds}")
    commits = {f"{name}_revision": describe_code(root) for name, root in roots.items()}
    rounds: list[dict[str, dict[tuple[str, str], float]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = make_demo_dataset(Path(temporary) / "set", train_per_class=64, val_per_class=1)
        for number in range(settings.rounds + 1):
            order = list(roots) if number % 2 else list(reversed(roots))
            found = {name: speeds(roots[name], data, settings) for name in order}
            if number:
                rounds.append(found)
    records: list[Record] = []
    for measure, mix in rounds[0]["before"]:
        rates = {name: [found[name][measure, mix] for found in rounds] for name in roots}
        ratios = [after / before for before, after in zip(rates["before"], rates["after"], strict=True)]
        records.append({"measure": measure, "mix": mix, "batch_size": settings.batch_size})
        records[-1] |= {f"{name}_images_per_s": spread(values) for name, values in rates.items()}
        records[-1]["ratio"] = spread(ratios)
    path = save("compare", vars(settings) | commits, records)
    print(f"{show('compare', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
