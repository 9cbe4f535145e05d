"""The mixing operators: the public functions of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode, do_not_convert

from .arguments import MixArguments, check_choice, check_inputs, check_method_argument
from .backends import choose, graph
from .draws import draw, draw_partner
from .methods import METHODS, TABLE
from .normalization import asked_for, normalized

F = TypeVar("F", bound=Callable[..., Any])

# The defaults that the signatures below show.
_DEFAULTS = {name: method.defaults for name, method in TABLE.items()}


class CommonArguments(TypedDict, total=False):
    """The keyword arguments that every method takes; :func:`mix` describes them."""

    probability: float | DataNode
    label_smoothing: float
    convention: str
    granularity: str
    layout: str
    seed: int | None
    lam: float | DataNode | None
    center: Sequence[int] | DataNode | None
    partner: int | DataNode | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    output_layout: str | None
    return_params: bool
    backend: str


def mixup(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    alpha: float | DataNode = _DEFAULTS["mixup"]["alpha"],
    **common: Unpack[CommonArguments],
) -> tuple[Any, ...]:
    """Mixup: every pixel is ``lam * own + (1 - lam) * partner``.

    Parameters
    ----------
    images, labels, num_classes, **common
        See :func:`mix`.
    alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha). By default the paper's for ImageNet; 1 on CIFAR-100.

    Returns
    -------
    images, targets[, params]
        See :func:`mix`.

    Notes
    -----
    Equation 2 of the paper (Zhang et al., 2018).
    """
    return _mix("mixup", images, labels, num_classes, common, alpha=alpha)


def cutmix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    alpha: float | DataNode = _DEFAULTS["cutmix"]["alpha"],
    **common: Unpack[CommonArguments],
) -> tuple[Any, ...]:
    """CutMix: a box with the share 1 - lam of the image comes from the partner.

    Parameters
    ----------
    images, labels, num_classes, **common
        See :func:`mix`.
    alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha); the label weight is the share that is really left of the own image.

    Returns
    -------
    images, targets[, params]
        See :func:`mix`.

    Notes
    -----
    Equation 3 of the paper (Yun et al., 2019).
    """
    return _mix("cutmix", images, labels, num_classes, common, alpha=alpha)


def stochastic(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    mixup_alpha: float | DataNode = _DEFAULTS["stochastic"]["mixup_alpha"],
    cutmix_alpha: float | DataNode = _DEFAULTS["stochastic"]["cutmix_alpha"],
    switch_probability: float | DataNode = _DEFAULTS["stochastic"]["switch_probability"],
    **common: Unpack[CommonArguments],
) -> tuple[Any, ...]:
    """Stochastic Mixup & CutMix: Mixup with probability q, CutMix otherwise.

    Parameters
    ----------
    images, labels, num_classes, **common
        See :func:`mix`.
    mixup_alpha, cutmix_alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha) of either method. A ``lam`` given by the caller serves both.
    switch_probability : float or DataNode, optional
        The probability q of Mixup, drawn per sample (per batch with ``granularity="batch"``).

    Returns
    -------
    images, targets[, params]
        See :func:`mix`.

    Notes
    -----
    Section 4 of the paper, "Stochastic Mixup & CutMix".
    """
    return _mix(
        "stochastic",
        images,
        labels,
        num_classes,
        common,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        switch_probability=switch_probability,
    )


def hmix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    alpha: float | DataNode = _DEFAULTS["hmix"]["alpha"],
    ratio: float | DataNode = _DEFAULTS["hmix"]["ratio"],
    **common: Unpack[CommonArguments],
) -> tuple[Any, ...]:
    """HMix: a CutMix box with the share (1 - lam) * ratio, Mixup outside of it.

    Parameters
    ----------
    images, labels, num_classes, **common
        See :func:`mix`.
    alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha).
    ratio : float or DataNode, optional
        r in [0, 1]: 0 is Mixup, 1 is CutMix. The paper uses 0.75 on ImageNet, 0.5 on CIFAR-100.

    Returns
    -------
    images, targets[, params]
        See :func:`mix`.

    Notes
    -----
    Section 4 of the paper, "HMix". Outside the box the own weight is lam divided by the area left there
    (``convention="reference"``; the label keeps the drawn lam) or lam / (1 - (1 - lam) r) ("paper").
    """
    return _mix("hmix", images, labels, num_classes, common, alpha=alpha, ratio=ratio)


def gmix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    alpha: float | DataNode = _DEFAULTS["gmix"]["alpha"],
    **common: Unpack[CommonArguments],
) -> tuple[Any, ...]:
    """GMix: the partner fades in around a point with a Gaussian profile.

    Parameters
    ----------
    images, labels, num_classes, **common
        See :func:`mix`.
    alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha). The paper uses 1 on ImageNet, 0.5 on CIFAR-100. The drawn lam is
        nominal: the label weight is the mean of the mask, which the border cuts.

    Returns
    -------
    images, targets[, params]
        See :func:`mix`.

    Notes
    -----
    Section 4 of the paper, "GMix". With d the distance to the centre in pixels the mask is

    - ``convention="reference"``: exp(-pi d^2 / (lam H W)) for lam < 0.5, otherwise
      1 - exp(-pi d^2 / ((1 - lam) H W));
    - ``convention="paper"``: 1 - exp(-pi d^2 / (2 (1 - lam) H W)). Over the plane this kernel integrates
      to 2 (1 - lam) H W, so E[M] is not lam although section 2 of the paper asks for it; the authors' code
      has no factor 2.
    """
    return _mix("gmix", images, labels, num_classes, common, alpha=alpha)


def mix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    method: str = "hmix",
    alpha: float | DataNode | None = None,
    ratio: float | DataNode | None = None,
    mixup_alpha: float | DataNode | None = None,
    cutmix_alpha: float | DataNode | None = None,
    switch_probability: float | DataNode | None = None,
    **common: Unpack[CommonArguments],
) -> tuple[Any, ...]:
    """Mix every image of a batch with a partner from the same batch, and their labels alike.

    The own image has the weight M(y, x) in [0, 1], the partner 1 - M:
    ``image = M * own + (1 - M) * partner``. The label weight is the mean of M, and
    ``targets = lam * onehot(own) + (1 - lam) * onehot(partner)``.

    Parameters
    ----------
    images : DataNode
        uint8, float16 or float32, HxWxC (or CxHxW), one size within a batch, on the CPU or the GPU.
        Mixing uint8 before the normalisation is the fastest.
    labels : DataNode
        Integer class ids in [0, num_classes), scalar or shape [1], on the CPU.
    num_classes : int
        Length of the targets, at least 1.
    method : {"none", "mixup", "cutmix", "stochastic", "hmix", "gmix"}, optional
        ``"none"`` leaves the images as they are and makes one-hot targets.
    alpha : float or DataNode, optional
        lam ~ Beta(alpha, alpha), above 0; by default the paper's for ImageNet, 0.8 for "mixup" and 1 for the
        others. For "stochastic" it stands for both alphas.
    ratio, mixup_alpha, cutmix_alpha, switch_probability : float or DataNode, optional
        See :func:`hmix` and :func:`stochastic`; None takes their defaults.
    probability : float or DataNode, optional
        Probability that a sample is mixed at all, 1 by default; otherwise image and label stay.
    label_smoothing : float, optional
        s in [0, 1]: targets hold s / K more for every class and 1 - s for the label, rows sum to 1.
    convention : {"reference", "paper"}, optional
        Masks as the authors' published code makes them (default), or by the formulas of the paper.
    granularity : {"sample", "batch"}, optional
        Own draws for every sample (default), or one draw for all samples of a batch.
    layout : {"HWC", "CHW"}, optional
        Layout of the images, "HWC" by default.
    seed : int, optional
        Makes the draws of this operator repeatable; by default they follow the pipeline's seed.
    lam : float or DataNode, optional
        Take this lam instead of drawing it, in [0, 1]; values of a node outside are clipped.
    center : (row, column) or DataNode, optional
        Take this centre of the box or blob, in pixels, instead of drawing it; a node has shape [2].
    partner : int or DataNode, optional
        Take this partner, an index within the batch; by default a random permutation of the batch.
    mean, std : sequence of float, optional
        Normalise the mixed images: (mixed - mean) / std, one number per channel, as
        ``fn.crop_mirror_normalize`` right after it would do. On the CPU uint8 HWC images are mixed and
        normalised in one pass.
    output_layout : {"HWC", "CHW"}, optional
        Layout of the normalised images, by default that of the input.
    return_params : bool, optional
        Add a third result, :class:`MixParams`.
    backend : {"auto", "kernel", "graph"}, optional
        "kernel": one compiled operator, CPU only. "graph": DALI's own operators, CPU and GPU. "auto"
        (default) takes the kernel on the CPU, where Numba works, and the graph otherwise.

    Returns
    -------
    images : DataNode
        Mixed images: dtype, layout and device of the input. uint8 is rounded to the nearest. With `mean`
        and `std`: float32 in `output_layout`.
    targets : DataNode
        float32 [num_classes], on the device of the images; each sums to 1.
    params : MixParams
        Only with ``return_params=True``: ``lam``, the label weight (float32 scalar, CPU), ``partner`` (int32
        scalar, CPU) and ``mask``, the own image's weight (float32 HxWx1, 1xHxW for "CHW").

    Raises
    ------
    TypeError, ValueError
        An argument cannot be taken: raised when the graph is built, naming the argument, what came and
        what was expected.
    RuntimeError
        By DALI, at run time: a label out of range, images of different sizes within one batch, images
        that are not three-dimensional, a ``layout`` that is not the images' own (CPU only), a ``mean`` with
        more or fewer numbers than the images have channels. DALI shows the line of the check that failed.

    Notes
    -----
    Park, Yun, Chun: "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022, equation 1 and
    section 4. A batch of one has no partner and comes back as it is.
    """
    check_choice("method", method, METHODS)
    given: dict[str, Any] = {}
    if alpha is not None:
        check_method_argument("alpha", alpha)  # also for "none", which has no use for it
        given = dict.fromkeys(TABLE[method].alphas, alpha)
    others = {
        "ratio": ratio,
        "mixup_alpha": mixup_alpha,
        "cutmix_alpha": cutmix_alpha,
        "switch_probability": switch_probability,
    }
    given |= {name: value for name, value in others.items() if value is not None}
    return _mix(method, images, labels, num_classes, common, **given)


def _as_it_is(function: F) -> F:
    """Nothing in it depends on a sample's value: with conditionals there is nothing for DALI to rewrite."""
    return do_not_convert(function)  # type: ignore[no-any-return]


