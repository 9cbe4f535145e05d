"""Shrunk images are what DALI makes of the originals, smaller."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from PIL import Image, JpegImagePlugin

from pipelines._decoding import DECODER
from pipelines.shrinking import CannotShrink, shrink
from tests.damage import encode, segment
from tests.image_sets import photo

SIDE = 60
PHOTO = Image.fromarray(photo(91, 120, 3))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (91, 120), np.uint8))


def save(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def with_alpha(mode: str) -> Image.Image:
    image = PHOTO.convert(mode)
    image.putalpha(NOISE)
    return image


def deep_grey() -> Image.Image:
    """16 bits, where rounding to 8 bits gives one more than the upper byte."""
    grey = np.asarray(PHOTO.convert("L")) // 4
    return Image.fromarray(grey.astype(np.uint16) * 257 + 150)


def oriented(form: str, value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return save(PHOTO, form, exif=exif, quality=100)


def cmyk(transform: int | None) -> bytes:
    """Four inks, with the given Adobe marker or none; with 2 they are read as YCCK."""
    jpeg = save(PHOTO.convert("CMYK"), "JPEG", quality=95)
    start, end = segment(jpeg, 0xEE)
    marker = b"" if transform is None else jpeg[start : end - 1] + bytes([transform])
    return jpeg[:start] + marker + jpeg[end:]


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: save(PHOTO, "JPEG", quality=98),
    "progressive": lambda: save(PHOTO, "JPEG", quality=98, progressive=True),
    "grey jpeg": lambda: save(PHOTO.convert("L"), "JPEG", quality=98),
    "rgb in jpeg": lambda: save(PHOTO, "JPEG", quality=98, keep_rgb=True),
    "cmyk, adobe": lambda: cmyk(0),
    "cmyk, no marker": lambda: cmyk(None),
    "ycck": lambda: cmyk(2),
    "several images": lambda: save(PHOTO, "MPO", save_all=True, append_images=[NOISE], quality=98),
    "orientation in xmp only": lambda: save(PHOTO, "JPEG", quality=98, xmp=XMP),
    "damaged exif": lambda: save(PHOTO, "JPEG", quality=98, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0"),
    "rgba png": lambda: save(with_alpha("RGB"), "PNG"),
    "grey and alpha png": lambda: save(with_alpha("L"), "PNG"),
    "palette": lambda: save(PHOTO.convert("P"), "PNG", transparency=3),
    "palette with alpha": lambda: save(PHOTO.convert("P"), "PNG", transparency=bytes(range(256))),
    "1 bit": lambda: save(PHOTO.resize((480, 364)).convert("1"), "PNG"),
    "16 bit png": lambda: save(deep_grey(), "PNG"),
    "16 bit tiff": lambda: save(deep_grey(), "TIFF"),
    "16 bit pgm": lambda: save(deep_grey(), "PPM"),
    "rgba webp": lambda: save(with_alpha("RGB"), "WEBP", lossless=True),
    "cmyk tiff": lambda: save(PHOTO.convert("CMYK"), "TIFF"),
    "bmp": lambda: save(PHOTO, "BMP"),
    "ppm": lambda: save(PHOTO, "PPM"),
    "orientation of tiff": lambda: save(PHOTO, "TIFF", tiffinfo={274: 6}),
    "orientation of png": lambda: oriented("PNG", 8),
    "orientation of webp": lambda: oriented("WEBP", 5),
    **{f"orientation {value}": lambda value=value: oriented("JPEG", value) for value in range(10)},  # type: ignore[misc]
}


def decode(encoded: bytes) -> np.ndarray:
    """Decode with the decoder of the pipelines."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        return fn.decoders.image(fn.external_source(name="encoded", batch=True), **DECODER)

    built = pipeline()
    built.feed_input("encoded", [np.frombuffer(encoded, np.uint8)])
    return np.array(built.run()[0].at(0))


def psnr(image: np.ndarray, exact: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((image.astype(float) - exact) ** 2), 1e-9)))


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


@pytest.mark.parametrize("name", FILES)
def test_shrunk_is_what_dali_decodes(name: str) -> None:
    encoded = FILES[name]()
    shrunk = shrink(encoded, SIDE, 100)
    assert shrunk is not None
    image, exact = decode(shrunk), resized(decode(encoded), SIDE)
    assert image.shape == exact.shape
    assert max(image.shape) == SIDE
    # Chroma at half the resolution alone costs as much, and is in every colour image here.
    assert psnr(image, exact) > 33
    # A wrong conversion of grey levels shows only here: chroma has no part in it.
    assert abs(float(image.mean() - exact.mean())) < 0.4
    kept = Image.open(io.BytesIO(shrunk))
    kept.load()
    assert kept.getexif() == {}
    assert "icc_profile" not in kept.info
    assert (kept.mode == "L") == (name in ("grey jpeg", "grey and alpha png", "1 bit") or "16 bit" in name)


@pytest.mark.parametrize("times", [2, 4, 8])
def test_scaled_decoding_costs_little(times: int) -> None:
    """At quality 100 and full chroma, what is lost is lost by decoding at a fraction of the size."""
    source = Image.fromarray(photo(90 * times + 1, 120 * times + 3, 1))
    encoded = save(source, "JPEG", quality=92, subsampling=0)
    shrunk = shrink(encoded, 120, 100)
    assert shrunk is not None
    assert psnr(decode(shrunk), resized(decode(encoded), 120)) > 45


@pytest.mark.parametrize(("subsampling", "kept"), [(0, 0), (1, 1), (2, 2)])
def test_chroma_subsampling_is_kept(subsampling: int, kept: int) -> None:
    shrunk = shrink(save(PHOTO, "JPEG", quality=98, subsampling=subsampling), SIDE, 90)
    assert shrunk is not None
    assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(shrunk))) == kept


def test_no_gain_is_none() -> None:
    small = save(PHOTO, "PNG")
    assert shrink(small, 120, 90) is None
    assert shrink(small, 119, 90) is not None
    few_bytes = save(Image.new("RGB", (120, 90)), "PNG")
    assert len(few_bytes) < 600
    assert shrink(few_bytes, 100, 90) is None  # fewer bytes than any JPEG of that size


def test_the_same_bytes_again() -> None:
    assert shrink(FILES["jpeg"](), SIDE, 90) == shrink(FILES["jpeg"](), SIDE, 90)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "unknown format"),
        (b"<html>", "HTML or XML, which DALI does not read"),
        (encode("GIF"), "GIF, which DALI does not read"),
        (encode("JPEG")[:-900], r"JPEG: image file is truncated \(\d+ bytes not processed\)"),
        (encode("JPEG")[:300], "JPEG: Truncated File Read"),
        (encode("PNG")[:9000], "PNG: image file is truncated"),
        (encode("JPEG2000"), "JPEG 2000 that Pillow does not read"),
        (encode("TIFF", "F"), "TIFF with pixels of type F"),
    ],
    ids=["empty", "html", "gif", "cut jpeg", "half a header", "cut png", "jpeg 2000", "floating point"],
)
def test_what_cannot_be_shrunk(encoded: bytes, message: str) -> None:
    with pytest.raises(CannotShrink, match=rf"^{message}$"):
        shrink(encoded, SIDE, 90)
