"""What decoding at a smaller scale costs in quality: PSNR against full decoding, and a picture of both.

    python -m benchmarks.bench_scaled_decoding [--data DIR ...] [--picture docs/scaled-decoding.png]

The crops are those of the training pipeline. Both ways resize the same crop with the same filter, so the
difference is the decoder's. For comparison: the full crop resized with Pillow's bicubic filter instead.
Images of up to 4000 x 3000 are made here: generated ones, enlarged, and charts of rings, which have more fine
detail than any photo. --data adds others to the table. The picture shows the middle of crops of made images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import tyro
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import DataNode
from PIL import Image, ImageDraw, ImageFont

from benchmarks.common import Record, save
from benchmarks.tables import show
from dali_msda.backends.numba.resize import resize_mirrored
from pipelines.demo_data import make_demo_dataset
from pipelines.files import write_whole
from pipelines.folders import list_images
from pipelines.headers import check_and_measure
from pipelines.records import Augmentation
from pipelines.scaled_decoding import decode_scaled

SCALES = (2, 4, 8)
_SIZES = ((4000, 3000), (2000, 1500), (1200, 900))
_QUALITY = 90
_NOISE = 4.0  # of a camera, standard deviation of 255; enlarged images have none
_GAP, _LINE, _SHOWN, _AMPLIFIED = 8, 16, 144, 8


@dataclass(frozen=True)
class Settings:
    """What to compare."""

    data: tuple[Path, ...] = ()
    """Folders of class folders with JPEGs, beside the images made here."""

    repeats: int = 4
    """Crops of each image."""

    size: int = 224
    """Side of the resized crops."""

    made: int = 12
    """Number of images to make, half of them charts."""

    picture: Path | None = None
    """Where to write a picture, a PNG: for each kind and scale, the crop with the median PSNR."""


class Crop(NamedTuple):
    """A crop of an image, decoded in both ways: uint8 [size, size, 3]."""

    scale: int
    """The image was decoded at 1/scale of its size; 1 if in full."""
    scaled: np.ndarray
    full: np.ndarray
    bicubic: np.ndarray


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB; infinite if they are equal."""
    error = np.mean((image.astype(np.float64) - reference) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def crop_both_ways(images: Sequence[bytes], size: int, repeats: int) -> Iterator[Crop]:
    """Cut crops at random, always the same ones, `repeats` times out of every image."""
    augmentation = Augmentation()
    encoded = [np.frombuffer(image, np.uint8) for image in images]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, seed=1, prefetch_queue_depth=1)
    def pipeline() -> tuple[DataNode, ...]:
        files = fn.external_source(
            lambda info: encoded[info.iteration // repeats], batch=False, batch_info=True
        )
        files, shape = check_and_measure(files)
        start, extent = fn.random_crop_generator(
            shape,
            random_area=list(augmentation.crop_area),
            random_aspect_ratio=list(augmentation.crop_aspect_ratio),
        )
        never = types.Constant(np.zeros(1, np.int32), device="cpu")
        window = fn.cast(fn.cat(start, extent), dtype=types.FLOAT64)
        scaled, taken = decode_scaled(files, shape, window, never, size=size, clip=True)
        crop = fn.decoders.image_slice(
            files, start, extent, axis_names="HW", device="cpu", output_type=types.RGB
        )
        return scaled, taken, resize_mirrored(crop, never, size), crop

    built = pipeline()
    built.build()
    for _ in range(len(images) * repeats):
        scaled, taken, full, crop = (np.array(output.at(0)) for output in built.run())
        scale = max((scale for scale in SCALES if min(crop.shape[:2]) >= scale * size), default=1)
        bicubic = Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)
        yield Crop(scale if taken else 1, scaled if taken else full, full, np.asarray(bicubic))


