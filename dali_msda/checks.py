"""Checks on the data itself, made by DALI at run time.

DALI has no operator that raises a message of one's own, but every slice is checked against the bounds of
what it cuts, and the error shows the lines of Python that made the operator. Each check is therefore a
tiny slice that stays within its bounds if all is well, on a line that says what is wrong if it is not (and
that has to stay one line).
"""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .dtypes import static_dtype

# No image and no mask may be longer: sides of JPEG files end at 65535 pixels.
LONGEST_SIDE = 65536

# Faults found while mixing, one number each.
SIZES_DIFFER, LAYOUT_DIFFERS, CHANNELS_DIFFER, MASK_DIFFERS, IMAGES_MOVED = range(1, 6)

_INTEGERS = {
    types.BOOL, types.UINT8, types.INT8, types.UINT16, types.INT16, types.UINT32, types.INT32, types.UINT64,
    types.INT64,
}  # fmt: skip

# What is cut out of a vector: one number.
_FIRST = {"shape": [1], "axes": [0]}


def integer_labels(labels: DataNode, dtype: types.DALIDataType = types.INT32) -> DataNode:
    """Labels as `dtype`; a cast alone would make 2.7 class 3.

    Raises
    ------
    TypeError
        The graph shows that they are no integers. Where it does not show their type, DALI stops the pipeline.
    """
    if _is_unseen("labels", labels):
        labels = labels | _nothing()  # labels must be integers, the ids of classes
    return _cast(labels, dtype)


def integer_partner(partner: DataNode) -> DataNode:
    """A caller's ``partner`` as int32; see :func:`integer_labels`."""
    if _is_unseen("partner", partner):
        partner = partner | _nothing()  # partner must be an integer, the index within the batch
    return _cast(partner, types.INT32)


def _is_unseen(name: str, node: DataNode) -> bool:
    """Whether the graph does not show the type of a node; raise where it shows one that is no integer."""
    dtype = static_dtype(node)
    if dtype is not None and dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integers; got a node of type {dtype.name}")
    return dtype is None


def _nothing() -> DataNode:
    """The other operand of "or", which takes integers alone and leaves them as they are."""
    return types.Constant(0, dtype=types.UINT8, device="cpu")


def _cast(node: DataNode, dtype: types.DALIDataType) -> DataNode:
    """Without an operator, where the graph shows that the type is that already."""
    return node if static_dtype(node) == dtype else fn.cast(node, dtype=dtype)


def label_in_range(labels: DataNode, num_classes: int) -> DataNode:
    """Stop the pipeline where a label is not in [0, num_classes); a float32 [1] otherwise."""
    classes = types.Constant(np.zeros(num_classes, np.float32), device="cpu")
    return fn.slice(classes, start=labels, shape=[1], axes=[0])  # a label must be in [0, num_classes)


def no_fault(at: DataNode) -> DataNode:
    """Stop the pipeline where the fault `at` (integer [1]) is not 0; a float32 [1] otherwise."""
    return unless_fault(types.Constant(np.zeros(1, np.float32), device="cpu"), at)


def unless_fault(value: DataNode, at: DataNode) -> DataNode:
    """:func:`no_fault`, which hands on `value` ([1], CPU).

    The line below has room for the faults that a user can cause; IMAGES_MOVED would be one of DALI.
    """
    return fn.slice(value, start=at, **_FIRST)  # 1: images differ in size, 2: wrong layout=, 3: mean, 4: mask


def three_dimensional(images: DataNode) -> DataNode:
    """Stop the pipeline where `images` are not three-dimensional; the images themselves otherwise."""
    return fn.reshape(images, src_dims=[0, 1, 2])  # images must be three-dimensional: HxWxC or CxHxW
