"""The compiled kernels on arrays in memory: a batch at a time, by several threads, without DALI.

Images, masks and results are views of the caller's memory, so nothing is copied. All that compiled code has
to know of a sample is one row of a table: addresses and shapes. Results have the bits of the pipeline's
"kernel" backend.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numba.core import types as numba_types

from ...fault_codes import MASK_DIFFERS, SIZES_DIFFER
from ...methods import Method
from ...processors import usable_processors
from ...validation import ArgumentTypeError, ArgumentValueError, check_integer
from .compiled import compiled, integers
from .formulas import fingerprint
from .intrinsics import address_as_void_pointer
from .kernels import join_mask, mask_writer, mix_image, mix_normalized, write_targets

Array = np.ndarray[Any, Any]
# One array with a batch axis, or one array per sample.
Batch = Array | Sequence[Array]

ELEMENTS = {np.dtype(kind): kind for kind in (np.uint8, np.int16, np.uint16, np.float32)}

# Columns of the table of samples.
_OWN, _PARTNER, _MIXED, _WEIGHTS, _OWN_SHAPE, _PARTNER_SHAPE, _SIZE, _COLUMNS = 0, 1, 2, 3, 4, 7, 10, 12

# Bytes below which a second thread costs more time than it saves.
_LITTLE = 1 << 18

# How the functions are called: addresses of the table, of an input and of the results (label weights and
# faults), four settings, and the first sample and the one after the last.
_ADDRESS, _INT = numba_types.int64, numba_types.int64
_SIGNATURE = numba_types.void(*[_ADDRESS] * 4, *[_INT] * 4, _INT, _INT)


class Masks(NamedTuple):
    """The masks of a batch."""

    weights: Batch
    """float32 [N, 2 + H + W]: base, height, rows (times the scale) and columns; or a weight for every pixel,
    [N, H, W]. A list if the sizes differ."""
    lam: Array | None
    """Their means, float32 [N]; None with a weight for every pixel: :func:`mix_batch` averages them."""


# Every builder below makes a function that closes over numbers and types only; see `compiled`.


def _build_mix(version: int, element: type, dense: bool) -> Callable[..., None]:
    def run(table, given, lam, faults, channels, first_axis, clips, unused, start, stop):  # type: ignore[no-untyped-def]
        _source = version
        layout = np.empty(0, np.uint8)
        for i in range(start, stop):
            row = integers(table + 8 * _COLUMNS * i, _COLUMNS)
            shape = (row[_OWN_SHAPE], row[_OWN_SHAPE + 1], row[_OWN_SHAPE + 2])
            other = (row[_PARTNER_SHAPE], row[_PARTNER_SHAPE + 1], row[_PARTNER_SHAPE + 2])
            size = (row[_SIZE], row[_SIZE + 1]) if dense else row[_SIZE]
            mix_image(
                carray(address_as_void_pointer(row[_MIXED]), shape, element),
                carray(address_as_void_pointer(lam + 4 * i), 1, np.float32),
                carray(address_as_void_pointer(faults + 4 * i), 1, np.int32),
                carray(address_as_void_pointer(row[_OWN]), shape, element),
                carray(address_as_void_pointer(row[_WEIGHTS]), size, np.float32),
                carray(address_as_void_pointer(row[_PARTNER]), other, element),
                first_axis != 0,
                layout,
                clips != 0,
            )

    return run


def _build_mix_normalized(version: int, dense: bool) -> Callable[..., None]:
    def run(table, given, lam, faults, channels, first_axis, clips, unused, start, stop):  # type: ignore[no-untyped-def]
        _source = version
        layout = np.empty(0, np.uint8)
        for i in range(start, stop):
            row = integers(table + 8 * _COLUMNS * i, _COLUMNS)
            shape = (row[_OWN_SHAPE], row[_OWN_SHAPE + 1], row[_OWN_SHAPE + 2])
            other = (row[_PARTNER_SHAPE], row[_PARTNER_SHAPE + 1], row[_PARTNER_SHAPE + 2])
            size = (row[_SIZE], row[_SIZE + 1]) if dense else row[_SIZE]
            mix_normalized(
                carray(address_as_void_pointer(row[_MIXED]), shape, np.float32),
                carray(address_as_void_pointer(lam + 4 * i), 1, np.float32),
                carray(address_as_void_pointer(faults + 4 * i), 1, np.int32),
                carray(address_as_void_pointer(row[_OWN]), shape, np.uint8),
                carray(address_as_void_pointer(row[_WEIGHTS]), size, np.float32),
                carray(address_as_void_pointer(row[_PARTNER]), other, np.uint8),
                layout,
                carray(address_as_void_pointer(given), (2, channels), np.float32),
                first_axis != 0,
            )

    return run


# `compiled` replaces this with the kernel that writes a method's masks.
_write: Any = None


def _build_masks(version: int, dense: bool) -> Callable[..., None]:
    def run(table, given, lam, faults, count, a, b, c, start, stop):  # type: ignore[no-untyped-def]
        _source = version
        for i in range(start, stop):
            row = integers(table + 8 * _COLUMNS * i, _COLUMNS)
            height, width = row[_SIZE], row[_SIZE + 1]
            shape = (height, width) if dense else 2 + height + width
            _write(
                carray(address_as_void_pointer(row[_WEIGHTS]), shape, np.float32),
                carray(address_as_void_pointer(lam + 4 * i), 1, np.float32),
                carray(address_as_void_pointer(given + 8 * count * i), count, np.float64),
                height,
                width,
            )

    return run


def write_masks(
    method: Method,
    numbers: Array,
    slots: Mapping[str, int],
    sizes: tuple[int, int] | Array,
    *,
    threads: int | None = None,
) -> Masks:
    """Write the masks of a batch.

    Parameters
    ----------
    method : Method
    numbers : float64 [N, D]
        What was drawn or given for every sample.
    slots : mapping of str to int
        The column of each: the names of :attr:`dali_msda.draws.Draws.slots`.
    sizes : (height, width), or int64 [N, 2]
        Of the images, in pixels.
    threads : int, optional
        See :func:`mix_batch`.

    Returns
    -------
    Masks
    """
    numbers = np.ascontiguousarray(numbers, np.float64)
    samples, dense, same = len(numbers), method.kind == "dense", isinstance(sizes, tuple)
    each = np.broadcast_to(np.asarray(sizes, np.int64), (samples, 2))
    lengths = each.prod(1) if dense else 2 + each.sum(1)
    flat, lam = np.empty(int(lengths.sum()), np.float32), np.empty(samples, np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    table = np.zeros((samples, _COLUMNS), np.int64)
    table[:, _WEIGHTS] = flat.ctypes.data + 4 * starts[:-1]
    table[:, _SIZE : _SIZE + 2] = each
    key = tuple(slots.items())
    run = compiled(
        _build_masks,
        _SIGNATURE,
        dense,
        called=("_write", mask_writer(method, key), fingerprint(method.mask, key)),
    )
    settings = (table.ctypes.data, numbers.ctypes.data, lam.ctypes.data, 0, numbers.shape[1], 0, 0, 0)
    _in_threads(run, settings, samples, flat.nbytes, threads)
    weights: Batch
    if same:
        weights = flat.reshape((samples, *sizes) if dense else (samples, 2 + sum(sizes)))
    else:
        parts = [flat[starts[i] : starts[i + 1]] for i in range(samples)]
        weights = [part.reshape(each[i]) for i, part in enumerate(parts)] if dense else parts
    return Masks(weights, None if dense else lam)


def join_masks(
    base: Sequence[float] | Array,
    scale: Sequence[float] | Array,
    rows: Batch,
    columns: Batch,
) -> Masks:
    """Make the masks ``base + scale * rows * columns`` of given parts, clipped to [0, 1].

    Parameters
    ----------
    base, scale : float64 [N]
    rows, columns : float32 [N, H] and [N, W], or sequences of [H] and [W]

    Returns
    -------
    Masks
    """
    samples = len(base)
    lengths = [2 + len(rows[i]) + len(columns[i]) for i in range(samples)]
    lam = np.empty(samples, np.float32)
    same = len(set(lengths)) <= 1
    weights: Any = (
        np.empty((samples, *lengths[:1]), np.float32) if same else [np.empty(n, np.float32) for n in lengths]
    )
    for i in range(samples):
        join_mask(weights[i], lam[i : i + 1], float(base[i]), float(scale[i]), rows[i], columns[i])
    return Masks(weights, lam)


def mix_batch(
    own: Batch,
    partners: Array,
    masks: Masks,
    out: Batch,
    *,
    source: Batch | None = None,
    channels_first: bool,
    normalization: Array | None = None,
    clips: bool = False,
    threads: int | None = None,
) -> Array:
    """Mix every image of a batch with its partner.

    Parameters
    ----------
    own : [N, A, B, C], or a sequence of N arrays [A, B, C]
        Images: uint8, int16, uint16 or float32, each C-contiguous.
    partners : integer [N]
        Index of each partner in `source`.
    masks : Masks
    out : like `own`
        Mixed images; must not overlap `own` or `source`.
    source : like `own`, optional
        The partners' images, `own` by default; any number of them.
    channels_first : bool
        Whether the images are CxHxW, not HxWxC. With a `normalization`, whether `out` is.
    normalization : float32 [2, C], optional
        :func:`dali_msda.factors.fold_factors`, a column for each channel: `out` is float32 and normalised,
        from images that are uint8 HxWxC.
    clips : bool, optional
        Whether the first side joins the frames of a clip, each with the same mask.
    threads : int, optional
        By default as many as this process has processors, or 1 for little work.

    Returns
    -------
    ndarray
        The label weights, float32 [N]: the means of the masks.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        An array has a type, shape or order in memory that the kernels do not take, or a partner is out of
        range. Partners and masks of another size are found on the way: `out` holds anything then.
    """
    own_at, shapes, kind = _addresses("own", own)
    source_at, source_shapes, source_kind = (
        (own_at, shapes, kind) if source is None else _addresses("source", source)
    )
    if source_kind != kind:
        raise ArgumentTypeError("source", f"{kind}, as own is", str(source_kind))
    samples, fused = len(shapes), normalization is not None
    out_at, out_shapes, out_kind = _addresses("out", out, writes=True)
    _check_out(shapes, out_shapes, kind, out_kind, transposed=fused and channels_first, fused=fused)
    index = _check_partners(partners, samples, len(source_shapes))
    dense = masks.lam is None
    weights_at, sizes = _weights(masks, samples, 2 if dense else 1)
    table = np.empty((samples, _COLUMNS), np.int64)
    table[:, _OWN], table[:, _MIXED], table[:, _WEIGHTS] = own_at, out_at, weights_at
    table[:, _PARTNER] = source_at[index]
    table[:, _OWN_SHAPE : _OWN_SHAPE + 3] = shapes
    table[:, _PARTNER_SHAPE : _PARTNER_SHAPE + 3] = source_shapes[index]
    table[:, _SIZE : _SIZE + sizes.shape[1]] = sizes
    lam = np.empty(samples, np.float32) if masks.lam is None else masks.lam.copy()
    faults = np.zeros(samples, np.int32)
    factors = np.ascontiguousarray(np.zeros((2, 0)) if normalization is None else normalization, np.float32)
    run = (
        compiled(_build_mix_normalized, _SIGNATURE, dense)
        if fused
        else compiled(_build_mix, _SIGNATURE, ELEMENTS[kind], dense)
    )
    settings = (
        *(array.ctypes.data for array in (table, factors, lam, faults)),
        *(factors.shape[1], int(channels_first), int(clips), 0),
    )
    _in_threads(run, settings, samples, int(shapes.prod(1).sum()) * kind.itemsize, threads)
    if found := faults.nonzero()[0].tolist():
        _raise_fault(int(faults[found[0]]), table[found[0]].tolist(), factors, found[0])
    return lam


def mix_targets(
    labels: Array, partner_labels: Array, lam: Array, num_classes: int, label_smoothing: float = 0.0
) -> Array:
    """Make the targets of class ids.

    Parameters
    ----------
    labels, partner_labels : int32 [N], in [0, num_classes)
    lam : float32 [N]
        The weight of the own label.
    num_classes : int
    label_smoothing : float, optional
        In [0, 1].

    Returns
    -------
    ndarray
        float32 [N, num_classes].
    """
    targets = np.empty((len(labels), num_classes), np.float32)
    own, other = (np.ascontiguousarray(ids, np.int32) for ids in (labels, partner_labels))
    weights = np.ascontiguousarray(lam, np.float32)
    run = compiled(_build_targets, _SIGNATURE)
    smoothing = np.array([label_smoothing], np.float32)
    addresses = (array.ctypes.data for array in (targets, own, other, weights))
    run.ctypes(*addresses, smoothing.ctypes.data, num_classes, 0, 0, 0, len(targets))
    return targets


def _build_targets(version: int) -> Callable[..., None]:
    def run(targets, own, other, lam, smoothing, classes, a, b, start, stop):  # type: ignore[no-untyped-def]
        _source = version
        share = carray(address_as_void_pointer(smoothing), 1, np.float32)[0]
        for i in range(start, stop):
            write_targets(
                carray(address_as_void_pointer(targets + 4 * classes * i), classes, np.float32),
                carray(address_as_void_pointer(lam + 4 * i), 1, np.float32),
                carray(address_as_void_pointer(own + 4 * i), 1, np.int32),
                carray(address_as_void_pointer(other + 4 * i), 1, np.int32),
                share,
            )

    return run


def _addresses(name: str, arrays: Batch, *, writes: bool = False) -> tuple[Array, Array, np.dtype[Any]]:
    """Address and shape of every image, int64 [N] and [N, 3], and their type."""
    each = arrays[:1] if isinstance(arrays, np.ndarray) else arrays
    if not all(isinstance(image, np.ndarray) and image.ndim == 3 for image in each):
        raise ArgumentTypeError(
            name, "an array [N, A, B, C] or a sequence of arrays [A, B, C]", _shown(arrays)
        )
    kinds = {np.dtype(image.dtype) for image in each} or {np.dtype(np.uint8)}
    kind = next(iter(kinds))
    if len(kinds) > 1 or kind not in ELEMENTS:
        expected = "arrays of one type, uint8, int16, uint16 or float32"
        raise ArgumentTypeError(name, expected, ", ".join(sorted(map(str, kinds))))
    if not all(image.flags.c_contiguous for image in each):
        raise ArgumentValueError(name, "C-contiguous images", "others")
    if writes and not all(image.flags.writeable for image in each):
        raise ArgumentValueError(name, "writable", "arrays that are not")
    return *_locate(arrays, 3), kind


def _locate(arrays: Batch, sides: int) -> tuple[Array, Array]:
    """Address and shape of every array, int64 [N] and [N, sides]."""
    if isinstance(arrays, np.ndarray):
        count = len(arrays)
        at = arrays.ctypes.data + arrays.strides[0] * np.arange(count, dtype=np.int64)
        return at, np.broadcast_to(np.array(arrays.shape[1:], np.int64), (count, sides))
    at = np.array([array.ctypes.data for array in arrays], np.int64)
    return at, np.array([array.shape for array in arrays], np.int64).reshape(-1, sides)


def _shown(arrays: Any) -> Any:
    return f"an array of shape {arrays.shape}" if isinstance(arrays, np.ndarray) else type(arrays).__name__


def _check_out(
    shapes: Array,
    found: Array,
    kind: np.dtype[Any],
    out_kind: np.dtype[Any],
    *,
    transposed: bool,
    fused: bool,
) -> None:
    """Raise unless the results fit in `out`."""
    if fused and kind != np.uint8:
        raise ArgumentTypeError("own", "uint8 with a normalization", str(kind))
    expected = np.dtype(np.float32) if fused else kind
    if out_kind != expected:
        raise ArgumentTypeError("out", f"arrays of {expected}", str(out_kind))
    if not np.array_equal(shapes[:, [2, 0, 1]] if transposed else shapes, found):
        raise ArgumentValueError("out", "arrays of the shapes of own", "others")


def _raise_fault(fault: int, row: list[int], factors: Array, sample: int) -> NoReturn:
    """Raise for a fault that compiled code found in a sample."""
    own, partner = (tuple(row[at : at + 3]) for at in (_OWN_SHAPE, _PARTNER_SHAPE))
    where = f"for sample {sample}"
    if fault == SIZES_DIFFER:
        raise ArgumentValueError("partners", f"images of the shape {own} {where}", partner)
    if fault == MASK_DIFFERS:
        raise ArgumentValueError("masks", f"of the size of the images, {own}, {where}", "another size")
    raise ArgumentValueError("normalization", f"of shape (2, {own[2]}) {where}", factors.shape)


def _check_partners(partners: Array, samples: int, count: int) -> Array:
    """The partners as indices; raise unless they are that."""
    index = np.asarray(partners)
    if index.shape != (samples,) or index.dtype.kind not in "iu":
        raise ArgumentTypeError("partners", f"{samples} integers", _shown(index))
    if samples and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ArgumentValueError("partners", f"in [0, {count})", f"{index.min()} to {index.max()}")
    return index.astype(np.int64, copy=False)


def _weights(masks: Masks, samples: int, sides: int) -> tuple[Array, Array]:
    """Address and shape of every mask, int64 [N] and [N, sides]."""
    weights = masks.weights
    if len(weights) != samples:
        raise ArgumentValueError("masks", f"{samples}, one per image", len(weights))
    for mask in weights[:1] if isinstance(weights, np.ndarray) else weights:
        if mask.dtype != np.float32 or mask.ndim != sides or not mask.flags.c_contiguous:
            raise ArgumentTypeError("masks", f"C-contiguous float32 with {sides} sides", _shown(mask))
    return _locate(weights, sides)


@functools.cache
def _pool(process: int) -> tuple[ThreadPoolExecutor, int]:
    """The threads of a process, and how many processors it has; a fork has threads of its own."""
    return ThreadPoolExecutor(os.cpu_count() or 1, f"dali_msda-{process}"), usable_processors()


def _in_threads(run: Any, settings: Sequence[int], samples: int, work: int, threads: int | None) -> None:
    """Call a compiled function, which releases the GIL, for ranges of samples; `work` is in bytes."""
    if threads is not None:
        check_integer("threads", threads, 1)
    if samples < 2 or threads == 1 or (threads is None and work < _LITTLE):
        run.ctypes(*settings, 0, samples)
        return
    pool, processors = _pool(os.getpid())
    parts = min(threads or processors, samples)
    bounds = [samples * i // parts for i in range(parts + 1)]
    waiting = [pool.submit(run.ctypes, *settings, *bounds[i : i + 2]) for i in range(1, parts)]
    run.ctypes(*settings, bounds[0], bounds[1])
    for part in waiting:
        part.result()
