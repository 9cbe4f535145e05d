"""What uses names of Numba below its documented interface, which a new version may remove.

Checked with Numba 0.68.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core import types as numba_types
from numba.extending import intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple

__all__ = ["add_products", "address_as_void_pointer", "call_decoder", "call_run", "to_fixed_tuple"]


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


_LANES = 4
_UNROLLED = (2, 3, 4)  # numbers of products without a loop, which takes longer than they do


def _add_products(
    context: Any, out: Any, at: Any, row: Any, start: Any, step: Any, weights: Any, first: Any, count: Any
) -> tuple[Any, Callable[..., Any]]:
    """Write ``out[at + i] = sum of weights[first + k] * row[start + step * k + i] for k < count``, i < 4.

    All arrays are float32 and contiguous, all integers uint64; nothing is checked. Products are added in the
    order of k, each rounded, four sums at a time: Numba does not vectorise across the elements of a pixel.
    """
    integer, lanes = ir.IntType(64), ir.VectorType(ir.FloatType(), _LANES)
    nothing = ir.Constant(lanes, ir.Undefined)
    first_lane = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        def place(which: int, index: Any) -> Any:
            array = target.make_array(signature.args[which])(target, builder, values[which])
            return builder.gep(array.data, [index])

        def product(k: Any) -> Any:
            weight = builder.load(place(5, builder.add(values[6], k)))
            weight = builder.insert_element(nothing, weight, ir.IntType(32)(0))
            weight = builder.shuffle_vector(weight, nothing, first_lane)
            source = place(2, builder.add(values[3], builder.mul(values[4], k)))
            elements = builder.load(builder.bitcast(source, lanes.as_pointer()), align=4)
            return builder.fmul(weight, elements)

        def finish(total: Any) -> None:
            builder.store(total, builder.bitcast(place(0, values[1]), lanes.as_pointer()), align=4)
            builder.branch(end)

        count, end, any_count = values[7], builder.append_basic_block(), builder.append_basic_block()
        switch = builder.switch(count, any_count)
        for usual in _UNROLLED:
            switch.add_case(integer(usual), block := builder.append_basic_block())
            builder.position_at_end(block)
            finish(functools.reduce(builder.fadd, [product(integer(k)) for k in range(usual)]))
        builder.position_at_end(any_count)
        total: Any = cgutils.alloca_once_value(builder, product(integer(0)))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, count, start=integer(1), intp=integer) as loop:
            builder.store(builder.fadd(builder.load(total), product(loop.index)), total)
        finish(builder.load(total))
        builder.position_at_end(end)
        return target.get_dummy_value()

    index = numba_types.uint64
    return numba_types.none(out, index, row, index, index, weights, index, index), generate


# Compiled code calls it without the context.
add_products: Any = intrinsic(_add_products)
