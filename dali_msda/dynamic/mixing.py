"""The functions of dynamic mode: those of :mod:`dali_msda`, on batches that exist already."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
from nvidia.dali import types
from nvidia.dali.experimental.dynamic import Batch

from ..common_arguments import LabelArguments
from ..method_functions import common_parameters, make_function
from ..methods import Beta, Method
from ..signatures import MixParams, Pair, PerChannel
from ..validation import ArgumentTypeError, ArgumentValueError, check_flag
from .arguments import check_alike, check_drawing, check_form, check_images, check_views, read_both
from .batches import Array, as_batch, stacked
from .draws import Drawing, Draws, check_rng, draw_numbers
from .images import Images, Weights, full_mask, make_weights, mix_images, select_heavier
from .labels import mix_labels as mix_read_labels
from .operators import BLENDING


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The masks and partners of a batch, from :func:`draw`.

    :attr:`lam` and :attr:`partner` are public; the rest is internal.
    """

    drawing: Drawing
    draws: Draws
    images: Images
    """The images that they were drawn for."""
    weights: Weights
    """The masks of those."""

    @property
    def partner(self) -> Batch:
        """Index of the partner within the batch: int32 scalars, CPU."""
        return as_batch(self.draws.partner)

    @functools.cached_property
    def lam(self) -> Batch:
        """Label weight of the own image, the mean of its mask: float32 scalars, CPU."""
        return as_batch(self.weights.lam)


def mix(
    images: Any,
    labels: Any,
    num_classes: int | None = None,
    *,
    method: str = "hmix",
    alpha: float | Batch | None = None,
    probability: float | Batch = 1.0,
    label_smoothing: float = 0.0,
    convention: str = "reference",
    granularity: str = "sample",
    layout: str | None = None,
    rng: Any = None,
    lam: float | Batch | None = None,
    center: Sequence[int] | Batch | None = None,
    partner: int | Batch | None = None,
    allow_self: bool = True,
    partner_images: Any = None,
    partner_labels: Any = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    mirror: int | Batch = 0,
    output_layout: str | None = None,
    output_dtype: types.DALIDataType = types.FLOAT,
    pad_output: bool = False,
    output: str = "dense",
    correct_lam: bool = True,
    return_params: bool = False,
    backend: str = "auto",
    **arguments: float | Batch | Beta | None,
) -> Any:
    """Mix every image of a batch with a partner from the same batch, and their labels too.

    The own image has the weight M(y, x) in [0, 1], the partner 1 - M:
    ``image = M * own + (1 - M) * partner``. The label weight lam is the mean of M, and
    ``targets = lam * onehot(own) + (1 - lam) * onehot(partner)``.

    Parameters
    ----------
    images : Batch or sequence of Batch
        See :func:`dali_msda.mix`. ``ndd.as_batch`` makes a batch of arrays, without a copy.
    labels : Batch, array or None
        Class ids or vectors; see :func:`dali_msda.mix`. Those on a GPU are copied back.
    num_classes : int, optional
        See :func:`dali_msda.mix`.
    method : str, optional
        One of ``dali_msda.METHODS``, "hmix" by default.
    alpha : float or Batch, optional
        lam ~ Beta(alpha, alpha), at least 0; 0 does not mix. By default the paper's value for ImageNet. It
        sets all alphas of a method, so both of "stochastic".
    probability : float or Batch, optional
        Probability that a sample is mixed, 1 by default.
    rng : ndd.random.RNG, optional
        Where random draws come from: its state decides them, and the state after them is saved by
        ``ndd.checkpoint.Checkpoint``. By default the one of this thread, ``ndd.random.get_default_rng()``.
    lam, center, partner
        Instead of drawing: one for all samples, or a Batch or array with one per sample, on the CPU. Unlike
        in a pipeline, a `lam` outside of [0, 1] is an error.
    label_smoothing, convention, granularity, layout, allow_self, partner_images, partner_labels
        See :func:`dali_msda.mix`. By default the layout is that of the batch.
    mean, std, scale, shift, mirror, output_layout, output_dtype, pad_output
        See :func:`dali_msda.mix`.
    output, correct_lam, return_params
        See :func:`dali_msda.mix`.
    backend : {"auto", "kernel", "hybrid", "graph"}, optional
        "kernel": compiled code on the memory of the batch, CPU only. "hybrid": compiled code for masks and
        targets, operators for the images. "graph": operators for images and masks. "auto" (default): "kernel"
        on the CPU and "hybrid" on the GPU if Numba works, otherwise "graph".
    **arguments : float, Batch or Beta, optional
        Arguments of the method; None means the default.

    Returns
    -------
    images : Batch
        Mixed images: dtype, layout and device of the input; with `mean` and `std`: `output_dtype` in
        `output_layout`. A list if `images` is a sequence.
    targets : Batch or Pair
        float32 [num_classes], on the device of the images. Absent without labels. A single result comes
        without a tuple.
    params : MixParams
        Only with ``return_params=True``: batches ``lam``, ``partner``, ``mask``; see :func:`dali_msda.mix`.

    Raises
    ------
    TypeError, ValueError
        An argument is not valid, or what is in the batch: labels out of range, images of different sizes.

    Notes
    -----
    The images are evaluated at once, also in the evaluation mode "deferred". On the CPU the same masks and
    partners give the bits of a pipeline with ``backend="kernel"``.

    Park, Yun, Chun: "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022, equation 1 and
    section 4. A batch of one has no partner and comes back unchanged.
    """
    views = check_views("images", images, None, backend)
    count = views[0].batch_size
    drawing = check_drawing(
        method,
        alpha,
        arguments,
        count,
        list(_COMMON),
        probability=probability,
        convention=convention,
        granularity=granularity,
        lam=lam,
        center=center,
        partner=partner,
        allow_self=allow_self,
        backend=backend,
    )
    label_arguments = LabelArguments(
        num_classes=num_classes, label_smoothing=label_smoothing, output=output, correct_lam=correct_lam
    )
    check_flag("return_params", return_params)
    rng = check_rng(rng)
    own = [check_images("images", view, layout) for view in views]
    source = own
    if partner_images is not None:
        others = check_views("partner_images", partner_images, count, backend)
        if len(others) != len(own):
            raise ArgumentValueError("partner_images", f"as many as images, {len(own)}", len(others))
        source = [
            check_images("partner_images", view, image.layout)
            for view, image in zip(others, own, strict=True)
        ]
        for one, image in zip(source, own, strict=True):
            check_alike(one.batch, image.batch)
    normalization = {
        **{"mean": mean, "std": std, "scale": scale, "shift": shift, "output_layout": output_layout},
        **{"output_dtype": output_dtype, "pad_output": pad_output},
    }
    forms = [check_form(image.layout, count, mirror, **normalization) for image in own]
    ids = read_both(labels, partner_labels, partner_images is not None, count, label_arguments)
    draws = draw_numbers(drawing, count, rng)
    drawn_lam = None if correct_lam else _drawn_lam(drawing, draws)
    drawn = Drawn(drawing=drawing, draws=draws, images=own[0], weights=make_weights(own[0], drawing, draws))
    mixed = [
        mix_images(image, other, drawing, draws, _weights_for(image, drawn), form)
        for image, other, form in zip(own, source, forms, strict=True)
    ]
    lam = mixed[0][1] if drawn_lam is None else drawn_lam
    batches = [one for one, _ in mixed]
    results: list[Any] = [batches if isinstance(images, tuple | list) else batches[0]]
    if ids is not None:
        results.append(_targets(*ids, lam, drawn, label_arguments))
    if return_params:
        mask = full_mask(own[0], drawn.weights)
        if not isinstance(forms[0].mirror, int) or forms[0].mirror:
            mask = ndd.flip(mask, horizontal=forms[0].mirror)
        mask = ndd.squeeze(mask, axes=[2]) if own[0].layout == "HW" else mask
        results.append(MixParams(as_batch(lam), as_batch(draws.partner), mask))
    return tuple(results) if len(results) > 1 else results[0]


