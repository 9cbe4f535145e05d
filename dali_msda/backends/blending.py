"""Masks and blending as DALI's operators, for the graph of a pipeline and for dynamic mode.

Both have the same operators under different names; :class:`Operators` is what differs. It uses only operators
that DALI lists for the device they run on. Small values (draws, rows and columns of the mask, label weights)
are computed on the CPU, where random numbers are drawn; the images stay on their device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np
from nvidia.dali import types

from ..checks import LONGEST_SIDE
from ..layouts import mask_layout
from ..masks import Axis, Dense, Grid, Separable, chosen
from ..methods import Method
from ..validation import ArgumentValueError

# A DataNode of a pipeline, or a Batch of dynamic mode.
Node = Any

# The integers that hold the bits of a float.
_FLOAT_BITS = {types.FLOAT16: types.INT16, types.FLOAT: types.INT32, types.FLOAT64: types.INT64}

_PIXEL_INDICES = np.arange(LONGEST_SIDE, dtype=np.float32)


class Operators(Protocol):
    """Where operators come from, and what else differs between a pipeline's graph and dynamic mode."""

    fn: Any
    math: Any

    def is_node(self, value: object) -> bool:
        """Whether `value` is a node with a value per sample, not a number or a constant."""

    def float64(self, values: Sequence[float]) -> Node:
        """The exact numbers, [n], CPU."""

    def constant(self, values: np.ndarray[Any, Any]) -> Node:
        """An array that all samples share, CPU."""

    def one_like(self, node: Node) -> Node:
        """1 as uint8, for arithmetic with `node`."""

    def dtype_of(self, node: Node) -> types.DALIDataType | None:
        """The element type; None where it is not known."""

    def device_of(self, node: Node) -> str:
        """ "cpu" or "gpu"."""

    def shape_of(self, node: Node) -> Node:
        """The shape of every sample, int64 [n], CPU."""

    def element(self, node: Node, index: int) -> Node:
        """One element of a vector, a scalar."""

    def to_gpu(self, node: Node, axes: Sequence[int] = ()) -> Node:
        """A copy of a CPU node on the GPU, with new axes of length 1."""


class Settings(Protocol):
    """What masks depend on besides the draws; :class:`..arguments.DrawArguments` of a pipeline."""

    @property
    def entry(self) -> Method: ...
    @property
    def convention(self) -> str: ...
    @property
    def center(self) -> object: ...
    @property
    def mixes_all(self) -> bool: ...


class Drawn(Protocol):
    """What was drawn for a batch."""

    def pick(self, name: str) -> Node:
        """One of the numbers, float64 [1], CPU; see :attr:`dali_msda.draws.Draws.slots`."""


class Functions:
    """The functions of formulas (:class:`..masks.Functions`) as operators."""

    def __init__(self, ops: Operators) -> None:
        def accept_numbers(function: Callable[..., Node]) -> Any:
            """Make an arithmetic operator accept plain numbers too, by turning them into nodes."""
            return lambda *values: function(
                *(ops.float64([float(x)]) if isinstance(x, Real) else x for x in values)
            )

        of = ops.math
        self.sqrt, self.exp, self.log, self.sin, self.cos = map(
            accept_numbers, (of.sqrt, of.exp, of.log, of.sin, of.cos)
        )
        self.floor, self.ceil, self.absolute = map(accept_numbers, (of.floor, of.ceil, of.abs))
        self.minimum, self.maximum = map(accept_numbers, (of.min, of.max))
        self.constant: Callable[[float], Node] = lambda number: ops.float64([number])

    @property
    def pi(self) -> Node:
        return self.constant(math.pi)


class Mask(NamedTuple):
    """A mask that broadcasts over the images, on their device: HxWx1, or 1xHxW for CHW.

    It is ``base + rows * columns``, `base` alone, or `dense`; with `cut`, ``1 - rows * columns``.
    """

    base: Node | None = None
    """float32 1x1x1."""
    rows: Node | None = None
    """float32, times the scale; with `cut` uint8, 1 inside the box."""
    columns: Node | None = None
    """Like `rows`."""
    dense: Node | None = None
    """float32."""
    cut: bool = False
    """Whether it is 0 inside a box and 1 outside."""

    def weights(self) -> Node:
        """The weight of every pixel, float32; 1x1x1 if all are the same."""
        if self.dense is not None:
            return self.dense
        if self.rows is None or self.columns is None:
            assert self.base is not None
            return self.base
        inside = self.rows * self.columns
        return 1.0 - inside if self.cut else self.base + inside


class Weights(NamedTuple):
    """A mask in the form :func:`blend` takes: float32 nodes on the CPU, or `dense` on the images' device.

    It is ``base + rows * columns``, `base` alone, or `dense`.
    """

    lam: Node
    """The mean of the mask, the label weight, [1]."""
    base: Node | None = None
    """[1]"""
    rows: Node | None = None
    """[H], times the scale."""
    columns: Node | None = None
    """[W]"""
    dense: Node | None = None
    """[H, W]"""
    given: bool = False
    """Whether it is the caller's: :func:`blend` compares its size with that of the images."""
    cut: bool = False
    """Whether it is 0 inside a box and 1 outside: `base` 1, rows 0 or -1, columns 0 or 1."""


