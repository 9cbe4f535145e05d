"""The paper's figure 3: the same two images mixed by every method, and the masks.

    python -m experiments.figure3 [OUTPUT.png] [--dpi 300]

Two images of the demo set, lam = 0.65 and r = 0.5 as in the paper, one centre for all methods, mixed by a
DALI pipeline on the CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure
from nvidia.dali import Pipeline, fn

import dali_msda as msda
from dali_msda.methods import TABLE, Beta, Method
from pipelines.demo_data import make_demo_dataset

from .figures import Claim, parse, save

LAM, RATIO, SIZE, CENTER = 0.65, 0.5, 224, (95, 125)


def single_methods() -> list[Method]:
    """Methods whose mask depends only on lam and a centre; "stochastic" picks one of two others."""
    return [
        method
        for method in TABLE.values()
        if method.draws and all(isinstance(draw, Beta) for draw in method.draws.values())
    ]


def mix_two(own: Path, partner: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None, float | None]]:
    """Mix two images by every method: title -> image, mask, label weight."""
    pipeline = Pipeline(batch_size=2, num_threads=1, device_id=None, seed=0)
    with pipeline:
        encoded, labels = fn.readers.file(files=[str(own), str(partner)], labels=[0, 1])
        images = fn.resize(fn.decoders.image(encoded), size=[SIZE, SIZE], mode="not_smaller")
        images = fn.crop(images, crop=[SIZE, SIZE])
        outputs = [images]
        for method in single_methods():
            mixed, _, params = msda.mix(
                images,
                labels,
                method=method.name,
                num_classes=2,
                lam=LAM,
                center=CENTER,
                partner=1,
                return_params=True,
                backend="graph",  # the same image, without compiling kernels
                ratio=RATIO if "ratio" in method.defaults else None,
            )
            outputs += [mixed, params.mask, params.lam]
        pipeline.set_outputs(*outputs)
    pipeline.build()
    arrays = [np.array(tensors.as_array()) for tensors in pipeline.run()]
    panels: dict[str, tuple[np.ndarray, np.ndarray | None, float | None]] = {
        "own image": (arrays[0][0], None, None),
        "partner": (arrays[0][1], None, None),
    }
    for number, method in enumerate(single_methods()):
        mixed, mask, lam = arrays[1 + 3 * number : 4 + 3 * number]
        panels[method.title] = (mixed[0], mask[0, :, :, 0], float(lam[0]))
    return panels


def draw(panels: dict[str, tuple[np.ndarray, np.ndarray | None, float | None]]) -> Figure:
    """Draw a row of images and a row of masks, white for the own image."""
    figure = Figure(figsize=(2 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(2, len(panels))
    for column, (title, (image, mask, lam)) in enumerate(panels.items()):
        axes[0, column].imshow(image)
        axes[0, column].set_title(title)
        if mask is not None:
            axes[1, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
            axes[1, column].set_title(f"label: {lam:.0%} own", fontsize=9)
            axes[1, column].add_patch(
                patches.Rectangle(
                    (0, 0), 1, 1, transform=axes[1, column].transAxes, fill=False, lw=0.5, clip_on=False
                )
            )
    for axis in axes.flat:
        axis.axis("off")
    return figure


def label_claims(
    panels: dict[str, tuple[np.ndarray, np.ndarray | None, float | None]],
) -> list[Claim]:
    """The label weight is the mean of the mask, section 2: N = lam and E[M] = lam."""
    masked = [(mask, lam) for _, mask, lam in panels.values() if mask is not None and lam is not None]
    error = max(abs(float(mask.mean(dtype=np.float64)) - lam) for mask, lam in masked)
    return [
        Claim(
            "every label weight is the mean of its mask, within 1e-6",
            f"at most {error:.1e} apart",
            error <= 1e-6,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make two images, mix them, draw the figure."""
    options = parse("figure3", __doc__, arguments, default=Path("docs/methods.png"), dpi=110)
    with tempfile.TemporaryDirectory() as folder:
        data = make_demo_dataset(Path(folder) / "demo", train_per_class=4, val_per_class=1)
        classes = sorted((data / "train").iterdir())
        panels = mix_two(sorted(classes[5].iterdir())[1], sorted(classes[8].iterdir())[1])
    lams = {title: lam for title, (_, _, lam) in panels.items() if lam is not None}
    save(draw(panels), {"lam": LAM, "ratio": RATIO, "label_weights": lams}, label_claims(panels), options)


if __name__ == "__main__":
    main()
