"""The device as a test parameter: "cpu", or "gpu", which needs a GPU (pytest -m gpu)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from dali_msda.doctor.gpu import find_driver

# Backend and device of the operators. The kernel runs on the CPU only.
_FORMS = {
    "kernel": ("kernel", "cpu"),
    "hybrid": ("hybrid", "cpu"),
    "graph": ("graph", "cpu"),
    "gpu": ("hybrid", "gpu"),
    "gpu-graph": ("graph", "gpu"),
}

on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
in_every_form = pytest.mark.parametrize(
    ("backend", "device"),
    [
        pytest.param(*form, id=name, marks=[pytest.mark.gpu] * (form[1] == "gpu"))
        for name, form in _FORMS.items()
    ],
)


def with_device(names: str | Sequence[str], cases: Iterable[Any], on_gpu: Iterable[Any]) -> Any:
    """Parametrize a test with cases on the CPU and some on the GPU.

    Only some, because a pipeline takes up to a second to build on a GPU.

    Parameters
    ----------
    names : str or sequence of str
        Names of the parameters; ``device`` is added.
    cases, on_gpu : iterable
        Values, or sequences of values for several names.
    """
    if isinstance(names, str):
        return with_device([names], zip(cases), zip(on_gpu))
    rows = [pytest.param(*case, "cpu", id="-".join(map(_id, case))) for case in cases]
    for case in on_gpu:
        rows.append(pytest.param(*case, "gpu", id="-".join([*map(_id, case), "gpu"]), marks=pytest.mark.gpu))
    return pytest.mark.parametrize((*names, "device"), rows)


def _id(value: Any) -> str:
    return str(getattr(value, "__name__", getattr(value, "name", value)))


@functools.cache
def missing() -> str:
    """What GPU tests lack, in a word; empty if nothing."""
    return "" if find_driver().devices else "GPU"


def device_id(device: str) -> int | None:
    """A pipeline's `device_id`."""
    return 0 if device == "gpu" else None


def trainer_options(device: str) -> list[str]:
    """Trainer options to append to those of a run on the CPU."""
    return ["--device", "cuda", "--deterministic"] if device == "gpu" else []


def placed(node: Any, device: str) -> Any:
    """Move a CPU node to a device."""
    return node.gpu() if device == "gpu" else node


def array(tensors: Any) -> np.ndarray:
    """A stacked copy of an output on any device; a copy, because DALI reuses its buffers."""
    return np.array(tensors.as_cpu().as_array())
