"""Run a mixing operator on arrays, through a real DALI pipeline on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from dali_msda.methods import MIXING

# "stochastic" draws which of two others makes the mask.
ONE_MASK = [name for name in MIXING if name != "stochastic"]

_TYPES = {
    np.dtype(np.uint8): types.UINT8,
    np.dtype(np.float16): types.FLOAT16,
    np.dtype(np.float32): types.FLOAT,
}


class Result(NamedTuple):
    """What one batch came back as, stacked."""

    images: np.ndarray
    targets: np.ndarray
    lam: np.ndarray
    partner: np.ndarray
    mask: np.ndarray
    layout: str


def random_images(
    count: int, size: tuple[int, int], channels: int = 3, seed: int = 0, dtype: Any = np.uint8
) -> np.ndarray:
    """`count` noise images, N x H x W x C."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, *size, channels))
    return noise.astype(dtype) if dtype == np.uint8 else ((noise - 117) / 57).astype(dtype)


def build(define: Callable[[], Any], batch_size: int, seed: int = 1234) -> Pipeline:
    """A CPU pipeline whose outputs are what `define` returns."""
    pipeline = Pipeline(batch_size, 2, None, seed=seed)
    with pipeline:
        pipeline.set_outputs(*define())
    pipeline.build()
    return pipeline


def outputs(
    define: Callable[[], Any], batch_size: int, seed: int = 1234, batches: int = 1
) -> list[list[np.ndarray]]:
    """The outputs of a pipeline, batch by batch, stacked; copies, because DALI reuses its buffers."""
    pipeline = build(define, batch_size, seed)
    return [[np.array(tensors.as_array()) for tensors in pipeline.run()] for _ in range(batches)]


def source(values: Sequence[Any] | np.ndarray, **arguments: Any) -> Any:
    """A node that yields the same batch again and again."""
    return fn.external_source(source=lambda: list(values), **arguments)


def image_source(images: Sequence[np.ndarray] | np.ndarray, layout: str, *, typed: bool = True) -> Any:
    """Images as a node; `typed` tells DALI their type when the graph is built."""
    known = {"dtype": _TYPES[images[0].dtype], "ndim": 3} if typed else {}
    return source(images, layout=layout, **known)


def run_mix(
    method: str,
    images: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[int] | None = None,
    *,
    num_classes: int = 10,
    layout: str = "HWC",
    pipeline_seed: int = 1234,
    typed: bool = True,
    **arguments: Any,
) -> Result:
    """One batch through :func:`dali_msda.mix`.

    Arguments given as arrays become nodes, one value per sample.
    """
    labels = [i % num_classes for i in range(len(images))] if labels is None else labels

    def define() -> Any:
        nodes = {
            name: source(value) if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        }
        mixed, targets, params = msda.mix(
            image_source(images, layout, typed=typed),
            source([np.array([label], np.int32) for label in labels]),
            method=method,
            num_classes=num_classes,
            layout=layout,
            return_params=True,
            **nodes,
        )
        return mixed, targets, params.lam, params.partner, params.mask

    lists = build(define, len(images), pipeline_seed).run()
    images, targets, lam, partner, mask = (np.array(tensors.as_array()) for tensors in lists)
    return Result(images, targets, lam, partner, mask, lists[0].layout())
