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

# Faults found while mixing, one number each.
SIZES_DIFFER, LAYOUT_DIFFERS, CHANNELS_DIFFER, MASK_DIFFERS, IMAGES_MOVED = range(1, 6)


# What is cut out of a vector: one number.
_FIRST = {"shape": [1], "axes": [0]}


def label_in_range(labels: DataNode, num_classes: int) -> DataNode:
    """Stop the pipeline where a label is not in [0, num_classes); a float32 [1] otherwise."""
    classes = types.Constant(np.zeros(num_classes, np.float32), device="cpu")
    return fn.slice(classes, start=labels, shape=[1], axes=[0])  # a label must be in [0, num_classes)


def no_fault(at: DataNode) -> DataNode:
    """Stop the pipeline where the fault `at` (integer [1]) is not 0; a float32 [1] otherwise.

    The line below has room for the faults that a user can cause; IMAGES_MOVED would be one of DALI.
    """
    row = types.Constant(np.zeros(1, np.float32), device="cpu")
    return fn.slice(row, start=at, **_FIRST)  # 1: images differ in size, 2: wrong layout=, 3: mean, 4: mask


def three_dimensional(images: DataNode) -> DataNode:
    """Stop the pipeline where `images` are not three-dimensional; the images themselves otherwise."""
    return fn.reshape(images, src_dims=[0, 1, 2])  # images must be three-dimensional: HxWxC or CxHxW
