"""The mixing operators: the public functions of the library."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .arguments import (
    DrawArguments,
    ImageArguments,
    PartnerArguments,
    as_views,
    check_labels,
    check_number,
    is_node,
)
from .checks import check_image_dtype
from .common_arguments import LabelArguments
from .draws import as_vector, float64_constant
from .dtypes import as_type
from .labels import unmixed_labels
from .layouts import from_pictures, layouts_of, mask_layout
from .masks import Dense, Separable
from .method_functions import common_parameters, make_function
from .methods import Beta, Method
from .normalization import mirror_if_asked
from .signatures import MixFunction, MixParams, PerChannel
from .steps import (
    Drawn,
    alone,
    apply_to,
    draw_for,
    drawn_lam,
    give_mask,
    labels_for,
    mask_for,
    named,
    normalized,
    without_conversion,
)
from .validation import ArgumentValueError, check_flag, check_fraction


@without_conversion
def mix(
    images: DataNode | Sequence[DataNode],
    labels: DataNode | None,
    num_classes: int | None = None,
    *,
    method: str = "hmix",
    alpha: float | DataNode | None = None,
    probability: float | DataNode = 1.0,
    label_smoothing: float = 0.0,
    convention: str = "reference",
    granularity: str = "sample",
    layout: str | None = None,
    seed: int | None = None,
    lam: float | DataNode | None = None,
    center: Sequence[int] | DataNode | None = None,
    partner: int | DataNode | None = None,
    allow_self: bool = True,
    partner_images: DataNode | Sequence[DataNode] | None = None,
    partner_labels: DataNode | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    mirror: int | DataNode = 0,
    output_layout: str | None = None,
    output_dtype: types.DALIDataType = types.FLOAT,
    pad_output: bool = False,
    output: str = "dense",
    correct_lam: bool = True,
    return_params: bool = False,
    backend: str = "auto",
    name: str | None = None,
    **arguments: float | DataNode | Beta | None,
) -> Any:
    """Mix every image of a batch with a partner from the same batch, and their labels too.

    The own image has the weight M(y, x) in [0, 1], the partner 1 - M:
    ``image = M * own + (1 - M) * partner``. The label weight lam is the mean of M, and
    ``targets = lam * onehot(own) + (1 - lam) * onehot(partner)``.

    Parameters
    ----------
    images : DataNode or sequence of DataNode
        uint8, int16, uint16, float16 or float32, one size within a batch, on the CPU or the GPU. Mixing uint8
        before the normalisation is the fastest. Several views of a sample share their draws, each at its own
        size; the label weight is that of the first.
    labels : DataNode or None
        Class ids in [0, num_classes), of any integer type, scalar or shape [1]; or vectors of floats [K],
        one-hot, soft or multi-hot. The graph has to show that they are floats: give ``fn.external_source`` a
        ``dtype``. On the CPU or the GPU, from which ids are copied back. None mixes the images alone.
    num_classes : int, optional
        Length of the targets, at least 1. Vectors have it themselves, and ids do not need it with
        ``output="pair"``.
    method : str, optional
        One of ``dali_msda.METHODS``, "hmix" by default. "none" does not change the images and makes
        one-hot targets.
    alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha), at least 0; 0 does not mix. By default the paper's value for ImageNet, 0.8
        for "mixup" and 1 for the others. It sets all alphas of a method, so both of "stochastic".
    probability : float or DataNode, optional
        Probability that a sample is mixed, 1 by default; otherwise its image and label stay unchanged.
    label_smoothing : float, optional
        s in [0, 1]: a target is s / K for every class, plus (1 - s) times the mixed one-hot vector.
    convention : {"reference", "paper"}, optional
        Masks as in the authors' published code (default), or by the formulas of the paper.
    granularity : {"sample", "batch"}, optional
        Separate draws for every sample (default), or one draw for all samples of a batch.
    layout : {"HWC", "CHW", "HW", "FHWC", "FCHW", "DHWC"}, optional
        Layout of the images. By default it is read from the operators that made them; of data from Python,
        give ``fn.external_source`` the ``layout``. Images on the CPU without any layout count as HWC. HW is a
        single plane. Of a clip (FHWC, FCHW) or volume (DHWC) all frames or slices have one mask; the partner
        has as many, of the same size.
    seed : int, optional
        Makes the draws of this operator repeatable; by default they follow the pipeline's seed.
    lam : float or DataNode, optional
        Use this lam, in [0, 1], instead of drawing it; values of a node are clipped.
    center : (row, column) or DataNode, optional
        Use this centre of the box or blob, in pixels, instead of drawing it; a node has shape [2].
    partner : int or DataNode, optional
        Use this partner, an index within the batch; by default a random permutation of the batch.
    allow_self : bool, optional
        Whether a sample may be its own partner, True by default as in the papers. False draws uniformly from
        the other samples, if there are any.
    partner_images, partner_labels : DataNode, optional
        Take the partners from here, such as another reader's batch, instead of `images` and `labels`.
    mean, std : float, sequence of float or array, optional
        Normalise the mixed images: scale * (mixed - mean) / std + shift, with one number for all channels or
        one per channel, to the same bits as a ``fn.crop_mirror_normalize`` right after. On the CPU, uint8
        HWC images are mixed and normalised to float32 in one pass, then cast if `output_dtype` is another
        type; with `mirror` or `pad_output` that operator runs behind the mixing instead. The six arguments
        below need `mean` and `std`.
    scale, shift : float, optional
        1 and 0 by default; `scale` is not 0.
    mirror : int or DataNode, optional
        1 mirrors the mixed images horizontally, and the mask of `params` with them. 0 by default; a node has
        an integer per sample, such as ``fn.random.coin_flip()``.
    output_layout : {"HWC", "CHW", "HW", "FHWC", "FCHW", "DHWC"}, optional
        Layout of the normalised images, by default that of the input: "HWC" or "CHW" for images (also of HW),
        "FHWC" or "FCHW" for clips.
    output_dtype : nvidia.dali.types.DALIDataType, optional
        ``types.FLOAT`` by default; ``types.FLOAT16``; ``types.UINT8`` or ``types.INT8``, rounded to nearest
        and clipped to their range.
    pad_output : bool, optional
        Add channels of zeros up to a power of two, False by default.
    output : {"dense", "pair"}, optional
        Targets as vectors (default), or as a :class:`Pair` of both labels and their weight: for losses of the
        form ``lam * loss(own) + (1 - lam) * loss(partner)``, and for so many classes that vectors cost more
        than the images.
    correct_lam : bool, optional
        Whether the label weight is the mean of the mask that was used (default) or, as in timm with
        ``correct_lam=False``, the drawn lam.
    return_params : bool, optional
        Add a last result, :class:`MixParams`.
    backend : {"auto", "kernel", "hybrid", "graph"}, optional
        "kernel": compiled operators, CPU only. "hybrid": compiled operators for masks and targets, DALI's own
        for the images, CPU and GPU. "graph": DALI's own operators for everything; only this one can be
        serialised. "auto" (default): "kernel" on the CPU and "hybrid" on the GPU if Numba works, otherwise
        "graph".
    name : str, optional
        Name of the DALI operator that the images come from. Further views have a number behind it.
    **arguments : float, DataNode or Beta, optional
        Arguments of the method: ``ratio`` of "hmix"; ``mixup_alpha``, ``cutmix_alpha`` and
        ``switch_probability`` of "stochastic"; None means the default. One in [0, 1] can be a
        :class:`Beta`, such as ``ratio=Beta(0.5)``: then it is drawn for every sample.

    Returns
    -------
    images : DataNode
        Mixed images: dtype, layout and device of the input. Integers are rounded to nearest, halves away
        from 0 on the CPU and to even on the GPU: at most 0.5 from the exact mixture, for 16 bits 0.51,
        because weights and products are float32. With `mean` and `std`: `output_dtype` in
        `output_layout`. A list if `images` is a sequence.
    targets : DataNode or Pair
        float32 [num_classes], on the device of the images; those of class ids sum to 1. Absent without
        labels. A single result comes without a tuple.
    params : MixParams
        Only with ``return_params=True``: ``lam``, the label weight (float32 scalar, CPU), ``partner`` (int32
        scalar, CPU) and ``mask``, the own image's weight (float32 HxWx1; 1xHxW for CHW
        and FCHW, HxW for HW).

    Raises
    ------
    TypeError, ValueError
        An argument is not valid: raised when the graph is built, with the argument, what it must be and
        what came. This includes images that the graph shows to be of another type, a ``layout`` other than
        the one that it shows, and none for images on the GPU where it shows none.
    RuntimeError
        By DALI, at run time: a label out of range; labels or a `partner` of another type than integers, if
        the graph does not show their type; images of different sizes within one batch; a ``layout`` that does
        not fit the number of dimensions, or is not the images' own (CPU only); a ``mean`` or ``std`` whose
        length is not the number of channels. DALI shows the line of the check that failed.

    Notes
    -----
    Where the graph does not show the type of the images (``fn.external_source`` without ``dtype``), any type
    is mixed as float32 and cast back, which rounds types wider than those above.

    A pixel with weight 0 has no influence, not even NaN or infinity: a sample that is not mixed comes back
    bit for bit. The one exception is the own image in the "graph" form where the mask is 0 and the method is
    not CutMix: its NaN stays.

    Park, Yun, Chun: "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022, equation 1 and
    section 4. A batch of one has no partner and comes back unchanged.
    """
    checked = DrawArguments.from_call(
        method,
        alpha,
        arguments,
        others=_COMMON,
        probability=probability,
        convention=convention,
        granularity=granularity,
        seed=seed,
        lam=lam,
        center=center,
        partner=partner,
        allow_self=allow_self,
        backend=backend,
    )
    form_of = functools.partial(
        ImageArguments,
        mean=mean,
        std=std,
        scale=scale,
        shift=shift,
        mirror=mirror,
        output_layout=output_layout,
        output_dtype=output_dtype,
        pad_output=pad_output,
    )
    label_arguments = LabelArguments(
        num_classes=num_classes, label_smoothing=label_smoothing, output=output, correct_lam=correct_lam
    )
    check_flag("return_params", return_params)
    views = as_views("images", images, backend)
    sources = None if partner_images is None else as_views("partner_images", partner_images, backend)
    if sources is not None and len(sources) != len(views):
        expected = f"as many as images, {len(views)}"
        raise ArgumentValueError("partner_images", expected, len(sources))
    for kind, nodes in (("images", views), ("partner_images", sources or ())):
        for node in nodes:
            check_image_dtype(kind, node)
    image_arguments = [form_of(layout=form) for form in layouts_of(views, sources, layout)]
    check_labels(labels, partner_labels, partner_images is not None)
    mixed, *others = _mix(
        views,
        sources,
        labels,
        partner_labels,
        checked,
        image_arguments,
        label_arguments,
        return_params=return_params,
    )
    if name is not None:
        names = [name if i == 0 else f"{name}_{i}" for i in range(len(mixed))]
        mixed = [
            named(node, own, form.result_layout)
            for node, own, form in zip(mixed, names, image_arguments, strict=True)
        ]
    several = isinstance(images, tuple | list)
    results = [mixed if several else mixed[0], *others]
    return tuple(results) if len(results) > 1 else results[0]


@without_conversion
def blend(
    images: DataNode,
    labels: DataNode,
    *,
    mask: DataNode | Sequence[DataNode] | Separable | Dense,
    num_classes: int | None = None,
    partner: int | DataNode | None = None,
    allow_self: bool = True,
    label_smoothing: float = 0.0,
    layout: str | None = None,
    seed: int | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    mirror: int | DataNode = 0,
    output_layout: str | None = None,
    output_dtype: types.DALIDataType = types.FLOAT,
    pad_output: bool = False,
    output: str = "dense",
    return_params: bool = False,
    backend: str = "auto",
) -> Any:
    """Mix every image of a batch with a partner by a mask of your own, and their labels too.

    ``image = mask * own + (1 - mask) * partner``, and the label weight is the mean of the mask.

    Parameters
    ----------
    images, labels, num_classes, label_smoothing, layout, output, allow_self
        See :func:`mix`.
    mean, std, scale, shift, mirror, output_layout, output_dtype, pad_output, return_params, backend
        See :func:`mix`.
    mask : DataNode, or (rows, columns), or Separable or Dense
        The own image's weight, clipped to [0, 1]. A node has the shape HxW, HxWx1 or 1xHxW and any type, on
        the CPU or the images' device. Two CPU nodes of the shapes H and W are a mask ``rows * columns``,
        which is faster than a node of all pixels. ``Separable(base, scale, rows, columns)`` is
        ``base + scale * rows * columns``; `base` and `scale` are numbers or scalar CPU nodes.
    partner : int or DataNode, optional
        The partner's index within the batch; by default a random permutation of the batch, repeatable with
        `seed`.

    Returns
    -------
    images, targets[, params]
        See :func:`mix`. With a mask on the GPU, ``params.lam`` is there too.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        See :func:`mix`; at run time also for a mask of another height or width than the image.

    Notes
    -----
    Equation 1 of the paper.
    """
    checked = PartnerArguments(seed=seed, partner=partner, allow_self=allow_self, backend=backend)
    label_arguments = LabelArguments(num_classes=num_classes, label_smoothing=label_smoothing, output=output)
    check_flag("return_params", return_params)
    (images,) = as_views("images", [images], backend)
    check_image_dtype("images", images)
    (layout,) = layouts_of([images], None, layout)
    image_arguments = ImageArguments(
        layout=layout,
        mean=mean,
        std=std,
        scale=scale,
        shift=shift,
        mirror=mirror,
        output_layout=output_layout,
        output_dtype=output_dtype,
        pad_output=pad_output,
    )
    check_labels(labels, None, second_source=False)
    drawn = give_mask(images, layout, _as_mask(mask, images.device, layout), checked)
    mixed, *others = _results(
        [images], None, labels, None, drawn, [image_arguments], label_arguments, return_params
    )
    results = [*mixed, *others]
    return tuple(results) if len(results) > 1 else results[0]


def _mix(
    views: Sequence[DataNode],
    sources: Sequence[DataNode] | None,
    labels: DataNode | None,
    partner_labels: DataNode | None,
    arguments: DrawArguments,
    image_arguments: Sequence[ImageArguments],
    label_arguments: LabelArguments,
    *,
    return_params: bool,
) -> list[Any]:
    """Mixed views, and targets and what was drawn if there are any."""
    if arguments.method == "none" and not return_params:
        images = [normalized(view, form) for view, form in zip(views, image_arguments, strict=True)]
        return [
            images,
            *([] if labels is None else [unmixed_labels(labels, views[0].device, label_arguments)]),
        ]
    drawn = draw_for(views[0], image_arguments[0].layout, arguments)
    return _results(
        views, sources, labels, partner_labels, drawn, image_arguments, label_arguments, return_params
    )


def _results(
    views: Sequence[DataNode],
    sources: Sequence[DataNode] | None,
    labels: DataNode | None,
    partner_labels: DataNode | None,
    drawn: Drawn,
    image_arguments: Sequence[ImageArguments],
    label_arguments: LabelArguments,
    return_params: bool,
) -> list[Any]:
    """What comes of what was drawn: mixed views, targets if there are labels, and params if asked for."""
    mixed = [
        apply_to(view, drawn, image_arguments[i], None if sources is None else sources[i])
        for i, view in enumerate(views)
    ]
    first, forms = mixed[0], [form.result_layout for form in image_arguments]
    # The targets of the first view wait for its check, which costs less than making the images wait.
    images = [
        first.images if labels is not None else alone(first, forms[0]),
        *map(alone, mixed[1:], forms[1:]),
    ]
    results: list[Any] = [images]
    if labels is None and not return_params:
        return results
    lam = first.lam if label_arguments.correct_lam else drawn_lam(drawn)
    if labels is not None:
        results.append(labels_for(labels, partner_labels, drawn, lam, label_arguments, first.check))
    if return_params:
        form = image_arguments[0]
        mask = mirror_if_asked(mask_for(views[0], form.layout, drawn), form)
        mask = from_pictures(mask, form.layout)
        results.append(MixParams(fn.reshape(lam, shape=[]), drawn.partner, mask))
    return results


def _as_mask(mask: Any, device: str, layout: str) -> Separable | Dense:
    """A caller's mask in the form that :meth:`.backends.Backend.given_mask` takes."""
    expected = "a DALI node, two nodes (rows, columns), Separable or Dense"
    if isinstance(mask, DataNode):
        mask = Dense(mask)
    if isinstance(mask, Dense):
        if not isinstance(mask.values, DataNode):
            raise TypeError(f"mask must be {expected}; got Dense({type(mask.values).__name__})")
        if mask.values.device != "cpu" and device == "cpu":
            raise ValueError("mask must be on the CPU, like the images; got a GPU node")
        shape = mask.values.shape()
        size = shape[:2] if mask_layout(layout) == "HWC" else shape[-2:]
        flat = fn.reshape(mask.values, shape=size)  # mask must be HxW, or HxWx1 for HWC, 1xHxW for CHW
        return Dense(as_type(flat, types.FLOAT))
    if isinstance(mask, Separable):
        base, scale, rows, columns = mask
    elif isinstance(mask, tuple | list) and len(mask) == 2:
        base, scale, (rows, columns) = 0.0, 1.0, mask
    else:
        raise TypeError(f"mask must be {expected}; got {mask!r}")
    for name, node in (("rows", rows), ("columns", columns)):
        if not isinstance(node, DataNode):
            raise TypeError(f"{name} of the mask must be a DALI node; got {node!r}")
        if node.device != "cpu":
            raise ValueError(f"{name} of the mask must be on the CPU; got a GPU node")
    rows, columns = (as_type(fn.reshape(node, shape=[-1]), types.FLOAT) for node in (rows, columns))
    if not is_node("base of the mask", base):
        check_fraction("base of the mask", base)
    if not is_node("scale of the mask", scale):
        check_number("scale of the mask", scale)
    base, scale = (
        as_vector(value) if isinstance(value, DataNode) else float64_constant([value])
        for value in (base, scale)
    )
    return Separable(base, scale, rows, columns)


# The arguments that all methods take, with the defaults of :func:`mix`.
_COMMON = common_parameters(mix)


@functools.cache
def function(method: Method) -> MixFunction:
    """The function of a method in a pipeline, with signature and help text from the table's entry."""
    made: MixFunction = make_function(mix, method, "DataNode")
    return made