@_as_it_is
def _mix(
    method: str,
    images: DataNode,
    labels: DataNode,
    num_classes: int,
    common: CommonArguments,
    **method_arguments: Any,
) -> tuple[Any, ...]:
    """Check the arguments, draw, choose the backend, mix."""
    unknown = set(common) - CommonArguments.__annotations__.keys()
    if unknown:
        known = [*_DEFAULTS[method], *CommonArguments.__annotations__]
        raise TypeError(f"{method} has no argument {min(unknown)!r}; it takes {', '.join(known)}")
    arguments = MixArguments(method=method, num_classes=num_classes, **method_arguments, **common)
    check_inputs(images, labels, arguments.backend)

    labels = fn.reshape(fn.cast(labels, dtype=types.INT32), shape=[1])  # labels: one integer per image
    normalization = asked_for(arguments)
    if method == "none" and not arguments.return_params:
        targets = graph.one_hot_targets(labels, images.device, arguments)
        return (normalized(images, normalization) if normalization else images), targets
    draws = draw(arguments)
    partner = draw_partner(arguments)
    mixed, targets, params = choose(arguments.backend, images.device)(
        images, labels, draws, partner, arguments
    )
    if method == "none":
        mixed = normalized(images, normalization) if normalization else images
    return (mixed, targets) if params is None else (mixed, targets, params)
