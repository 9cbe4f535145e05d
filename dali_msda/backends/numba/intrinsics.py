"""What uses names of Numba below its documented interface, which a new version may remove.

Checked with Numba 0.68.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types as numba_types
from numba.extending import intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple

__all__ = ["address_as_void_pointer", "call_decoder", "call_run", "to_fixed_tuple"]


def _address_as_void_pointer(context: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """The pointer to an address, an integer, in compiled code."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], target.get_value_type(numba_types.voidptr))

    return numba_types.voidptr(address), generate


# Compiled code calls it with the address alone.
address_as_void_pointer: Any = intrinsic(_address_as_void_pointer)


def _call_run(
    context: Any,
    function: Any,
    out: Any,
    out_shapes: Any,
    outs: Any,
    data: Any,
    shapes: Any,
    ins: Any,
) -> tuple[Any, Callable[..., Any]]:
    """Call a function of the signature :data:`.compiled.RUN` by its address; dimensions are not passed."""
    address, count = ir.IntType(64), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [address, address, address, count] * 2)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        function, out, out_shapes, outs, data, shapes, ins = values
        no_dimensions = address(0)
        arguments = [out, out_shapes, no_dimensions, builder.trunc(outs, count)]
        arguments += [data, shapes, no_dimensions, builder.trunc(ins, count)]
        builder.call(builder.inttoptr(function, kind.as_pointer()), arguments)
        return target.get_dummy_value()

    return numba_types.none(*[numba_types.int64] * 7), generate


# Compiled code calls it without the context.
call_run: Any = intrinsic(_call_run)


def _call_decoder(
    context: Any, function: Any, encoded: Any, length: Any, pixels: Any, height: Any, width: Any, strict: Any
) -> tuple[Any, Callable[..., Any]]:
    """Call a C function of six int64 by its address; it returns an int64."""
    integer = ir.IntType(64)
    kind = ir.FunctionType(integer, [integer] * 6)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return numba_types.int64(*[numba_types.int64] * 7), generate


# Compiled code calls it without the context.
call_decoder: Any = intrinsic(_call_decoder)
