"""A small generated set of photo-like images, for training without a dataset.

Every image shows one large object on a cluttered background. The object has a colour, a texture and a shape,
with three values each. The ten classes are ten of the 27 combinations, chosen so that the best guess from one
attribute is right for 30 % of the images, and from two attributes for 90 %. Sizes vary around ImageNet's. An
image depends only on (seed, split, class, index), not on the number of workers or images; its bytes may
change with the versions of NumPy and of Pillow's JPEG encoder.
"""

from __future__ import annotations

import cmath
import colorsys
import json
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_msda.processors import usable_processors

# Colour, texture and shape: each value occurs in 3 or 4 classes, each pair of attributes has 9 values.
# In alphabetical order, so that the index is the label that readers of class folders assign.
CLASSES: tuple[str, ...] = (
    "blue-checked-square", "blue-dotted-disc", "blue-striped-star", "green-checked-disc",
    "green-dotted-star", "green-striped-square", "red-checked-star", "red-dotted-square",
    "red-striped-disc", "red-striped-star",
)  # fmt: skip
_HUES = {"red": 0.0, "green": 0.34, "blue": 0.62}
# Number of corners (0: a disc); radius of the notches between them, relative to the corners; radius of the
# corners relative to half the object's size, which makes the areas of the shapes about equal.
_SHAPES = {"disc": (0, 1.0, 1.0), "square": (4, math.sqrt(0.5), 1.2), "star": (5, 0.46, 1.33)}
_SPLITS = {"train": 0, "val": 1}
_SETTINGS_FILE = "demo.json"
# Raise it with every change to the images: sets made by older code are then rejected.
_VERSION = 3
_SIDE = 768  # of the pool, in pixels; images are smaller

_Array = npt.NDArray[Any]


