"""The paper's figure 2: masks with values outside [0, 1].

    python -m experiments.figure2 [OUTPUT.png] [--quick]

Two images of the demo set in place of the paper's dog and cat. Above Mixup, ``lam own + (1 - lam) partner``,
for lam from -0.75 to 0.75: a negative weight subtracts the own image. Below masks drawn by Theorem 2 with the
same means, enlarged from 20 x 20 pixels: their coefficients, ``a_jk = (1 - lam)^2 + 0.3 exp(-|j - k|^2 /
(2 * 3.5^2))``, are local, as CutMix's, but smooth. Images are clipped to their range to show them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from dali_msda.theory.prescribed import sample_mask
from pipelines.demo_data import make_demo_dataset

from .figures import Claim, parse, save

Floats = npt.NDArray[np.float64]

LAMS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
SIZE, SIDE = 224, 20
SPREAD, LENGTH = 0.3, 3.5
"""Variance of a mask's pixels, and the distance at which they are hardly tied any more."""
LOWEST, HIGHEST = -2.0, 2.0
"""Scale of the masks in the figure."""
ERRORS = 4.5
"""Standard errors within which a thousand moments agree."""


def prescribed(lam: float) -> Floats:
    """The coefficient matrix of the lower rows, [SIDE^2, SIDE^2]."""
    y, x = (axis.ravel() for axis in np.mgrid[:SIDE, :SIDE])
    distance = np.subtract.outer(y, y) ** 2 + np.subtract.outer(x, x) ** 2
    return np.asarray((1 - lam) ** 2 + SPREAD * np.exp(-distance / (2 * LENGTH**2)))


class Panel(NamedTuple):
    """A column of the figure; images [H, W, C] between 0 and 1 before they are clipped."""

    mixup: Floats
    mixed: Floats
    mask: Floats
    """[H, W]"""
    clipped: tuple[float, float]
    """Share of the values of both images outside [0, 1]."""
    outside: float
    """Share of the mask's pixels outside [0, 1], over all draws."""
    deviation: float
    """Largest difference of a mean or coefficient from what was prescribed, in standard errors."""


def enlarge(mask: Floats) -> Floats:
    """A mask at the size of the images."""
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float64)


def deviation(masks: Floats, coefficients: Floats, lam: float, rng: np.random.Generator) -> float:
    """See :attr:`Panel.deviation`: means and products of 100 random pairs of pixels."""
    seen = []
    for j, k in rng.integers(0, masks.shape[1], (100, 2)):
        products = (1 - masks[:, j]) * (1 - masks[:, k])
        for values, expected in ((masks[:, j], lam), (products, coefficients[j, k])):
            seen.append(abs(values.mean() - expected) / (values.std() / np.sqrt(len(values))))
    return float(np.max(seen))


def mix(own: Floats, partner: Floats, draws: int) -> dict[float, Panel]:
    """Mix two images with every lam, by a constant mask and by a drawn one."""
    panels = {}
    for index, lam in enumerate(LAMS):
        rng = np.random.default_rng(index)
        coefficients = prescribed(lam)
        masks = sample_mask(coefficients, lam, rng, draws)
        mask = enlarge(masks[0].reshape(SIDE, SIDE))
        mixup = lam * own + (1 - lam) * partner
        mixed = mask[..., None] * own + (1 - mask[..., None]) * partner
        panels[lam] = Panel(
            mixup,
            mixed,
            mask,
            (share_outside(mixup), share_outside(mixed)),
            share_outside(masks),
            deviation(masks, coefficients, lam, rng),
        )
    return panels


def share_outside(values: Floats) -> float:
    """The share of values outside [0, 1]."""
    return float(np.mean((values < 0) | (values > 1)))


def check(panels: dict[float, Panel]) -> list[Claim]:
    """What the paper says of unbounded masks."""
    worst = max(panel.deviation for panel in panels.values())
    negative = min(panel.outside for lam, panel in panels.items() if lam < 0)
    return [
        Claim(
            "masks with the prescribed means and coefficients exist for every lam (Theorem 2), within"
            f" {ERRORS} standard errors",
            f"{worst:.1f}",
            worst <= ERRORS,
        ),
        Claim(
            "they leave [0, 1] (after Theorem 2), in most pixels if lam < 0",
            f"at least {negative:.0%} of the pixels",
            negative > 0.5,
        ),
    ]


def draw(panels: dict[float, Panel]) -> Figure:
    """A column for every lam: Mixup, the image mixed by a drawn mask, that mask."""
    figure = Figure(figsize=(1.45 * len(panels) + 1, 5.1), layout="constrained")
    axes = figure.subplots(3, len(panels))
    for column, (lam, panel) in enumerate(panels.items()):
        axes[0, column].imshow(np.clip(panel.mixup, 0, 1))
        axes[0, column].set_title(f"λ = {lam:g}".replace("-", "\N{MINUS SIGN}"), fontsize=10)
        axes[1, column].imshow(np.clip(panel.mixed, 0, 1))
        shown = axes[2, column].imshow(panel.mask, cmap="gray", vmin=LOWEST, vmax=HIGHEST)
        # White where the weight is 0, black where it is 1.
        axes[2, column].contour(panel.mask, [0.0, 1.0], colors=["white", "black"], linewidths=0.7)
    for row, name in enumerate(("Mixup", "mixed by\ndrawn mask", "drawn mask")):
        axes[row, 0].set_ylabel(name)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=axes[2, :], ticks=[-2, -1, 0, 1, 2], pad=0.01)
    bar.ax.axhline(0.0, color="white", lw=0.9)
    bar.ax.axhline(1.0, color="black", lw=0.9)
    bar.set_label("own image's weight")
    return figure


def load(path: Path) -> Floats:
    """Read an image, [SIZE, SIZE, 3] in [0, 1]."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image, (SIZE, SIZE)), np.float64) / 255


def main(arguments: Sequence[str] | None = None) -> None:
    """Make two images, mix them, draw the figure."""
    options = parse("figure2", __doc__, arguments)
    with tempfile.TemporaryDirectory() as folder:
        data = make_demo_dataset(Path(folder) / "demo", train_per_class=4, val_per_class=1)
        classes = sorted((data / "train").iterdir())
        own, partner = (load(sorted(classes[label].iterdir())[number]) for label, number in ((5, 1), (8, 1)))
    panels = mix(own, partner, draws=500 if options.quick else 4000)
    record = {
        "settings": {"size": SIZE, "side": SIDE, "spread": SPREAD, "length": LENGTH},
        "panels": [
            {
                "lam": lam,
                "share_of_values_clipped": {"mixup": panel.clipped[0], "theorem_2": panel.clipped[1]},
                "share_of_mask_outside": panel.outside,
                "largest_deviation": panel.deviation,
            }
            for lam, panel in panels.items()
        ],
    }
    save(draw(panels), record, check(panels), options)


if __name__ == "__main__":
    main()
