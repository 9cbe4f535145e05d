"""Figure 5: the products of input gradients (equation 12), against loops and known gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments import figure5
from experiments.figure5 import gradient_lengths, gradient_products, near_product
from experiments.figures import Options, average_rings
from experiments.small_networks import some_of_each
from pipelines.demo_data import make_demo_dataset
from pipelines.folders import ImageFolder


def test_products_of_every_offset() -> None:
    """Largest product of two pixels that are p apart, by loops."""
    lengths = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
    reach = 3
    found = gradient_products(lengths, reach)
    values = lengths.numpy()
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            best = np.zeros(3)
            for y in range(5):
                for x in range(6):
                    if 0 <= y + down < 5 and 0 <= x + right < 6:
                        best = np.maximum(best, values[:, y, x] * values[:, y + down, x + right])
            np.testing.assert_allclose(found[reach + down, reach + right], best.mean(), rtol=1e-6)


def test_gradients_of_a_linear_network() -> None:
    """They are its weights, whatever the image; the class picks the row, and scale drops out."""
    linear = nn.Linear(3 * 4 * 5, 2)
    network = nn.Sequential(nn.Flatten(), linear)
    images = torch.rand(6, 3, 4, 5)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    weights = linear.weight.detach().reshape(2, 3, 4, 5)
    exact = weights.square().sum(1).sqrt()
    exact /= exact.square().mean((1, 2), keepdim=True).sqrt()
    found = gradient_lengths(network, images, labels)
    torch.testing.assert_close(found, exact[labels], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        linear.weight.mul_(7)
    torch.testing.assert_close(gradient_lengths(network, images, labels), found, rtol=1e-5, atol=1e-6)


def test_over_the_distance() -> None:
    reach = 9
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    products = 2.0 ** -np.rint(np.hypot(y, x))
    np.testing.assert_allclose(average_rings(products), 2.0 ** -np.arange(10.0))
    flat = np.where(np.hypot(y, x) <= 2, 3.0, 1.0)
    assert near_product(flat) == 3.0


def test_some_images_of_each_class() -> None:
    images = ImageFolder(Path(), ("a", "b", "c"), ["1", "2", "3", "4", "5"], [0, 0, 0, 2, 2])
    kept = some_of_each(images, 2)
    assert (kept.files, kept.labels, kept.classes) == (["1", "2", "4", "5"], [0, 0, 2, 2], ("a", "b", "c"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0", "--data", "."], "--seeds must be at least 1; got 0"),
        ([], "--data must be a folder with train/ and val/"),
        (["--data", "."], "--data must be a folder with train/; got ."),
    ],
)
def test_bad_arguments(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        figure5.main([str(tmp_path / "f.png"), *options])
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_finished_networks_are_kept(tmp_path: Path) -> None:
    """A run that was stopped trains only what is missing, with the numbers of one that was not."""
    data = make_demo_dataset(tmp_path / "data", train_per_class=7, val_per_class=1)
    options = Options(tmp_path / "f.png", quick=True, dpi=50)
    amount = figure5.Amount(seeds=1, images=7, measured=1, epochs=1)
    whole = figure5.compute(options, data, amount)
    (cells,) = tmp_path.glob("f.cells.jsonl")
    header, *lines = cells.read_text().splitlines()
    kept = {key: value for line in lines for key, value in json.loads(line).items()}
    del kept["cutmix 0"]
    kept["none 0"]["accuracy"] = 0.123  # shows that it was not trained again
    cells.write_text("".join(f"{line}\n" for line in (header, json.dumps(kept))))
    again = figure5.compute(options, data, amount)
    assert again["none"][0]["accuracy"] == 0.123
    assert again["cutmix"] == whole["cutmix"]


def test_the_claims() -> None:
    """Held against networks whose near products are known."""

    def network(near: float) -> list[dict[str, object]]:
        return [{"products": np.full((9, 9), near).tolist(), "accuracy": 1.0}]

    networks = {"none": network(3.0), "mixup": network(1.0), "cutmix": network(2.0)}
    assert [claim.holds for claim in figure5.check(networks)] == [True, False]
    assert "CutMix 2.00 (2.00 to 2.00), Mixup 1.00" in figure5.check(networks)[1].seen
