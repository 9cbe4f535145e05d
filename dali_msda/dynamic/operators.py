"""The operators of dynamic mode, for the formulas and arithmetic of :mod:`dali_msda.backends.blending`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
from nvidia.dali import types
from nvidia.dali.experimental.dynamic import Batch

from ..backends.blending import Blending
from .batches import Array, as_batch


class _DynamicOperators:
    """See :class:`dali_msda.backends.blending.Operators`."""

    fn, math = ndd, ndd.math

    def is_node(self, value: object) -> bool:
        return isinstance(value, Batch)

    def float64(self, values: Sequence[float]) -> Any:
        return ndd.as_tensor(np.asarray(values, np.float64))

    def constant(self, values: Array) -> Any:
        return ndd.as_tensor(values)

    def one_like(self, node: Any) -> Any:
        return ndd.as_tensor(np.ones((), np.uint8), device=node.device)

    def dtype_of(self, node: Any) -> types.DALIDataType:
        return node.dtype.type_id

    def device_of(self, node: Any) -> str:
        return str(node.device.device_type)

    def shape_of(self, node: Any) -> Any:
        return as_batch(np.array(node.shape, np.int64))

    def element(self, node: Any, index: int) -> Any:
        return node.slice[index]

    def to_gpu(self, node: Any, axes: Sequence[int] = ()) -> Any:
        return (ndd.expand_dims(node, axes=list(axes)) if axes else node).gpu()


BLENDING = Blending(_DynamicOperators())
