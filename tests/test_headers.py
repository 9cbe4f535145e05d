"""Damaged headers reach no decoder, and no file crashes a process."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def

from pipelines import headers
from pipelines.headers import check_headers
from tests import fuzzing
from tests.damage import encode, kinds, overwrite, segment

ROOT = Path(headers.__file__).resolve().parent.parent
_FILES = 150


def tiff(bits: int, form: int, order: str = "<", big: bool = False) -> bytes:
    """An image of 2 x 2 samples: `form` 1 unsigned, 2 signed, 3 floating point."""
    entries = [(256, 2), (257, 2), (258, bits), (259, 1), (262, 1), (273, 0), (277, 1), (278, 2)]
    entries += [(279, 4 * (bits // 8)), (339, form)]
    start, end = (16, 16 + 8 + 20 * len(entries) + 8) if big else (8, 8 + 2 + 12 * len(entries) + 4)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, start) if big else struct.pack(order + "I", start)
    body = struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, value in entries:
        value = end if tag == 273 else value
        body += struct.pack(order + ("HHQHxxxxxx" if big else "HHIHxx"), tag, 3, 1, value)
    return head + body + bytes(8 if big else 4) + bytes(4 * (bits // 8))


def passes(encoded: bytes) -> bool:
    """Whether a file passes the check, unchanged."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        return check_headers(fn.external_source(name="encoded", batch=True))

    built = pipeline()
    built.build()
    built.feed_input("encoded", [np.frombuffer(encoded, np.uint8)])
    try:
        (out,) = built.run()
    except RuntimeError as error:
        return not any(operator in str(error) for operator in (headers.STOPPED_BY, "peek_image_shape"))
    np.testing.assert_array_equal(out[0], np.frombuffer(encoded, np.uint8))
    return True


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.outcome != "raises"], ids=lambda k: k.name)
def test_images_that_decode_pass(kind: Any) -> None:
    assert passes(kind.data) == (kind.outcome != "kills")


def test_undamaged_files_pass() -> None:
    refused = {name.rsplit(" (")[0] for name, data in fuzzing.originals() if not passes(data)}
    # 32-bit integers; and Pillow omits the tag for 1 bit, which nvImageCodec requires.
    assert refused == {"TIFF I", "TIFF 1"}


JPEG, JP2 = encode("JPEG"), encode("JPEG2000")
FRAME, CODE_STREAM = segment(JPEG, 0xC0)[0], JP2.index(b"\xff\x4f\xff\x51")
CODING, QUANTISATION = (JP2.index(mark, CODE_STREAM) for mark in (b"\xff\x52", b"\xff\x5c"))
DAMAGED = {
    "JPEG of 17 bits": overwrite(JPEG, FRAME + 4, b"\x11"),
    "JPEG with a second frame of 17 bits": overwrite(
        JPEG, FRAME + 19, b"\xff\xc0\x00\x11\x11" + JPEG[FRAME + 5 : FRAME + 19]
    ),
    "JPEG cut in its tables": JPEG[:200],
    "JPEG cut before its frame": JPEG[:FRAME],
    "empty": b"",
    "BMP of 9 bits": overwrite(encode("BMP"), 28, b"\x09"),
    "BMP with a header of 1 byte": overwrite(encode("BMP"), 14, b"\x01"),
    "an undamaged image of 48000 rows": encode("PNG", size=(12, 48000)),
    "PNG of a billion columns": overwrite(encode("PNG"), 16, struct.pack(">I", 10**9)),
    "TIFF of 32-bit integers": encode("TIFF", "I"),
    "TIFF of 24 bits": tiff(24, 1),
    "TIFF of float16": tiff(16, 3),
    "TIFF of float64": tiff(64, 3, ">"),
    "BigTIFF of float64": tiff(64, 3, "<", big=True),
    "BigTIFF of 32-bit integers, big-endian": tiff(32, 2, ">", big=True),
    "JPEG 2000 cut in its header": JP2[: CODING + 3],
    "JPEG 2000 without a code stream": JP2[:CODE_STREAM],
    "JPEG 2000 with tiles of height 0": overwrite(JP2, CODE_STREAM + 28, bytes(4)),
    "JPEG 2000 without components": overwrite(JP2, CODE_STREAM + 40, bytes(2)),
    "JPEG 2000 of 33 levels": overwrite(JP2, CODING + 9, b"\x21"),
    "JPEG 2000 without its quantisation": overwrite(JP2, QUANTISATION, b"\xff\x64"),
    "JPEG 2000 with an unknown marker": overwrite(JP2, QUANTISATION, b"\xff\x11"),
}
ODD = {
    "TIFF of 16 bits": tiff(16, 1, ">"),
    "TIFF of float32": tiff(32, 3),
    "BigTIFF of 16 bits": tiff(16, 1, big=True),
    "bare code stream": JP2[CODE_STREAM:],
    "JPEG of 12 bits": overwrite(JPEG, FRAME + 4, b"\x0c"),
    "JPEG with fill bytes": JPEG[:FRAME] + b"\xff\xff" + JPEG[FRAME:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers_do_not_pass(name: str) -> None:
    assert not passes(DAMAGED[name])


@pytest.mark.parametrize("name", ODD)
def test_odd_headers_pass(name: str) -> None:
    assert passes(ODD[name])


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "compiled_module", lambda _: None)
    for name in ("JPEG cut in its tables", "empty", "BMP of 9 bits"):
        assert not passes(DAMAGED[name]), name
    assert passes(JPEG)


@pytest.mark.parametrize("path", fuzzing.PATHS)
def test_no_process_crashes(path: str, tmp_path: Path) -> None:
    """``python -m tests.fuzzing`` tries many more files."""
    counts, fatal = fuzzing.fuzz(path, range(_FILES))
    assert fatal == {}
    assert counts.total() == _FILES
    assert min(counts["refused"], counts["decoded"]) > _FILES / 10


def test_a_file_truncated_during_reading(tmp_path: Path) -> None:
    """Files are not mapped: truncating a mapped file would end the process with SIGBUS."""
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "a" / f"{index}.JPEG" for index in range(4)]
    for path in paths:
        path.write_bytes(encode("JPEG", size=(1200, 900), quality=98))
    cut_and_restore = (
        "import os, sys, pathlib\n"
        "paths = [pathlib.Path(path) for path in sys.argv[1:]]\n"
        "whole = paths[0].read_bytes()\n"
        "while True:\n"
        "    for path in paths:\n"
        "        os.truncate(path, len(whole) // 3)\n"
        "        with path.open('r+b') as file:\n"
        "            file.write(whole)\n"
    )
    read = (
        "import sys, time\n"
        "from pipelines.imagenet import val_pipeline\n"
        "stop, failed = time.monotonic() + 3, 0\n"
        "while time.monotonic() < stop:\n"
        "    pipeline = val_pipeline(sys.argv[1], batch_size=4, num_threads=2)\n"
        "    try:\n"
        "        for _ in range(20):\n"
        "            pipeline.run()\n"
        "    except RuntimeError:\n"
        "        failed += 1\n"
        "print(failed)\n"
    )
    with subprocess.Popen([sys.executable, "-c", cut_and_restore, *map(str, paths)]) as writer:
        try:
            reader = subprocess.run(
                [sys.executable, "-c", read, str(tmp_path)],
                cwd=ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            writer.kill()
    assert reader.returncode == 0, reader.stderr
    assert int(reader.stdout) > 0
