"""Labels of every kind in dynamic mode, and the targets made from them, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali.experimental.dynamic import Batch

from ..common_arguments import LabelArguments
from ..signatures import Pair
from ..validation import ArgumentTypeError, ArgumentValueError
from .batches import Array, as_batch, stacked
from .images import arrays_module


def read_labels(name: str, labels: Any, arguments: LabelArguments) -> Array:
    """Class ids, int64 [N], or vectors, float32 [N, K].

    Raises
    ------
    TypeError, ValueError
        Labels are neither; ids are out of range, or there is no ``num_classes`` for dense targets.
    """
    if isinstance(labels, Batch):
        if len({tuple(shape) for shape in labels.shape}) > 1:
            raise ArgumentValueError(name, "class ids, or vectors of one length", "a ragged batch")
        values = stacked(labels)
    elif isinstance(labels, np.ndarray) and labels.ndim:
        values = labels
    else:
        expected = "a Batch of dynamic mode or an array, class ids or vectors of floats"
        raise ArgumentTypeError(name, expected, type(labels).__name__)
    num_classes = arguments.num_classes
    if values.dtype.kind == "f":
        if values.ndim != 2 or values.shape[1] < 2 or num_classes not in (None, values.shape[1]):
            expected = "class ids or vectors of floats"
            expected = expected if num_classes is None else f"class ids or vectors of {num_classes} floats"
            raise ArgumentValueError(name, expected, f"floats of shape {list(values.shape[1:])} per sample")
        return values.astype(np.float32, copy=False)
    if values.dtype.kind not in "iu":
        raise ArgumentTypeError(name, "class ids or vectors of floats", f"values of {values.dtype}")
    if values.size != len(values):
        raise ArgumentValueError(
            name, "one class id per sample", f"shape {list(values.shape[1:])} per sample"
        )
    ids = values.reshape(-1)
    if num_classes is None and arguments.output == "dense":
        raise ArgumentValueError("num_classes", "given with class ids, as the targets' length", None)
    wrong = (ids < 0) if num_classes is None else (ids < 0) | (ids >= num_classes)
    if num_classes is not None and wrong.any():
        i = int(wrong.nonzero()[0][0])
        raise ArgumentValueError(name, f"in [0, {num_classes})", f"{ids[i]} in sample {i}")
    return ids.astype(np.int64, copy=False)


def mix_labels(
    own: Array, partners: Array, lam: Array, arguments: LabelArguments, device: Any, compiled: bool
) -> Batch | Pair:
    """Targets, or a pair, on a device; labels are from :func:`read_labels`, `lam` is float32 [N]."""
    if arguments.output == "pair":
        return Pair(*(as_batch(np.ascontiguousarray(one), None, device) for one in (own, partners, lam)))
    num_classes, smoothing = arguments.num_classes, np.float32(arguments.label_smoothing)
    if own.ndim == 1:
        assert num_classes is not None
        arrays = arrays_module() if compiled else None
        if arrays is not None:
            targets = arrays.mix_targets(own, partners, lam, num_classes, float(smoothing))
        else:
            share = arguments.label_smoothing / num_classes
            off, on = np.float32(share), np.float32(1.0 - arguments.label_smoothing + share)
            classes = np.arange(num_classes)
            hot, other_hot = (np.where(classes == ids[:, None], on, off) for ids in (own, partners))
            targets = lam[:, None] * hot + (np.float32(1.0) - lam[:, None]) * other_hot
        return as_batch(targets, None, device)
    weight = lam[:, None]
    mixed = weight * own + (np.float32(1.0) - weight) * partners
    if smoothing:
        mixed = (np.float32(1.0 - arguments.label_smoothing)) * mixed + smoothing / np.float32(own.shape[1])
    return as_batch(mixed, None, device)
