"""Pipelines with scaled decoding: everything drawn is as without it, and so is what it does not take."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dali_msda import Mixing
from pipelines import scaled_decoding
from pipelines.folders import list_images
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.records import Augmentation, Execution, Output, Shard
from pipelines.scaled_decoding import is_on
from tests.damage import kinds
from tests.devices import array
from tests.graph_check import operators, problems
from tests.image_sets import pixels, train, val
from tests.jpegs import EXIF_SEGMENTS, noise, oriented, sampled, save, smooth, with_segments
from tests.sources import memory_class

ROOT = Path(scaled_decoding.__file__).resolve().parent.parent
SIZE = 16
# Smooth images may differ by this many levels, mainly at borders of crops that are between scaled pixels. Of
# another crop, neighbouring pixels differ by 17.
CLOSE = 6.5


def other(image: np.ndarray, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def large_files() -> Iterator[bytes]:
    """JPEGs that are decoded at a smaller scale, unless the crop is small."""
    for orientation in range(1, 9):
        yield with_segments(save(smooth(130, 170, orientation)), oriented(orientation))
    for seed, sampling in enumerate(("444", "420", "Gray")):
        yield sampled(smooth(150 + seed, 190, 20 + seed), sampling)
    yield save(smooth(400, 300, 30), restart_marker_rows=1) + b"more after the end"
    yield save(smooth(40, 600, 31))


def usual_files() -> Iterator[bytes]:
    """What always goes the usual way; noise, of which no two decoders make the same by chance."""
    for seed in range(4):
        yield save(noise(20 + seed, 31 - seed, seed))
    yield save(noise(200, 140, 4), progressive=True)
    yield other(noise(140, 160, 5), "PNG")
    yield other(noise(140, 160, 6), "WEBP", quality=90)
    buffer = io.BytesIO()
    Image.fromarray(noise(150, 170, 7)).convert("CMYK").save(buffer, "JPEG")
    yield buffer.getvalue()
    yield with_segments(save(noise(120, 150, 8)), *EXIF_SEGMENTS["two segments"][1])


LARGE, USUAL = 0, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in train/ and val/: large images and others."""
    root = tmp_path_factory.mktemp("large")
    for split in ("train", "val"):
        for name, files in (("large", large_files()), ("usual", usual_files())):
            (root / split / name).mkdir(parents=True)
            for index, content in enumerate(files):
                (root / split / name / f"{index:02d}.JPEG").write_bytes(content)
    return root


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes at which simplejpeg has decoded; "on" would test nothing if it always refused."""
    found = []
    decode = simplejpeg.decode_jpeg

    def record(*arguments: Any, **options: Any) -> Any:
        image = decode(*arguments, **options)
        found.append(image.shape[:2])
        return image

    monkeypatch.setattr(scaled_decoding, "simplejpeg", SimpleNamespace(decode_jpeg=record))
    return found


def batches(make: Any, data: Any, mode: str, count: int = 1, **changes: Any) -> list[list[np.ndarray]]:
    """The outputs of a pipeline of small images; the images as pixels."""
    settings = {"image_size": SIZE, "batch_size": 8, "prefetch_queue_depth": 1, **changes}
    pipeline = make(data, scaled_decoding=mode, **settings)
    found = [[array(output) for output in pipeline.run()] for _ in range(count)]
    return [[pixels(images), *rest] for images, *rest in found]


AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "standard": {},
    "small crops": {"crop_area": (0.02, 0.1), "crop_aspect_ratio": (0.5, 2.0)},
    "augmented": {"auto_augment": "rand", "rand_augment": (1, 5), "color_jitter": 0.2},
}


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_crops_and_mirrors_are_the_same(
    name: str, seed: int, folder: Path, calls: list[tuple[int, int]]
) -> None:
    """Over two epochs; images that are not taken have the same bits."""
    changes: dict[str, Any] = {"num_classes": 2, "seed": seed, **AUGMENTATIONS[name]}
    on, off = (batches(train, folder, mode, 7, num_threads=2, **changes) for mode in ("on", "off"))
    taken = 0
    for (images, targets), (expected, labels) in zip(on, off, strict=True):
        np.testing.assert_array_equal(targets, labels)
        errors = np.abs(images - expected).max((1, 2, 3))
        assert (errors[targets[:, USUAL] == 1] == 0).all()
        assert name == "augmented" or errors.max() < CLOSE
        taken += int((errors > 0).sum())
    assert taken > 5
    assert len(calls) >= taken


@pytest.mark.parametrize("options", [{}, {"dtype": "float16", "layout": "HWC"}], ids=str)
def test_draws_are_the_same(options: dict[str, Any], folder: Path) -> None:
    """With HMix: targets, masks, stand-ins; on one shard of two."""
    images: Any = list_images(folder / "train").without([3, 20])
    changes: dict[str, Any] = {
        "mix": Mixing("hmix", probability=0.8, label_smoothing=0.1),
        "num_classes": 2,
        "shard": Shard(index=1, count=2),
        "report_stand_ins": True,
        "return_masks": True,
        **options,
    }
    drawn = []
    for mode in ("on", "off"):
        pipeline = train(images, scaled_decoding=mode, image_size=SIZE, batch_size=8, **changes)
        drawn.append([[array(output) for output in pipeline.run()] for _ in range(4)])
    different = 0
    for (images_on, *on), (images_off, *off) in zip(*drawn, strict=True):
        for found, expected in zip(on, off, strict=True):
            np.testing.assert_array_equal(found, expected)
        errors = np.abs(images_on.astype(float) - images_off)
        assert errors.max() < CLOSE / 57
        different += int((errors > 0).any((1, 2, 3)).sum())
    assert different > 8


@pytest.mark.parametrize("resize_size", [None, SIZE, 3 * SIZE])
def test_validation(resize_size: int | None, folder: Path, calls: list[tuple[int, int]]) -> None:
    """The same part of every image, in the same order."""
    count = len(list_images(folder / "val"))
    on, off = (
        batches(val, folder, mode, resize_size=resize_size, batch_size=count, num_threads=2)[0]
        for mode in ("on", "off")
    )
    np.testing.assert_array_equal(on[1], off[1])
    errors = np.abs(on[0] - off[0]).max((1, 2, 3))
    assert (errors[on[1] == USUAL] == 0).all()
    assert errors.max() < CLOSE
    too_small = 1 if resize_size == 3 * SIZE else 0
    assert len(calls) == (on[1] == LARGE).sum() - too_small


def test_validation_of_any_shape() -> None:
    """Where the longer side is rounded, too: half of a pixel of the output would be seen."""
    shapes = [(120, 150), (121, 160), (125, 131), (333, 97), (97, 211), (100, 103), (101, 106), (130, 777)]
    files = [save(smooth(*shape), quality=99, subsampling=0) for shape in shapes]
    source = memory_class()(("a",), [(file, 0) for file in files])
    for resize_size in (SIZE, SIZE + 1, 2 * SIZE):
        (on, _), (off, _) = (
            batches(val, source, mode, batch_size=len(files), resize_size=resize_size)[0]
            for mode in ("on", "off")
        )
        errors = on - off
        assert np.abs(errors).max() < 2.5
        assert np.abs(errors.mean((2, 3))).max() < 0.25


@pytest.mark.parametrize("make", [train, val])
def test_orientations_as_dali_understands_them(make: Any, calls: list[tuple[int, int]]) -> None:
    """Whatever the EXIF segments say: no image is turned otherwise than by DALI's decoder."""
    jpeg = save(smooth(120, 150))
    files = [with_segments(jpeg, *segments) for _, segments in EXIF_SEGMENTS.values()]
    source = memory_class()(("a",), [(file, 0) for file in files])
    changes: dict[str, Any] = {"batch_size": len(files)}
    changes |= {"num_classes": 1, "crop_area": (0.5, 1)} if make is train else {}
    (on, _), (off, _) = (batches(make, source, mode, **changes)[0] for mode in ("on", "off"))
    assert np.abs(on - off).max() < CLOSE
    assert len(calls) == sum(orientation > 0 for orientation, _ in EXIF_SEGMENTS.values())


