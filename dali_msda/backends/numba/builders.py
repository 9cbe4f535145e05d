"""The kernels as DALI calls them: functions of tables of pointers, which Numba compiles. Needs no DALI.

Every function here that begins with `build_` makes a function that closes over numbers and types only: what a
function closes over is part of its key in Numba's cache, and the version must be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ...fault_codes import IMAGES_MOVED
from ...methods import Method
from .compiled import RUN, compiled, data_of, integers, shape1, shape2, shape3
from .formulas import fingerprint
from .intrinsics import address_as_void_pointer
from .kernels import (
    inputs_of,
    join_mask,
    mask_writer,
    mix_image,
    mix_normalized,
    write_mask,
    write_targets,
)

# The view of each sample, from :func:`build_views`: addresses of its own image and of its partner, and the
# partner's shape.
_OWN_ADDRESS, _PARTNER_ADDRESS, _PARTNER_SHAPE, _VIEW = 0, 1, 2, 5


@numba.njit
def _find_partner(own: Any, view: Any, own_address: int) -> Any:
    """The partner's image, or `own` where the view is no longer valid."""
    # If the own image is still at its address in the view, so is the partner. Should DALI ever move images in
    # between, this stops the pipeline instead of reading memory that holds no image.
    moved = view[_OWN_ADDRESS] != own_address
    shape = view[_PARTNER_SHAPE], view[_PARTNER_SHAPE + 1], view[_PARTNER_SHAPE + 2]
    address = own_address if moved else view[_PARTNER_ADDRESS]
    return moved, carray(address_as_void_pointer(address), own.shape if moved else shape, own.dtype)


@numba.njit
def numbers_of(data: Any, shapes: Any, inputs: Any, count: Any) -> Any:
    """The numbers of a sample's mask, float64 [count], in the order of :func:`.kernels.inputs_of`.

    They come in parts, in the inputs after the first. The last input, bytes, ends with :func:`order`, so that
    compiled code does not depend on how the numbers are divided.
    """
    parts = inputs - 1
    last = shape1(shapes, parts)[0] // 8
    known = carray(data_of(data, parts), last, np.float64)
    widths, places = known[last - parts - count : last - count], known[last - count :]
    sizes = np.empty(parts, np.int64)
    for part in range(parts):
        sizes[part] = shape1(shapes, part + 1)[0] // int(widths[part])
    sizes[parts - 1] -= parts + count
    drawn, at = np.empty(sizes.sum(), np.float64), 0
    for part in range(parts):
        size = sizes[part]
        drawn[at : at + size] = carray(data_of(data, part + 1), size, np.float64)
        at += size
    numbers = np.empty(count, np.float64)
    for i in range(count):
        numbers[i] = drawn[int(places[i])]
    return numbers


def order(widths: Sequence[int], places: Sequence[int]) -> bytes:
    """What the last input ends with: how to find each number.

    `widths` has the elements of each part per number, 8 if it holds bytes; `places` the index of every number
    among those of all parts.
    """
    return np.array([*widths, *places], "<f8").tobytes()


# `compiled` replaces this with the kernel that writes a method's masks.
_write: Any = None


