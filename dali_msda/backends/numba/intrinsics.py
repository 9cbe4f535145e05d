"""What uses names of Numba below its documented interface, which a new version may remove.

Checked with Numba 0.68.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types as numba_types
from numba.extending import intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple

__all__ = ["address_as_void_pointer", "to_fixed_tuple"]


def _address_as_void_pointer(context: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """The pointer to an address, an integer, in compiled code."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], target.get_value_type(numba_types.voidptr))

    return numba_types.voidptr(address), generate


# Compiled code calls it with the address alone.
address_as_void_pointer: Any = intrinsic(_address_as_void_pointer)
