"""Robustness of networks: known worst cases, exact pixels, the same draws, and the trainer's accuracy."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecorruptions
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from experiments import robustness, robustness_table, small_networks
from experiments.attacks import ATTACKS, attack
from experiments.measuring import Column, Measure, load_pixels, pack_hits, unpack_hits
from experiments.networks import Network, load_network
from experiments.perturbations import CORRUPTIONS, Images, perturb
from experiments.scores import (
    brier_scores,
    estimate_over_images,
    estimate_over_networks,
    expected_calibration_error,
)
from pipelines.constants import MEAN, STD
from pipelines.folders import list_images
from pipelines.imagenet import val_pipeline
from pipelines.records import Output
from tests.image_sets import CLASSES
from tests.sources import write_cifar10
from tests.training_runs import status

# -- Attacks, where the worst case is known ---------------------------------------------------------------


def linear_network(generator: torch.Generator) -> tuple[Network, torch.Tensor, torch.Tensor]:
    """A network of two classes that is linear in the pixels; weights and bias of its margin."""
    layer = nn.Linear(3 * 8 * 8, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 3 * 8 * 8, generator=generator))
        layer.bias.copy_(torch.randn(2, generator=generator))
    model = nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)
    network = Network(model, ("a", "b"), 8, 8, MEAN, STD, "none", 0, "linear")
    mean, std = (torch.tensor(values).double()[:, None, None] for values in (MEAN, STD))
    difference = (layer.weight[1] - layer.weight[0]).double().reshape(3, 8, 8)
    bias = (layer.bias[1] - layer.bias[0]).double() - (difference * mean / std).sum()
    return network, difference * 255 / std, bias


@pytest.mark.parametrize("method", ATTACKS)
@pytest.mark.parametrize("at_bounds", [False, True], ids=["inside", "at the bounds"])
@pytest.mark.parametrize("radius", [1 / 255, 8 / 255])
def test_attacks_find_the_worst_case_of_a_linear_network(method: str, at_bounds: bool, radius: float) -> None:
    """It is x - radius sign(w), pixel by pixel, cut to [0, 1]; inside, the margin falls by radius |w|_1.

    Margins reach 30, where probabilities of float32 are 0 and 1.
    """
    generator = torch.Generator().manual_seed(0)
    network, weights, bias = linear_network(generator)
    images = torch.rand(200, 3, 8, 8, generator=generator)
    images = images if at_bounds else 0.25 + images / 2
    margins = (images.double() * weights).sum((1, 2, 3)) + bias
    # Around 0, so that some images are lost at every radius.
    bias = bias - margins.median()
    network.model[1].bias[1] -= margins.median()  # type: ignore[index]
    labels = torch.arange(200) % 2
    signs = (2 * labels - 1).double()

    found, right = attack(network.of_pixels(), images, labels, method=method, radius=radius, steps=10, seed=0)
    worst = (images.double() - radius * signs[:, None, None, None] * weights.sign()).clamp(0, 1)
    assert torch.allclose(found.double(), worst, rtol=0, atol=1e-6)
    margin = signs * ((worst * weights).sum((1, 2, 3)) + bias)
    if not at_bounds:
        inside = signs * ((images.double() * weights).sum((1, 2, 3)) + bias) - radius * weights.abs().sum()
        assert torch.allclose(margin, inside, rtol=0, atol=1e-9 * float(weights.abs().sum()))
    assert margin.abs().max() > 30
    clear = margin.abs() > 1e-3
    assert clear.sum() > 190
    assert torch.equal(right[clear], margin[clear] > 0)


def some_images(count: int = 3) -> Images:
    """Smooth images of 32 pixels, whose values do not touch 0 and 255."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 6, 32)[:, None] * rng.uniform(1, 2, (count, 1, 1)) + np.arange(32) / 9)
    return np.rint(128 + 60 * waves[..., None] * rng.uniform(0.5, 1, 3)).astype(np.uint8)


def network_file(path: Path, method: str, seed: int, **changes: Any) -> Path:
    """A file of the study: random weights, with statistics of images and logits around 0."""
    torch.manual_seed(1000 + seed)
    model = small_networks.build("convolutions", 3, 4)
    images = torch.from_numpy(some_images(50)).permute(0, 3, 1, 2) / 64 - 2
    with torch.no_grad():
        for _ in range(20):
            model(images)
        logits = model.eval()(images)
        model[-1].weight *= 3 / logits.std()  # type: ignore[index]
        model[-1].bias.copy_(-(3 / logits.std()) * (logits - model[-1].bias).mean(0))  # type: ignore[index]
    content = {"study": 1, "method": method, "seed": seed, "crop": "large", "classes": list(CLASSES)}
    content |= {"recipe": {}, "image_size": 32, "arch": "convolutions", "arch_settings": {"width": 4}}
    content |= {"mean": list(MEAN), "std": list(STD), "model": model.state_dict()}
    path.parent.mkdir(exist_ok=True)
    torch.save(content | changes, path)
    return path


