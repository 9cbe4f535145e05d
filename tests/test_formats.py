"""Formats: every extension that is taken stands for content that DALI decodes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines._decoding import _Decoder, _Undecodable
from pipelines.formats import EXTENSIONS, FORMATS, format_of, known_obstacle
from tests.damage import encode, odd_webp

# A file of each kind, by the extensions that it goes by.
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


def test_every_extension_is_tried() -> None:
    assert {extension for extensions in FILES for extension in extensions} == EXTENSIONS


@pytest.mark.parametrize("extensions", FILES, ids=lambda extensions: extensions[0])
def test_what_is_taken_decodes(extensions: tuple[str, ...]) -> None:
    data = FILES[extensions]()
    form = format_of(data)
    assert form is not None
    assert set(extensions) <= set(form.extensions)
    assert decoded(data) == (90, 120, 3)


@pytest.mark.parametrize("form", ["GIF", "AVIF", "ICO", "TGA", "PCX", "SGI", "DDS"])
def test_what_is_not_taken_does_not(form: str) -> None:
    data = encode(form)
    found = format_of(data)
    assert found is None or not found.extensions
    with pytest.raises(_Undecodable):
        decoded(data)


def test_formats_are_told_apart() -> None:
    assert len({form.name for form in FORMATS}) == len(FORMATS)
    assert format_of(b"") is None


# WebP with EXIF after a chunk of odd length


def test_the_obstacle_is_the_one_that_stops_dali() -> None:
    """Said of the files that fail, of no others; what it advises helps."""
    exif = Image.Exif()
    exif[0x0112] = 6
    said = set()
    for width in range(40, 48):
        for lossless in (True, False):
            for more in (b"", exif.tobytes()):
                data = encode("WEBP", size=(width, 30), lossless=lossless, exif=more)
                obstacle = known_obstacle(data)
                said.add(obstacle is not None)
                if obstacle is None:
                    assert len(decoded(data)) == 3
                else:
                    with pytest.raises(_Undecodable):
                        decoded(data)
    assert said == {True, False}


def test_the_advice_helps() -> None:
    data = odd_webp()
    obstacle = known_obstacle(data)
    assert obstacle is not None
    assert obstacle.startswith("lossless WebP with EXIF after a chunk (VP8L) of odd length, which DALI 2.4")
    assert "webpmux -strip exif IN -o OUT" in obstacle
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    image.info.pop("exif")
    image.save(buffer, "WEBP", lossless=True)
    assert known_obstacle(buffer.getvalue()) is None
    assert decoded(buffer.getvalue()) == (image.height, image.width, 3)


@pytest.mark.parametrize("length", [0, 11, 12, 19, 20, 29, 30, 33, 40, 200])
def test_cut_files_are_no_trouble(length: int) -> None:
    assert known_obstacle(odd_webp()[:length]) is None
