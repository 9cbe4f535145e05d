"""The device as a parameter of tests: "cpu", and "gpu", which needs one (pytest -m gpu)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from dali_msda.doctor.gpu import find_driver

# Backend and device of the operators. The kernel is for the CPU.
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
    """Parametrize a test with cases on the CPU, and a choice of them on the GPU.

    On a GPU a pipeline takes up to a second to build.

    Parameters
    ----------
    names : str or sequence of str
        Names of the parameters; ``device`` is added.
    cases, on_gpu : iterable
        Values, or sequences of values where there are several names.
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
    """What keeps tests from running on a GPU, in a word; empty if nothing does."""
    return "" if find_driver().devices else "GPU"


def device_id(device: str) -> int | None:
    """The argument of a pipeline."""
    return 0 if device == "gpu" else None


def trainer_options(device: str) -> list[str]:
    """Options of the trainer, after those of a run on the CPU."""
    return ["--device", "cuda", "--deterministic"] if device == "gpu" else []


def placed(node: Any, device: str) -> Any:
    """A node on a device, from the CPU."""
    return node.gpu() if device == "gpu" else node


def array(tensors: Any) -> np.ndarray:
    """A stacked copy of an output, from wherever it lies; a copy, because DALI reuses its buffers."""
    return np.array(tensors.as_cpu().as_array())
