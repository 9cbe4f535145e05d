"""Kinds of damaged, odd and mislabelled image files, and how DALI 2.4 handles each on the CPU.

The outcomes were found by experiment; tests/test_check.py compares them with the installed DALI.
"""

from __future__ import annotations

import gzip
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tests.image_sets import photo

_HEIGHT, _WIDTH = 90, 120
_START_OF_SCAN, _HUFFMAN_TABLE, _QUANTISATION_TABLE, _START_OF_FRAME = 0xDA, 0xC4, 0xDB, 0xC0


def encode(form: str, mode: str = "RGB", size: tuple[int, int] = (_WIDTH, _HEIGHT), **options: Any) -> bytes:
    """An undamaged image file in one of Pillow's formats."""
    buffer = io.BytesIO()
    image = Image.fromarray(photo(max(size[1], 2), max(size[0], 2), 3)).resize(size)
    image.convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def segment(jpeg: bytes, marker: int) -> tuple[int, int]:
    """Start (of the 0xFF) and end of the first segment of a JPEG file with `marker`."""
    at = 2
    while jpeg[at + 1] != marker:
        at += 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
    return at, at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]


def scan(jpeg: bytes) -> int:
    """Offset of the compressed pixels."""
    return segment(jpeg, _START_OF_SCAN)[1]


def cut(data: bytes, share: float) -> bytes:
    """The first part of a file."""
    return data[: int(len(data) * share)]


def zero_tail(data: bytes, share: float) -> bytes:
    """An incomplete download into preallocated space: zeros from `share` on."""
    kept = cut(data, share)
    return kept + bytes(len(data) - len(kept))


