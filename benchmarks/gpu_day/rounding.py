"""Stage: the same draws in every form of the library, compared value by value.

Pipelines with the same seed draw the same numbers (on the CPU): the hybrid form and the graph, on the GPU and
the CPU, and the compiled kernel. Per method and type: how many values differ, and the largest difference.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from benchmarks.common import mixing
from benchmarks.gpu_day.stage import Job

DTYPES = {"uint8": types.UINT8, "float16": types.FLOAT16, "float32": types.FLOAT}

# Device and backend.
FORMS = {
    "gpu hybrid": ("gpu", "hybrid"),
    "gpu graph": ("gpu", "graph"),
    "cpu hybrid": ("cpu", "hybrid"),
    "cpu graph": ("cpu", "graph"),
    "kernel": ("cpu", "kernel"),
}


def _run_form(form: str, method: str, images: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and targets of one batch."""
    device, backend = FORMS[form]
    gpu = device == "gpu"
    labels = np.arange(len(images), dtype=np.int32).reshape(-1, 1) % 10
    pipeline = Pipeline(len(images), 2, 0 if gpu else None, seed=7, prefetch_queue_depth=1)
    with pipeline:
        own = fn.external_source(source=lambda: list(images), layout="HWC", dtype=DTYPES[dtype])
        targets = fn.external_source(source=lambda: list(labels), dtype=types.INT32)
        mixed = msda.mix(
            own.gpu() if gpu else own,
            targets,
            method=method,
            num_classes=10,
            backend=backend,
        )
        pipeline.set_outputs(*mixed)
    pipeline.build()
    outputs: Any = pipeline.run()
    first, second = (np.array(output.as_cpu().as_array()) for output in outputs)
    return first, second


def run(job: Job) -> None:
    """Compare every pair of forms."""
    rng = np.random.default_rng(11)
    size, count = (57, 12) if job.quick else (160, 64)
    forms = [form for form, (device, _) in FORMS.items() if device == "cpu" or job.device == "gpu"]
    for dtype in DTYPES:
        pixels = rng.integers(0, 256, (count, size, size + 3, 3), dtype=np.uint8)
        images = pixels if dtype == "uint8" else (pixels / 255).astype(dtype)
        for method in mixing():
            if job.has(dtype=dtype, mix=method):
                continue
            with job.part(dtype=dtype, mix=method):
                made = {form: _run_form(form, method, images, dtype) for form in forms}
                for one, other in combinations(forms, 2):
                    pair = [made[form][0].astype(np.float64) for form in (one, other)]
                    away = np.abs(pair[0] - pair[1])
                    targets = np.abs(made[one][1] - made[other][1]).max()
                    job.add(
                        dtype=dtype,
                        mix=method,
                        one=one,
                        other=other,
                        values=away.size,
                        different=int((away > 0).sum()),
                        max_difference=float(away.max()),
                        max_target_difference=float(targets),
                    )