def _make_pool(seed: int) -> tuple[_Array, _Array]:
    """Return 1/f fields and sensor noise to crop from, because an FFT per image would be slow."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(_SPLITS),)))
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE))
    frequency[0, 0] = np.inf
    spectra = np.fft.rfft2(rng.standard_normal((6, _SIDE, _SIDE)))
    spectra /= frequency ** np.linspace(0.95, 1.5, len(spectra))[:, None, None]
    fields = np.fft.irfft2(spectra, s=(_SIDE, _SIDE))
    fields /= fields.std((1, 2), keepdims=True)
    return fields.astype(np.float32), rng.standard_normal((3, _SIDE, _SIDE), np.float32)


def _crop(rng: np.random.Generator, source: _Array, height: int, width: int) -> _Array:
    """Return a random window of `source` (..., side, side), flipped at random."""
    y, x = rng.integers(0, _SIDE - height + 1), rng.integers(0, _SIDE - width + 1)
    flip_y, flip_x = 1 - 2 * rng.integers(0, 2, 2)
    return source[..., y : y + height, x : x + width][..., ::flip_y, ::flip_x]


def _turn(rng: np.random.Generator, scale: float = 1.0) -> np.complex64:
    """Return the factor that rotates points x + iy by a random angle, and scales them."""
    return np.complex64(cmath.rect(scale, rng.uniform(0, 2 * math.pi)))


def _patch(image: _Array, y: float, x: float, reach: float) -> tuple[_Array, _Array]:
    """Return a view of the image (3, height, width) within `reach` of a point, and x + iy from there."""
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    view = image[:, top : int(y + reach) + 1, left : int(x + reach) + 1]
    z = np.empty(view[0].shape, np.complex64)
    z.real, z.imag = np.arange(z.shape[1]) + (left - x), np.arange(z.shape[0])[:, None] + (top - y)
    return view, z


def _step(distance: _Array, softness: float) -> _Array:
    """Return 0 where `distance` is negative and 1 where it is positive, with a ramp `softness` wide."""
    ramp = distance * np.float32(1 / softness) + np.float32(0.5)
    return np.clip(ramp, 0, 1, out=ramp)


def _depth(z: _Array, radius: float, corners: int, notch: float) -> _Array:
    """Return how far points are inside a shape around the origin; negative outside."""
    if not corners:
        return np.asarray(radius - np.abs(z))
    # Fold the plane onto half a point of the star, where its outline is one straight edge.
    half = math.pi / corners
    fold = np.abs((np.angle(z) + half) % (2 * half) - half)
    edge = notch * cmath.rect(1, half) - 1
    edge /= abs(edge)
    return np.asarray(np.abs(z) * (edge.real * np.sin(fold) - edge.imag * np.cos(fold)) + edge.imag * radius)


def _wave(texture: str, z: _Array) -> _Array:
    """Return a pattern of period 2 pi whose sign separates the two tones of a texture."""
    x, y = z.real, z.imag
    if texture == "dotted":  # three plane waves at 120 degrees: round dots on a triangular lattice
        y = y * math.sqrt(0.75)
        return np.asarray((np.cos(x) + np.cos(y - x / 2) + np.cos(y + x / 2) - 0.4) / 2)
    return np.asarray(np.sin(x) * np.sin(y) if texture == "checked" else np.sin(x))


def _paint(hue: float, saturation: float, value: float) -> _Array:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32).reshape(3, 1, 1)


def _background(rng: np.random.Generator, fields: _Array, height: int, width: int, soft: float) -> _Array:
    """Return two surfaces with a ragged border, with small shapes of any colour, in uneven light."""
    grain, cast, border = (_crop(rng, fields[rng.integers(len(fields))], height, width) for _ in range(3))
    y, x = (np.linspace(-0.5, 0.5, extent, dtype=np.float32) for extent in (height, width))
    across, light = (turn.imag * y[:, None] + turn.real * x for turn in (_turn(rng), _turn(rng, 0.4)))
    border = across + rng.uniform(-0.25, 0.25) + rng.uniform(0.02, 0.25) * border
    near, far = (_paint(rng.random(), rng.uniform(0, 0.45), rng.uniform(0.25, 0.9)) for _ in range(2))
    image = near + _step(border, soft / 50) * (far - near)
    # Brightness varies more than hue.
    image += rng.uniform(12, 32) * grain
    image += rng.uniform(-10, 10, (3, 1, 1)).astype(np.float32) * cast
    for _ in range(int(rng.integers(1, 5))):
        radius = min(height, width) * rng.uniform(0.03, 0.1)
        view, z = _patch(image, rng.uniform(0, height), rng.uniform(0, width), radius + 2 * soft)
        z *= _turn(rng)
        z.imag *= rng.uniform(1, 2)
        depth = _depth(z, radius, int(rng.choice([0, 3, 4, 5, 6])), rng.uniform(0.5, 0.9))
        paint = _paint(rng.random(), rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.9))
        view += _step(depth, soft * rng.uniform(1, 3)) * (paint - view)
    return np.asarray(image * (1 + light))


def _draw(rng: np.random.Generator, fields: _Array, noise: _Array, label: int) -> _Array:
    """Return one image of class `label`, (3, height, width)."""
    colour, texture, outline = CLASSES[label].split("-")
    short = int(np.clip(rng.normal(365, 50), 250, 500))
    long = min(int(short * rng.uniform(1.05, 1.6)), 640)
    height, width = (short, long) if rng.random() < 0.78 else (long, short)
    soft = short / 365 * rng.uniform(1, 3)
    image = _background(rng, fields, height, width, soft)

    corners, notch, scale = _SHAPES[outline]
    radius = scale * short * rng.uniform(0.38, 0.43)
    y, x = (extent / 2 + (extent - 0.85 * short) * rng.uniform(-0.3, 0.3) for extent in (height, width))
    view, z = _patch(image, y, x, radius + 0.1 * short)
    field = _crop(rng, fields[-1], *z.shape)
    turned = z * _turn(rng)
    depth = _depth(turned, radius, corners, notch)
    # The shadow is the outline, moved and blurred.
    shadow = np.roll(depth, (rng.uniform(-0.05, 0.05, 2) * short).astype(int), (0, 1))
    view *= 1 - rng.uniform(0.2, 0.6) * _step(shadow, 0.08 * short)
    # Coarse enough to stay visible at 48 pixels, and slightly irregular.
    pitch = 2 * math.pi / (short * rng.uniform(0.2, 0.26))
    wave = _wave(texture, z * _turn(rng, pitch) + np.complex64(complex(*rng.uniform(0, 7, 2))) + 0.3 * field)
    dark = rng.uniform(0.1, 0.3)
    tone = dark + (1 - dark) * _step(wave if rng.random() < 0.5 else -wave, soft * pitch)
    tone *= 1 + rng.uniform(0, 0.15) / radius * turned.real + 0.03 * field
    paint = _paint(_HUES[colour] + rng.uniform(-0.03, 0.03), rng.uniform(0.6, 0.95), rng.uniform(0.7, 1))
    view += _step(depth, soft) * (paint * tone - view)
    image += _crop(rng, noise, height, width) * rng.uniform(2, 8)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _write(path: Path, pool: tuple[_Array, _Array], seed: int, split: str, label: int, index: int) -> None:
    """Write one image of the set as a baseline JPEG file."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SPLITS[split], label, index)))
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in _draw(rng, *pool, label)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=int(rng.integers(75, 96)), subsampling="4:2:0")


