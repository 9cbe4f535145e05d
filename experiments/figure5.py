"""The paper's figure 5: the products of input gradients that mixing leaves, over the distance of pixels.

python -m experiments.figure5 [OUTPUT.png] --data DIR [--seeds 5]
python -m experiments.figure5 [OUTPUT.png] --quick

Equation 12: PartialGradProd(x, p) = max_v |d_v f(x) d_{v+p} f(x)|, with f the logit of the image's class. A
pixel has three channels; |d_v f| is the length of their gradient. Networks differ in the scale of f, so the
gradient of every image is divided by its root mean square over the pixels: what remains is where a network
looks, not how strongly. Small networks are trained with no mixing, Mixup and CutMix through the DALI
pipeline, several seeds each; products are averaged over validation images. DIR has train/ and val/ (or
test/), class folders of images. With --quick, generated images, one seed and one epoch: that
everything runs, not the effect.

The paper's reading: CutMix, whose a_jk is large for near pixels, weakens the products of near pixels.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import nn

from experiments.figures import Claim, Options, average_rings, compute_cells, forget_cells, parse, save
from experiments.small_networks import Recipe, batches, evaluate, find_split, some_of_each, train
from pipelines.demo_data import make_demo_dataset
from pipelines.folders import ImageFolder, list_images

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

METHODS = {"none": "no mixing", "mixup": "Mixup", "cutmix": "CutMix"}
NEAR = 2.0
"""In pixels: at most this, but not 0, is near."""


@dataclass(frozen=True)
class Amount:
    """How much is trained and measured."""

    seeds: int = 5
    images: int = 500
    """Training images of each class."""
    measured: int = 40
    """Validation images of each class whose gradients are measured."""
    epochs: int = 15


QUICK = Amount(seeds=1, images=13, measured=2, epochs=1)


def gradient_lengths(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Length of the class logit's gradient in every pixel, root mean square 1 over an image: N x H x W."""
    images = images.detach().clone().requires_grad_(True)
    chosen = model(images).gather(1, labels.long()[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, images)
    lengths = gradient.square().sum(1)
    return (lengths / lengths.mean((1, 2), keepdim=True).clamp_min(1e-30)).sqrt()


def gradient_products(lengths: torch.Tensor, reach: int) -> np.ndarray:
    """Equation 12 for every offset: 2 reach + 1 x 2 reach + 1, the mean over images of the largest product.

    Parameters
    ----------
    lengths : torch.Tensor
        N x H x W.
    reach : int
        Offsets go from -reach to reach in both directions.
    """
    height, width = lengths.shape[1:]
    found = np.zeros((2 * reach + 1, 2 * reach + 1))
    for down in range(reach + 1):
        for right in range(-reach, reach + 1):
            one = lengths[:, down:, max(right, 0) : width + min(right, 0)]
            other = lengths[:, : height - down, max(-right, 0) : width + min(-right, 0)]
            mean = float((one * other).amax((1, 2)).mean())
            # The product does not depend on the sign of p.
            found[reach + down, reach + right] = found[reach - down, reach - right] = mean
    return found


def near_product(products: np.ndarray) -> float:
    """Mean product of near pixels."""
    reach = len(products) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(y, x)
    return float(products[(distance > 0) & (distance <= NEAR)].mean())


def measure(model: nn.Module, images: ImageFolder, recipe: Recipe) -> np.ndarray:
    """:func:`gradient_products` of a network, the mean over all images."""
    parts = [gradient_lengths(model, batch, labels) for batch, labels in batches(images, recipe)]
    return gradient_products(torch.cat(parts), recipe.image_size // 2)


def compute(options: Options, folder: Path, amount: Amount) -> dict[str, Any]:
    """Train and measure the networks that are missing: all results by method, a list over seeds."""
    recipe = Recipe(epochs=amount.epochs)
    training = some_of_each(list_images(find_split(folder, ("train",))), amount.images)
    validation = list_images(find_split(folder, ("val", "test")))
    measured = some_of_each(validation, amount.measured)

    def network(key: str) -> dict[str, Any]:
        method, seed = key.split()
        model = train(training, method, int(seed), recipe)
        return {
            "accuracy": evaluate(model, validation, recipe)["accuracy"],
            "products": measure(model, measured, recipe).tolist(),
        }

    settings = {
        "recipe": dataclasses.asdict(recipe),
        "images": [images.digest() for images in (training, validation, measured)],
    }
    keys = {method: [f"{method} {seed}" for seed in range(amount.seeds)] for method in METHODS}
    # Seed by seed, so that an interrupted run has as many networks of each method.
    turns = [key for group in zip(*keys.values(), strict=True) for key in group]
    cells = compute_cells(options, turns, settings, network)
    return {method: [cells[key] for key in own] for method, own in keys.items()}


def check(networks: dict[str, Any]) -> list[Claim]:
    """What the paper reads from its figure (section 4)."""
    near = {
        method: np.array([near_product(np.array(each["products"])) for each in own])
        for method, own in networks.items()
    }

    def seen(method: str) -> str:
        values = near[method]
        return f"{METHODS[method]} {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"

    return [
        Claim(
            f"the product of near pixels is smaller with CutMix than with {METHODS[other]}",
            f"{seen('cutmix')}, {seen(other)}",
            bool(near["cutmix"].mean() < near[other].mean()),
        )
        for other in ("none", "mixup")
    ]


def draw(networks: dict[str, Any]) -> Figure:
    """Maps over the offset, one scale for all, and the curves with the range over seeds."""
    maps = {method: np.mean([each["products"] for each in own], axis=0) for method, own in networks.items()}
    reach = len(next(iter(maps.values()))) // 2
    # The product with itself (p = 0) is a square, far above all others.
    top = max(float(np.sort(each.ravel())[-2]) for each in maps.values())
    low = min(float(each.min()) for each in maps.values())
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained", width_ratios=[1, 1, 1, 1.5])
    for axis, (method, values) in zip(axes, maps.items(), strict=False):
        image = axis.imshow(values, cmap="viridis", vmin=low, vmax=top, extent=(-reach, reach, reach, -reach))
        axis.set(title=METHODS[method], xlabel="p, columns")
    axes[0].set_ylabel("p, rows")
    figure.colorbar(image, ax=axes[:3], label="largest product", shrink=0.85)
    for (method, own), style in zip(networks.items(), ("-", "--", ":"), strict=True):
        values = np.array([average_rings(np.array(each["products"]))[1:] for each in own])
        distances = np.arange(1, 1 + values.shape[1])
        axes[3].plot(distances, values.mean(0), style, color="black", label=METHODS[method])
        axes[3].fill_between(distances, values.min(0), values.max(0), color="black", alpha=0.15, lw=0)
    axes[3].set(title="over the distance", xlabel="|p|, pixels", ylabel="largest product")
    axes[3].xaxis.get_major_locator().set_params(integer=True)
    axes[3].legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, draw, write, check."""
    own = {
        "data": {"type": Path, "help": "folder with train/ and val/; needed without --quick"},
        "seeds": {
            "type": int,
            "default": Amount.seeds,
            "help": f"networks per method; default: {Amount.seeds}",
        },
    }
    options = parse("figure5", __doc__, arguments, own=own)
    amount = QUICK if options.quick else Amount(seeds=options.own["seeds"])
    folder: Path | None = options.own["data"]
    if amount.seeds < 1:
        raise SystemExit(f"--seeds must be at least 1; got {amount.seeds}")
    if folder is None and not options.quick:
        raise SystemExit("--data must be a folder with train/ and val/; got none, and no --quick")
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = make_demo_dataset(
                Path(temporary) / "demo", train_per_class=amount.images, val_per_class=amount.measured
            )
        try:
            networks = compute(options, folder, amount)
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from None
    curves = {
        method: {
            "near_product": [near_product(np.array(each["products"])) for each in found],
            "by_distance": [average_rings(np.array(each["products"])).tolist() for each in found],
            "accuracy": [each["accuracy"] for each in found],
        }
        for method, found in networks.items()
    }
    data = {"amount": dataclasses.asdict(amount), "recipe": dataclasses.asdict(Recipe(epochs=amount.epochs))}
    # One epoch on generated images show nothing.
    save(draw(networks), data | {"networks": curves}, [] if options.quick else check(networks), options)
    forget_cells(options)
    for method, values in curves.items():
        print(f"  {METHODS[method]}: accuracy {np.mean(values['accuracy']):.1%}")


if __name__ == "__main__":
    main()
