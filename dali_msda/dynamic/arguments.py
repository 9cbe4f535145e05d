"""The arguments of dynamic mode and their checks: a batch or an array may be given for a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nvidia.dali.experimental.dynamic import Batch

from ..arguments import DrawArguments, ImageArguments
from ..checks import IMAGE_TYPES
from ..common_arguments import LabelArguments, check_partner_labels
from ..layouts import choose_layout
from ..methods import check_method
from ..mixing import argument_of, check_argument
from ..validation import ArgumentTypeError, ArgumentValueError, check_fraction
from .batches import Array, as_batch, check_batch, device_of, values_of
from .draws import Drawing
from .images import Form, Images
from .labels import read_labels


def check_drawing(
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


def check_views(name: str, images: Any, count: int | None, backend: str) -> list[Batch]:
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


def check_images(name: str, batch: Batch, layout: str | None, *, maps: bool = False) -> Images:
    """A batch of images with its layout, checked."""
    if not maps and batch.dtype.type_id not in IMAGE_TYPES:
        expected = "uint8, int16, uint16, float16 or float32"
        raise ArgumentTypeError(name, expected, f"a batch of {batch.dtype.type_id.name}")
    form = choose_layout(name, batch.layout or None, layout, device_of(batch), "the batch")
    return Images.of(name, batch, form)


def check_form(layout: str, count: int, mirror: Any, **others: Any) -> Form:
    """Check how images are normalised; `mirror` may be a value per sample."""
    values = values_of("mirror", mirror, count)
    if values is None:
        return Form(ImageArguments(layout=layout, mirror=mirror, **others), mirror)
    if values.dtype.kind not in "iu" or not np.isin(values, (0, 1)).all():
        raise ArgumentValueError("mirror", "0 or 1 for every sample", f"values of {values.dtype}")
    return Form(ImageArguments(layout=layout, mirror=1, **others), as_batch(values.astype(np.int32)))


def check_alike(source: Batch, own: Batch) -> None:
    """Raise unless partners have the device and the type of the images."""
    if device_of(source) != device_of(own):
        raise ArgumentValueError(
            "partner_images", f"on the {device_of(own).upper()}, as images are", device_of(source)
        )
    if source.dtype != own.dtype:
        expected = f"of type {own.dtype.type_id.name}, as images are"
        raise ArgumentTypeError("partner_images", expected, source.dtype.type_id.name)


def read_both(
    labels: Any, partner_labels: Any, second: bool, count: int, arguments: LabelArguments
) -> tuple[Array, Array] | None:
    """Labels, and those that partners come from; None without any."""
    check_partner_labels(labels, partner_labels, second, "labels")
    if labels is None:
        return None
    own = read_labels("labels", labels, arguments)
    other = own if partner_labels is None else read_labels("partner_labels", partner_labels, arguments)
    for name, values in (("labels", own), ("partner_labels", other)):
        if len(values) != count:
            raise ArgumentValueError(name, f"of {count} samples, as images are", len(values))
    if own.shape[1:] != other.shape[1:]:
        raise ArgumentTypeError("partner_labels", "of the kind and length of labels", list(other.shape[1:]))
    return own, other