def build_weights(version: int, height_axis: int, dense: bool, count: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        sides = shape3(shapes, 0)
        numbers = numbers_of(data, shapes, ins, count)
        _write(
            carray(data_of(out, 0), shape2(out_shapes, 0) if dense else shape1(out_shapes, 0), np.float32),
            carray(data_of(out, 1), shape1(out_shapes, 1), np.float32),
            numbers,
            sides[height_axis],
            sides[height_axis + 1],
        )

    return run


@functools.cache
def weights_writer(method: Method, height_axis: int) -> Any:
    """The compiled function that writes the masks of a method, as :func:`build_weights` makes it."""
    called = ("_write", mask_writer(method), fingerprint(method.mask))
    dense, count = method.kind == "dense", len(inputs_of(method))
    return compiled(build_weights, RUN, height_axis, dense, count, called=called)


def build_weights_shapes(version: int, height_axis: int, dense: bool) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            own = integers(integers(shapes, samples)[sample], 3)
            if dense:
                sides = integers(integers(out_shapes, samples)[sample], 2)
                sides[:] = own[height_axis : height_axis + 2]
            else:
                length = integers(integers(out_shapes, samples)[sample], 1)
                length[0] = 2 + own[height_axis] + own[height_axis + 1]
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1

    return setup


def build_joined(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        join_mask(
            carray(data_of(out, 0), shape1(out_shapes, 0), np.float32),
            carray(data_of(out, 1), shape1(out_shapes, 1), np.float32),
            carray(data_of(data, 0), shape1(shapes, 0), np.float64)[0],
            carray(data_of(data, 1), shape1(shapes, 1), np.float64)[0],
            carray(data_of(data, 2), shape1(shapes, 2), np.float32),
            carray(data_of(data, 3), shape1(shapes, 3), np.float32),
        )

    return run


def build_joined_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            height = integers(integers(shapes, 3 * samples)[2 * samples + sample], 1)[0]
            width = integers(integers(shapes, 4 * samples)[3 * samples + sample], 1)[0]
            integers(integers(out_shapes, samples)[sample], 1)[0] = 2 + height + width
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1

    return setup


def build_mix(version: int, element: type, dense: bool, second: bool) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        own = carray(data_of(data, 0), shape3(shapes, 0), element)
        if second:
            moved, partner = False, carray(data_of(data, 2), shape3(shapes, 2), own.dtype)
        else:
            moved, partner = _find_partner(own, integers(integers(data, 3)[2], _VIEW), integers(data, 1)[0])
        fault = carray(data_of(out, 1), shape1(out_shapes, 1), np.int32)
        mix_image(
            carray(data_of(out, 0), shape3(out_shapes, 0), element),
            carray(data_of(out, 2), shape1(out_shapes, 2), np.float32),
            fault,
            own,
            carray(data_of(data, 1), shape2(shapes, 1) if dense else shape1(shapes, 1), np.float32),
            partner,
            carray(data_of(data, 4), shape1(shapes, 4), np.uint8)[0] != 0,
            carray(data_of(data, 3), shape1(shapes, 3), np.uint8),
            carray(data_of(data, 4), shape1(shapes, 4), np.uint8)[1] != 0,
        )
        if moved:
            fault[0] = IMAGES_MOVED

    return run


def build_mix_normalized(
    version: int, channels_first: bool, dense: bool, second: bool
) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        own = carray(data_of(data, 0), shape3(shapes, 0), np.uint8)
        if second:
            moved, partner = False, carray(data_of(data, 2), shape3(shapes, 2), own.dtype)
        else:
            moved, partner = _find_partner(own, integers(integers(data, 3)[2], _VIEW), integers(data, 1)[0])
        fault = carray(data_of(out, 1), shape1(out_shapes, 1), np.int32)
        mix_normalized(
            carray(data_of(out, 0), shape3(out_shapes, 0), np.float32),
            carray(data_of(out, 2), shape1(out_shapes, 2), np.float32),
            fault,
            own,
            carray(data_of(data, 1), shape2(shapes, 1) if dense else shape1(shapes, 1), np.float32),
            partner,
            carray(data_of(data, 3), shape1(shapes, 3), np.uint8),
            carray(data_of(data, 5), (2, shape1(shapes, 5)[0] // 2), np.float32),
            channels_first,
        )
        if moved:
            fault[0] = IMAGES_MOVED

    return run


def build_mix_shapes(version: int, channels_first: bool) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            mixed = integers(integers(out_shapes, samples)[sample], 3)
            own = integers(integers(shapes, samples)[sample], 3)
            if channels_first:  # from HWC
                mixed[0], mixed[1], mixed[2] = own[2], own[0], own[1]
            else:
                mixed[:] = own
            integers(integers(out_shapes, 2 * samples)[samples + sample], 1)[0] = 1
            integers(integers(out_shapes, 3 * samples)[2 * samples + sample], 1)[0] = 1

    return setup


def build_views(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        images, image_shapes = integers(data, 2 * samples), integers(shapes, 2 * samples)
        for sample in range(samples):
            partner = carray(address_as_void_pointer(images[samples + sample]), 1, np.int32)[0]
            if not 0 <= partner < samples:  # permuting the labels then stops the pipeline
                partner = sample
            view = integers(integers(out, samples)[sample], _VIEW)
            view[_OWN_ADDRESS], view[_PARTNER_ADDRESS] = images[sample], images[partner]
            view[_PARTNER_SHAPE:] = integers(image_shapes[partner], 3)

    return run


def build_views_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            integers(integers(out_shapes, samples)[sample], 1)[0] = _VIEW

    return setup


def build_targets(version: int) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        write_targets(
            carray(data_of(out, 0), shape1(out_shapes, 0), np.float32),
            carray(data_of(data, 3), shape1(shapes, 3), np.float32),
            carray(data_of(data, 1), shape1(shapes, 1), np.int32),
            carray(data_of(data, 2), shape1(shapes, 2), np.int32),
            carray(data_of(data, 0), shape1(shapes, 0), np.float32)[-1],
        )

    return run


def build_targets_shapes(version: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            classes = integers(integers(shapes, samples)[sample], 1)[0]
            integers(integers(out_shapes, samples)[sample], 1)[0] = classes - 1

    return setup


def build_mask(version: int, channels_first: bool, dense: bool) -> Callable[..., None]:
    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        write_mask(
            carray(data_of(out, 0), shape3(out_shapes, 0), np.float32),
            carray(data_of(data, 1), shape2(shapes, 1) if dense else shape1(shapes, 1), np.float32),
            channels_first,
        )

    return run


def build_mask_shapes(version: int, channel_axis: int) -> Callable[..., None]:
    def setup(out_shapes, out_ndims, outs, shapes, ndims, ins, samples):  # type: ignore[no-untyped-def]
        _source = version
        for sample in range(samples):
            sides = integers(integers(out_shapes, samples)[sample], 3)
            sides[:] = integers(integers(shapes, samples)[sample], 3)
            sides[channel_axis] = 1

    return setup
