"""The mixing operators: the public functions of the library."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode, do_not_convert

from .arguments import BlendArguments, MixArguments, check_inputs, check_number, is_node
from .backends import choose, graph
from .checks import cast_labels
from .draws import as_vector, draw, draw_partner, float64_constant
from .dtypes import static_dtype
from .masks import Dense, Separable
from .methods import TABLE, Method, methods_with
from .normalization import Normalization, normalize
from .validation import check_choice, check_fraction

F = TypeVar("F", bound=Callable[..., Any])


class MixFunction(Protocol):
    """The function of one method: :func:`mix` with a fixed method, and that method's own arguments."""

    __name__: str

    def __call__(
        self, images: DataNode, labels: DataNode, *, num_classes: int, **arguments: Any
    ) -> tuple[Any, ...]: ...


def mix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    method: str = "hmix",
    alpha: float | DataNode | None = None,
    probability: float | DataNode = 1.0,
    label_smoothing: float = 0.0,
    convention: str = "reference",
    granularity: str = "sample",
    layout: str = "HWC",
    seed: int | None = None,
    lam: float | DataNode | None = None,
    center: Sequence[int] | DataNode | None = None,
    partner: int | DataNode | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output_layout: str | None = None,
    return_params: bool = False,
    backend: str = "auto",
    **arguments: float | DataNode | None,
) -> tuple[Any, ...]:
    """Mix every image of a batch with a partner from the same batch, and their labels too.

    The own image has the weight M(y, x) in [0, 1], the partner 1 - M:
    ``image = M * own + (1 - M) * partner``. The label weight lam is the mean of M, and
    ``targets = lam * onehot(own) + (1 - lam) * onehot(partner)``.

    Parameters
    ----------
    images : DataNode
        uint8, float16 or float32, HxWxC (or CxHxW), one size within a batch, on the CPU or the GPU.
        Mixing uint8 before the normalisation is the fastest.
    labels : DataNode
        Integer class ids in [0, num_classes), scalar or shape [1], on the CPU; floats are refused.
    num_classes : int
        Length of the targets, at least 1.
    method : str, optional
        One of ``dali_msda.METHODS``, "hmix" by default. "none" does not change the images and makes
        one-hot targets.
    alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha), above 0; by default the paper's value for ImageNet, 0.8 for "mixup" and 1
        for the others. It sets all alphas of a method, so both of "stochastic".
    probability : float or DataNode, optional
        Probability that a sample is mixed, 1 by default; otherwise its image and label stay unchanged.
    label_smoothing : float, optional
        s in [0, 1]: a target is s / K for every class, plus (1 - s) times the mixed one-hot vector.
    convention : {"reference", "paper"}, optional
        Masks as in the authors' published code (default), or by the formulas of the paper.
    granularity : {"sample", "batch"}, optional
        Separate draws for every sample (default), or one draw for all samples of a batch.
    layout : {"HWC", "CHW"}, optional
        Layout of the images, "HWC" by default.
    seed : int, optional
        Makes the draws of this operator repeatable; by default they follow the pipeline's seed.
    lam : float or DataNode, optional
        Use this lam, in [0, 1], instead of drawing it; values of a node are clipped.
    center : (row, column) or DataNode, optional
        Use this centre of the box or blob, in pixels, instead of drawing it; a node has shape [2].
    partner : int or DataNode, optional
        Use this partner, an index within the batch; by default a random permutation of the batch.
    mean, std : sequence of float, optional
        Normalise the mixed images: (mixed - mean) / std, one number per channel, as a
        ``fn.crop_mirror_normalize`` right after would do. On the CPU, uint8 HWC images are mixed and
        normalised in one pass.
    output_layout : {"HWC", "CHW"}, optional
        Layout of the normalised images, by default that of the input.
    return_params : bool, optional
        Add a third result, :class:`MixParams`.
    backend : {"auto", "kernel", "hybrid", "graph"}, optional
        "kernel": compiled operators, CPU only. "hybrid": compiled operators for masks and targets, DALI's own
        for the images, CPU and GPU. "graph": DALI's own operators for everything; only this one can be
        serialised. "auto" (default): "kernel" on the CPU and "hybrid" on the GPU if Numba works, otherwise
        "graph".
    **arguments : float or DataNode, optional
        Arguments of the method: ``ratio`` of "hmix"; ``mixup_alpha``, ``cutmix_alpha`` and
        ``switch_probability`` of "stochastic"; None means the default.

    Returns
    -------
    images : DataNode
        Mixed images: dtype, layout and device of the input. uint8 is rounded to nearest. With `mean`
        and `std`: float32 in `output_layout`.
    targets : DataNode
        float32 [num_classes], on the device of the images; each sums to 1.
    params : MixParams
        Only with ``return_params=True``: ``lam``, the label weight (float32 scalar, CPU), ``partner`` (int32
        scalar, CPU) and ``mask``, the own image's weight (float32 HxWx1, 1xHxW for "CHW").

    Raises
    ------
    TypeError, ValueError
        An argument is not valid: raised when the graph is built, with the argument, what it must be and
        what came.
    RuntimeError
        By DALI, at run time: a label out of range; labels or a `partner` of another type than integers, if
        the graph does not show their type; images of different sizes within one batch; images that are not
        three-dimensional; a ``layout`` that is not the images' own (CPU only); a ``mean`` whose length is not
        the number of channels. DALI shows the line of the check that failed.

    Notes
    -----
    A pixel with weight 0 has no influence, not even NaN or infinity: a sample that is not mixed comes back
    bit for bit. The one exception is the own image in the "graph" form where the mask is 0 and the method is
    not CutMix: its NaN stays.

    Park, Yun, Chun: "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022, equation 1 and
    section 4. A batch of one has no partner and comes back unchanged.
    """
    check_choice("method", method, tuple(TABLE))
    _check_known(TABLE[method], [name for name in arguments if not methods_with(name)])
    checked = MixArguments(
        method=method,
        values={name: value for name, value in {"alpha": alpha, **arguments}.items() if value is not None},
        num_classes=num_classes,
        probability=probability,
        label_smoothing=label_smoothing,
        convention=convention,
        granularity=granularity,
        layout=layout,
        seed=seed,
        lam=lam,
        center=center,
        partner=partner,
        mean=mean,
        std=std,
        output_layout=output_layout,
        return_params=return_params,
        backend=backend,
    )
    check_inputs(images, labels, backend)
    return _mix(images, labels, checked)