def test_more_steps_and_larger_radii_find_more(tmp_path: Path) -> None:
    """Otherwise gradients would be masked."""
    model = load_network(network_file(tmp_path / "a.pt", "none", 0)).of_pixels()
    images = torch.from_numpy(some_images(40)).permute(0, 3, 1, 2) / 255
    labels = model(images).argmax(1)

    def accuracy(method: str, radius: float) -> float:
        _, right = attack(model, images, labels, method=method, radius=radius / 255, steps=7, seed=0)
        return float(right.double().mean())

    fgsm, pgd = ([accuracy(method, radius) for radius in (1, 2, 4)] for method in ATTACKS)
    assert all(few <= many for few, many in zip(pgd, fgsm, strict=True))
    assert fgsm[0] > fgsm[1] > fgsm[2]
    assert pgd[1] < fgsm[1]


def test_attacks_draw_by_their_seed_alone(tmp_path: Path) -> None:
    model = load_network(network_file(tmp_path / "a.pt", "none", 0)).of_pixels()
    images, labels = torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    before = torch.get_rng_state()
    found = [
        attack(model, images, labels, method="pgd", radius=0.1, steps=1, seed=seed)[0] for seed in (1, 1, 2)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_pgd_that_is_weaker_than_fgsm_is_noticed() -> None:
    amount = robustness_table.Amount(radii=(8.0,), parts=("attacks",))
    hits = {"strong": np.arange(100) >= 90, "weak": np.arange(100) >= 70}

    def cells(fgsm: str, pgd: str) -> dict[Column, Any]:
        kinds = {"fgsm": fgsm, "pgd": pgd}
        return {Column(kind, 8.0): {"hits": pack_hits(hits[how])} for kind, how in kinds.items()}

    found = {"images": 100, "cells": {"good": cells("weak", "strong"), "masked": cells("strong", "weak")}}
    assert [each["network"] for each in robustness_table.find_masking(found, amount)] == ["masked"]


# -- Pixels and perturbations ---------------------------------------------------------------------------


def test_pixels_are_those_of_the_pipeline(photos: Path) -> None:
    """The network gets from them what it gets from the pipeline."""
    images = list_images(photos / "val")
    found, _ = load_pixels(images, range(17), 32, 36)
    pipeline = val_pipeline(
        images, batch_size=17, num_threads=1, resize_size=36, output=Output(image_size=32)
    )
    pipeline.build()
    normalised = torch.from_numpy(np.array(pipeline.run()[0].as_cpu().as_array()))
    network = Network(nn.Identity(), CLASSES, 32, 36, MEAN, STD, "none", 0, "linear")
    again = network.of_pixels()(torch.from_numpy(found).permute(0, 3, 1, 2) / 255)
    assert torch.allclose(again, normalised, rtol=0, atol=2e-6)


def test_pixels_of_lossless_images_of_the_right_size(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    for number, image in enumerate(values):
        (tmp_path / str(number)).mkdir()
        Image.fromarray(image).save(tmp_path / str(number) / "a.png")
    found, labels = load_pixels(list_images(tmp_path), [0, 2], 16, 16)
    assert np.array_equal(found, values[[0, 2]])
    assert labels == [0, 2]


def test_images_are_drawn_once_from_any_source(tmp_path: Path) -> None:
    """The same ones from class folders and from CIFAR's binary files."""
    rng = np.random.default_rng(0)
    pictures = [(rng.integers(0, 256, (32, 32, 3), np.uint8), number // 3) for number in range(30)]
    names = [f"c{number}" for number in range(10)]
    write_cifar10(tmp_path / "binary", pictures, pictures, names)
    for number, (image, label) in enumerate(pictures):
        folder = tmp_path / "folders" / "test" / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    (values, labels), (others, other_labels) = (
        load_pixels(*robustness.sample(robustness.list_evaluation(data), 12, 0), 32, 32)
        for data in (tmp_path / "binary", tmp_path / "folders")
    )
    assert values.shape == (12, 32, 32, 3)
    assert labels == other_labels
    assert np.array_equal(values, others)


@pytest.mark.parametrize("kind", ["noise", "blur", "occlusion", *CORRUPTIONS])
def test_perturbations_repeat(kind: str) -> None:
    """The same seed gives the same images; another, others, where there is a draw at all."""
    images, level = some_images(), 3 if kind in CORRUPTIONS else 0.25
    before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    first, again, other = (perturb(images, kind, level, seed) for seed in (5, 5, 6))
    assert first.shape == images.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, images) or kind == "blur"
    fixed = ("blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert np.array_equal(first, other) == (kind in fixed)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002
    assert np.array_equal(images, some_images())


def test_the_common_corruptions_are_all_there() -> None:
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names()
    small, large = (
        np.abs(perturb(some_images(), "gaussian_noise", severity, 0) - some_images().astype(float)).mean()
        for severity in (1, 5)
    )
    assert large > 3 * small


def test_noise_blur_and_occlusion_have_their_size() -> None:
    images = np.full((50, 32, 32, 3), 100, np.uint8)
    changes = perturb(images, "noise", 0.05, 0) - 100.0
    assert changes.std() == pytest.approx(0.05 * 255, rel=0.01)
    assert changes.mean() == pytest.approx(0, abs=0.2)

    step = np.zeros((1, 32, 32, 3), np.uint8)
    step[:, :, 16:] = 255
    row = perturb(step, "blur", 2.0, 0)[0, 9, :, 1] / 255
    middles = np.arange(32) - 15.5
    exact = torch.special.ndtr(torch.from_numpy(middles / 2)).numpy()
    np.testing.assert_allclose(row, exact, atol=0.004)

    covered = perturb(images, "occlusion", 0.375, 0)
    changed = (covered != images).any(3)
    assert (changed.sum((1, 2)) == 144).all()
    assert (covered[changed] == np.rint(MEAN)).all()
    corners = {tuple(np.argwhere(each)[0]) for each in changed}
    assert len(corners) > 30
    assert all((each.any(0).sum(), each.any(1).sum()) == (12, 12) for each in changed)


# -- Scores ---------------------------------------------------------------------------------------------


def test_calibration_against_loops() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 300)
    labels = rng.integers(0, 4, 300)
    right = probabilities.argmax(1) == labels
    error = 0.0
    for number in range(15):
        inside = [i for i in range(300) if number / 15 < probabilities[i].max() <= (number + 1) / 15]
        if inside:
            confidence = np.mean([probabilities[i].max() for i in inside])
            error += len(inside) / 300 * abs(np.mean([right[i] for i in inside]) - confidence)
    assert expected_calibration_error(probabilities, right) == pytest.approx(error, rel=1e-12)
    # The last bin includes 1: one image is 1 too confident, one 0.05 too little.
    ends = np.array([[1.0, 0.0], [0.95, 0.05]])
    assert expected_calibration_error(ends, np.array([False, True])) == pytest.approx((1 - 0.05) / 2)
    brier = [sum((probabilities[i, k] - (labels[i] == k)) ** 2 for k in range(4)) for i in range(300)]
    np.testing.assert_allclose(brier_scores(probabilities, labels), brier)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Wilson, Probable inference (1927): (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
        (estimate_over_images([1] * 8 + [0] * 2), (0.8, 0.49016, 0.94332)),
        (estimate_over_images([1] * 10), (1.0, 0.72247, 1.0)),
        # t(0.975; 2) = 4.30265
        (estimate_over_networks([0.1, 0.2, 0.3]), (0.2, 0.0, 0.2 + 4.30265 * 0.1 / 3**0.5)),
        (estimate_over_networks([0.7, 0.8, 0.9], 1.0), (0.8, 0.8 - 4.30265 * 0.1 / 3**0.5, 1.0)),
        (estimate_over_images([0.5, 0.6, 0.7]), (0.6, 0.6 - 4.30265 * 0.1 / 3**0.5, 0.84841)),
    ],
)
def test_intervals(found: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert tuple(found) == pytest.approx(expected, abs=2e-5)


# -- Files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainer's checkpoint after an epoch, with averaged weights that differ from the last ones."""
    output = tmp_path_factory.mktemp("run") / "out"
    assert status(photos, output, "--epochs", 1, "--ema-decay", 0.6, "--mix", "cutmix", "--seed", 3) == 0
    return output / "last.pt"


def test_a_checkpoint_has_the_accuracy_that_the_trainer_measured(checkpoint: Path, photos: Path) -> None:
    """Of its average, on every image, in the trainer's order of classes."""
    network = load_network(checkpoint)
    assert (network.method, network.seed, network.image_size) == ("cutmix", 3, 32)
    saved = torch.load(checkpoint, weights_only=True)
    for name, value in network.model.state_dict().items():
        assert torch.equal(value, saved["ema"][name])
    images = list_images(photos / "val")
    size = (network.image_size, network.resize_size)
    pixels = {size: load_pixels(images, range(17), *size)[0]}
    measure = Measure({"a": checkpoint}, {"a": size}, pixels, {"a": images.labels}, 1, 0, "cpu")
    found = measure("a clean 0")
    log = (checkpoint.parent / "metrics.jsonl").read_text().splitlines()
    (evaluation,) = (line for line in map(json.loads, log) if line["event"] == "eval")
    assert 100 * unpack_hits(found["hits"], len(images)).mean() == pytest.approx(
        evaluation["ema_top1"], abs=1e-3
    )
    assert found["nll"] == pytest.approx(evaluation["ema_loss"], rel=1e-4)


# -- The command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three networks of two methods."""
    folder = tmp_path_factory.mktemp("networks")
    for method, seed in (("none", 0), ("hmix", 0), ("hmix", 1)):
        network_file(folder / f"{method}-{seed}.pt", method, seed)
    return folder


def run(networks: Path, data: Path, output: Path, *options: str) -> dict[str, Any]:
    command = [str(networks), "--data", str(data), "--output", str(output), "--workers", "1", "--quick"]
    assert robustness.main([*command, *options]) == 0
    found: dict[str, Any] = json.loads(output.read_text())
    return found


@pytest.fixture(scope="module")
def whole(networks: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "r.json"
    run(networks, photos, output)
    return output


def test_the_table(whole: Path, networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(whole.read_text())
    assert found["command"].startswith("python -m experiments.robustness ")
    assert "foolbox" in found["machine"]["versions"]
    assert {title: len(names) for title, names in found["groups"].items()} == {"no mixing": 1, "HMix": 2}
    rows = [record["row"] for record in found["results"] if record["group"] == "HMix"]
    expected = ["no change", "FGSM 8/255", "PGD 8/255", "occlusion 0.5", "corruption: frost", "Brier score"]
    assert set(expected) < set(rows)
    assert len(rows) == 1 + 2 + 9 + 15 + 1 + 3
    assert whole.with_suffix(".png").stat().st_size > 10_000
    text = robustness_table.format_table(found["results"])
    assert text.splitlines()[0].split() == ["|", "|", "no", "mixing", "|", "HMix", "|"]
    assert len(text.splitlines()) == 2 + len(rows)
    for record in found["results"]:
        assert record["value"] == pytest.approx(np.mean(record["values"]))
        if record["low"] is not None:
            assert record["low"] <= record["value"] <= record["high"]


def test_the_same_numbers_from_what_was_kept(
    whole: Path, networks: Path, photos: Path, tmp_path: Path
) -> None:
    """Cells of a stopped run are used, the others give the same; a new network adds its own only."""
    output = tmp_path / "r.json"
    cells = whole.with_name("r.cells.jsonl").read_text().splitlines()
    half = cells[: len(cells) // 2]
    changed = json.loads(half[1])
    (key,) = changed
    changed[key]["nll"] = 1234.5  # shows that it was not measured again
    half[1] = json.dumps(changed)
    output.with_name("r.cells.jsonl").write_text("\n".join(half) + "\n" + cells[-1][:20])
    found, expected = run(networks, photos, output)["results"], json.loads(whole.read_text())["results"]
    differing = [one["row"] for one, other in zip(found, expected, strict=True) if one != other]
    assert differing == ["cross-entropy"]

    more = shutil.copytree(networks, tmp_path / "more")
    network_file(more / "none-1.pt", "none", 1)
    before = output.with_name("r.cells.jsonl").read_text().splitlines()
    run(more, photos, output, "--parts", "noise")
    after = output.with_name("r.cells.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(before) + 4


def test_measuring_in_another_process_is_the_same(networks: Path) -> None:
    file = networks / "hmix-1.pt"
    labels = {"a": [0, 1, 2, 0, 1]}
    measure = Measure({"a": file}, {"a": (32, 32)}, {(32, 32): some_images(5)}, labels, 2, 0, "cpu")
    for key in ("a pgd 8", "a snow 3"):
        assert pickle.loads(pickle.dumps(measure))(key) == measure(key)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, ["--radii", "0"], "--radii must be in (0, 255]; got 0"),
        (None, ["--images", "1"], "--images must be at least 2; got 1"),
        (None, ["--workers", "0"], "--workers must be at least 1; got 0"),
        (None, ["--output", "a.png"], "--output must end in .json; got a.png"),
        (None, ["--parts", "snow"], "invalid choice: 'snow'"),
        ({"classes": ["x", "y", "z"]}, [], "--data must hold classes of {file}, which are x, y, z; got ant,"),
        ({"image_size": 16}, [], "--parts must leave out corruptions for images of less than 32 pixels"),
        ({"study": 2}, [], "{file} must be a network of version 1 of the study; got 2"),
        ({"std": [0.2, 0.2, 0.2]}, [], "the std in {file} must be of pixels from 0 to 255"),
        ({"arch": "vgg"}, [], "network must be one of convolutions, resnet8; got 'vgg'"),
        ({"arch_settings": {"width": 8}}, [], "{file} does not hold the weights of its model"),
        (b"PK\3\4 cut off", [], "{file} is damaged"),
    ],
)  # fmt: skip
def test_bad_input(
    change: dict[str, Any] | bytes | None,
    options: list[str],
    message: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One error that names what is wrong, before any work; no file is left."""
    file = network_file(tmp_path / "n.pt", "none", 0, **(change if isinstance(change, dict) else {}))
    if isinstance(change, bytes):
        file.write_bytes(change)
    command = [str(file), "--data", str(photos), "--output", str(tmp_path / "r.json"), "--workers", "1"]
    with pytest.raises(SystemExit) as raised:
        robustness.main([*command, *options])
    said = f"{raised.value}{capsys.readouterr().err}"
    assert message.format(file=file) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.pt"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [folder / "a.pt"], "CHECKPOINT must be a file, or a folder with *.pt files; got"),
        (lambda folder: [folder], "CHECKPOINT must be a file, or a folder with *.pt files; got"),
    ],
)
def test_missing_networks(make: Callable[[Path], list[Path]], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: ") as raised:
        robustness.main([*map(str, make(tmp_path)), "--data", str(tmp_path)])
    assert message in str(raised.value)


def test_groups_are_of_networks_that_differ_in_the_seed() -> None:
    def network(method: str, seed: int, crop: str = "large", arch: str = "resnet8") -> Network:
        return Network(nn.Identity(), CLASSES, 32, 32, MEAN, STD, method, seed, arch, crop)

    def groups(**networks: Network) -> dict[str, list[str]]:
        return robustness.group_networks(networks, {name: Path(f"{name}.pt") for name in networks})

    some = {"a": network("mixup", 1), "b": network("mixup", 0), "c": network("none", 0)}
    assert groups(**some) == {"no mixing": ["c"], "Mixup": ["b", "a"]}
    titles = ["no mixing, large crops", "Mixup, large crops", "Mixup, small crops"]
    assert list(groups(**some, d=network("mixup", 0, "small"))) == titles
    assert groups(**some, d=network("mixup", 0, arch="vgg"))["Mixup, vgg"] == ["d"]
    message = r"must have different seeds; b\.pt and d\.pt are both Mixup with seed 0"
    with pytest.raises(ValueError, match=message):
        groups(**some, d=network("mixup", 0))


def test_differences_are_paired_by_the_seed() -> None:
    def about(method: str, seed: int) -> dict[str, Any]:
        return {"method": method, "seed": seed, "arch": "resnet8", "crop": None}

    networks = {f"{method}{seed}": about(method, seed) for method in ("none", "hmix") for seed in range(4)}
    found = {
        "networks": networks,
        "groups": {"no mixing": ["none1", "none2", "none3"], "HMix": ["hmix0", "hmix1", "hmix2"]},
    }
    rows = {"no mixing": [0.5, 0.7, 0.1], "HMix": [0.9, 0.6, 0.82]}  # pairs: 0.6 - 0.5, 0.82 - 0.7
    records = [{"group": group, "row": "no change", "values": values} for group, values in rows.items()]
    (difference,) = robustness_table.compare_with_none(found, records)
    assert (difference["group"], difference["base"], difference["count"]) == ("HMix", "no mixing", 2)
    assert difference["mean"] == pytest.approx(0.11)
    assert difference["low"] == pytest.approx(0.11 - 12.7062 * 0.01, abs=1e-4)
    assert difference["p"] == difference["p_holm"] == pytest.approx(0.0577, abs=1e-3)
    alone = found | {"groups": {"HMix": ["hmix0", "hmix1", "hmix2"]}}
    assert robustness_table.compare_with_none(alone, records[1:]) == []
