"""Run mixing operators on arrays, through a real DALI pipeline on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from dali_msda.methods import MIXING
from tests.devices import array, device_id, placed

# "stochastic" draws which of two others makes the mask.
ONE_MASK = [name for name in MIXING if name != "stochastic"]

_TYPES = {
    np.dtype(np.uint8): types.UINT8,
    np.dtype(np.int16): types.INT16,
    np.dtype(np.uint16): types.UINT16,
    np.dtype(np.float16): types.FLOAT16,
    np.dtype(np.float32): types.FLOAT,
}


class Result(NamedTuple):
    """The outputs of one batch, stacked."""

    images: np.ndarray
    targets: np.ndarray
    lam: np.ndarray
    partner: np.ndarray
    mask: np.ndarray
    layout: str


def random_images(
    count: int, size: tuple[int, int], channels: int = 3, seed: int = 0, dtype: Any = np.uint8
) -> np.ndarray:
    """Make `count` noise images, N x H x W x C."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, *size, channels))
    return noise.astype(dtype) if dtype == np.uint8 else ((noise - 117) / 57).astype(dtype)


def build(define: Callable[[], Any], batch_size: int, seed: int = 1234, device: str = "cpu") -> Pipeline:
    """Build a pipeline on a device; its outputs are the nodes that `define` returns."""
    pipeline = Pipeline(batch_size, 2, device_id(device), seed=seed)
    with pipeline:
        pipeline.set_outputs(*define())
    pipeline.build()
    return pipeline


def outputs(
    define: Callable[[], Any], batch_size: int, seed: int = 1234, batches: int = 1, device: str = "cpu"
) -> list[list[np.ndarray]]:
    """Run a pipeline: its outputs, batch by batch, stacked."""
    pipeline = build(define, batch_size, seed, device)
    return [[array(tensors) for tensors in pipeline.run()] for _ in range(batches)]


def source(values: Sequence[Any] | np.ndarray, **arguments: Any) -> Any:
    """A node that repeats the same batch."""
    return fn.external_source(source=lambda: list(values), **arguments)


def image_source(
    images: Sequence[np.ndarray] | np.ndarray, layout: str, *, typed: bool = True, device: str = "cpu"
) -> Any:
    """Images as a node on a device; with `typed` the graph shows their type."""
    known = {"dtype": _TYPES[images[0].dtype], "ndim": 3} if typed else {}
    return placed(source(images, layout=layout, **known), device)


def mix_nodes(
    method: str,
    images: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[int] | None = None,
    *,
    num_classes: int = 10,
    layout: str = "HWC",
    typed: bool = True,
    device: str = "cpu",
    **arguments: Any,
) -> tuple[Any, ...]:
    """The nodes of a :class:`Result`, except its layout, from :func:`dali_msda.mix`.

    Arrays among the arguments become nodes, one value per sample.
    """
    labels = [i % num_classes for i in range(len(images))] if labels is None else labels
    nodes = {
        name: source(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()
    }
    mixed, targets, params = msda.mix(
        image_source(images, layout, typed=typed, device=device),
        source([np.array([label], np.int32) for label in labels]),
        method=method,
        num_classes=num_classes,
        layout=layout,
        return_params=True,
        **nodes,
    )
    return mixed, targets, params.lam, params.partner, params.mask


def results(pipeline: Pipeline) -> list[Result]:
    """Run the next batch of a pipeline whose outputs come from one or more calls of :func:`mix_nodes`."""
    lists = pipeline.run()
    found = []
    for start in range(0, len(lists), 5):
        images, targets, lam, partner, mask = map(array, lists[start : start + 5])
        found.append(Result(images, targets, lam, partner, mask, lists[start].layout()))
    return found


def run_mix(
    method: str,
    images: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[int] | None = None,
    *,
    pipeline_seed: int = 1234,
    device: str = "cpu",
    **arguments: Any,
) -> Result:
    """Run one batch of :func:`mix_nodes`."""

    def define() -> Any:
        return mix_nodes(method, images, labels, device=device, **arguments)

    (result,) = results(build(define, len(images), pipeline_seed, device))
    return result
