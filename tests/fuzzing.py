"""Send damaged files of every format through every decoder, in processes that must not crash.

    python -m tests.fuzzing --files 20000

Each file is derived from its number. Files that crash a process are written to a folder, and the exit status
is 1. tests/test_headers.py tries the first few. "whole" and "crop" are the pipelines of validation and
training, "full size" is that of training without scaled decoding; "examine" is the decoder of the check,
which the trainer also uses to find bad files.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvidia.dali.pipeline import Pipeline

from pipelines.examine import examine
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.records import Execution, Output
from tests.damage import encode
from tests.sources import memory_class

PATHS = ("whole", "crop", "full size", "examine")
BATCH = 32  # more than four images per thread, so that headers are read in several threads
_THREADS = 2
_MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "P", "L", "1"),
    "TIFF": ("RGB", "RGBA", "CMYK", "P", "L", "1", "I;16", "I", "F"),
    "PPM": ("RGB", "L", "1"),
    "JPEG2000": ("RGB", "RGBA", "L"),
}
_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": ({"quality": 90}, {"progressive": True}),
    "WEBP": ({}, {"lossless": True}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}),
}


def originals() -> list[tuple[str, bytes]]:
    """An undamaged file of every format and mode, with its name."""
    return [
        (f"{form} {mode} {size} {options}", encode(form, mode, size, **options))
        for form, modes in _MODES.items()
        for mode in modes
        for options in _OPTIONS.get(form, ({},))
        for size in ((120, 90), (33, 17))
        if not (options.get("compression") and mode in ("1", "F", "I"))
    ]


def damage(number: int, whole: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Derive a damaged file from a number; returns name and content. Headers are damaged most often."""
    rng = random.Random(number)
    name, content = rng.choice(whole)
    data = bytearray(content)
    head = min(len(data), rng.choice((16, 64, 200, 700)))
    at = rng.randrange(head)
    match rng.randrange(6):
        case 0:
            del data[at:]
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            for _ in range(rng.choice((1, 2, 4, 16))):
                data[rng.randrange(head)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        case 3:
            for _ in range(rng.choice((1, 2, 8, 64))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 4:
            del data[at : at + rng.randrange(1, 40)]
        case _:
            data[at : at + rng.choice((2, 4, 8))] = rng.randbytes(rng.choice((2, 4, 8)))
    return name, bytes(data)


def _make_pipeline(path: str, source: Any) -> Pipeline:
    common: dict[str, Any] = {
        "batch_size": BATCH,
        "num_threads": _THREADS,
        "output": Output(image_size=8),
        "execution": Execution(
            prefetch_queue_depth=1, scaled_decoding="off" if path == "full size" else "auto"
        ),
    }
    if path == "whole":
        pipeline = val_pipeline(source, **common)
    else:
        pipeline = train_pipeline(source, mix="none", num_classes=1, seed=0, **common)
    pipeline.build()
    return pipeline


def decode_in_batches(path: str, numbers: range, report: Callable[[int], None]) -> Counter[str]:
    """Decode batches with one damaged file each, and count outcomes."""
    whole, good = originals(), encode("JPEG", size=(33, 17))
    source = memory_class()(("a",), [(good, 0)] * BATCH)
    counts: Counter[str] = Counter()
    pipeline = _make_pipeline(path, source)
    for number in numbers:
        report(number)
        source.samples[0] = damage(number, whole)[1], 0
        try:
            pipeline.run()
        except RuntimeError:
            counts["refused"] += 1
            pipeline = _make_pipeline(path, source)
        else:
            counts["decoded"] += 1
    return counts


def examine_all(numbers: range) -> tuple[Counter[str], dict[int, str]]:
    """Decode files as the check does; returns counts of outcomes, and the files that crashed a process."""
    whole = originals()
    source = memory_class()(("a",), [(damage(number, whole)[1], 0) for number in numbers])
    errors = examine(source, range(len(source)))
    fatal = {numbers[position]: error for position, error in errors.items() if "process" in error}
    return Counter(refused=len(errors), decoded=len(source) - len(errors)), fatal


def fuzz(path: str, numbers: range) -> tuple[Counter[str], dict[int, str]]:
    """Decode files in separate processes, restarted after a crash; returns counts and crashes."""
    if path == "examine":
        return examine_all(numbers)
    counts: Counter[str] = Counter()
    fatal: dict[int, str] = {}
    start = numbers.start
    while start < numbers.stop:
        command = [sys.executable, "-m", __spec__.name if __spec__ else "tests.fuzzing", "--one", path]
        process = subprocess.run(
            [*command, "--first", str(start), "--files", str(numbers.stop - start)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        last = process.stdout.splitlines()[-1]
        if process.returncode == 0:
            counts.update(json.loads(last))
            break
        number = int(last)
        fatal[number] = f"exit status {process.returncode}"
        counts["fatal"] += 1
        start = number + 1
    return counts, fatal


def main() -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fuzzing"))
    parser.add_argument("--one", choices=PATHS[:3], help=argparse.SUPPRESS)
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.files)
    if options.one:
        print(json.dumps(decode_in_batches(options.one, numbers, lambda n: print(n, flush=True))))
        return 0
    crashed = False
    for path in PATHS:
        counts, fatal = fuzz(path, numbers)
        print(path, dict(counts), flush=True)
        for number, reason in fatal.items():
            crashed = True
            options.output.mkdir(parents=True, exist_ok=True)
            name, data = damage(number, originals())
            (options.output / str(number)).write_bytes(data)
            print(f"  {number}: {name}, {reason}", flush=True)
    return int(crashed)


if __name__ == "__main__":
    sys.exit(main())
