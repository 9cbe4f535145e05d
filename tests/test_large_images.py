"""Images much larger than needed: found in a sample, timed, and reported with the packer's command."""

from __future__ import annotations

import io
import os
import random
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from pipelines import pack
from pipelines.imagenet import train_pipeline
from pipelines.large_images import LargeImages, Speed, find_large_images, pack_command, side_of_copies
from pipelines.memory import MemorySource
from pipelines.records import Output
from pipelines.shrinking import QUALITY
from pipelines.sources import Order, Source
from tests.checking import KINDS, TRUNCATED, run
from tests.devices import array
from tests.image_sets import photo, plain, write_split
from tests.training_runs import status

WORDS = "megapixels on average"
FOUND = LargeImages(
    longer=4000,
    shorter=3000,
    megapixels=11.96,
    sampled=64,
    image_size=224,
    max_side=512,
    speed=Speed(now=80.0, smaller=2000.0, images=16, seconds=2.04),
)


def jpeg(width: int, height: int) -> bytes:
    """A photo-like JPEG; its detail is coarse, so that it is made quickly."""
    buffer = io.BytesIO()
    Image.fromarray(photo(height // 4, width // 4, 0)).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    return jpeg(3000, 2000)


@pytest.fixture(scope="module")
def data(large: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with ten large training images, and a space in its name."""
    root = tmp_path_factory.mktemp("large") / "my photos"
    write_split(root / "train", (4, 4, 2), plain)
    write_split(root / "val", (1, 1, 1), plain)
    for path in (root / "train").rglob("*.*"):
        path.write_bytes(large)
    return root


@dataclass(frozen=True)
class Recorded(MemorySource):
    """Remembers which images were read, and cannot read some."""

    unreadable: frozenset[int] = frozenset()
    read_positions: list[int] = field(default_factory=list)

    def encoded(self, position: int) -> bytes:
        self.read_positions.append(position)
        if position in self.unreadable:
            raise OSError(5, "Input/output error")
        return super().encoded(position)


def find(source: Source, **changes: Any) -> LargeImages | None:
    return find_large_images(source, **{"num_threads": 1, "batch_size": 8, **changes})


# What is found


@pytest.mark.parametrize(
    ("size", "image_size", "largest_size"),
    [
        ((500, 375), 224, 0),
        ((32, 32), 224, 0),
        ((800, 600), 224, 0),
        ((1200, 900), 448, 0),
        ((1200, 900), 224, 448),
    ],
)
def test_silent_for_usual_sizes(size: tuple[int, int], image_size: int, largest_size: int) -> None:
    source = MemorySource([jpeg(*size)] * 3)
    assert find(source, output=Output(image_size=image_size), largest_size=largest_size) is None


def test_large_images_are_measured_and_nothing_else_changes(large: bytes) -> None:
    """The record has their sizes; draws, random states and checkpoints of other pipelines stay the same."""
    source = MemorySource([large] * 4)

    def drawn() -> list[Any]:
        pipeline = train_pipeline(
            MemorySource([jpeg(40, 30)] * 4), mix="hmix", num_classes=1, batch_size=4, num_threads=1, seed=3,
            output=Output(image_size=16), enable_checkpointing=True,
        )  # fmt: skip
        pipeline.build()
        images, _ = map(array, pipeline.run())
        states = [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]  # noqa: NPY002
        return [images.tobytes(), pipeline.checkpoint(), *states]

    before = drawn()
    found = find(source)
    assert drawn() == before
    assert found is not None
    assert found.speed is not None
    assert (found.longer, found.shorter, found.megapixels, found.sampled) == (3000, 2000, 6.0, 4)
    assert (found.image_size, found.max_side) == (224, 512)
    assert 1 <= found.speed.images <= 4  # as many as the time allows
    assert found.speed.gain > 1.5
    assert found.speed.gain == found.speed.smaller / found.speed.now
    assert found.speed.share == pytest.approx(1 - 1 / found.speed.gain)


def test_speaks_if_a_few_images_take_most_of_the_time(large: bytes) -> None:
    """Their median size is usual; their mean is not."""
    source = MemorySource([*[jpeg(400, 300)] * 5, large])
    found = find(source, device="gpu")
    assert found is not None
    assert (found.longer, found.shorter, found.megapixels) == (400, 300, 1.1)


def test_the_sample_is_fixed_and_small() -> None:
    images = [jpeg(40, 30)] * 1000
    first, second = Recorded(images), Recorded(images)
    assert find(first) is find(second) is None
    assert first.read_positions == second.read_positions
    assert len(set(first.read_positions)) == len(first.read_positions) == 64


def test_a_gpu_is_not_judged_by_the_cpu(large: bytes) -> None:
    found = find(MemorySource([large]), device="gpu")
    assert found is not None
    assert found.speed is None
    assert "(not measured)" in found.lines(Path("data"))[1]


# Bad files


def test_bad_files_are_skipped(large: bytes) -> None:
    cut = large[: len(large) // 2]  # its header is fine
    source = Recorded(
        [b"", b"GIF89a", cut, TRUNCATED, KINDS["zeros.JPEG"].data, large, large], unreadable=frozenset((6,))
    )
    found = find(source, batch_size=8)
    assert found is not None
    assert found.speed is not None
    assert (found.sampled, found.speed.images) == (3, 1)


def test_no_kind_of_bad_file_raises(large: bytes) -> None:
    """Not even those that only DALI finds bad."""
    bad = [kind.data for kind in KINDS.values() if kind.outcome in ("raises", "kills")]
    found = find(MemorySource([*bad, large]), batch_size=64, num_threads=8)
    assert found is not None
    assert found.speed is None


@pytest.mark.parametrize("images", [[b""], [b"GIF89a"], [TRUNCATED], [KINDS["zeros.JPEG"].data] * 3])
def test_silent_without_a_good_file(images: list[bytes]) -> None:
    assert find(MemorySource(images)) is None


def test_says_that_it_was_not_measured_if_dali_cannot_decode(large: bytes) -> None:
    """A WebP file that Pillow decodes and DALI does not."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (3001, 2000), (7, 8, 9)).save(buffer, "WEBP", lossless=True, exif=exif)
    encoded = buffer.getvalue()
    assert encoded[encoded.index(b"VP8L") + 4] % 2 == 1
    found = find(MemorySource([encoded, large]))
    assert found is not None
    assert found.speed is None


# What is said


def test_lines_have_the_numbers_of_the_record() -> None:
    assert FOUND.lines(Path("my data")) == [
        "The images have 12.0 megapixels on average (median 4000 x 3000), far more than training at 224 x 224"
        " needs: about 96 % of the loading time goes into their size.",
        "Smaller copies load about 25 times as fast (timed on 16 images for 2.0 s):"
        " python -m pipelines.pack 'my data' 'my data-512' --max-side 512",
    ]


@pytest.mark.parametrize(("image_size", "side"), [(224, 512), (32, 96), (160, 384), (448, 1024), (1, 32)])
def test_copies_are_as_large_for_every_image_size(image_size: int, side: int) -> None:
    assert side_of_copies(image_size) == side


@pytest.mark.parametrize(
    "name", ["data", "my photos", "it's", "$HOME", 'a"b', "line\nbreak\t\\", os.fsdecode(b"caf\xe9 '\\"), "é"]
)
def test_the_command_can_be_copied_into_a_shell(name: str) -> None:
    command = pack_command(Path(name), 512)
    assert command.isprintable()
    script = f"printf '%s\\0' {command.removeprefix('python -m pipelines.pack ')}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    assert found.split(b"\0")[:-1] == [os.fsencode(name), os.fsencode(f"{name}-512"), b"--max-side", b"512"]


def test_the_packer_takes_the_command() -> None:
    """It makes the copies that were timed."""
    program, arguments = pack_command(Path("my photos"), 96).split(" -m pipelines.pack ")
    options = tyro.cli(pack.Options, args=shlex.split(arguments))
    assert program == "python"
    assert (options.source, options.target) == (Path("my photos"), Path("my photos-96"))
    assert (options.max_side, options.quality) == (96, QUALITY)


@pytest.mark.parametrize("name", [".", "..", "../.."])
def test_copies_are_made_beside_the_folder(name: str) -> None:
    source, target = shlex.split(pack_command(Path(name), 512))[3:5]
    assert target == f"{source}-512"
    assert Path(source) == Path(name).resolve()


# Trainer and check


def test_the_trainer_says_it_at_the_start(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert status(data, output, "--max-steps", 1) == 0
    said = capsys.readouterr().out
    assert said.count(WORDS) == 1
    assert "(median 3000 x 2000), far more than training at 32 x 32 needs" in said
    command = f"python -m pipelines.pack '{data}' '{data}-96' --max-side 96\n"
    assert command in said
    # A resumed run does not repeat it.
    assert status(data, output, "--max-steps", 2, "--resume", "auto") == 0
    assert WORDS not in capsys.readouterr().out


def test_the_check_says_it_at_the_end(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exit_status, report = run(data, tmp_path, "--image-size", "64")
    assert exit_status == 0
    large = report["large_images"]
    assert (large["longer"], large["shorter"], large["max_side"]) == (3000, 2000, 160)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("The images have 6.0 megapixels on average (median 3000 x 2000)")
    assert second.endswith(f"for {large['speed']['seconds']} s): {large['command']}")


def test_the_check_is_silent_for_usual_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path / "set", (2, 1), plain)
    assert run(tmp_path / "set", tmp_path / "out")[1]["large_images"] is None
    assert capsys.readouterr().out.splitlines()[-1].startswith("Report and file lists:")


# The source of the measurement


def test_images_in_memory_are_a_source() -> None:
    images = [bytes([number]) * 3 for number in range(5)]
    source = MemorySource(images)
    assert isinstance(source, Source)
    other = source.without([1, 2])
    assert [other.encoded(position) for position in range(5)] == [images[i] for i in (0, 3, 3, 3, 4)]
    assert other.stand_ins == {1, 2}
    assert other.digest() != source.digest()
    order = Order(size=5, batch_size=2, shuffle=False)
    assert source.upcoming(order, batches=2, epoch=1, taken=1, checkpoint=None) == [2, 3, 4, 4]
