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

__all__ = ["address_as_void_pointer", "blend_row", "call_decoder", "call_run", "to_fixed_tuple"]


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


_LANES, _PIXEL = 4, 3
_UNROLLED = (2, 3, 4)  # numbers of products without a loop, which takes longer than they do


def _blend_row(
    context: Any, out: Any, row: Any, first: Any, weights: Any, count: Any
) -> tuple[Any, Callable[..., Any]]:
    """Write ``out[3 * x + c] = sum of weights[x * count + k] * row[3 * (first[x] + k) + c] for k < count``.

    All arrays are contiguous, float32 and uint64 (`first`), `count` is uint64; nothing is checked. Products
    are added in the order of k, each rounded. Four elements are read and written at a time, so one more than
    the pixels have: Numba does not vectorise across the elements of a pixel.
    """
    integer, lanes = ir.IntType(64), ir.VectorType(ir.FloatType(), _LANES)
    # Sums begin with 0: without it, LLVM takes slower instructions on some processors.
    nothing, zeros = ir.Constant(lanes, ir.Undefined), ir.Constant(lanes, [0.0] * _LANES)
    first_lane = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = zip(signature.args[:-1], values, strict=False)
        out, row, first, weights = (target.make_array(kind)(target, builder, one) for kind, one in arrays)
        count, end = values[-1], builder.append_basic_block()

        def pixels(array: Any, index: Any) -> Any:
            place = builder.gep(array.data, [builder.mul(index, integer(_PIXEL))])
            return builder.bitcast(place, lanes.as_pointer())

        def product(x: Any, k: Any) -> Any:
            source = builder.load(builder.gep(first.data, [x]))
            elements = builder.load(pixels(row, builder.add(source, k)), align=4)
            weight = builder.load(builder.gep(weights.data, [builder.add(builder.mul(x, count), k)]))
            weight = builder.insert_element(nothing, weight, ir.IntType(32)(0))
            return builder.fmul(elements, builder.shuffle_vector(weight, nothing, first_lane))

        def add_some(x: Any) -> Any:
            total: Any = cgutils.alloca_once_value(builder, zeros)  # type: ignore[no-untyped-call]
            with cgutils.for_range(builder, count, intp=integer) as loop:
                builder.store(builder.fadd(builder.load(total), product(x, loop.index)), total)
            return builder.load(total)

        def add(number: int) -> Callable[[Any], Any]:
            return lambda x: functools.reduce(
                builder.fadd, [product(x, integer(k)) for k in range(number)], zeros
            )

        def write(block: Any, total: Callable[[Any], Any]) -> None:
            builder.position_at_end(block)
            with cgutils.for_range(builder, first.nitems, intp=integer) as loop:
                builder.store(total(loop.index), pixels(out, loop.index), align=4)
            builder.branch(end)

        others = builder.append_basic_block()
        switch = builder.switch(count, others)
        for number in _UNROLLED:
            block = builder.append_basic_block()
            switch.add_case(integer(number), block)
            write(block, add(number))
        write(others, add_some)
        builder.position_at_end(end)
        return target.get_dummy_value()

    return numba_types.none(out, row, first, weights, numba_types.uint64), generate


# Compiled code calls it without the context.
blend_row: Any = intrinsic(_blend_row)