def make_images(count: int) -> dict[str, list[bytes]]:
    """Make images of three sizes: half of them generated photos, enlarged, half charts."""
    numbers = range(count // 2)
    with TemporaryDirectory() as folder:
        data = make_demo_dataset(Path(folder) / "set", train_per_class=1, val_per_class=1)
        source = list_images(data / "train")
        photos = [_enlarge(source.encoded(number % len(source)), number) for number in numbers]
    return {"generated": photos, "charts": [_draw_chart(number) for number in numbers]}


def _enlarge(encoded: bytes, number: int) -> bytes:
    width, height = _SIZES[number % len(_SIZES)]
    image = Image.open(BytesIO(encoded)).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(number).standard_normal((height, width, 1), np.float32)
    return _to_jpeg(np.clip(np.asarray(image) + np.rint(_NOISE * noise), 0, 255))


def _draw_chart(number: int) -> bytes:
    """Rings that get finer from a point outwards, down to about two pixels."""
    width, height = _SIZES[number % len(_SIZES)]
    rng = np.random.default_rng(number)
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    squared = ((y - height * rng.uniform(0.3, 0.7)) ** 2)[:, None] + (x - width * rng.uniform(0.3, 0.7)) ** 2
    rings = 0.5 + 0.5 * np.cos(squared * np.float32(math.pi / width))
    dark, bright = rng.uniform(0, 100, 3), rng.uniform(155, 255, 3)
    return _to_jpeg(dark + rings[..., None] * (bright - dark))


def _to_jpeg(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def summarize(name: str, crops: Sequence[Crop]) -> list[Record]:
    """A record for each scale that occurs."""
    records: list[Record] = []
    for scale in SCALES:
        chosen = [crop for crop in crops if crop.scale == scale]
        if not chosen:
            continue
        values = np.array([psnr(crop.scaled, crop.full) for crop in chosen])
        bicubic = np.median([psnr(crop.bicubic, crop.full) for crop in chosen])
        difference = np.mean([np.abs(crop.scaled.astype(int) - crop.full).mean() for crop in chosen])
        records.append(
            {
                "images": name,
                "scale": scale,
                "crops": len(chosen),
                "share_of_crops": len(chosen) / len(crops),
                "median_db": float(np.median(values)),
                "percentile_5_db": float(np.percentile(values, 5)),
                "worst_db": float(values.min()),
                "bicubic_median_db": float(bicubic),
                "mean_difference_levels": float(difference),
            }
        )
    return records


def draw(found: dict[str, list[Crop]]) -> Image.Image:
    """Show a crop of every kind and scale: decoded in full, at the scale, and the difference, amplified."""
    columns = 3
    block = columns * (_SHOWN + _GAP) + _GAP
    sheet = Image.new(
        "RGB", (_GAP + len(found) * block - _GAP, _GAP + len(SCALES) * (_LINE + _SHOWN + _GAP)), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, scale in enumerate(SCALES):
        for group, crops in enumerate(found.values()):
            chosen = sorted(
                (crop for crop in crops if crop.scale == scale), key=lambda crop: psnr(crop.scaled, crop.full)
            )
            if not chosen:
                continue
            crop = chosen[len(chosen) // 2]
            amplified = np.clip(128 + _AMPLIFIED * (crop.scaled.astype(int) - crop.full), 0, 255)
            shown = {
                "in full": crop.full,
                f"at 1/{scale}: {psnr(crop.scaled, crop.full):.1f} dB": crop.scaled,
                f"difference x {_AMPLIFIED}": amplified.astype(np.uint8),
            }
            for column, (title, pixels) in enumerate(shown.items()):
                left = _GAP + group * block + column * (_SHOWN + _GAP)
                top = _GAP + row * (_LINE + _SHOWN + _GAP)
                pen.text((left, top), title, fill="black", font=font)
                start = (len(pixels) - _SHOWN) // 2
                middle = pixels[start : start + _SHOWN, start : start + _SHOWN]
                sheet.paste(Image.fromarray(middle), (left, top + _LINE))
    return sheet


def main() -> None:
    """Compare, print a table, write the results and the picture."""
    settings = tyro.cli(Settings, description=__doc__)
    images = make_images(settings.made)
    made = list(images)
    for folder in settings.data:
        source = list_images(folder)
        images[folder.name] = [source.encoded(position) for position in range(len(source))]
    records: list[Record] = []
    shown: dict[str, list[Crop]] = {}
    for name, encoded in images.items():
        crops = list(crop_both_ways(encoded, settings.size, settings.repeats))
        records += summarize(name, crops)
        if name in made:
            shown[name] = crops
    values = {**vars(settings), "data": [folder.name for folder in settings.data]}
    path = save("bench_scaled_decoding", values, records)
    print(show("scaled_decoding", path))
    print(path)
    if settings.picture is not None:
        buffer = BytesIO()
        draw(shown).save(buffer, "PNG", optimize=True)
        write_whole(settings.picture, buffer.getvalue())


if __name__ == "__main__":
    main()
