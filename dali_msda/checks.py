"""Checks on the data itself, made by DALI at run time.

No DALI operator raises an error with a message of ours. But DALI checks the bounds of every slice, and its
error shows the lines of Python that made the operator. So each check is a tiny slice, within its bounds as
long as the data is right, and a comment on its line says what is wrong otherwise (keep it on one line).
"""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .dtypes import as_type, static_dtype

# The longest side of an image or a mask: JPEG files end at 65535 pixels.
LONGEST_SIDE = 65536

_INTEGERS = {
    types.BOOL, types.UINT8, types.INT8, types.UINT16, types.INT16, types.UINT32, types.INT32, types.UINT64,
    types.INT64,
}  # fmt: skip

# float32 holds all of their numbers. DALI 2.4 has no bfloat16.
IMAGE_TYPES = (types.UINT8, types.INT16, types.UINT16, types.FLOAT16, types.FLOAT)

# A slice of one number of a vector.
_ONE = {"shape": [1], "axes": [0]}


def cast_labels(
    labels: DataNode, dtype: types.DALIDataType = types.INT32, *, name: str = "labels"
) -> DataNode:
    """Cast integer labels to `dtype`. Others are refused: a cast alone would make 2.7 class 3.

    Raises
    ------
    TypeError
        The graph shows a type other than integers. Where it shows no type, DALI stops the pipeline.
    """
    if _has_unknown_dtype(name, labels):
        labels = labels | _zero()  # labels must be integers, the class ids
    return as_type(labels, dtype)


def cast_partner(partner: DataNode) -> DataNode:
    """Cast a caller's ``partner`` to int32; see :func:`cast_labels`."""
    if _has_unknown_dtype("partner", partner):
        partner = partner | _zero()  # partner must be an integer, an index within the batch
    return as_type(partner, types.INT32)


def cast_mirror(mirror: DataNode) -> DataNode:
    """Cast a caller's ``mirror`` to int32; see :func:`cast_labels`."""
    if _has_unknown_dtype("mirror", mirror):
        mirror = mirror | _zero()  # mirror must be integers, 1 where an image is mirrored
    return as_type(mirror, types.INT32)


def _has_unknown_dtype(name: str, node: DataNode) -> bool:
    """Whether the graph does not show the type of a node; raise if it shows one other than integers."""
    dtype = static_dtype(node)
    if dtype is not None and dtype not in _INTEGERS:
        raise TypeError(f"{name} must be integers; got a node of type {dtype.name}")
    return dtype is None


def _zero() -> DataNode:
    """The other operand of "or": DALI allows it on integers only, and it does not change them."""
    return types.Constant(0, dtype=types.UINT8, device="cpu")


def check_label_range(labels: DataNode, num_classes: int) -> DataNode:
    """Stop the pipeline if a label is not in [0, num_classes); otherwise return a float32 [1]."""
    classes = types.Constant(np.zeros(num_classes, np.float32), device="cpu")
    return fn.slice(classes, start=labels, shape=[1], axes=[0])  # a label must be in [0, num_classes)


def check_fault(fault: DataNode) -> DataNode:
    """Stop the pipeline if `fault` (integer [1]) is not 0; otherwise return a float32 [1]."""
    return pass_unless_fault(types.Constant(np.zeros(1, np.float32), device="cpu"), fault)


def pass_unless_fault(value: DataNode, at: DataNode) -> DataNode:
    """Stop the pipeline if the fault `at` (integer [1]) is not 0; otherwise return `value` ([1], CPU).

    The line below lists the faults that a user can cause; IMAGES_MOVED would be a fault of DALI.
    """
    return fn.slice(value, start=at, **_ONE)  # 1: images differ in size, 2: wrong layout=, 3: mean=, 4: mask=


def check_image_dtype(name: str, images: DataNode) -> None:
    """Raise TypeError if the graph shows a type of images that cannot be mixed without loss.

    Where it shows none there is no check: that would take five operators. Images are mixed as float32 then.
    """
    dtype = static_dtype(images)
    if dtype is not None and dtype not in IMAGE_TYPES:
        expected = "uint8, int16, uint16, float16 or float32"
        raise TypeError(f"{name} must be {expected}; got a node of type {dtype.name}")


def with_layout(images: DataNode, layout: str) -> DataNode:
    """The images, with that layout; stop the pipeline if they have another number of dimensions."""
    return fn.reshape(images, layout=layout)  # layout must have a letter for each dimension of the images


def check_vectors(vectors: DataNode, length: int | None) -> DataNode:
    """Stop the pipeline unless `vectors` have `length` numbers each, several if it is None; return them."""
    if length is not None:
        return fn.reshape(vectors, shape=[length])  # labels must be class ids or num_classes floats
    flat = fn.reshape(vectors, src_dims=[0])  # labels must be class ids or vectors of floats
    # A single number, such as 2.7, is no vector.
    single, zero = flat.shape(dtype=types.INT32) < 2, types.Constant(np.zeros(1, np.float32), device="cpu")
    start = fn.cast(single, dtype=types.INT32)
    check = fn.slice(zero, start=start, **_ONE)  # labels must be class ids or vectors of floats
    return wait_for(flat, check)


def wait_for(node: DataNode, check: DataNode, layout: str | None = None) -> DataNode:
    """The node itself, of that layout or a vector, for which DALI makes a check (float32 [1], 0) first."""
    ones = types.Constant(np.ones(1 if layout is None else len(layout), np.float32), device="cpu")
    return fn.reshape(node, rel_shape=ones + check, layout=layout)
