"""Formats of image files: their first bytes, their extensions, and which of them DALI reads."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple


class Format(NamedTuple):
    """A file format.

    Attributes
    ----------
    name : str
    start : re.Pattern
        Pattern of the first bytes.
    extensions : tuple of str
        In lower case; empty if DALI does not read the format.
    """

    name: str
    start: re.Pattern[bytes]
    extensions: tuple[str, ...]


# Our own table: packages for this know hundreds of formats, but only a dozen matter here. Which ones DALI 2.4
# reads was found by experiment, with whole images and with crops.
_TABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("JPEG", r"\xff\xd8\xff", (".jpeg", ".jpg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo")),
    ("PNG", r"\x89PNG\r\n\x1a\n", (".png", ".apng")),
    ("BMP", r"BM", (".bmp",)),
    ("WebP", r"RIFF....WEBP", (".webp",)),
    ("TIFF", r"II[*+]\0|MM\0[*+]", (".tif", ".tiff")),
    ("PNM", r"P[1-6]\s", (".pnm", ".ppm", ".pgm", ".pbm")),
    (
        "JPEG 2000",
        r"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    ),
    ("GIF", r"GIF8[79]a", ()),
    ("AVIF or HEIF", r"....ftyp(?:avi|hei|mif)", ()),
    ("PDF", r"%PDF", ()),
    ("HTML or XML", r"\s*<(?:!doctype|html|\?xml|svg)", ()),
    ("gzip", r"\x1f\x8b", ()),
    ("ZIP", r"PK\x03\x04", ()),
    ("Git LFS pointer", r"version https://git-lfs", ()),
)
FORMATS = [
    Format(name, re.compile(start.encode("latin1"), re.DOTALL | re.IGNORECASE), extensions)
    for name, start, extensions in _TABLE
]
# Extensions of images, in any case.
EXTENSIONS = frozenset(extension for form in FORMATS for extension in form.extensions)

_EXIF_FLAG = 0x08  # in the first byte of the VP8X chunk


def detect_format(content: bytes) -> Format | None:
    """Detect a format by the first bytes; None if unknown."""
    return next((form for form in FORMATS if form.start.match(content[:64])), None)


def explain_decoder_bug(content: bytes) -> str | None:
    """Explain why DALI 2.4 cannot decode a good image, and what to do; None if no known bug applies.

    DALI searches WebP chunks for the EXIF, which has the orientation, but does not skip the padding byte
    after a chunk of odd length. This affects half of the lossless images with EXIF, and hardly any others:
    lossy data written by libwebp has an even length.
    """
    if not _WEBP_START.match(content[:64]):
        return None
    odd = ""
    for name, size, start in _riff_chunks(content):
        if name == b"VP8X" and not content[start] & _EXIF_FLAG:
            return None
        if name == b"EXIF" and odd:
            kind = "lossless WebP" if odd == "VP8L" else "WebP"
            return (
                f"{kind} with EXIF after a chunk ({odd}) of odd length, which DALI 2.4 cannot decode; remove"
                " the EXIF (webpmux -strip exif IN -o OUT) or save the image again in another format"
            )
        if size % 2 and not odd:
            odd = name.decode("latin1").strip()
    return None


_WEBP_START = next(form.start for form in FORMATS if form.name == "WebP")


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, length and data offset of each complete chunk."""
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        if at + 8 + size > len(content) or not size:
            return
        yield name, size, at + 8
        at += 8 + size + size % 2
