"""The compiled kernels on arrays in memory: a batch at a time, by several threads, without DALI.

Images, masks and results are views of the caller's memory, so nothing is copied. The compiled functions are
those of the pipeline's "kernel" backend (:mod:`.builders`), called for each sample as DALI calls them, so
results have the same bits, and nothing is compiled twice.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numba.core import types as numba_types

from ...fault_codes import MASK_DIFFERS, SIZES_DIFFER
from ...methods import Method
from ...processors import usable_processors
from ...validation import ArgumentTypeError, ArgumentValueError, check_integer
from .builders import (
    build_joined,
    build_mix,
    build_mix_normalized,
    build_targets,
    order,
    weights_writer,
)
from .compiled import RUN, compiled
from .intrinsics import call_run
from .kernels import inputs_of

Array = np.ndarray[Any, Any]
# One array with a batch axis, or one array per sample.
Batch = Array | Sequence[Array]

ELEMENTS = {np.dtype(kind): kind for kind in (np.uint8, np.int16, np.uint16, np.float32)}

# Bytes below which a second thread costs more time than it saves.
_LITTLE = 1 << 18


class _Column(NamedTuple):
    """One array of every sample."""

    addresses: Array
    """int64 [N]"""
    shapes: Array
    """int64 [N, dimensions], or [1, dimensions] if all are the same."""

    def shape(self, sample: int) -> tuple[int, ...]:
        """The shape of one."""
        found: tuple[int, ...] = tuple(self.shapes[sample if len(self.shapes) > 1 else 0].tolist())
        return found

    def take(self, index: Array) -> _Column:
        """Those of other samples."""
        return _Column(self.addresses[index], self.shapes[index] if len(self.shapes) > 1 else self.shapes)


# Address of the function, what it takes, the first sample and the one after the last.
_LOOP = numba_types.void(*[numba_types.int64] * 9)


def _build_loop(version: int) -> Callable[..., None]:
    """A loop over samples, because a call from Python takes as long as mixing a small image."""

    def run(function, out, out_shapes, outs, data, shapes, ins, start, stop):  # type: ignore[no-untyped-def]
        _source = version
        for i in range(start, stop):
            row, column = 8 * outs * i, 8 * ins * i
            call_run(function, out + row, out_shapes + row, outs, data + column, shapes + column, ins)

    return run


class Masks(NamedTuple):
    """The masks of a batch."""

    weights: Batch
    """float32 [N, 2 + H + W]: base, height, rows (times the scale) and columns; or a weight for every pixel,
    [N, H, W]. A list if the sizes differ."""
    lam: Array | None
    """Their means, float32 [N]; None with a weight for every pixel: :func:`mix_batch` averages them."""


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
    names = inputs_of(method)
    numbers = np.ascontiguousarray(numbers[:, [slots[name] for name in names]], np.float64)
    samples, dense, same = len(numbers), method.kind == "dense", isinstance(sizes, tuple)
    each = np.broadcast_to(np.asarray(sizes, np.int64), (samples, 2))
    lengths = each.prod(1) if dense else 2 + each.sum(1)
    flat, lam = np.empty(int(lengths.sum()), np.float32), np.empty(samples, np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    written = _Column(flat.ctypes.data + 4 * starts[:-1], each if dense else lengths[:, None])
    no_images = _Column(np.zeros(samples, np.int64), np.pad(each, ((0, 0), (0, 1))))  # only their shape
    count = len(names)
    drawn = _Column(numbers.ctypes.data + 8 * count * np.arange(samples), np.array([[count]]))
    places = np.frombuffer(order((1, 8), range(count)), np.uint8)
    inputs = [no_images, drawn, _shared(places, samples)]
    _call(weights_writer(method, 0), [written, _single(lam)], inputs, flat.nbytes, threads)
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
    base, scale = (np.ascontiguousarray(numbers, np.float64) for numbers in (base, scale))
    profiles = [[np.ascontiguousarray(one, np.float32) for one in many] for many in (rows, columns)]
    inputs = [_single(base), _single(scale), *(_Column(*_locate(many, 1)) for many in profiles)]
    _call(compiled(build_joined, RUN), [_Column(*_locate(weights, 1)), _single(lam)], inputs, 0, 1)
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
    images, kind = _images("own", own)
    sources, source_kind = (images, kind) if source is None else _images("source", source)
    if source_kind != kind:
        raise ArgumentTypeError("source", f"{kind}, as own is", str(source_kind))
    samples, fused = len(images.addresses), normalization is not None
    mixed, out_kind = _images("out", out, writes=True)
    _check_out(images, mixed, kind, out_kind, transposed=fused and channels_first, fused=fused)
    partner = sources.take(_check_partners(partners, samples, len(sources.addresses)))
    dense = masks.lam is None
    weights = _weights(masks, samples, 2 if dense else 1)
    lam = np.empty(samples, np.float32) if masks.lam is None else masks.lam.copy()
    faults = np.zeros(samples, np.int32)
    flags = np.array([channels_first, clips], np.uint8)
    # The layout's letters, none here, and what to know of it.
    inputs = [images, weights, partner, _shared(np.zeros(0, np.uint8), samples), _shared(flags, samples)]
    if normalization is None:
        run = compiled(build_mix, RUN, ELEMENTS[kind], dense, True)
    else:
        factors = np.ascontiguousarray(normalization, np.float32).reshape(-1)
        inputs.append(_shared(factors, samples))
        run = compiled(build_mix_normalized, RUN, channels_first, dense, True)
    work = int(images.shapes.prod(1).mean()) * samples * kind.itemsize if samples else 0
    _call(run, [mixed, _single(faults), _single(lam)], inputs, work, threads)
    if found := faults.nonzero()[0].tolist():
        first = found[0]
        _raise_fault(int(faults[first]), images.shape(first), partner.shape(first), normalization, first)
    return lam


def full_masks(masks: Masks, sizes: Array) -> Batch:
    """The weight of every pixel, float32 [N, H, W]; `sizes` are int64 [N, 2]. A list if they differ."""
    weights: Any = masks.weights
    if masks.lam is None:
        return [mask.clip(0, 1) for mask in weights] if isinstance(weights, list) else np.clip(weights, 0, 1)
    if isinstance(weights, list):
        return [
            full_masks(Masks(weights[i][None], masks.lam[i : i + 1]), sizes[i : i + 1])[0]
            for i in range(len(weights))
        ]
    height = int(sizes[0, 0])
    rows, columns = weights[:, 2 : 2 + height, None], weights[:, None, 2 + height :]
    full: Array = weights[:, :1, None] + rows * columns
    return full


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
    samples = len(labels)
    targets = np.empty((samples, num_classes), np.float32)
    own, other = (np.ascontiguousarray(ids, np.int32) for ids in (labels, partner_labels))
    weights = np.ascontiguousarray(lam, np.float32)
    # As long as the targets, and behind that the label smoothing: what the pipeline's operator takes.
    numbers = np.array([0] * num_classes + [label_smoothing], np.float32)
    inputs = [_shared(numbers, samples), *map(_single, (own, other, weights))]
    _call(compiled(build_targets, RUN), [_Column(*_locate(targets, 1))], inputs, 0, 1)
    return targets


def _images(name: str, arrays: Batch, *, writes: bool = False) -> tuple[_Column, np.dtype[Any]]:
    """Where every image is, and their type; raise unless the kernels can take them."""
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
    return _Column(*_locate(arrays, 3)), kind


def _locate(arrays: Batch, sides: int) -> tuple[Array, Array]:
    """Address and shape of every array, int64 [N] and [N or 1, sides]."""
    if isinstance(arrays, np.ndarray):
        count = len(arrays)
        at = arrays.ctypes.data + arrays.strides[0] * np.arange(count, dtype=np.int64)
        return at, np.array([arrays.shape[1:]], np.int64)
    at = np.array([array.ctypes.data for array in arrays], np.int64)
    return at, np.array([array.shape for array in arrays], np.int64).reshape(-1, sides)


def _single(numbers: Array) -> _Column:
    """One number for every sample, of a vector."""
    places = np.arange(len(numbers), dtype=np.int64)
    return _Column(numbers.ctypes.data + numbers.itemsize * places, np.array([[1]]))


def _shared(vector: Array, samples: int) -> _Column:
    """The same vector for every sample."""
    return _Column(np.full(samples, vector.ctypes.data, np.int64), np.array([[len(vector)]]))


def _shown(arrays: Any) -> Any:
    return f"an array of shape {arrays.shape}" if isinstance(arrays, np.ndarray) else type(arrays).__name__


def _check_out(
    images: _Column,
    mixed: _Column,
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
    shapes = images.shapes[:, [2, 0, 1]] if transposed else images.shapes
    if len(images.addresses) != len(mixed.addresses) or not (shapes == mixed.shapes).all():
        raise ArgumentValueError("out", "arrays of the shapes of own", "others")


def _raise_fault(
    fault: int, own: tuple[int, ...], partner: tuple[int, ...], normalization: Array | None, sample: int
) -> NoReturn:
    """Raise for a fault that compiled code found in a sample, whose images have these shapes."""
    where = f"for sample {sample}"
    if fault == SIZES_DIFFER:
        raise ArgumentValueError("partners", f"images of the shape {own} {where}", partner)
    if fault == MASK_DIFFERS:
        raise ArgumentValueError("masks", f"of the size of the images, {own}, {where}", "another size")
    found = () if normalization is None else normalization.shape
    raise ArgumentValueError("normalization", f"of shape (2, {own[2]}) {where}", found)


def _check_partners(partners: Array, samples: int, count: int) -> Array:
    """The partners as indices; raise unless they are that."""
    index = np.asarray(partners)
    if index.shape != (samples,) or index.dtype.kind not in "iu":
        raise ArgumentTypeError("partners", f"{samples} integers", _shown(index))
    if samples and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ArgumentValueError("partners", f"in [0, {count})", f"{index.min()} to {index.max()}")
    return index.astype(np.int64, copy=False)


def _weights(masks: Masks, samples: int, sides: int) -> _Column:
    """Where every mask is; raise unless the kernels can take them."""
    weights = masks.weights
    if len(weights) != samples:
        raise ArgumentValueError("masks", f"{samples}, one per image", len(weights))
    for mask in weights[:1] if isinstance(weights, np.ndarray) else weights:
        if mask.dtype != np.float32 or mask.ndim != sides or not mask.flags.c_contiguous:
            raise ArgumentTypeError("masks", f"C-contiguous float32 with {sides} sides", _shown(mask))
    return _Column(*_locate(weights, sides))


@functools.cache
def _pool(process: int) -> tuple[ThreadPoolExecutor, int]:
    """The threads of a process, and how many processors it has; a fork has threads of its own."""
    return ThreadPoolExecutor(os.cpu_count() or 1, f"dali_msda-{process}"), usable_processors()


def _tables(columns: Sequence[_Column]) -> tuple[list[Array], int, int]:
    """For each sample a row of pointers to its arrays, and one of pointers to their shapes.

    Returns
    -------
    kept : list of ndarray
        What the pointers lead to.
    data, shapes : int
        Addresses of the rows.
    """
    samples, each = len(columns[0].addresses), []
    data, shapes = np.empty((2, samples, len(columns)), np.int64)
    places = np.arange(samples, dtype=np.int64)
    for i, column in enumerate(columns):
        shape = np.ascontiguousarray(column.shapes)
        each.append(shape)
        data[:, i] = column.addresses
        shapes[:, i] = shape.ctypes.data + 8 * shape.shape[1] * (places if len(shape) > 1 else 0)
    return [*each, data, shapes], data.ctypes.data, shapes.ctypes.data


def _call(
    run: Any, outputs: Sequence[_Column], inputs: Sequence[_Column], work: int, threads: int | None
) -> None:
    """Call a compiled function for every sample, by several threads; `work` is in bytes.

    It releases the GIL.
    """
    if threads is not None:
        check_integer("threads", threads, 1)
    samples, outs, ins = len(outputs[0].addresses), len(outputs), len(inputs)
    kept, out, out_shapes = _tables(outputs)
    more, data, shapes = _tables(inputs)
    kept += more
    call = functools.partial(
        compiled(_build_loop, _LOOP).ctypes, run.address, out, out_shapes, outs, data, shapes, ins
    )
    if samples < 2 or threads == 1 or (threads is None and work < _LITTLE):
        call(0, samples)
        return
    pool, processors = _pool(os.getpid())
    parts = min(threads or processors, samples)
    bounds = [samples * i // parts for i in range(parts + 1)]
    waiting = [pool.submit(call, *bounds[i : i + 2]) for i in range(1, parts)]
    call(bounds[0], bounds[1])
    for part in waiting:
        part.result()