MESSAGE = "scaled_decoding must be 'auto' or 'off' without the package simplejpeg, which cannot be imported;"


def test_without_simplejpeg(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" is as "off"; "on" is refused before anything is read."""
    monkeypatch.setattr(scaled_decoding, "simplejpeg", None)
    assert not is_on("auto", "cpu")
    assert not is_on("off", "cpu")
    makers: list[tuple[Any, dict[str, Any]]] = [(train, {"num_classes": 2}), (val, {})]
    for (make, changes), device in itertools.product(makers, ("cpu", "gpu")):
        with pytest.raises(ValueError, match=MESSAGE + " got 'on'"):
            make(folder, scaled_decoding="on", device=device, **changes)
    for make, changes in makers:
        auto, off = (batches(make, folder, mode, **changes)[0] for mode in ("auto", "off"))
        np.testing.assert_array_equal(auto[0], off[0])


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled_decoding, "compiled_module", lambda _: None)
    assert not is_on("auto", "cpu")
    with pytest.raises(ValueError, match="without Numba and DALI's plugin for it; got 'on'"):
        is_on("on", "cpu")


def test_auto(folder: Path, calls: list[tuple[int, int]]) -> None:
    """On the CPU it is on; with crops of padded images it never is."""
    assert [is_on("auto", device) for device in ("cpu", "gpu")] == [True, False]
    assert [is_on("on", device) for device in ("cpu", "gpu")] == [True, True]
    assert [is_on("off", device) for device in ("cpu", "gpu")] == [False, False]
    batches(train, folder, "on", num_classes=2, crop_padding=2)
    assert calls == []
    on, auto = (batches(train, folder, mode, num_classes=2)[0] for mode in ("on", "auto"))
    np.testing.assert_array_equal(on[0], auto[0])
    assert len(calls) > 4


