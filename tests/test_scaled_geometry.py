"""Decoding of windows at smaller scales, by itself: geometry, scales, and which files it takes."""

from __future__ import annotations

import ctypes
import io
import itertools
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from dali_msda.backends.numba.jpeg import read_header
from dali_msda.backends.numba.scaled_decoding import decode_window
from pipelines import scaled_decoding
from tests.damage import overwrite, segment
from tests.jpegs import (
    EXIF_SEGMENTS,
    SAMPLINGS,
    noise,
    oriented,
    sampled,
    save,
    smooth,
    with_segments,
)

SIZE = 24
GUARD = 64
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 6)


class Decoder:
    """simplejpeg as the pipelines call it; it records what it is asked for."""

    def __init__(self) -> None:
        self._decode: Any = _FUNCTION(scaled_decoding._make_decoder().addresses["decoder"])
        self._function = _FUNCTION(self._record)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value
        self.sizes: list[tuple[int, int]] = []
        self.strict: list[bool] = []

    def _record(self, encoded: int, size: int, pixels: int, height: int, width: int, strict: int) -> int:
        self.sizes.append((height, width))
        self.strict.append(bool(strict))
        return int(self._decode(encoded, size, pixels, height, width, strict))


@pytest.fixture
def decoder() -> Decoder:
    return Decoder()


def upright(jpeg: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg))).convert("RGB")


def decode(
    decoder: Decoder,
    jpeg: bytes,
    window: tuple[float, ...],
    *,
    size: int = SIZE,
    clip: bool = True,
    mirror: bool = False,
    shape: tuple[int, int] | None = None,
) -> np.ndarray | None:
    """The decoded window, None if it was not taken; `shape` is read from the header by default."""
    data = np.frombuffer(jpeg, np.uint8)
    if shape is None:
        header = read_header(data)
        shape = header.height, header.width
        shape = shape[::-1] if header.orientation >= 5 else shape
    buffer = np.full(size * size * 3 + 2 * GUARD, 171, np.uint8)
    out = buffer[GUARD:-GUARD].reshape(size, size, 3)
    sides = np.array([*shape, 3], np.int64)
    taken = decode_window(out, data, sides, np.array(window, np.float64), clip, mirror, decoder.address)
    assert (buffer[:GUARD] == 171).all()
    assert (buffer[-GUARD:] == 171).all()
    return out if taken else None


WINDOWS = [(0, 0, 212, 300), (13, 27, 101, 155), (5, 3, 200, 203), (100, 200, 112, 100), (31, 7, 77, 51)]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_those_of_the_upright_image(orientation: int, mirror: bool, decoder: Decoder) -> None:
    """Pillow turns, crops, resizes and mirrors; large and small scales, at the borders and within."""
    sides = (212, 300) if orientation < 5 else (300, 212)
    jpeg = with_segments(save(smooth(*sides)), oriented(orientation))
    image = upright(jpeg)
    for top, left, height, width in WINDOWS:
        box = (left, top, left + width, top + height)
        inside = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        beyond = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
        for clip, resized in ((True, inside), (False, beyond)):
            found = decode(decoder, jpeg, (top, left, height, width), clip=clip, mirror=mirror)
            expected = np.asarray(resized, int)[:, :: -1 if mirror else 1]
            assert found is not None
            assert np.abs(found - expected).max() <= 2
    assert len(decoder.sizes) == 2 * len(WINDOWS)


def test_windows_between_pixels(decoder: Decoder) -> None:
    jpeg = save(smooth(212, 300))
    for top, left, height, width in ((0.5, 0.25, 100.75, 99.5), (55.3, 101.9, 156.7, 198.1)):
        box = (left, top, left + width, top + height)
        expected = upright(jpeg).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
        found = decode(decoder, jpeg, (top, left, height, width), clip=False)
        assert found is not None
        assert np.abs(found - np.asarray(expected, int)).max() <= 2


