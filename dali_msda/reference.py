"""Mixing in NumPy: the reference that the tests and the doctor compare the operators with.

It imports nothing from the library, and in the library only the doctor's self-check imports it.

Written from the formulas of Park et al., "A Unified Analysis of Mixed Sample Data Augmentation: A Loss
Function Perspective" (NeurIPS 2022), sections 2 and 4, and from the two conventions:

- "reference": the box and the Gaussian of the authors' published code, for images of any height and width;
- "paper": the formulas of the paper, with boxes that lie inside the image.

One plain function per formula, no random draws. The arithmetic is always float64. Axes: N samples, H rows, W
columns, C channels, K classes; positions and distances in pixels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def _check_convention(convention: str) -> None:
    if convention not in ("reference", "paper"):
        raise ValueError(f"convention must be 'reference' or 'paper'; got {convention!r}")


def box(
    size: tuple[int, int], lam: float, ratio: float, center: tuple[int, int], convention: str
) -> tuple[int, int, int, int]:
    """The box that shows the partner (section 4: side length sqrt(1 - lam) sqrt(r) N).

    Parameters
    ----------
    size : (H, W)
    lam : the drawn weight of the own image, in [0, 1]
    ratio : r of HMix, in [0, 1]; 1 for CutMix
    center : (row, column) in pixels; "reference" clips the box at the border, "paper" moves it inside
    convention : "reference" or "paper"

    Returns
    -------
    y0, y1, x0, x1 : rows y0 to y1 - 1 and columns x0 to x1 - 1, possibly none
    """
    _check_convention(convention)
    scale = math.sqrt(1.0 - float(lam)) * math.sqrt(float(ratio))
    edges = []
    for length, middle in zip(size, center, strict=True):
        side = math.floor(length * scale)
        half = side // 2
        if convention == "reference":
            start = min(max(middle - half, 0), length)
            stop = min(max(middle + half, 0), length)
        else:
            start = min(max(middle - half, 0), length - side)
            stop = start + side
        edges += [int(start), int(stop)]
    y0, y1, x0, x1 = edges
    return y0, y1, x0, x1


def _outside_box(size: tuple[int, int], edges: tuple[int, int, int, int]) -> Floats:
    """Indicator of the pixels outside the box, [H, W]: CutMix's mask (equation 3)."""
    y0, y1, x0, x1 = edges
    outside = np.ones(size)
    outside[y0:y1, x0:x1] = 0.0
    return outside


def _gaussian(size: tuple[int, int], width: float, center: tuple[int, int]) -> Floats:
    """exp(-pi d^2 / (width H W)), where d is the distance to the centre, [H, W]; zero for width 0."""
    if width == 0.0:
        return np.zeros(size)
    rows, columns = np.indices(size).astype(np.float64)
    distance_squared = (rows - center[0]) ** 2 + (columns - center[1]) ** 2
    gaussian: Floats = np.exp(-math.pi * distance_squared / (width * size[0] * size[1]))
    return gaussian


def mask(
    method: str,
    size: tuple[int, int],
    lam: float,
    *,
    center: tuple[int, int] = (0, 0),
    ratio: float = 1.0,
    convention: str = "reference",
    use_mixup: bool = False,
) -> Floats:
    """The own image's weight M at each pixel (equation 1 and section 4), [H, W], in [0, 1].

    Parameters
    ----------
    method : "none" (all ones), "mixup", "cutmix", "stochastic", "hmix" or "gmix"
    size : (H, W)
    lam : the drawn weight of the own image, in [0, 1]
    center : (row, column) of the box or the Gaussian, in pixels
    ratio : r of HMix, in [0, 1]
    convention : "reference" or "paper"
    use_mixup : whether "stochastic" is Mixup; otherwise it is CutMix
    """
    _check_convention(convention)
    lam = float(lam)
    if method == "stochastic":
        method = "mixup" if use_mixup else "cutmix"
    if method == "none":
        return np.ones(size)
    if method == "mixup":  # equation 2
        return np.full(size, lam)
    if method == "cutmix":  # equation 3
        return _outside_box(size, box(size, lam, 1.0, center, convention))
    if method == "hmix":
        outside = _outside_box(size, box(size, lam, ratio, center, convention))
        if convention == "reference":  # the actual share of the image outside the box
            share = label_weight(outside)
        else:  # 1 - (1 - lam) r, in an order that gives zero only for lam = 0, and never less than lam
            share = lam + (1.0 - lam) * (1.0 - float(ratio))
        # Without rounding, at least lam of the image is outside the box; min removes rounding above 1.
        return outside * (min(lam / share, 1.0) if share > 0.0 else 0.0)
    if method == "gmix":
        if convention == "paper":
            return 1.0 - _gaussian(size, 2.0 * (1.0 - lam), center)
        if lam < 0.5:
            return _gaussian(size, lam, center)
        return 1.0 - _gaussian(size, 1.0 - lam, center)
    raise ValueError(f"method must be none, mixup, cutmix, stochastic, hmix or gmix; got {method!r}")