def _drawn_lam(drawing: Drawing, draws: Draws) -> Array:
    """The lam that was drawn, for ``correct_lam=False``; 1 where a sample is not mixed: float32 [N]."""
    return stacked(BLENDING.drawn_lam(draws, drawing)).reshape(-1)


def draw(
    method: str,
    images: Batch,
    *,
    alpha: float | Batch | None = None,
    probability: float | Batch = 1.0,
    convention: str = "reference",
    granularity: str = "sample",
    layout: str | None = None,
    rng: Any = None,
    lam: float | Batch | None = None,
    center: Any = None,
    partner: int | Batch | None = None,
    allow_self: bool = True,
    backend: str = "auto",
    **arguments: float | Batch | Beta | None,
) -> Drawn:
    """Draw masks and partners for a batch, without mixing anything yet; see :func:`dali_msda.draw`.

    ``mix(images, labels, num_classes, method=m)`` is ``drawn = draw(m, images)``, ``apply(images, drawn)``
    and ``mix_labels(labels, drawn, num_classes)``: generators `rng` in the same state give the same draws.

    Parameters
    ----------
    method : str
    images : Batch
        The images whose size and device the masks have, of any type.
    alpha, probability, convention, granularity, layout, rng, lam, center, partner, allow_self, backend
        See :func:`mix`.
    **arguments : float, Batch or Beta, optional
        Arguments of the method.

    Returns
    -------
    Drawn
        ``drawn.lam`` is the label weight, float32 scalars; ``drawn.partner`` int32 scalars; both on the CPU.

    Raises
    ------
    TypeError, ValueError
        See :func:`mix`.
    """
    (batch,) = check_views("images", [images], None, backend)
    drawing = check_drawing(
        method,
        alpha,
        arguments,
        batch.batch_size,
        probability=probability,
        convention=convention,
        granularity=granularity,
        lam=lam,
        center=center,
        partner=partner,
        allow_self=allow_self,
        backend=backend,
    )
    rng = check_rng(rng)
    own = check_images("images", batch, layout, maps=True)
    draws = draw_numbers(drawing, batch.batch_size, rng)
    return Drawn(drawing=drawing, draws=draws, images=own, weights=make_weights(own, drawing, draws))