def blend(
    images: DataNode,
    labels: DataNode,
    *,
    mask: DataNode | Sequence[DataNode] | Separable | Dense,
    num_classes: int,
    partner: int | DataNode | None = None,
    label_smoothing: float = 0.0,
    layout: str = "HWC",
    seed: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output_layout: str | None = None,
    return_params: bool = False,
    backend: str = "auto",
) -> tuple[Any, ...]:
    """Mix every image of a batch with a partner by a mask of your own, and their labels too.

    ``image = mask * own + (1 - mask) * partner``, and the label weight is the mean of the mask.

    Parameters
    ----------
    images, labels, num_classes, label_smoothing, layout, mean, std, output_layout, return_params, backend
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
    checked = BlendArguments(
        num_classes=num_classes,
        label_smoothing=label_smoothing,
        layout=layout,
        seed=seed,
        partner=partner,
        mean=mean,
        std=std,
        output_layout=output_layout,
        return_params=return_params,
        backend=backend,
    )
    check_inputs(images, labels, backend)
    return _blend(images, labels, _as_mask(mask, images.device, layout), checked)


def _check_known(method: Method, unknown: Sequence[str]) -> None:
    """Raise TypeError for the first unknown argument, if any."""
    if unknown:
        known = [*method.defaults, *_COMMON]
        raise TypeError(f"{method.name} has no argument {unknown[0]!r}; it takes {', '.join(known)}")


def _without_conversion(function: F) -> F:
    """Exclude a function from DALI's rewriting for conditionals: no branch in it depends on a sample."""
    return do_not_convert(function)  # type: ignore[no-any-return]