def test_a_clipped_window_shows_nothing_of_its_surroundings(decoder: Decoder) -> None:
    """Except in the pixels of the scaled image that are partly in the window."""
    image = np.full((240, 320, 3), 250, np.uint8)
    image[64:160, 80:192] = 10  # whole blocks of chroma
    found = decode(decoder, save(image), (64, 80, 96, 112))
    assert found is not None
    assert found.max() <= 12
    beyond = decode(decoder, save(image), (64, 80, 96, 112), clip=False)
    assert beyond is not None
    assert beyond.max() > 20


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (16 * SIZE, 16 * SIZE, 8),
        (8 * SIZE, 8 * SIZE, 8),
        (8 * SIZE - 1, 8 * SIZE, 4),
        (8 * SIZE, 8 * SIZE - 1, 4),
        (8 * SIZE - 1e-6, 16 * SIZE, 4),
        (4 * SIZE, 4 * SIZE, 4),
        (4 * SIZE - 1, 16 * SIZE, 2),
        (16 * SIZE, 4 * SIZE - 1, 2),
        (2 * SIZE, 2 * SIZE, 2),
        (2 * SIZE - 1, 16 * SIZE, None),
        (16 * SIZE, 2 * SIZE - 1, None),
        (SIZE, SIZE, None),
        (1, 1, None),
    ],
)
def test_the_scaled_window_is_never_smaller_than_the_output(
    height: float, width: float, scale: int | None, decoder: Decoder
) -> None:
    jpeg = save(smooth(16 * SIZE + 1, 16 * SIZE + 3)) + b"trailing, so that the whole image is decoded"
    found = decode(decoder, jpeg, (0, 0, height, width))
    assert (found is None) == (scale is None)
    assert decoder.sizes == (
        [] if scale is None else [(-(-(16 * SIZE + 1) // scale), -(-(16 * SIZE + 3) // scale))]
    )


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rows_below_the_window_change_nothing(sampling: str, decoder: Decoder) -> None:
    """A file with more after its end is decoded as a whole, and strictly; its bits are the same."""
    jpeg = sampled(noise(230, 250), sampling)
    columns = (11, 8 * SIZE)
    for scale, top, more, clip in itertools.product((2, 4, 8), (0, 7, 16), (0, 1, 5, 9), (False, True)):
        window = (top, columns[0], min(scale * SIZE + more, 230 - top), columns[1])
        part, whole = (decode(decoder, data, window, clip=clip) for data in (jpeg, jpeg + b"\0"))
        assert part is not None
        np.testing.assert_array_equal(part, whole)
        lower, full = decoder.sizes[-2:]
        assert lower[0] < full[0] or window[0] + window[2] > 180
    assert decoder.strict == [False, True] * (len(decoder.strict) // 2)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}], ids=str)
def test_the_same_with_restart_markers_and_turned(
    options: dict[str, int], orientation: int, decoder: Decoder
) -> None:
    jpeg = with_segments(save(noise(230, 250), **options), oriented(orientation))
    assert (b"\xff\xd3" in jpeg) == bool(options)
    for window in ((0, 0, 60, 70), (100, 90, 51, 51), (130, 140, 100, 80), (3, 150, 200, 80)):
        part, whole = (decode(decoder, data, window) for data in (jpeg, jpeg + b"\0"))
        assert part is not None
        np.testing.assert_array_equal(part, whole)
    heights = {height for height, _ in decoder.sizes}
    assert len(heights) > 2


def test_large_scaled_images_are_left_to_the_usual_decoder(decoder: Decoder) -> None:
    """Only what is decoded counts: 2^24 pixels after scaling."""
    jpeg = save(np.full((8200, 8300), 77, np.uint8))
    assert decode(decoder, jpeg, (8200 - 2 * SIZE, 0, 2 * SIZE, 2 * SIZE)) is None
    assert decoder.sizes == []
    assert decode(decoder, jpeg, (0, 8300 - 2 * SIZE, 2 * SIZE, 2 * SIZE)) is not None
    assert decode(decoder, jpeg, (8200 - 4 * SIZE, 0, 4 * SIZE, 4 * SIZE)) is not None


@pytest.mark.parametrize(("orientation", "shape"), [(1, (300, 212)), (6, (212, 300)), (1, (212, 301))])
def test_another_shape_than_dali_found(orientation: int, shape: tuple[int, int], decoder: Decoder) -> None:
    jpeg = with_segments(save(smooth(212, 300)), oriented(orientation))
    assert decode(decoder, jpeg, (0, 0, 200, 200), shape=shape) is None
    assert decode(decoder, jpeg, (0, 0, 200, 200)) is not None


@pytest.mark.parametrize("name", EXIF_SEGMENTS)
def test_orientations(name: str) -> None:
    """Wherever a program might understand another one, the file is not plain."""
    expected, segments = EXIF_SEGMENTS[name]
    jpeg = save(smooth(20, 30))
    for at in (2, segment(jpeg, 0xDB)[0], segment(jpeg, 0xC0)[1]):
        header = read_header(np.frombuffer(with_segments(jpeg, *segments, at=at), np.uint8))
        assert header.orientation == expected
        assert (header.height, header.width) == ((20, 30) if expected else (0, 0))


def test_headers_of_many_files() -> None:
    """Size and orientation are Pillow's."""
    rng = random.Random(1)
    plain = 0
    for _ in range(150):
        options: dict[str, Any] = {
            "quality": rng.randrange(1, 101),
            "subsampling": rng.randrange(3),
            "progressive": rng.random() < 0.2,
            "optimize": rng.random() < 0.3,
            "restart_marker_blocks": rng.choice((0, 1, 5)),
            "dpi": (rng.randrange(1, 300), 72),
        }
        mode = rng.choice(("RGB", "RGB", "L", "CMYK"))
        image = Image.new(mode, (rng.randrange(1, 70), rng.randrange(1, 70)))
        exif = Image.Exif()
        exif[0x010F] = "maker" * rng.randrange(9)
        exif[0x0112] = rng.randrange(1, 9)
        exif[0x9000] = b"0232"
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options, **({"exif": exif} if rng.random() < 0.8 else {}))
        header = read_header(np.frombuffer(buffer.getvalue(), np.uint8))
        opened = Image.open(buffer)
        if options["progressive"] or mode == "CMYK":
            assert header == (0,) * len(header)
            continue
        plain += 1
        assert (header.width, header.height) == opened.size
        assert header.orientation == opened.getexif().get(0x0112, 1)
        assert buffer.getvalue()[header.frame :][:2] in (b"\xff\xc0", b"\xff\xc1")
        assert header.rows == (16 if mode == "RGB" and options["subsampling"] == 2 else 8)
    assert plain > 75


JPEG = save(smooth(100, 120))
FRAME, SCAN = segment(JPEG, 0xC0)[0], segment(JPEG, 0xDA)[0]
NOT_PLAIN = {
    "empty": b"",
    "start only": b"\xff\xd8",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "progressive": save(smooth(100, 120), progressive=True),
    "arithmetic coding": overwrite(JPEG, FRAME + 1, b"\xc9"),
    "lossless": overwrite(JPEG, FRAME + 1, b"\xc3"),
    "12 bits": overwrite(JPEG, FRAME + 4, b"\x0c"),
    "height in a later segment": overwrite(JPEG, FRAME + 5, b"\0\0"),
    "no columns": overwrite(JPEG, FRAME + 7, b"\0\0"),
    "two components": overwrite(JPEG, FRAME + 9, b"\2"),
    "a scan of one component": overwrite(JPEG, SCAN + 4, b"\1"),
    "two frames": JPEG[:SCAN] + JPEG[FRAME:],
    "no frame": JPEG[:FRAME] + JPEG[segment(JPEG, 0xC0)[1] :],
    "cut before its frame": JPEG[:FRAME],
    "cut before its scan": JPEG[:SCAN],
    "a segment of length 1": JPEG[:2] + b"\xff\xe5\0\1" + JPEG[2:],
    "a segment beyond the end": JPEG[:2] + b"\xff\xe5\xff\xff" + JPEG[2:],
    "no segment": JPEG[:2] + b"12" + JPEG[2:],
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_files_that_are_not_plain(name: str, decoder: Decoder) -> None:
    assert decode(decoder, JPEG, (0, 0, 100, 100)) is not None
    assert decode(decoder, NOT_PLAIN[name], (0, 0, 100, 100), shape=(100, 120)) is None
    assert len(decoder.sizes) == 1


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
def test_truncated_files_are_not_taken(share: float, decoder: Decoder) -> None:
    """Even where the window lies above the cut: the usual decoder says what it thinks of them."""
    jpeg = save(noise(212, 300))
    whole = decode(decoder, jpeg, (0, 0, 50, 50))
    assert whole is not None
    assert decode(decoder, jpeg[: int(len(jpeg) * share)], (0, 0, 50, 50)) is None
    assert decoder.strict == [False, True]


def test_mutated_files(decoder: Decoder) -> None:
    """No crash, nothing written outside of the output, and most damaged headers are not taken."""
    rng = random.Random(0)
    whole = [with_segments(sampled(noise(100, 120), sampling), oriented(6)) for sampling in SAMPLINGS]
    counts = {False: 0, True: 0}
    for _ in range(1500):
        data = bytearray(rng.choice(whole))
        head = rng.choice((60, 200, 700, len(data)))
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(head)] = rng.choice((0, 1, 2, 127, 128, 254, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        if rng.random() < 0.2:
            at = rng.randrange(head)
            del data[at : at + rng.randrange(1, 20)]
        top, left = rng.randrange(30), rng.randrange(20)
        window = (top, left, rng.randrange(48, 121 - top), rng.randrange(48, 101 - left))
        header = read_header(np.frombuffer(bytes(data), np.uint8))
        # DALI finds the same size, and crops windows within it.
        shape = None if 120 <= min(header.height, header.width) < 1000 else (120, 100)
        counts[decode(decoder, bytes(data), window, shape=shape) is not None] += 1
    assert min(counts.values()) > 200