class Blending:
    """Makes masks and mixes images with operators from one place."""

    def __init__(self, ops: Operators) -> None:
        self.ops, self.fn, self.math = ops, ops.fn, ops.math
        self.functions = Functions(ops)

    def height_and_width(self, shape: Node, layout: str) -> Node:
        """Height and width of images of a shape (int64 [n]), [2]."""
        return self.fn.slice(shape, start=[layout.index("H")], shape=[2], axes=[0])

    def _float(self, node: Node) -> Node:
        return self.fn.cast(node, dtype=types.FLOAT)

    def _as_type(self, node: Node, dtype: types.DALIDataType) -> Node:
        return node if self.ops.dtype_of(node) == dtype else self.fn.cast(node, dtype=dtype)

    def _flat(self, node: Node) -> Node:
        return self.fn.reshape(node, shape=[-1])

    def _pixels(self, length: Node, columns: bool) -> Node:
        """0, 1, ..., length - 1: [length, 1] or [1, length]."""
        ramp = self.ops.constant(_PIXEL_INDICES)
        pixels = self.fn.slice(ramp, start=[0], shape=length, axes=[0])  # a side must be at most 65536 pixels
        return self.fn.expand_dims(pixels, axes=[0 if columns else 1])

    def make_mask(self, images: Node, layout: str, draws: Drawn, arguments: Settings) -> Weights:
        """The masks of a batch from what was drawn; see :class:`..backends.Backend`."""
        method = arguments.entry
        size = self.height_and_width(self.ops.shape_of(images), layout)
        sides, lengths = self.fn.cast(size, dtype=types.FLOAT64), self.fn.cast(size, dtype=types.INT32)
        rows, columns = (
            Axis(
                self.fn.slice(sides, start=[i], shape=[1], axes=[0]),
                self._pixels(self.ops.element(lengths, i), i == 1),
                draws.pick(name),
            )
            for i, name in enumerate(("_row", "_column"))
        )
        grid = Grid(rows, columns, arguments.convention == "paper", arguments.center is not None)
        mask = method.mask(self.functions, grid, *(draws.pick(name) for name in method.values))
        if isinstance(mask, Dense):
            return self._dense_weights(self._float(self._choose_if_mixed(mask.values, 1.0, draws, arguments)))
        base = self._choose_if_mixed(mask.base, 1.0, draws, arguments)
        if mask.rows is None or mask.columns is None:
            return Weights(lam=self._float(base), base=self._float(base))
        cut = method.cuts
        scale = self._choose_if_mixed(mask.scale, 0.0, draws, arguments)
        return self._separable_weights(
            base, scale, self._float(self._flat(mask.rows)), self._float(self._flat(mask.columns)), cut
        )

    def drawn_lam(self, draws: Drawn, arguments: Settings) -> Node:
        """The lam that was drawn, whatever the mask made of it; 1 where a sample is not mixed: float32 [1].

        Raises
        ------
        ArgumentValueError
            The method draws no lam.
        """
        method = arguments.entry
        if method.drawn_lam is not None:
            lam = method.drawn_lam(self.functions, *(draws.pick(name) for name in method.lam_values))
        elif "lam" in method.draws:
            lam = draws.pick("lam")
        else:
            raise ArgumentValueError("correct_lam", f"True with {method.name!r}, which draws no lam", False)
        return self._float(self._choose_if_mixed(lam, 1.0, draws, arguments))

    def given_mask(self, mask: Separable | Dense) -> Weights:
        """Convert a caller's mask; see :class:`..backends.Backend`."""
        if isinstance(mask, Dense):
            return self._dense_weights(mask.values)._replace(given=True)
        base = self.math.clamp(mask.base, 0.0, 1.0)
        scale = self.math.min(self.math.max(mask.scale, -base), 1.0 - base)
        rows, columns = (self.math.clamp(profile, 0.0, 1.0) for profile in (mask.rows, mask.columns))
        return self._separable_weights(base, scale, rows, columns)._replace(given=True)

    def _choose_if_mixed(self, value: Any, otherwise: float, draws: Drawn, arguments: Settings) -> Node:
        """`value` where a sample is mixed at all, else `otherwise`, float64."""
        # Where all are mixed a node is the answer already; a number is not yet one per sample.
        if arguments.mixes_all and self.ops.is_node(value):
            return value
        return chosen(value, otherwise, draws.pick("_coin"), draws.pick("_probability"))

    def _separable_weights(
        self, base: Any, scale: Any, rows: Node, columns: Node, cut: bool = False
    ) -> Weights:
        share = self.fn.reductions.mean(rows) * self.fn.reductions.mean(columns)
        return Weights(
            lam=self._float(base + scale * share),
            base=self._float(base),
            rows=self._float(scale * rows),
            columns=columns,
            cut=cut,
        )

    def _dense_weights(self, dense: Node) -> Weights:
        dense = self.math.clamp(dense, 0.0, 1.0)
        return Weights(
            lam=self.fn.reshape(self._float(self.fn.reductions.mean(dense)), shape=[1]), dense=dense
        )

    def to_device(self, node: Node, device: str) -> Node:
        """A node on a device; from the CPU to the GPU, or where it is."""
        return self.ops.to_gpu(node) if device == "gpu" and self.ops.device_of(node) == "cpu" else node

    def _broadcast(self, node: Node, axes: list[int], device: str) -> Node:
        """Add axes of length 1, on `device`."""
        if device == "gpu" and self.ops.device_of(node) == "cpu":
            return self.ops.to_gpu(node, axes)
        return self.fn.expand_dims(node, axes=axes)

    def shape_mask(self, weights: Weights, layout: str, device: str) -> Mask:
        """Make a mask broadcast over the images, on their device."""
        layout = mask_layout(layout)
        if weights.dense is not None:
            return Mask(dense=self._broadcast(weights.dense, [layout.index("C")], device))
        assert weights.base is not None
        if weights.rows is None or weights.columns is None:
            return Mask(base=self._broadcast(weights.base, [1, 2], device))
        rows, columns = weights.rows, weights.columns
        if weights.cut:
            rows, columns = (self.fn.cast(profile, dtype=types.UINT8) for profile in (-rows, columns))
        rows = self._broadcast(rows, [1, 2] if layout == "HWC" else [0, 2], device)
        columns = self._broadcast(columns, [0, 2] if layout == "HWC" else [0, 1], device)
        if weights.cut:
            return Mask(rows=rows, columns=columns, cut=True)
        return Mask(self._broadcast(weights.base, [1, 2], device), rows, columns)

    def _as_bits(self, images: Node) -> Node:
        """Reinterpret the images as integers, without a copy: then 0 times a NaN is 0."""
        dtype = self.ops.dtype_of(images)
        return self.fn.reinterpret(images, dtype=_FLOAT_BITS[dtype]) if dtype in _FLOAT_BITS else images

    def select(self, images: Node, source: Node, indices: Node, inside: Node) -> Node:
        """The partner where `inside` (uint8) is 1, else the own image: in integers, without rounding."""
        own = self._as_bits(images)
        partner = self.fn.permute_batch(own if source is images else self._as_bits(source), indices=indices)
        selected = own * (self.ops.one_like(inside) - inside) + partner * inside
        dtype = self.ops.dtype_of(images)
        if own is not images:
            return self.fn.reinterpret(selected, dtype=dtype)
        # Of a type that the graph does not show, or int8, the arithmetic makes another one.
        return selected if dtype == types.UINT8 else self.fn.cast_like(selected, images)

    def _paste_box(self, images: Node, source: Node, indices: Node, mask: Mask) -> Node:
        """A box of the partner."""
        assert mask.rows is not None
        return self.select(images, source, indices, mask.rows * mask.columns)

    def _blend_float(self, own: Node, source: Node, indices: Node, mask: Node) -> Node:
        """``mask * own + (1 - mask) * partner`` in float32."""
        partner = self.fn.permute_batch(source, indices=indices)
        if self.ops.dtype_of(own) != types.UINT8:
            # 0 * NaN is NaN, so a partner with weight 0 must be 0 before the multiplication.
            partner = self.fn.reinterpret(self._as_bits(partner) * (mask < 1.0), dtype=types.FLOAT)
        # A subtraction, because -0 + 0 is +0: where the mask is 1, the own bits must stay.
        return mask * own - (mask - 1.0) * partner

    def mix_pixels(self, images: Node, source: Node, indices: Node, mask: Mask) -> Node:
        """Mix each image with that of `source` at `indices` (int32 scalar, CPU), in the images' type."""
        dtype = self.ops.dtype_of(images)
        same = source is images
        if mask.cut and dtype in (types.UINT8, *_FLOAT_BITS):
            return self._paste_box(images, images if same else self._as_type(source, dtype), indices, mask)
        # DALI's arithmetic does not take float16, and a type that the graph does not show could be that.
        if dtype in (types.UINT8, types.FLOAT):
            own, other = images, images if same else self._as_type(source, dtype)
        else:
            own = self.fn.cast(images, dtype=types.FLOAT)
            other = own if same else self._as_type(source, types.FLOAT)
        mixed = (
            self._paste_box(own, other, indices, mask)
            if mask.cut
            else self._blend_float(own, other, indices, mask.weights())
        )
        return mixed if dtype == types.FLOAT else self.fn.cast_like(mixed, images)

    def expand_mask(self, mask: Mask, shape: Node, layout: str) -> Node:
        """The weight of every pixel of images of a shape (int64 [n]), float32 HxWx1 or 1xHxW."""
        weights = mask.weights()
        if mask.dense is None and mask.rows is None:
            # `base` alone was enough to mix.
            size = self.fn.cast(self.height_and_width(shape, layout), dtype=types.INT32)
            plane = self._pixels(self.ops.element(size, 0), False) * self._pixels(
                self.ops.element(size, 1), True
            )
            blank = self.fn.expand_dims(plane, axes=[mask_layout(layout).index("C")])
            weights = weights + self.to_device(blank * 0.0, self.ops.device_of(weights))
        return self.fn.reshape(weights, layout=mask_layout(layout))
