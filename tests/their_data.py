"""Small data sets in the formats that DALI's readers read, and callbacks that its workers import."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_MAGIC = 0xCED7230A
BATCH, SIDE = 4, 24


def jpeg(image: np.ndarray) -> bytes:
    """An encoded image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_records(folder: Path, images: Sequence[np.ndarray], labels: Sequence[float]) -> tuple[Path, Path]:
    """RecordIO files as MXNet's im2rec writes them: ``train.rec`` and its index."""
    records, index = bytearray(), []
    for key, (image, label) in enumerate(zip(images, labels, strict=True)):
        content = struct.pack("<IfQQ", 0, label, key, 0) + jpeg(image)  # flag, label, id, second id
        index.append(f"{key}\t{len(records)}\n")
        records += struct.pack("<II", _MAGIC, len(content)) + content
        records += bytes(-len(content) % 4)
    paths = folder / "train.rec", folder / "train.idx"
    paths[0].write_bytes(records)
    paths[1].write_text("".join(index))
    return paths


def write_coco(folder: Path, images: Sequence[np.ndarray], categories: Sequence[Sequence[int]]) -> Path:
    """Images with one box for each of their categories, which count from 1; the path of the annotations."""
    annotations: list[dict[str, Any]] = []
    listed = []
    for number, (image, own) in enumerate(zip(images, categories, strict=True)):
        (folder / f"{number}.jpg").write_bytes(jpeg(image))
        height, width = image.shape[:2]
        listed.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        for category in own:
            box = [number, 1 + len(annotations), 10, 5 + category]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": category,
                    "bbox": box,
                    "area": 50 + 10 * category,
                    "iscrowd": 0,
                }
            )
    names = [{"id": i, "name": str(i)} for i in range(1, 1 + max(map(max, categories)))]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": names}))
    return path


def clip(index: int) -> np.ndarray:
    """Three frames, FHWC, that no other index has."""
    return np.random.default_rng(index).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def sample(info: Any) -> tuple[np.ndarray, np.ndarray]:
    """An image and its class, of one sample of an epoch of five batches."""
    if info.iteration >= 5:
        raise StopIteration
    return clip(info.idx_in_epoch)[0], np.array([info.idx_in_epoch % 3], np.int32)
