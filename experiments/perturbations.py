"""Images made harder: noise, blur, occlusion and the common corruptions; the same numbers for the same seed.

All images are uint8 arrays N x H x W x 3, before and after. The common corruptions are those of Hendrycks
and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations" (ICLR 2019),
in the package imagecorruptions-imaug. Its strengths are those of ImageNet-C, whatever the size of the
images: on images of 32 pixels, the same severity is stronger than in CIFAR-10-C.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipelines.constants import MEAN

Images = npt.NDArray[np.uint8]

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32
"""The side in pixels of the smallest images that can be corrupted."""
# These do not draw from NumPy's global generator.
_TAKE_SEED = ("impulse_noise", "glass_blur")


def add_noise(images: Images, deviation: float, seed: int) -> Images:
    """Add Gaussian noise to every value; `deviation` is relative to the range of pixels."""
    rng = np.random.default_rng(seed)
    found = np.empty_like(images)
    for number, image in enumerate(images):  # one by one, for the memory
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(255 * deviation)
        found[number] = np.rint(np.clip(image + noise, 0, 255))
    return found


def blur(images: Images, deviation: float) -> Images:
    """Convolve with a Gaussian; `deviation` is in pixels."""
    found = np.empty_like(images)
    for number, image in enumerate(images):
        smooth = ndimage.gaussian_filter(image.astype(np.float32), (deviation, deviation, 0))
        found[number] = np.rint(np.clip(smooth, 0, 255))
    return found


def occlude(images: Images, share: float, seed: int) -> Images:
    """Cover a square at a random place with ImageNet's mean colour, 0 for the networks.

    Its side is `share` of the image's shorter side, and it lies inside the image.
    """
    height, width = images.shape[1:3]
    side = round(share * min(height, width))
    rng = np.random.default_rng(seed)
    found = images.copy()
    for image in found:
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        image[top : top + side, left : left + side] = np.rint(MEAN)
    return found


def corrupt(images: Images, name: str, severity: int, seed: int) -> Images:
    """One of :data:`CORRUPTIONS`, with severity 1 to 5.

    Raises
    ------
    ValueError
        The images are smaller than 32 pixels.
    """
    import imagecorruptions  # takes a second

    if min(images.shape[1:3]) < SMALLEST:
        raise ValueError(f"images must have at least {SMALLEST} x {SMALLEST} pixels; got {images.shape[1:3]}")
    found = np.empty_like(images)
    # The library draws from the global generator.
    before = np.random.get_state()  # noqa: NPY002
    try:
        for number, image in enumerate(images):
            own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            np.random.seed(own)  # noqa: NPY002
            extra = {"seed": own} if name in _TAKE_SEED else {}
            found[number] = imagecorruptions.corrupt(image, severity, name, **extra)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return found


def perturb(images: Images, kind: str, level: float, seed: int) -> Images:
    """The images of a column of the table.

    Parameters
    ----------
    images : ndarray
        uint8 N x H x W x 3.
    kind : str
        "clean", "noise", "blur", "occlusion" or one of :data:`CORRUPTIONS`.
    level : float
        Standard deviation, share or severity.
    seed : int
        Another column has other draws.
    """
    own = int(np.random.SeedSequence((seed, zlib.crc32(f"{kind} {level:g}".encode()))).generate_state(1)[0])
    if kind == "clean":
        return images
    if kind == "noise":
        return add_noise(images, level, own)
    if kind == "blur":
        return blur(images, level)
    if kind == "occlusion":
        return occlude(images, level, own)
    return corrupt(images, kind, int(level), own)
