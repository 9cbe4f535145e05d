"""The named runs: the paper's numbers, what its tables and documents say, and short runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import configs
import train_imagenet
from configs import cifar100, imagenet, imagenet100, named_run, names
from dali_msda.methods import METHODS
from pipelines.records import Augmentation
from tests.image_sets import photo, write_split
from tests.training_runs import lines
from training.config import Config, resolve
from training.optimization import Optimization

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet56", "wrn_28_2", "preact_resnet18", "preact_resnet34", "preact_resnet50")

# The paper has no result of PuzzleMix for the first network.
TABLE_2 = [(network, mix) for network in NETWORKS for mix in METHODS]
TABLE_2 += [(network, "puzzlemix") for network in NETWORKS[1:]]


def test_names() -> None:
    table_1 = [f"imagenet100_{crop}_crop_{mix}" for crop in ("large", "small") for mix in ("mixup", "cutmix")]
    table_2 = [f"cifar100_{network}_{mix}" for network, mix in TABLE_2]
    table_3 = [f"imagenet_{mix}" for mix in METHODS]
    assert names() == sorted(table_1 + table_2 + table_3)


def alphas(config: Config) -> set[object]:
    return {value for argument, value in config.mixing.arguments.items() if "alpha" in argument}


@pytest.mark.parametrize("name", names())
def test_fits_together(name: str) -> None:
    config = named_run(name)
    assert name.endswith(f"_{config.mixing.method}")
    assert (config.mixing.probability, config.mixing.label_smoothing) == (1.0, 0.0)
    resolved = resolve(dataclasses.replace(config, data=Path("anywhere"), device="cpu", amp="none"))
    assert resolved.epochs == 300


@pytest.mark.parametrize("mix", METHODS)
def test_table_3(mix: str) -> None:
    """With the numbers of the paper's section 5."""
    config = named_run(f"imagenet_{mix}")
    assert (config.arch, config.epochs, config.image_size) == ("resnet50", 300, 224)
    assert config.optimization == Optimization("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert alphas(config) == {"none": set(), "mixup": {0.8}}.get(mix, {1.0})
    assert config.mixing.arguments.get("ratio") == (0.75 if mix == "hmix" else None)
    assert (config.lr_schedule, config.lr_step_epochs, config.warmup_epochs) == ("step", 75.0, 0.0)


@pytest.mark.parametrize(("network", "mix"), TABLE_2)
def test_table_2(network: str, mix: str) -> None:
    """With the numbers of the paper's section 5, and of PuzzleMix's code where it gives none."""
    config = named_run(f"cifar100_{network}_{mix}")
    assert config.arch.endswith(network)
    assert config.optimization == Optimization("sgd", lr=0.2, momentum=0.9, weight_decay=1e-4)
    assert alphas(config) == {"none": set(), "gmix": {0.5}}.get(mix, {1.0})
    assert config.mixing.arguments.get("ratio") == (0.5 if mix == "hmix" else None)
    assert (config.batch_size, config.decay_all, config.warmup_epochs) == (100, True, 0.0)
    assert (config.lr_schedule, config.lr_milestones) == ("step", (150.0, 225.0))
    assert (config.image_size, config.val_image_size, config.val_resize_size) == (32, None, 32)
    assert config.augmentation == Augmentation(crop_padding=2)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize(("crop", "area"), [("large", (0.8, 1.0)), ("small", (0.25, 0.4))])
def test_table_1(crop: str, area: tuple[float, float], mix: str) -> None:
    """With the numbers of the paper's section 4; else like Table 3."""
    config = named_run(f"imagenet100_{crop}_crop_{mix}")
    assert config.image_size == 64
    assert config.augmentation == Augmentation(crop_area=area)
    assert alphas(config) == {1.0}
    other = named_run(f"imagenet_{mix}")
    same = {name: getattr(other, name) for name in ("image_size", "augmentation", "mixing")}
    assert dataclasses.replace(config, **same) == other


# -- What is written of them -------------------------------------------------------------------------------


def rows(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """The names in each row of a text's tables, and its numbers with decimals."""
    for line in text.splitlines():
        found = re.findall(r"`([\w.]+)`", line)
        if line.startswith("|") and found:
            yield found, re.findall(r"\b\d\d\.\d+\b", line)


def of_docstrings() -> dict[str, str]:
    """Top-1 by run."""
    found: dict[str, str] = {}
    for module in (imagenet, imagenet100):
        found |= {name: top1 for (name,), (top1,) in rows(module.__doc__ or "")}
    for (name,), numbers in rows(cifar100.__doc__ or ""):
        networks = NETWORKS[1:] if name.endswith("puzzlemix") else NETWORKS
        found |= {name.replace("...", it): top1 for it, top1 in zip(networks, numbers, strict=True)}
    return found


def test_docstrings_have_the_papers_numbers() -> None:
    """A few of each table, and that none of its runs is missing."""
    found = of_docstrings()
    assert sorted(found) == names()
    for name, top1 in {
        "imagenet100_large_crop_mixup": "58.3",
        "imagenet100_small_crop_cutmix": "67.0",
        "cifar100_resnet56_none": "73.23",
        "cifar100_wrn_28_2_gmix": "76.15",
        "cifar100_preact_resnet34_hmix": "81.07",
        "cifar100_preact_resnet50_gmix": "81.45",
        "imagenet_hmix": "78.38",
    }.items():
        assert found[name] == top1


def test_the_document_agrees() -> None:
    """docs/training.md has a row for each network or crop, with all numbers in the order of the methods."""
    expected = of_docstrings()
    found: dict[str, str] = {}
    for (first, *_), numbers in rows((ROOT / "docs" / "training.md").read_text()):
        start, _, mix = first.rpartition("_")
        if first in expected:
            every = ("mixup", "cutmix") if mix == "mixup" else (*METHODS, "puzzlemix")
            methods = [it for it in every if f"{start}_{it}" in expected]
            found |= {f"{start}_{it}": top1 for it, top1 in zip(methods, numbers, strict=True)}
    assert found == expected


# -- Files of one's own ------------------------------------------------------------------------------------


def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one run or several; a mistake in another file does not matter."""
    content = "from training.config import Config\n"
    (tmp_path / "mine.py").write_text(f"{content}CONFIG = Config(epochs=7)\n")
    (tmp_path / "mine_too.py").write_text(f"{content}CONFIGS = {{'short': Config(epochs=8)}}\n")
    monkeypatch.setattr(configs, "__path__", [*configs.__path__, str(tmp_path)])
    assert named_run("mine").epochs == 7
    assert named_run("mine_too_short").epochs == 8
    assert {"mine", "mine_too_short", "imagenet_hmix"} < set(names())
    (tmp_path / "wrong.py").write_text("1 +\n")
    assert named_run("mine").epochs == 7
    with pytest.raises(SyntaxError):
        named_run("wrong")


# -- Short runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of CIFAR's size, in two classes."""
    root = tmp_path_factory.mktemp("tiny")
    for split in ("train", "val"):
        write_split(root / split, (6, 6), lambda index, _: Image.fromarray(photo(32, 32, index)))
    return root


def start(name: str, data: Path, output: Path, *more: object) -> None:
    """Run a named run for a few steps of four images."""
    given = ["--config", name, "--data", data, "--output", output, "--batch-size", 4, "--device", "cpu"]
    given += ["--amp", "none", "--workers", 1, "--log-every", 1, *more]
    assert train_imagenet.main([str(it) for it in given]) == 0


def test_cifar_resumes_exactly(tiny: Path, tmp_path: Path) -> None:
    """Network, padded crop and schedule of Table 2."""
    start("cifar100_resnet56_gmix", tiny, tmp_path / "whole", "--max-steps", 3)
    start("cifar100_resnet56_gmix", tiny, tmp_path / "cut", "--max-steps", 1)
    start("cifar100_resnet56_gmix", tiny, tmp_path / "cut", "--max-steps", 3, "--resume", "auto")
    found, expected = (
        [line["loss"] for line in lines(tmp_path / name) if line["event"] == "train"]
        for name in ("cut", "whole")
    )
    assert found == expected
    assert len(expected) == 3
    cut, whole = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("cut", "whole"))
    assert all(torch.equal(it, whole["model"][name]) for name, it in cut["model"].items())


@pytest.mark.parametrize("name", ["imagenet100_large_crop_mixup", "imagenet100_small_crop_cutmix"])
def test_two_crops(name: str, tiny: Path, tmp_path: Path) -> None:
    """With a smaller network."""
    start(name, tiny, tmp_path / "run", "--max-steps", 1, "--arch", "cifar_resnet20")
    assert [line["event"] for line in lines(tmp_path / "run")] == ["train", "eval"]