def label_weight(mask: Floats) -> float:
    """The own label's weight: the mean of the mask [H, W]."""
    return float(np.mean(mask))


def blend(own: npt.NDArray[Any], partner: npt.NDArray[Any], mask: Floats, layout: str = "HWC") -> Floats:
    """M own + (1 - M) partner (equation 1), not rounded; images [H, W, C] or, for layout "CHW", [C, H, W]."""
    if layout not in ("HWC", "CHW"):
        raise ValueError(f"layout must be 'HWC' or 'CHW'; got {layout!r}")
    weight = mask[:, :, np.newaxis] if layout == "HWC" else mask[np.newaxis]
    mixed: Floats = weight * own.astype(np.float64) + (1.0 - weight) * partner.astype(np.float64)
    return mixed


def blend_uint8(
    own: npt.NDArray[np.uint8], partner: npt.NDArray[np.uint8], mask: Floats, layout: str = "HWC"
) -> npt.NDArray[np.uint8]:
    """:func:`blend`, rounded to the nearest integer, halves up."""
    return np.floor(blend(own, partner, mask, layout) + 0.5).astype(np.uint8)


def targets(
    label: int, partner_label: int, weight: float, num_classes: int, label_smoothing: float = 0.0
) -> Floats:
    """weight onehot(label) + (1 - weight) onehot(partner_label) (equation 1), [K].

    With label smoothing s, a one-hot vector is 1 - s + s / K at its label and s / K elsewhere.
    """
    off = label_smoothing / num_classes
    own, partner = np.full((2, num_classes), off)
    own[label] = partner[partner_label] = 1.0 - label_smoothing + off
    target: Floats = float(weight) * own + (1.0 - float(weight)) * partner
    return target


def mix(
    images: npt.NDArray[Any],
    labels: Sequence[int] | npt.NDArray[Any],
    partners: Sequence[int] | npt.NDArray[Any],
    lams: Sequence[float] | npt.NDArray[Any],
    centers: Sequence[tuple[int, int]] | npt.NDArray[Any],
    ratios: Sequence[float] | npt.NDArray[Any],
    method: str,
    *,
    num_classes: int,
    label_smoothing: float = 0.0,
    convention: str = "reference",
    use_mixup: Sequence[bool] | npt.NDArray[Any] | None = None,
    layout: str = "HWC",
) -> tuple[npt.NDArray[Any], Floats, Floats]:
    """Mix sample i of a batch with sample partners[i]; all per-sample arguments have N entries.

    Returns the images ([N, ...]; rounded to uint8 if they were uint8, otherwise float64), the targets
    [N, K] and the masks [N, H, W]. `use_mixup` is only for "stochastic"; None means CutMix for all samples.
    """
    size = (images.shape[1], images.shape[2]) if layout == "HWC" else (images.shape[2], images.shape[3])
    chosen = [False] * len(images) if use_mixup is None else use_mixup
    blender = blend_uint8 if images.dtype == np.uint8 else blend
    mixed, all_targets, masks = [], [], []
    draws = zip(images, labels, partners, lams, centers, ratios, chosen, strict=True)
    for image, label, j, lam, (row, column), ratio, flag in draws:
        center = (int(row), int(column))
        m = mask(method, size, lam, center=center, ratio=ratio, convention=convention, use_mixup=bool(flag))
        mixed.append(blender(image, images[j], m, layout))
        all_targets.append(targets(label, labels[j], label_weight(m), num_classes, label_smoothing))
        masks.append(m)
    return np.stack(mixed), np.stack(all_targets), np.stack(masks)
