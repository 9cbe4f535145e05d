"""Formats: DALI decodes the content of every accepted extension."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines._decoding import _Decoder, _Undecodable
from pipelines.formats import EXTENSIONS, FORMATS, detect_format, explain_decoder_bug
from tests.damage import encode, odd_webp

# A file of each format, by its extensions.
FILES = {
    (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi"): lambda: encode("JPEG"),
    (".mpo",): lambda: encode("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    (".png",): lambda: encode("PNG"),
    (".apng",): lambda: encode("PNG", save_all=True, append_images=[Image.new("RGB", (120, 90))]),
    (".bmp",): lambda: encode("BMP"),
    (".webp",): lambda: encode("WEBP"),
    (".tif", ".tiff"): lambda: encode("TIFF", big_tiff=True),
    (".ppm", ".pnm"): lambda: encode("PPM"),
    (".pgm",): lambda: encode("PPM", "L"),
    (".pbm",): lambda: encode("PPM", "1"),
    (".jp2", ".jpf"): lambda: encode("JPEG2000"),
    (".j2k", ".j2c", ".jpc"): lambda: encode("JPEG2000", no_jp2=True),
    (".jpx",): lambda: encode("JPEG2000").replace(b"ftypjp2 ", b"ftypjpx "),
}


def decoded(data: bytes) -> tuple[int, ...]:
    (shape,) = _Decoder()([np.frombuffer(data, np.uint8)])
    return shape


def test_every_extension_has_a_file() -> None:
    assert {extension for extensions in FILES for extension in extensions} == EXTENSIONS


@pytest.mark.parametrize("extensions", FILES, ids=lambda extensions: extensions[0])
def test_accepted_formats_decode(extensions: tuple[str, ...]) -> None:
    data = FILES[extensions]()
    form = detect_format(data)
    assert form is not None
    assert set(extensions) <= set(form.extensions)
    assert decoded(data) == (90, 120, 3)


@pytest.mark.parametrize("form", ["GIF", "AVIF", "ICO", "TGA", "PCX", "SGI", "DDS"])
def test_other_formats_do_not_decode(form: str) -> None:
    data = encode(form)
    found = detect_format(data)
    assert found is None or not found.extensions
    with pytest.raises(_Undecodable):
        decoded(data)


def test_formats_are_distinct() -> None:
    assert len({form.name for form in FORMATS}) == len(FORMATS)
    assert detect_format(b"") is None


# WebP with EXIF after a chunk of odd length


def test_the_bug_is_reported_for_exactly_the_files_that_fail() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    outcomes = set()
    for width in range(40, 48):
        for lossless in (True, False):
            for more in (b"", exif.tobytes()):
                data = encode("WEBP", size=(width, 30), lossless=lossless, exif=more)
                bug = explain_decoder_bug(data)
                outcomes.add(bug is not None)
                if bug is None:
                    assert len(decoded(data)) == 3
                else:
                    with pytest.raises(_Undecodable):
                        decoded(data)
    assert outcomes == {True, False}


def test_the_advice_helps() -> None:
    data = odd_webp()
    bug = explain_decoder_bug(data)
    assert bug is not None
    assert bug.startswith("lossless WebP with EXIF after a chunk (VP8L) of odd length, which DALI 2.4")
    assert "webpmux -strip exif IN -o OUT" in bug
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    image.info.pop("exif")
    image.save(buffer, "WEBP", lossless=True)
    assert explain_decoder_bug(buffer.getvalue()) is None
    assert decoded(buffer.getvalue()) == (image.height, image.width, 3)


@pytest.mark.parametrize("length", [0, 11, 12, 19, 20, 29, 30, 33, 40, 200])
def test_truncated_files_are_not_blamed_on_the_bug(length: int) -> None:
    assert explain_decoder_bug(odd_webp()[:length]) is None
