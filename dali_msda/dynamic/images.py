"""Mixing the images of a batch in dynamic mode: by compiled code on the CPU, by operators on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
from nvidia.dali import types
from nvidia.dali.experimental.dynamic import Batch

from .. import backends
from ..arguments import ImageArguments
from ..backends import blending
from ..factors import fold_factors
from ..layouts import is_sequence, mask_layout, picture_layout
from ..methods import Method
from ..normalization import channel_count, fits_kernel, run_operator
from ..processors import allowed_processors
from ..validation import ArgumentValueError
from .batches import Array, Arrays, as_batch, check_same_shapes, device_of, empty, shapes_of, stacked, view
from .draws import Drawing, Draws
from .operators import BLENDING


@dataclass(frozen=True)
class Images:
    """A batch of images of a known layout."""

    name: str
    batch: Batch
    layout: str
    shapes: Array
    """int64 [N, letters]."""

    @classmethod
    def of(cls, name: str, batch: Batch, layout: str) -> Images:
        """Raise unless the layout has a letter for each dimension."""
        return cls(name, batch, layout, shapes_of(batch, len(layout), name))

    @property
    def sizes(self) -> Array:
        """Heights and widths, int64 [N, 2]."""
        at = self.layout.index("H")
        return self.shapes[:, at : at + 2]

    @property
    def channels(self) -> int:
        """How many channels the first image has."""
        return int(self.shapes[0, self.layout.index("C")]) if "C" in self.layout else 1

    @property
    def on_gpu(self) -> bool:
        """Whether they are on a GPU."""
        return device_of(self.batch) == "gpu"


class Form(NamedTuple):
    """How mixed images are normalised."""

    arguments: ImageArguments
    """With 1 as `mirror` if that is given per sample."""
    mirror: int | Batch
    """int32 scalars per sample, or one for all."""


@dataclass(frozen=True)
class Weights:
    """The masks of a batch at the size of some images: in the form of compiled code, or of operators."""

    sizes: Array
    compiled: Any = None
    """:class:`dali_msda.backends.numba.arrays.Masks`"""
    operators: blending.Weights | None = None

    @property
    def lam(self) -> Array:
        """The means of the masks, float32 [N]."""
        if self.operators is not None:
            return stacked(self.operators.lam).reshape(-1)
        if self.compiled.lam is not None:
            return np.asarray(self.compiled.lam)
        means = [np.clip(mask, 0, 1).mean(dtype=np.float64) for mask in self.compiled.weights]
        return np.array(means, np.float32)


def arrays_module() -> ModuleType | None:
    """The compiled kernels on arrays; None, with a warning, if Numba does not work here."""
    return backends.compiled_module("arrays")


def choose_compiled(backend: str) -> ModuleType | None:
    """The compiled kernels, or None for operators alone."""
    if backend == "graph":
        return None
    found = arrays_module()
    if found is None and backend != "auto":
        raise ImportError(f"backend={backend!r} needs Numba, which does not import; 'graph' works without it")
    return found


def make_weights(images: Images, drawing: Drawing, draws: Draws) -> Weights:
    """The masks for images of these sizes."""
    arrays, sizes = choose_compiled(drawing.checked.backend), images.sizes
    if arrays is None:
        made = BLENDING.make_mask(images.batch, images.layout, draws, drawing)
        return Weights(sizes, operators=made)
    same = bool((sizes == sizes[0]).all())
    size = (int(sizes[0, 0]), int(sizes[0, 1])) if same else sizes
    return Weights(sizes, compiled=arrays.write_masks(drawing.entry, draws.numbers, draws.slots, size))


def _for_operators(weights: Weights, method: Method) -> blending.Weights:
    """Compiled masks in the form that operators take."""
    if weights.operators is not None:
        return weights.operators
    masks, heights = weights.compiled, weights.sizes[:, 0].tolist()
    lam = as_batch(weights.lam[:, None])
    if masks.lam is None:
        clipped = _each(lambda mask: mask.clip(0, 1), masks.weights)
        return blending.Weights(lam, dense=as_batch(clipped))
    if isinstance(masks.weights, np.ndarray):
        base, _, rows, columns = np.split(masks.weights, (1, 2, 2 + heights[0]), axis=1)
        parts: list[Any] = [np.ascontiguousarray(part) for part in (base, rows, columns)]
    else:
        several = zip(masks.weights, heights, strict=True)
        cut = [(mask[:1], mask[2 : 2 + height], mask[2 + height :]) for mask, height in several]
        parts = [list(part) for part in zip(*cut, strict=True)]
    base, rows, columns = map(as_batch, parts)
    if method.kind == "constant":
        return blending.Weights(lam, base)
    return blending.Weights(lam, base, rows, columns, cut=method.cuts)


def _to_kernel(samples: Arrays) -> Arrays:
    """Images as the kernels take them: Numba has no float16 on the CPU."""
    if isinstance(samples, np.ndarray):
        return samples.astype(np.float32) if samples.dtype == np.float16 else samples
    return [one.astype(np.float32) if one.dtype == np.float16 else one for one in samples]


def _each(function: Any, samples: Arrays) -> Arrays:
    """Apply a function of arrays [N, ...] to all samples, or to each where they differ in size."""
    if isinstance(samples, np.ndarray):
        return np.asarray(function(samples))
    return [function(one[None])[0] for one in samples]


def _as_kernel_images(samples: Arrays, layout: str) -> Arrays:
    """Samples of any layout as images of three dimensions, without a copy: frames are joined."""
    if layout == "HW":
        return _each(lambda a: a[..., None], samples)
    if is_sequence(layout):
        return _each(lambda a: a.reshape(len(a), a.shape[1] * a.shape[2], *a.shape[3:]), samples)
    return samples


def mix_compiled(
    images: Images, source: Images, draws: Draws, weights: Weights, form: Form
) -> tuple[Batch, Array]:
    """Mix images on the CPU in compiled code; return them with the label weights, float32 [N]."""
    arrays = choose_compiled("kernel")
    assert arrays is not None
    arguments, layout = form.arguments, images.layout
    memory = view(images.batch)
    own = _as_kernel_images(_to_kernel(memory), layout)
    other = None if source is images else _as_kernel_images(_to_kernel(view(source.batch)), layout)
    kind = (memory if isinstance(memory, np.ndarray) else memory[0]).dtype
    fused = arguments.normalizes and fits_kernel(arguments) and kind == np.uint8 and layout == "HWC"
    first = mask_layout(layout) == "CHW"
    factors = None
    shapes = images.shapes
    if fused:
        first = arguments.result_layout == "CHW"
        given = fold_factors(arguments.mean, arguments.std, arguments.scale, arguments.shift)  # type: ignore[arg-type]
        factors = np.broadcast_to(given, (2, images.channels)) if channel_count(arguments) is None else given
        shapes = shapes[:, [2, 0, 1]] if first else shapes
    out = empty(shapes, np.dtype(np.float32) if fused or kind == np.float16 else kind)
    lam = arrays.mix_batch(
        own,
        draws.partner,
        weights.compiled,
        _as_kernel_images(out, layout),
        source=other,
        channels_first=first,
        normalization=factors,
        clips=is_sequence(layout),
        threads=thread_limit(),
    )
    if kind == np.float16 and not fused:
        out = _each(lambda a: a.astype(np.float16), out)
    mixed = as_batch(out, arguments.result_layout if fused else layout)
    if not fused:
        return normalized(mixed, images, form), lam
    if arguments.output_dtype != types.FLOAT:
        mixed = ndd.cast(mixed, dtype=arguments.output_dtype)
    return mixed, lam


def thread_limit() -> int | None:
    """The number of threads that the caller allows dynamic mode, if those are fewer than processors."""
    threads = ndd.EvalContext.current().num_threads
    return threads if threads < allowed_processors() else None


def mix_by_operators(
    images: Images, source: Images, draws: Draws, weights: Weights, form: Form, method: Method
) -> tuple[Batch, Array]:
    """Mix images with the operators of dynamic mode, on any device; see :func:`mix_compiled`."""
    given = _for_operators(weights, method)
    own, other = _pictures(images), _pictures(source)
    if source is images:
        other = own
    mixed = own
    if len(images.shapes) > 1 or source is not images:  # else float32 weights would change the last bit
        mask = BLENDING.shape_mask(given, picture_layout(images.layout), device_of(own))
        mixed = BLENDING.mix_pixels(own, other, as_batch(draws.partner), mask)
    mixed = ndd.squeeze(mixed, axes=[2]) if images.layout == "HW" else mixed
    return normalized(ndd.reshape(mixed, layout=images.layout), images, form), weights.lam


def _pictures(images: Images) -> Batch:
    """The images with a channel axis, as operators take them."""
    batch = ndd.reshape(images.batch, layout=images.layout)
    return ndd.expand_dims(batch, axes=[2], new_axis_names="C") if images.layout == "HW" else batch


def mix_images(
    images: Images, source: Images, drawing: Drawing, draws: Draws, weights: Weights, form: Form
) -> tuple[Batch, Array]:
    """Mix images with given draws; return them with the label weights, float32 [N]."""
    check_same_shapes(images.name, images.shapes, source.shapes, draws.partner)
    _check_channels(images, form.arguments)
    if drawing.entry.name == "none":
        return normalized(images.batch, images, form), weights.lam
    if images.on_gpu or weights.compiled is None or drawing.checked.backend == "hybrid":
        return mix_by_operators(images, source, draws, weights, form, drawing.entry)
    return mix_compiled(images, source, draws, weights, form)


def _check_channels(images: Images, arguments: ImageArguments) -> None:
    """Raise unless there is one number for all channels, or one for each."""
    if not arguments.normalizes or channel_count(arguments) in (None, images.channels):
        return
    expected = f"a number, or one for each of the {images.channels} channels"
    name = "mean" if isinstance(arguments.mean, tuple) else "std"
    raise ArgumentValueError(name, expected, getattr(arguments, name))


def normalized(batch: Batch, images: Images, form: Form) -> Batch:
    """Images of the layout of `images`, normalised if that is asked for."""
    arguments = form.arguments
    if not arguments.normalizes:
        return batch
    pictures = ndd.reshape(batch, layout=images.layout)
    if images.layout == "HW":
        pictures = ndd.expand_dims(pictures, axes=[2], new_axis_names="C")
    mean = arguments.mean if isinstance(arguments.mean, float) else list(arguments.mean or ())
    made = run_operator(ndd, pictures, arguments.of_pictures, mean, form.mirror)
    return ndd.squeeze(made, axes=[2]) if arguments.result_layout == "HW" else made


def select_heavier(images: Images, source: Images, draws: Draws, weights: Weights) -> Batch:
    """Each pixel of whoever weighs more there, the own one of both where they weigh the same."""
    check_same_shapes(images.name, images.shapes, source.shapes, draws.partner)
    mask = full_mask(images, weights)
    own, other = _pictures(images), _pictures(source)
    inside = ndd.cast(mask < 0.5, dtype=types.UINT8)
    chosen = BLENDING.select(own, own if source is images else other, as_batch(draws.partner), inside)
    chosen = ndd.squeeze(chosen, axes=[2]) if images.layout == "HW" else chosen
    return ndd.reshape(chosen, layout=images.layout)


def full_mask(images: Images, weights: Weights) -> Batch:
    """The weight of every pixel, float32 HxWx1 (1xHxW for CHW), on the images' device."""
    layout = mask_layout(images.layout)
    if weights.operators is not None:
        device = device_of(images.batch)
        mask = BLENDING.shape_mask(weights.operators, layout, device)
        return BLENDING.expand_mask(mask, as_batch(images.shapes), images.layout)
    arrays = choose_compiled("kernel")
    assert arrays is not None
    full = arrays.full_masks(weights.compiled, weights.sizes)
    with_channel = _each(lambda a: a[..., None] if layout == "HWC" else a[:, None], full)
    return as_batch(with_channel, layout, images.batch.device)