@_without_conversion
def _mix(images: DataNode, labels: DataNode, arguments: MixArguments) -> tuple[Any, ...]:
    """Draw, make the masks, blend."""
    labels = _as_class_ids(labels)
    normalization = Normalization.from_arguments(arguments)
    if arguments.method == "none" and not arguments.return_params:
        targets = graph.one_hot_targets(labels, images.device, arguments)
        return (normalize(images, normalization) if normalization else images), targets
    chosen = choose(arguments.backend, images.device)
    draws = draw(arguments)
    partner = draw_partner(arguments)
    weights = chosen.make_mask(images, draws, arguments)
    mixed, targets, params = chosen.blend(images, labels, partner, weights, arguments)
    if arguments.method == "none":
        mixed = normalize(images, normalization) if normalization else images
    return (mixed, targets) if params is None else (mixed, targets, params)


@_without_conversion
def _blend(
    images: DataNode, labels: DataNode, mask: Separable | Dense, arguments: BlendArguments
) -> tuple[Any, ...]:
    chosen = choose(arguments.backend, images.device)
    partner = draw_partner(arguments)
    mixed, targets, params = chosen.blend(
        images, _as_class_ids(labels), partner, chosen.given_mask(mask), arguments
    )
    return (mixed, targets) if params is None else (mixed, targets, params)


def _as_class_ids(labels: DataNode) -> DataNode:
    return fn.reshape(cast_labels(labels), shape=[1])  # labels: one integer per image


@_without_conversion
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
        size = shape[:2] if layout == "HWC" else shape[-2:]
        flat = fn.reshape(mask.values, shape=size)  # mask must be HxW, or HxWx1 for HWC, 1xHxW for CHW
        return Dense(_as_float(flat))
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
    rows, columns = (_as_float(fn.reshape(node, shape=[-1])) for node in (rows, columns))
    if not is_node("base of the mask", base):
        check_fraction("base of the mask", base)
    if not is_node("scale of the mask", scale):
        check_number("scale of the mask", scale)
    base, scale = (
        as_vector(value) if isinstance(value, DataNode) else float64_constant([value])
        for value in (base, scale)
    )
    return Separable(base, scale, rows, columns)


def _as_float(weights: DataNode) -> DataNode:
    """Cast to float32, without an operator where the graph shows that the node has this type already."""
    return weights if static_dtype(weights) == types.FLOAT else fn.cast(weights, dtype=types.FLOAT)


# The arguments that all methods take, with the defaults of :func:`mix`.
_COMMON = {
    name: parameter
    for name, parameter in inspect.signature(mix).parameters.items()
    if parameter.kind == parameter.KEYWORD_ONLY and name not in ("num_classes", "method", "alpha")
}


@functools.cache
def function(method: Method) -> MixFunction:
    """The function of a method, with signature and help text from the table's entry."""

    def mixing(images: DataNode, labels: DataNode, **arguments: Any) -> tuple[Any, ...]:
        _check_known(method, [name for name in arguments if name not in signature.parameters])
        if "num_classes" not in arguments:
            raise TypeError(f"num_classes must be given to {method.name}, as the targets' length; got none")
        return mix(images, labels, method=method.name, **arguments)

    of_mix = inspect.signature(mix).parameters
    own = [
        inspect.Parameter(
            argument.name, inspect.Parameter.KEYWORD_ONLY, default=argument.default, annotation=float
        )
        for argument in method.arguments
    ]
    shared = [of_mix[name] for name in ("images", "labels", "num_classes")]
    signature = inspect.Signature([*shared, *own, *_COMMON.values()], return_annotation=tuple)
    mixing.__name__ = mixing.__qualname__ = method.name
    mixing.__doc__ = _help_text(method)
    mixing.__signature__ = signature  # type: ignore[attr-defined]
    return mixing


def _help_text(method: Method) -> str:
    summary = method.summary.replace("`", "")
    lines = [f"{method.title}: the own image's weight is {summary}.", "", "Parameters", "----------"]
    lines += ["images, labels, num_classes", "    See :func:`mix`."]
    for argument in method.arguments:
        cifar = "" if argument.cifar100 is None else f" (CIFAR-100: {argument.cifar100})"
        lines += [f"{argument.name} : float or DataNode, {argument.expected}, optional"]
        lines += [f"    {argument.help} By default {argument.default}{cifar}."]
    lines += [f"{', '.join(_COMMON)}", "    See :func:`mix`.", "", "Returns", "-------"]
    lines += ["images, targets[, params]", "    See :func:`mix`."]
    if method.paper:
        lines += ["", "Notes", "-----", f"In the paper: {method.paper}."]
    return "\n".join(lines) + "\n"
