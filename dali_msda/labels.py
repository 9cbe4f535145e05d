"""Labels of every kind (class ids, vectors, none), and the targets made from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .backends import Backend, graph
from .backends.graph import one_hot_targets, to_device
from .checks import cast_labels, check_label_range, check_vectors, wait_for
from .common_arguments import LabelArguments
from .dtypes import FLOATS, as_type, static_dtype
from .signatures import Pair
from .validation import ArgumentValueError


@dataclass(frozen=True)
class Labels:
    """The labels of a batch, ready to become targets."""

    values: DataNode
    """Class ids, int32 [1] on the CPU; or vectors, float32 [K]."""
    are_vectors: bool


def read_labels(labels: DataNode, arguments: LabelArguments, name: str = "labels") -> Labels:
    """Distinguish class ids from vectors by their type in the graph, and check what the graph shows.

    Raises
    ------
    TypeError, ValueError
        Class ids without ``num_classes`` for dense targets; a type that is neither an integer nor a float.
    RuntimeError
        By DALI, at run time: the graph does not show the type, and they are not integers; an id is not a
        single number; a vector does not have ``num_classes`` numbers, or is a single float.
    """
    num_classes = arguments.num_classes
    if static_dtype(labels) in FLOATS:
        return Labels(check_vectors(as_type(labels, types.FLOAT), num_classes), are_vectors=True)
    if num_classes is None and arguments.output == "dense":
        raise ArgumentValueError("num_classes", "given with class ids, as the targets' length", None)
    # Where they are compared with num_classes, and made into targets.
    ids = labels.cpu() if labels.device == "gpu" else labels
    ids = fn.reshape(cast_labels(ids, name=name), shape=[1])  # labels: one integer per image
    if name != "labels" and num_classes is not None:
        # The targets' own check sees the labels alone.
        ids = wait_for(ids, check_label_range(ids, num_classes))
    return Labels(ids, are_vectors=False)


def mix_read_labels(
    backend: Backend,
    own: Labels,
    partner: Labels,
    lam: DataNode,
    device: str,
    arguments: LabelArguments,
    check: DataNode | None = None,
) -> DataNode | Pair:
    """Targets, or a pair.

    Parameters
    ----------
    partner : Labels
        The partners' labels, in their order.
    lam : DataNode
        The own label's weight, float32 [1].
    device : str
        Device of the result.
    check : DataNode, optional
        float32 [1], 0, CPU: the result depends on it.
    """
    if arguments.output == "pair":
        return _pair(own, partner, lam, device, arguments, check)
    if not own.are_vectors:
        return to_device(backend.mix_ids(own.values, partner.values, lam, arguments, check), device)
    if check is not None:
        lam = lam + to_device(check, lam.device)
    at = "gpu" if "gpu" in (own.values.device, partner.values.device, lam.device) else "cpu"
    mine, other, lam = (to_device(node, at) for node in (own.values, partner.values, lam))
    mixed = lam * mine + (1.0 - lam) * other
    if smoothing := arguments.label_smoothing:
        if arguments.num_classes is None:
            share = smoothing / fn.cast(own.values.shape(), dtype=types.FLOAT)
        else:
            share = smoothing / arguments.num_classes
        mixed = (1.0 - smoothing) * mixed + (to_device(share, at) if isinstance(share, DataNode) else share)
    return to_device(mixed, device)


def _pair(
    own: Labels,
    partner: Labels,
    lam: DataNode,
    device: str,
    arguments: LabelArguments,
    check: DataNode | None,
) -> Pair:
    lam = fn.reshape(lam if check is None else lam + to_device(check, lam.device), shape=[])
    labels = []
    for side in (own, partner):
        values = side.values
        if not side.are_vectors:
            ids = fn.cast(values, dtype=types.INT64)
            if arguments.num_classes is not None:
                in_range = check_label_range(values, arguments.num_classes)
                ids = ids + fn.cast(in_range, dtype=types.INT64)
            values = fn.reshape(ids, shape=[])
        labels.append(to_device(values, device))
    return Pair(labels[0], labels[1], to_device(lam, device))


def unmixed_labels(labels: DataNode, device: str, arguments: LabelArguments) -> DataNode | Pair:
    """The targets without mixing."""
    own = read_labels(labels, arguments)
    if not own.are_vectors and arguments.output == "dense":
        return one_hot_targets(own.values, device, arguments)
    one = types.Constant(np.ones(1, np.float32), device="cpu")
    return mix_read_labels(graph, own, own, one, device, arguments)
