"""JPEG files for the tests of scaled decoding: smooth or noisy, in any orientation and sampling."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

ORIENTATION, SHORT, LONG = 274, 3, 4
SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image without edges, of which scaled decoding makes the same as a resize; no part equals another."""
    y, x = np.mgrid[:height, :width]
    a, b, c = np.random.default_rng(seed).uniform(0.5, 1.5, 3)
    red = 127 + 100 * np.sin(3 * a * x / width + 2 * y / height)
    green = 127 + 100 * np.cos(4 * b * y / height - x / width)
    blue = 20 + 200 * c / 1.5 * x / width * y / height
    return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **{"quality": 97, **options})
    return buffer.getvalue()


def sampled(image: np.ndarray, sampling: str) -> bytes:
    """A JPEG with one of `SAMPLINGS`, of which Pillow has only three."""
    if sampling == "Gray":
        return bytes(simplejpeg.encode_jpeg(image[:, :, :1].copy(), colorspace="GRAY"))
    return bytes(simplejpeg.encode_jpeg(image, colorsubsampling=sampling))


def tiff(*entries: tuple[int, int, int, int], order: str = "<", magic: int = 42, at: int = 8) -> bytes:
    """A TIFF header and a directory, at `at`, of entries: tag, type, count, value."""
    found = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", magic, at) + bytes(at - 8)
    found += struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        found += struct.pack(order + "HHI", tag, kind, count)
        found += struct.pack(order + ("I" if kind == LONG else "Hxx"), value)
    return found + bytes(4)


def oriented(value: int, order: str = "<") -> bytes:
    """An EXIF segment with an orientation."""
    return exif(tiff((ORIENTATION, SHORT, 1, value), order=order))


def exif(content: bytes, head: bytes = b"Exif\0\0", marker: int = 0xE1) -> bytes:
    """A segment of an application, by default of EXIF."""
    return struct.pack(">BBH", 0xFF, marker, 2 + len(head + content)) + head + content


def with_segments(jpeg: bytes, *segments: bytes, at: int = 2) -> bytes:
    """A JPEG with more segments, by default at its start."""
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


_UPRIGHT = (ORIENTATION, SHORT, 1, 1)
_TURNED = (ORIENTATION, SHORT, 1, 3)
_OTHER = (271, SHORT, 1, 3)
_XMP = exif(b"<x/>", b"http://ns.adobe.com/xap/1.0/\0")
# What a header says of the orientation, and how it is understood: 0 if programs differ.
EXIF_SEGMENTS: dict[str, tuple[int, list[bytes]]] = {
    "none": (1, []),
    **{f"{value}, {order}": (value, [oriented(value, order)]) for value in range(1, 9) for order in "<>"},
    "a directory elsewhere": (3, [exif(tiff(_TURNED, at=20))]),
    "after another entry": (3, [exif(tiff((300, SHORT, 1, 8), _TURNED))]),
    "only another entry": (1, [exif(tiff(_OTHER))]),
    "XMP before it": (3, [_XMP, oriented(3)]),
    "XMP after it": (3, [oriented(3), _XMP]),
    "a comment before it": (3, [exif(b"", b"comment", 0xFE), oriented(3)]),
    "fill bytes before it": (3, [b"\xff\xff", oriented(3)]),
    "in another segment": (1, [exif(tiff(_TURNED), marker=0xE2)]),
    "of the thumbnail": (1, [exif(tiff(_OTHER)[:-4] + struct.pack("<I", 26) + tiff(_TURNED)[8:])]),
    "value 0": (0, [oriented(0)]),
    "value 9": (0, [oriented(9)]),
    "LONG": (0, [exif(tiff((ORIENTATION, LONG, 1, 3)))]),
    "LONG, big-endian": (0, [exif(tiff((ORIENTATION, LONG, 1, 3), order=">"))]),
    "two values": (0, [exif(tiff((ORIENTATION, SHORT, 2, 3)))]),
    "no values": (0, [exif(tiff((ORIENTATION, SHORT, 0, 3)))]),
    "two entries": (0, [exif(tiff(_UPRIGHT, _TURNED))]),
    "two equal entries": (0, [exif(tiff(_TURNED, _TURNED))]),
    "two segments": (0, [oriented(3), oriented(2)]),
    "two segments, the second without": (0, [oriented(3), exif(tiff(_OTHER))]),
    "two segments, the first without": (0, [exif(tiff(_OTHER)), oriented(3)]),
    "another name": (0, [exif(tiff(_TURNED), b"Exif\0\1")]),
    "another number after the byte order": (0, [exif(tiff(_TURNED, magic=43))]),
    "no byte order": (0, [exif(b"XX" + tiff(_TURNED)[2:])]),
    "cut in the header": (0, [exif(tiff(_TURNED)[:7])]),
    "cut in the entry": (0, [exif(tiff(_TURNED)[:20])]),
    "empty": (0, [exif(b"")]),
    "a directory outside": (0, [exif(tiff(_TURNED)[:4] + b"\xff\xff\0\0" + tiff(_TURNED)[8:])]),
    "a directory in the header": (0, [exif(tiff(_TURNED)[:4] + b"\4\0\0\0" + tiff(_TURNED)[8:])]),
    "too many entries": (0, [exif(tiff(_TURNED)[:8] + b"\xff\0" + tiff(_TURNED)[10:])]),
}
