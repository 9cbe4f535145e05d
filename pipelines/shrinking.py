"""Shrink one encoded image to the size that training needs, as JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageChops, JpegImagePlugin, UnidentifiedImageError

from .formats import detect_format

QUALITY = 90  # of JPEG, where none is given
# Pillow's names of the formats that DALI reads; without JPEG 2000: at 16 bits Pillow turns some white pixels
# black.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
# JPEG is decoded at no less than this many times the new size. That costs less than 0.1 dB of the PSNR of
# training crops, against full decoding; 1.0 would cost up to 2 dB.
_DECODE_TIMES = 1.5
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CHROMA_420 = 2


class CannotShrink(ValueError):
    """The image cannot be decoded here, or not exactly as DALI decodes it."""


def shrink(encoded: bytes, max_side: int, quality: int) -> bytes | None:
    """Shrink an image to a JPEG file that DALI decodes as it would a smaller version of the original.

    JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is large enough, then resized with antialiasing
    (Lanczos). The result is upright, without metadata, with the chroma subsampling of the original (4:2:0 if
    it has none); grey stays grey. Alpha is dropped, and CMYK and 16 bits are converted, as by DALI. The same
    arguments give the same bytes with the same version of Pillow.

    Parameters
    ----------
    encoded : bytes
        An image file in one of the formats that the pipelines read.
    max_side : int
        Longer side of the result, in pixels.
    quality : int
        JPEG quality, 1 to 100.

    Returns
    -------
    bytes or None
        The smaller file; None if the image is no larger than `max_side`, or the result has no fewer bytes.

    Raises
    ------
    CannotShrink
        The image cannot be decoded, or not as DALI decodes it (JPEG 2000, floating point).
    """
    form = detect_format(encoded)
    if form is None or not form.extensions:
        raise CannotShrink(f"{form.name}, which DALI does not read" if form else "unknown format")
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        width, height = image.size
        scale = max_side / max(width, height)
        if scale >= 1:
            return None
        size = max(1, round(width * scale)), max(1, round(height * scale))
        # The box is the exact extent of the original: its last pixels may not fill one of the decoded size.
        drafted = image.draft(None, (int(_DECODE_TIMES * size[0]), int(_DECODE_TIMES * size[1])))
        image.load()
        orientation = _read_orientation(image)
    except UnidentifiedImageError:  # the message would have an address in memory
        raise CannotShrink(f"{form.name} that Pillow does not read") from None
    except MemoryError:
        raise  # not a fault of the image
    except Exception as error:  # of many types: every format of Pillow has its own
        raise CannotShrink(f"{form.name}: {error}") from error
    subsampling = JpegImagePlugin.get_sampling(image) if form.name == "JPEG" else -1
    box = drafted[1] if drafted else None
    small = _as_dali_decodes(image).resize(size, Image.Resampling.LANCZOS, box)
    if orientation in _TRANSPOSE:
        small = small.transpose(_TRANSPOSE[orientation])
    buffer = io.BytesIO()
    small.save(
        buffer,
        "JPEG",
        quality=quality,
        optimize=True,
        subsampling=_CHROMA_420 if subsampling < 0 else subsampling,
    )
    shrunk = buffer.getvalue()
    return shrunk if len(shrunk) < len(encoded) else None


def _read_orientation(image: Image.Image) -> int | None:
    """The orientation that DALI applies: from EXIF, not from XMP. Pillow has applied that of TIFF."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    found = exif.get(_ORIENTATION)
    return found if isinstance(found, int) else None


def _as_dali_decodes(image: Image.Image) -> Image.Image:
    """The image in mode RGB or L, with the pixels that DALI decodes."""
    if image.mode in ("RGB", "L"):
        return image
    if image.mode == "CMYK":
        # DALI takes the inks of every JPEG file as inverted, Pillow only those that are marked as Adobe's.
        if image.format == "JPEG" and "adobe" not in image.info:
            image = ImageChops.invert(image)
        return image.convert("RGB")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32895) >> 16).astype(np.uint8))  # round(levels / 257)
    if image.mode not in ("1", "P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "YCbCr"):
        raise CannotShrink(f"{image.format} with pixels of type {image.mode}")
    image.info.pop("transparency", None)  # Pillow would warn that it is dropped
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