def _weights_for(images: Images, drawn: Drawn) -> Weights:
    """The same masks at the size of other images."""
    if np.array_equal(images.sizes, drawn.images.sizes) and images.on_gpu == drawn.images.on_gpu:
        return drawn.weights
    draws = drawn.draws
    if drawn.drawing.center is not None:
        # In pixels of the original images.
        numbers, row = draws.numbers.copy(), draws.slots["_row"]
        ratio = images.sizes / drawn.images.sizes
        numbers[:, row : row + 2] = np.floor((numbers[:, row : row + 2] + 0.5) * ratio)
        draws = Draws(numbers, draws.slots, draws.partner)
    return make_weights(images, drawn.drawing, draws)


def _targets(own: Array, source: Array, lam: Array, drawn: Drawn, arguments: LabelArguments) -> Batch | Pair:
    """Targets, from labels read by :func:`.labels.read_labels`, with `lam` (float32 [N])."""
    compiled, device = drawn.weights.compiled is not None, drawn.images.batch.device
    return mix_read_labels(own, source[drawn.draws.partner], lam, arguments, device, compiled)


def apply(
    images: Batch,
    drawn: Drawn,
    *,
    partner_images: Batch | None = None,
    layout: str | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    mirror: int | Batch = 0,
    output_layout: str | None = None,
    output_dtype: types.DALIDataType = types.FLOAT,
    pad_output: bool = False,
    nearest: bool = False,
) -> Batch:
    """Mix images or maps with masks drawn before; see :func:`dali_msda.apply`.

    Parameters
    ----------
    images : Batch
        One input per sample; each mask is made at its size.
    drawn : Drawn
        From :func:`draw`.
    partner_images : Batch, optional
        Source of the partners, instead of `images`.
    layout, mean, std, scale, shift, mirror, output_layout, output_dtype, pad_output
        See :func:`mix`.
    nearest : bool, optional
        Take each pixel from the image with the larger weight there instead of blending: for maps of class
        ids, of any type.

    Returns
    -------
    Batch
        Size and device of `images`, and their type unless they are normalised.

    Raises
    ------
    TypeError, ValueError
        See :func:`mix`.
    """
    if not isinstance(drawn, Drawn):
        raise ArgumentTypeError("drawn", "what dynamic.draw returns", drawn)
    check_flag("nearest", nearest)
    if nearest and mean is not None:
        raise ArgumentValueError("mean", "left out with nearest=True", mean)
    count, backend = len(drawn.draws.partner), drawn.drawing.checked.backend
    (batch,) = check_views("images", [images], count, backend)
    own = source = check_images("images", batch, layout, maps=nearest)
    if partner_images is not None:
        (other,) = check_views("partner_images", [partner_images], count, backend)
        check_alike(other, batch)
        source = check_images("partner_images", other, own.layout, maps=nearest)
    form = check_form(
        own.layout,
        count,
        mirror,
        mean=mean,
        std=std,
        scale=scale,
        shift=shift,
        output_layout=output_layout,
        output_dtype=output_dtype,
        pad_output=pad_output,
    )
    weights = _weights_for(own, drawn)
    if nearest:
        return select_heavier(own, source, drawn.draws, weights)
    return mix_images(own, source, drawn.drawing, drawn.draws, weights, form)[0]


def mix_labels(
    labels: Any,
    drawn: Drawn,
    num_classes: int | None = None,
    *,
    partner_labels: Any = None,
    label_smoothing: float = 0.0,
    output: str = "dense",
    correct_lam: bool = True,
) -> Batch | Pair:
    """Mix labels with masks and partners drawn before; see :func:`dali_msda.mix_labels`.

    Parameters
    ----------
    labels, num_classes, label_smoothing, output, correct_lam
        See :func:`mix`.
    drawn : Drawn
        From :func:`draw`.
    partner_labels : Batch or array, optional
        Source of the partners' labels, instead of `labels`.

    Returns
    -------
    Batch or Pair
        On the device of the images that the masks were drawn for.
    """
    if not isinstance(drawn, Drawn):
        raise ArgumentTypeError("drawn", "what dynamic.draw returns", drawn)
    arguments = LabelArguments(
        num_classes=num_classes, label_smoothing=label_smoothing, output=output, correct_lam=correct_lam
    )
    if labels is None:
        raise ArgumentTypeError("labels", "a Batch of dynamic mode or an array", None)
    count = len(drawn.draws.partner)
    found = read_both(labels, partner_labels, partner_labels is not None, count, arguments)
    assert found is not None
    lam = drawn.weights.lam if correct_lam else _drawn_lam(drawn.drawing, drawn.draws)
    return _targets(*found, lam, drawn, arguments)


_COMMON = common_parameters(mix)


@functools.cache
def function(method: Method) -> Any:
    """The function of a method in dynamic mode, with signature and help text from the table's entry."""
    return make_function(mix, method, "Batch")
