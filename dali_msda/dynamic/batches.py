"""Batches of dynamic mode as NumPy arrays and back, without a copy where they are on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
from nvidia.dali.experimental.dynamic import Batch

from .. import buffers
from ..compat import samples_of
from ..validation import ArgumentTypeError, ArgumentValueError

Array = np.ndarray[Any, Any]
# One array with a batch axis, or one array per sample where their sizes differ.
Arrays = Array | list[Array]


def check_batch(name: str, value: object) -> Batch:
    """Raise unless `value` is a batch that is not empty; return it."""
    if not isinstance(value, Batch):
        expected = "a Batch of dynamic mode (ndd.as_batch makes one of arrays, without a copy)"
        raise ArgumentTypeError(name, expected, type(value).__name__)
    if not value.batch_size:
        raise ArgumentValueError(name, "a Batch of at least one sample", 0)
    return value


def device_of(batch: Batch) -> str:
    """ "cpu" or "gpu"."""
    return str(batch.device.device_type)


def view(batch: Batch) -> Arrays:
    """The memory of a batch on the CPU: [N, ...] if it is in one piece, else an array per sample."""
    samples: Arrays = samples_of(batch)
    return samples


def stacked(batch: Batch) -> Array:
    """A batch of samples of one shape as [N, ...]; from the GPU by a copy."""
    samples = view(batch.cpu())
    return samples if isinstance(samples, np.ndarray) else np.stack(samples)


def as_batch(arrays: Arrays, layout: str | None = None, device: Any = None) -> Batch:
    """Arrays as a batch, without a copy; or copied to `device`, a GPU."""
    batch = ndd.as_batch(arrays, layout=layout)
    return batch if device is None or device == batch.device else batch.to_device(device)


def empty(shapes: Array, kind: np.dtype[Any]) -> Arrays:
    """Memory for images of these shapes, int64 [N, sides]: of earlier results that nothing uses any more.

    A batch, and what shares its memory (arrays, tensors of PyTorch), uses it.
    """
    if not (shapes == shapes[0]).all():
        return [np.empty(tuple(shape), kind) for shape in shapes.tolist()]
    return buffers.empty((len(shapes), *shapes[0].tolist()), kind)


def values_of(name: str, value: Any, count: int, shape: tuple[int, ...] = ()) -> Array | None:
    """The values of an argument that is given per sample, [N, *shape]; None if it is a single one.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        They are on the GPU, not numbers, or not one per sample.
    """
    if isinstance(value, Batch):
        if device_of(value) != "cpu":
            raise ArgumentValueError(name, "on the CPU (random draws are made there)", "a GPU batch")
        if len({tuple(one) for one in value.shape}) > 1:
            raise ArgumentValueError(name, "of one shape for all samples", value.shape)
        value = stacked(value)
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype.kind not in "iuf":
        raise ArgumentTypeError(name, "numbers", f"an array of {value.dtype}")
    if value.ndim == 0:
        return None
    if value.size != count * int(np.prod(shape)) or len(value) != count:
        expected = f"one value per sample, {[count, *shape]}"
        raise ArgumentValueError(name, expected, f"an array of shape {value.shape}")
    return value.reshape(count, *shape)


def shapes_of(batch: Batch, sides: int, name: str) -> Array:
    """The shape of every sample, int64 [N, sides]; raise if a layout of so many letters does not fit."""
    if batch.ndim != sides:
        expected = f"one letter for each of the {batch.ndim} dimensions of {name}"
        raise ArgumentValueError("layout", expected, sides)
    return np.array([tuple(shape) for shape in batch.shape], np.int64).reshape(-1, sides)


def check_same_shapes(name: str, own: Array, source: Array, partner: Sequence[int] | Array) -> None:
    """Raise unless every image has the shape of its partner."""
    differs = (own != source[partner]).any(1).nonzero()[0]
    if differs.size:
        i = int(differs[0])
        sizes = tuple(source[partner][i].tolist())
        raise ArgumentValueError(name, f"of one size within a batch, {tuple(own[i].tolist())}", sizes)