def overwrite(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with the bytes from `at` replaced by `new`."""
    return data[:at] + new + data[at + len(new) :]


def without(jpeg: bytes, marker: int) -> bytes:
    """A JPEG file without its first segment with `marker`."""
    start, end = segment(jpeg, marker)
    return jpeg[:start] + jpeg[end:]


def odd_webp() -> bytes:
    """A good lossless WebP file with EXIF, the pixels in a chunk of odd length."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    for width in range(20, 60):
        webp = encode("WEBP", size=(width, 30), lossless=True, exif=exif)
        if webp[webp.index(b"VP8L") + 4] % 2:
            return webp
    raise AssertionError("no lossless WebP file of odd length")


def noise(size: int, seed: int = 0) -> bytes:
    """Random bytes."""
    return np.random.default_rng(seed).bytes(size)


# How DALI handles a file: it decodes it; it decodes it with a message on standard error; it raises, and the
# pipeline becomes unusable; it crashes the process.
Outcome = Literal["decodes", "complains", "raises", "kills"]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes
    ----------
    name : str
        File name, with an extension that the pipelines accept.
    data : bytes
        The content.
    outcome : {"decodes", "complains", "raises", "kills"}
        How DALI 2.4 handles it on the CPU.
    """

    name: str
    data: bytes
    outcome: Outcome


def kinds() -> list[Kind]:
    """Every kind, each with different content."""
    jpeg, progressive, png = encode("JPEG", quality=90), encode("JPEG", progressive=True), encode("PNG")
    webp, bmp, tiff, jp2 = encode("WEBP"), encode("BMP"), encode("TIFF"), encode("JPEG2000")
    pixels, middle = scan(jpeg), (scan(jpeg) + len(jpeg)) // 2
    huffman, frame = segment(jpeg, _HUFFMAN_TABLE)[0], segment(jpeg, _START_OF_FRAME)[0]
    quantisation = segment(jpeg, _QUANTISATION_TABLE)
    tile_width = jp2.index(b"\xff\x51") + 22
    found: list[tuple[Outcome, str, bytes]] = [
        # Undamaged files, some of them odd.
        ("decodes", "whole.JPEG", jpeg),
        ("decodes", "progressive.JPEG", progressive),
        ("decodes", "grey.JPEG", encode("JPEG", "L")),
        ("decodes", "cmyk.JPEG", encode("JPEG", "CMYK")),
        ("decodes", "alpha.png", encode("PNG", "RGBA")),
        ("decodes", "palette.png", encode("PNG", "P")),
        ("decodes", "16 bit.png", encode("PNG", "I;16")),
        ("decodes", "1 bit.png", encode("PNG", "1")),
        ("decodes", "alpha.webp", encode("WEBP", "RGBA")),
        ("decodes", "whole.bmp", bmp),
        ("decodes", "whole.tiff", tiff),
        ("decodes", "floating point.tiff", encode("TIFF", "F")),
        ("decodes", "whole.ppm", encode("PPM")),
        ("decodes", "whole.jp2", jp2),
        ("decodes", "one pixel.png", encode("PNG", size=(1, 1))),
        ("decodes", "strip.JPEG", encode("JPEG", size=(5000, 2))),
        ("decodes", "png inside.JPEG", png),
        ("decodes", "more after the end.JPEG", jpeg + noise(500)),
        # Damage without an error: wrong pixels.
        ("decodes", "zeros in the middle.JPEG", overwrite(jpeg, middle, bytes(512))),
        ("decodes", "no Huffman table.JPEG", without(jpeg, _HUFFMAN_TABLE)),
        ("decodes", "quantisation by zero.JPEG", overwrite(jpeg, quantisation[0] + 5, bytes(64))),
        ("decodes", "zeros from the middle.webp", zero_tail(webp, 0.5)),
        ("complains", "zeros from the middle.jp2", zero_tail(jp2, 0.5)),
        ("complains", "noise in the middle.JPEG", overwrite(jpeg, middle, noise(300))),
        ("complains", "noise for pixels.JPEG", jpeg[:pixels] + noise(3000).replace(b"\xff", b"") + jpeg[-2:]),
        ("complains", "cut, but with an end marker.JPEG", cut(jpeg, 0.5) + jpeg[-2:]),
        ("complains", "height too large.JPEG", overwrite(jpeg, frame + 5, struct.pack(">H", 400))),
        ("complains", "cmyk.tiff", encode("TIFF", "CMYK")),
        # JPEG files cut short.
        ("raises", "empty.JPEG", b""),
        ("raises", "one byte.JPEG", jpeg[:1]),
        ("raises", "start marker only.JPEG", jpeg[:2]),
        ("raises", "half a header.JPEG", jpeg[: pixels // 2]),
        ("raises", "header only.JPEG", jpeg[:pixels]),
        ("raises", "one byte of pixels.JPEG", jpeg[: pixels + 1]),
        ("raises", "cut at a quarter.JPEG", cut(jpeg, 0.25)),
        ("raises", "cut at half.JPEG", cut(jpeg, 0.5)),
        ("raises", "cut near the end.JPEG", cut(jpeg, 0.99)),
        ("raises", "no end marker.JPEG", jpeg[:-2]),
        ("raises", "half an end marker.JPEG", jpeg[:-1]),
        ("raises", "zeros from the middle.JPEG", zero_tail(jpeg, 0.5)),
        ("raises", "progressive, cut near the end.JPEG", cut(progressive, 0.95)),
        ("raises", "progressive, zeros from the middle.JPEG", zero_tail(progressive, 0.5)),
        # JPEG files with a wrong header.
        ("raises", "zeros at the start.JPEG", bytes(64) + jpeg[64:]),
        ("raises", "too many Huffman codes.JPEG", overwrite(jpeg, huffman + 5, b"\xff")),
        ("raises", "no quantisation table.JPEG", without(jpeg, _QUANTISATION_TABLE)),
        ("raises", "no frame header.JPEG", without(jpeg, _START_OF_FRAME)),
        ("raises", "width 0.JPEG", overwrite(jpeg, frame + 7, bytes(2))),
        ("raises", "65500 pixels a side.JPEG", overwrite(jpeg, frame + 5, struct.pack(">HH", 65500, 65500))),
        ("raises", "12 bit by its header.JPEG", overwrite(jpeg, frame + 4, b"\x0c")),
        # Bytes changed in transfer or storage.
        ("raises", "through text mode.JPEG", jpeg.replace(b"\n", b"\r\n")),
        ("raises", "through UTF-8.JPEG", jpeg.decode("latin1").encode()),
        ("raises", "line break before the start.JPEG", b"\n" + jpeg),
        ("raises", "compressed.JPEG", gzip.compress(jpeg, mtime=0)),
        # Other content.
        ("raises", "noise.JPEG", noise(4000)),
        ("raises", "noise after a marker.JPEG", b"\xff\xd8\xff\xe0" + noise(4000, 1)),
        ("raises", "zeros.JPEG", bytes(4000)),
        ("raises", "html.JPEG", b"<!DOCTYPE html>\n<html><title>404 Not Found</title></html>\n"),
        ("raises", "git lfs.JPEG", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        ("raises", "gif inside.JPEG", encode("GIF")),
        ("raises", "pdf inside.JPEG", encode("PDF")),
        # Other formats, damaged.
        ("raises", "cut at half.png", cut(png, 0.5)),
        ("raises", "no end chunk.png", png[:-12]),
        ("raises", "wrong checksum.png", overwrite(png, 29, bytes(4))),
        ("raises", "one wrong byte.png", overwrite(png, len(png) // 2, bytes([png[len(png) // 2] ^ 0x55]))),
        ("raises", "cut at half.webp", cut(webp, 0.5)),
        ("raises", "lossless with EXIF after an odd chunk.webp", odd_webp()),
        ("raises", "cut at half.bmp", cut(bmp, 0.5)),
        ("raises", "cut at half.tiff", cut(tiff, 0.5)),
        ("raises", "header only.tiff", tiff[:8]),
        ("raises", "cut at half.jp2", cut(jp2, 0.5)),
        ("kills", "tiles of width 0.jp2", overwrite(jp2, tile_width, bytes(4))),
    ]  # fmt: skip
    return [Kind(name, data, outcome) for outcome, name, data in found]


def write_kinds(folder: Path, *outcomes: Outcome) -> list[Kind]:
    """Write the kinds with one of `outcomes` (default: all) into a folder; returns them."""
    folder.mkdir(parents=True)
    chosen = [kind for kind in kinds() if not outcomes or kind.outcome in outcomes]
    for kind in chosen:
        (folder / kind.name).write_bytes(kind.data)
    return chosen