def _is_complete(root: Path, settings: str, files: set[str]) -> bool:
    """Return whether `root` holds the set; raise if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    about = root / _SETTINGS_FILE
    found = about.read_text(errors="replace") if about.is_file() else f"no {_SETTINGS_FILE}"
    if found == settings:
        present = {str(path.relative_to(root)) for split in _SPLITS for path in root.glob(f"{split}/*/*")}
        if not (differing := sorted(present ^ files)):
            return True
        found = f"{len(differing)} missing or foreign files such as {differing[0]}"
    raise ValueError(
        f"{root} must be missing, empty or a demo set with {settings}; got {found}. Remove it or choose"
        " another folder"
    )


def make_demo_dataset(
    root: Path,
    *,
    train_per_class: int = 200,
    val_per_class: int = 50,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Generate the demo image set, or use an existing one.

    The set gets its name only when it is complete: an interrupted call leaves no `root`, and processes that
    call at the same time all use the set of the first to finish.

    Parameters
    ----------
    root : Path
        Folder of the set, which is ``root/train/CLASS/*.jpg`` and ``root/val/CLASS/*.jpg``.
    train_per_class, val_per_class : int
        Images per class. A larger set starts with the images of a smaller one.
    seed : int
        At least 0; another seed gives other images.
    workers : int, optional
        Number of threads, by default one per usable core. The images do not depend on it.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    ValueError
        A number is out of range, or `root` has other contents, which stay unchanged.
    """
    if min(train_per_class, val_per_class, 1 if workers is None else workers) < 1 or seed < 0:
        got = f"{train_per_class=}, {val_per_class=}, {seed=}, {workers=}"
        raise ValueError(f"seed must be at least 0, and the other numbers at least 1; got {got}")
    sizes = {"train": train_per_class, "val": val_per_class}
    settings = json.dumps({"version": _VERSION, "seed": seed, **sizes})
    files = {
        f"{split}/{name}/{index:05d}.jpg": (split, label, index)
        for split, size in sizes.items()
        for label, name in enumerate(CLASSES)
        for index in range(size)
    }
    place = root.resolve()  # a rename onto a symbolic link would replace the link
    if _is_complete(place, settings, set(files)):
        return root
    place.parent.mkdir(parents=True, exist_ok=True)
    # Beside the set, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
        # One level down, because the temporary folder itself is closed to other users.
        made, pool = Path(scratch) / "set", _make_pool(seed)
        # Threads, not processes: NumPy and Pillow release the interpreter lock for most of the work, and new
        # processes would import the main script again, and with it torch and DALI.
        with ThreadPoolExecutor(workers or usable_processors()) as executor:
            list(executor.map(lambda name: _write(made / name, pool, seed, *files[name]), files))
        (made / _SETTINGS_FILE).write_text(settings)
        try:
            made.replace(place)
        except OSError:  # probably another call was faster
            if not _is_complete(place, settings, set(files)):
                raise
    return root