def test_graph_on_a_gpu(folder: Path) -> None:
    """Scaled images come from the CPU, the others from the GPU's decoders; nothing waits for the CPU."""
    common: dict[str, Any] = {"batch_size": 8, "num_threads": 2, "device": "gpu", "report_stand_ins": True}
    execution = Execution(scaled_decoding="on", device_id=1)
    for augmentation in (Augmentation(), Augmentation(auto_augment="trivial", color_jitter=0.2)):
        training = train_pipeline(
            folder, num_classes=2, execution=execution, augmentation=augmentation, return_masks=True, **common
        )
        images, targets, kept, mask = training._graph_out
        assert problems([images, targets, mask]) == []
        assert problems([kept], "cpu") == []
        assert decoders([images]) == [("decoders__ImageSlice", "mixed")]
    validation = val_pipeline(folder, execution=execution, output=Output(layout="HWC"), **common)
    assert problems(validation._graph_out[:2]) == []
    assert decoders(validation._graph_out) == [("decoders__Image", "mixed")]
    auto = train_pipeline(folder, num_classes=2, **common)
    assert decoders(auto._graph_out) == [("decoders__ImageRandomCrop", "mixed")]


def decoders(outputs: Any) -> list[tuple[str, str]]:
    found = [(instance._op.schema.Name(), instance._op.device) for instance in operators(outputs)]
    return [(name, device) for name, device in found if name.startswith("decoders")]


def outcome(make: Any, content: bytes, mode: str) -> np.ndarray | None:
    """The image, None if DALI refuses the file."""
    changes: dict[str, Any] = {"num_classes": 1} if make is train else {}
    try:
        ((images, _),) = batches(make, memory_class()(("a",), [(content, 0)]), mode, batch_size=1, **changes)
    except RuntimeError:
        return None
    return images


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # in compiled code
@pytest.mark.parametrize("make", [train, val])
def test_damaged_files(make: Any) -> None:
    """What DALI's decoder refuses is refused, and what it accepts is accepted: nearly the same pixels."""
    refused = 0
    for kind in kinds():
        if kind.outcome == "kills" or (make is train and "strip" in kind.name):
            continue
        on, off = (outcome(make, kind.data, mode) for mode in ("on", "off"))
        assert (on is None) == (off is None), kind.name
        refused += on is None
        if on is not None and off is not None:
            assert np.abs(on - off).mean() < 5, kind.name
    assert refused > 30


def photo(side: int, seed: int) -> np.ndarray:
    """Noise with the spectrum of photos: amplitudes fall as 1 / frequency; colours are weaker than grey."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    planes = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency) for _ in range(3)]
    y, blue, red = (plane / plane.std() for plane in planes)
    y, blue, red = 128 + 50 * y, 15 * blue, 15 * red
    image = np.stack([y + 1.402 * red, y - 0.344 * blue - 0.714 * red, y + 1.772 * blue], -1)
    return image.clip(0, 255).astype(np.uint8)


# Measured, in dB, by side of the image in sides of the output, for each sampling. At exactly 2, 4 and 8 there
# is nothing to resize: the image is sharper than a resize makes it.
TIMES = (2, 3, 4, 6, 8, 12)
QUALITY = {
    "444": (29.0, 37.4, 31.2, 40.0, 32.7, 40.4),
    "422": (29.1, 35.6, 30.4, 36.6, 31.0, 37.8),
    "420": (28.7, 37.7, 30.9, 40.3, 32.6, 40.6),
    "440": (29.0, 35.6, 30.4, 36.7, 31.0, 37.6),
    "411": (27.7, 32.6, 28.3, 32.9, 28.9, 33.3),
    "Gray": (29.1, 37.3, 31.4, 39.9, 32.7, 40.4),
}


@pytest.mark.parametrize("sampling", QUALITY)
def test_quality(sampling: str, calls: list[tuple[int, int]]) -> None:
    """PSNR of photo-like images against those decoded at full size and resized."""
    files = [sampled(photo(2 * SIZE * times, seed), sampling) for times in TIMES for seed in range(3)]
    source = memory_class()(("a",), [(file, 0) for file in files])
    changes = {"image_size": 2 * SIZE, "resize_size": 2 * SIZE, "batch_size": len(files)}
    (on, _), (off, _) = (batches(val, source, mode, **changes)[0] for mode in ("on", "off"))
    assert len(calls) == len(files)
    errors = ((on - off) ** 2).reshape(len(TIMES), -1).mean(1)
    found = 10 * np.log10(255**2 / errors)
    assert (found > np.array(QUALITY[sampling]) - 0.5).all(), found
