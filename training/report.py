"""Output for people: a picture of the first batch, a table at the end."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.constants import MEAN, STD
from pipelines.names import shown

_MOST, _MARGIN, _LINE = 8, 6, 13
_SMALLEST = 112  # an image is shown at least this wide, so that its label has room


def batch_picture(
    images: np.ndarray, targets: np.ndarray, masks: np.ndarray, classes: Sequence[str], title: str
) -> bytes:
    """Draw the first images of a mixed batch above their masks and labels.

    Parameters
    ----------
    images : ndarray
        float32 NxHxWx3, normalised.
    targets : ndarray
        float32 NxK.
    masks : ndarray
        float32 NxHxWx1, weight of the image itself: white is 1.
    classes : sequence of str
        Class names.
    title : str

    Returns
    -------
    bytes
        A PNG.
    """
    pixels = np.clip(images[:_MOST] * np.array(STD) + np.array(MEAN) + 0.5, 0, 255).astype(np.uint8)
    grey = np.clip(masks[:_MOST] * 255 + 0.5, 0, 255).astype(np.uint8)
    height, width = pixels.shape[1:3]
    scale = max(1, -(-_SMALLEST // width))
    width, height = width * scale, height * scale
    font = ImageFont.load_default(10)
    sheet = Image.new(
        "RGB",
        (_MARGIN + len(pixels) * (width + _MARGIN), 3 * _MARGIN + _LINE + 2 * height + 3 * _LINE),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 2), title, fill="black", font=font)
    for number, (image, mask, target) in enumerate(zip(pixels, grey, targets, strict=False)):
        left, top = _MARGIN + number * (width + _MARGIN), _MARGIN + _LINE
        for row, picture in enumerate((Image.fromarray(image), Image.fromarray(mask[..., 0]).convert("RGB"))):
            big = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(big, (left, top + row * (height + _MARGIN)))
        for row, line in enumerate(_labels(target, classes)):
            draw.text((left, top + 2 * height + _MARGIN + 2 + row * _LINE), line, fill="black", font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _labels(target: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The two classes with the highest weights; smoothing gives every other class a small one."""
    order = np.argsort(-target, kind="stable")[:2]
    return [f"{target[i]:.2f} {shown(classes[i])[:16]}" for i in order if target[i] > target.min()]


def table(rows: dict[str, str]) -> str:
    """Format names and values, one per line."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())
