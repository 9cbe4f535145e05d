"""The functions of dynamic mode: those of :mod:`dali_msda`, on batches that exist already."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
from nvidia.dali import types
from nvidia.dali.experimental.dynamic import Batch

from ..arguments import DrawArguments, ImageArguments
from ..checks import IMAGE_TYPES
from ..common_arguments import LabelArguments
from ..layouts import choose_layout
from ..method_functions import common_parameters, make_function
from ..methods import Beta, Method, check_method
from ..mixing import argument_of, check_argument
from ..signatures import MixParams, Pair, PerChannel
from ..validation import ArgumentTypeError, ArgumentValueError, check_flag, check_fraction
from .batches import Array, as_batch, check_batch, device_of, stacked, values_of
from .draws import Drawing, Draws, check_rng, draw_numbers
from .images import Form, Images, Weights, full_mask, make_weights, mix_images, nearest
from .labels import mix_labels as mix_read_labels
from .labels import read_labels


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


def _drawing(
    method: str,
    alpha: Any,
    own: Mapping[str, Any],
    count: int,
    others: Sequence[str] = (),
    **common: Any,
) -> Drawing:
    """Check how masks and partners are drawn; arguments may be batches or arrays, a value per sample."""
    check_method(method)
    given: dict[str, Array] = {}

    def first(name: str, value: Any, shape: tuple[int, ...] = ()) -> Any:
        """The value, or the first of several, which are kept."""
        values = values_of(name, value, count, shape)
        if values is None:
            return value
        given[name] = values
        return values[0].tolist()

    alpha = first("alpha", alpha)
    own = {name: first(name, value) for name, value in own.items()}
    for name in ("probability", "lam", "partner"):
        common[name] = first(name, common[name])
    common["center"] = first("center", common["center"], (2,))
    checked = DrawArguments.from_call(method, alpha, own, others, seed=None, **common)
    if "alpha" in given and "alpha" not in checked.entry.defaults:
        given.update(dict.fromkeys(checked.entry.alphas, given["alpha"]))
    for name, values in given.items():
        _check_values(checked, name, values)
    if checked.partner is not None and checked.partner >= count:
        raise ArgumentValueError("partner", f"in [0, {count}), an index within the batch", checked.partner)
    return Drawing(checked, given)


def _check_values(checked: DrawArguments, name: str, values: Array) -> None:
    """Raise unless all values per sample are valid."""
    if name == "partner":
        if values.dtype.kind not in "iu":
            raise ArgumentTypeError("partner", "integers", f"values of {values.dtype}")
        if (wrong := (values < 0) | (values >= len(values))).any():
            i = int(wrong.nonzero()[0][0])
            raise ArgumentValueError("partner", f"in [0, {len(values)})", f"{values[i]} in sample {i}")
    elif name == "center":
        if (wrong := ~(values >= 0) | (values != np.floor(values)) | np.isinf(values)).any():
            i = int(wrong.any(1).nonzero()[0][0])
            raise ArgumentValueError("center", "pixel indices of at least 0", f"{values[i]} in sample {i}")
    elif name in ("probability", "lam"):
        for value in np.unique(values).tolist():
            check_fraction(name, value)
    elif name in checked.entry.defaults:
        for value in np.unique(values).tolist():
            check_argument(argument_of(checked.entry, name), value)


def _views(name: str, images: Any, count: int | None, backend: str) -> list[Batch]:
    """Images, or several views of them, as a list of batches of the same number of samples."""
    views = list(images) if isinstance(images, tuple | list) else [images]
    if not views:
        raise ArgumentValueError(name, "a Batch or a sequence of them", "an empty one")
    for view in views:
        count = check_batch(name, view).batch_size if count is None else count
        if check_batch(name, view).batch_size != count:
            raise ArgumentValueError(name, f"of {count} samples, like images", view.batch_size)
        if backend == "kernel" and device_of(view) != "cpu":
            expected = "on the CPU with backend='kernel' ('auto', 'hybrid' and 'graph' mix there)"
            raise ArgumentValueError(name, expected, "a GPU batch")
    return views


def _images(name: str, batch: Batch, layout: str | None, *, maps: bool = False) -> Images:
    """A batch of images with its layout, checked."""
    if not maps and batch.dtype.type_id not in IMAGE_TYPES:
        expected = "uint8, int16, uint16, float16 or float32"
        raise ArgumentTypeError(name, expected, f"a batch of {batch.dtype.type_id.name}")
    form = choose_layout(name, batch.layout or None, layout, device_of(batch), "the batch")
    return Images.of(name, batch, form)


def _form(layout: str, count: int, mirror: Any, **others: Any) -> Form:
    """Check how images are normalised; `mirror` may be a value per sample."""
    values = values_of("mirror", mirror, count)
    if values is None:
        return Form(ImageArguments(layout=layout, mirror=mirror, **others), mirror)
    if values.dtype.kind not in "iu" or not np.isin(values, (0, 1)).all():
        raise ArgumentValueError("mirror", "0 or 1 for every sample", f"values of {values.dtype}")
    return Form(ImageArguments(layout=layout, mirror=1, **others), as_batch(values.astype(np.int32)))


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
    views = _views("images", images, None, backend)
    count = views[0].batch_size
    drawing = _drawing(
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
    own = [_images("images", view, layout) for view in views]
    source = own
    if partner_images is not None:
        others = _views("partner_images", partner_images, count, backend)
        if len(others) != len(own):
            raise ArgumentValueError("partner_images", f"as many as images, {len(own)}", len(others))
        source = [
            _images("partner_images", view, image.layout) for view, image in zip(others, own, strict=True)
        ]
        for one, image in zip(source, own, strict=True):
            _check_alike(one.batch, image.batch)
    normalization = {
        **{"mean": mean, "std": std, "scale": scale, "shift": shift, "output_layout": output_layout},
        **{"output_dtype": output_dtype, "pad_output": pad_output},
    }
    forms = [_form(image.layout, count, mirror, **normalization) for image in own]
    ids = _read_both(labels, partner_labels, partner_images is not None, count, label_arguments)
    draws = draw_numbers(drawing, count, rng)
    if not correct_lam:
        _drawn_lam(drawing, draws)  # a method without is an error before any work
    mixed, lam = [], None
    for image, other, form in zip(own, source, forms, strict=True):
        weights = make_weights(image, drawing, draws)
        batch, weight = mix_images(image, other, drawing, draws, weights, form)
        mixed.append(batch)
        if lam is None:
            lam, kept = weight, weights
    assert lam is not None
    results: list[Any] = [mixed if isinstance(images, tuple | list) else mixed[0]]
    lam = lam if correct_lam else _drawn_lam(drawing, draws)
    device = views[0].device
    if ids is not None:
        partners = ids[1][draws.partner]
        compiled = kept.compiled is not None
        results.append(mix_read_labels(ids[0], partners, lam, label_arguments, device, compiled))
    if return_params:
        mask = full_mask(own[0], kept)
        if not isinstance(forms[0].mirror, int) or forms[0].mirror:
            mask = ndd.flip(mask, horizontal=forms[0].mirror)
        mask = ndd.squeeze(mask, axes=[2]) if own[0].layout == "HW" else mask
        results.append(MixParams(as_batch(lam), as_batch(draws.partner), mask))
    return tuple(results) if len(results) > 1 else results[0]


def _check_alike(source: Batch, own: Batch) -> None:
    """Raise unless partners have the device and the type of the images."""
    if device_of(source) != device_of(own):
        raise ArgumentValueError(
            "partner_images", f"on the {device_of(own).upper()}, as images are", device_of(source)
        )
    if source.dtype != own.dtype:
        expected = f"of type {own.dtype.type_id.name}, as images are"
        raise ArgumentTypeError("partner_images", expected, source.dtype.type_id.name)


def _read_both(
    labels: Any, partner_labels: Any, second: bool, count: int, arguments: LabelArguments
) -> tuple[Array, Array] | None:
    """Labels, and those that partners come from; None without any."""
    if partner_labels is not None and (not second or labels is None):
        without = "partner_images" if not second else "labels"
        raise ArgumentValueError("partner_labels", f"left out without {without}", "labels")
    if labels is None:
        return None
    if second and partner_labels is None:
        expected = "given with partner_images; labels=None mixes the images alone"
        raise ArgumentValueError("partner_labels", expected, None)
    own = read_labels("labels", labels, arguments)
    other = own if partner_labels is None else read_labels("partner_labels", partner_labels, arguments)
    for name, values in (("labels", own), ("partner_labels", other)):
        if len(values) != count:
            raise ArgumentValueError(name, f"of {count} samples, as images are", len(values))
    if own.shape[1:] != other.shape[1:]:
        raise ArgumentTypeError("partner_labels", "of the kind and length of labels", list(other.shape[1:]))
    return own, other


def _drawn_lam(drawing: Drawing, draws: Draws) -> Array:
    """The lam that was drawn, for ``correct_lam=False``; 1 where a sample is not mixed: float32 [N]."""
    from .operators import BLENDING

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
    (batch,) = _views("images", [images], None, backend)
    drawing = _drawing(
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
    own = _images("images", batch, layout, maps=True)
    draws = draw_numbers(drawing, batch.batch_size, rng)
    return Drawn(drawing=drawing, draws=draws, images=own, weights=make_weights(own, drawing, draws))


def _weights_for(images: Images, drawn: Drawn) -> tuple[Draws, Weights]:
    """The same masks at the size of other images."""
    if np.array_equal(images.sizes, drawn.images.sizes):
        return drawn.draws, drawn.weights
    draws = drawn.draws
    if drawn.drawing.center is not None:
        # In pixels of the original images.
        numbers, row = draws.numbers.copy(), draws.slots["_row"]
        ratio = images.sizes / drawn.images.sizes
        numbers[:, row : row + 2] = np.floor((numbers[:, row : row + 2] + 0.5) * ratio)
        draws = Draws(numbers, draws.slots, draws.partner)
    return draws, make_weights(images, drawn.drawing, draws)


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
    (batch,) = _views("images", [images], count, backend)
    own = source = _images("images", batch, layout, maps=nearest)
    if partner_images is not None:
        (other,) = _views("partner_images", [partner_images], count, backend)
        _check_alike(other, batch)
        source = _images("partner_images", other, own.layout, maps=nearest)
    form = _form(
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
    draws, weights = _weights_for(own, drawn)
    if nearest:
        return _nearest(own, source, draws, weights)
    return mix_images(own, source, drawn.drawing, draws, weights, form)[0]


_nearest = nearest


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
    found = _read_both(labels, partner_labels, partner_labels is not None, count, arguments)
    assert found is not None
    lam = drawn.weights.lam if correct_lam else _drawn_lam(drawn.drawing, drawn.draws)
    compiled = drawn.weights.compiled is not None
    partners = found[1][drawn.draws.partner]
    return mix_read_labels(found[0], partners, lam, arguments, drawn.images.batch.device, compiled)


_COMMON = common_parameters(mix)


@functools.cache
def function(method: Method) -> Any:
    """The function of a method in dynamic mode, with signature and help text from the table's entry."""
    return make_function(mix, method, "Batch")
