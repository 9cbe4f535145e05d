"""Weight files published by torchvision, recognised by their names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torchvision

import train_imagenet
from training.config import Config, resolve
from training.model import build_model
from training.published import find_published

ARGUMENTS = ["--device", "cpu", "--amp", "none", "--workers", "1", "--batch-size", "8"]


def test_table_is_that_of_torchvision() -> None:
    models = torchvision.models
    count = 0
    for arch in models.list_models(module=models):
        enum = models.get_model_weights(arch)
        for weights in enum:
            if not weights.meta["categories"]:  # features only
                continue
            count += 1
            found = find_published(Path("any") / weights.url.rpartition("/")[2])
            assert found is not None, weights
            assert weights.url.startswith("https://download.pytorch.org/models/")
            told = weights.transforms()
            assert found[:6] == (
                *(arch, weights.name, told.crop_size[0], told.resize_size[0]),
                *(weights is enum.DEFAULT, told.interpolation.value),
            )
            # Models that rescale their inputs when torchvision builds them with its published weights.
            assert found.half == (told.mean == [0.5] * 3 or arch in ("googlenet", "inception_v3"))
    assert count == 114


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in torchvision's format, but with random weights for three classes."""
    file = tmp_path_factory.mktemp("published") / "shufflenetv2_x1_5-3c479a10.pth"
    torch.manual_seed(0)
    weights = build_model("shufflenet_v2_x1_5", 3).state_dict()
    weights["fc.weight"] *= 10_000_000  # so that results depend on the images
    torch.save(weights, file)
    return file


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ("shufflenet_v2_x1_5", 224, 224, 232)),
        (["--val-resize-size", "256"], ("shufflenet_v2_x1_5", 224, 224, 256)),
        (["--image-size", "64"], ("shufflenet_v2_x1_5", 64, 64, None)),
        (["--val-image-size", "288"], ("shufflenet_v2_x1_5", 224, 288, None)),
        (["--arch", "resnet18"], ("resnet18", 224, 224, 232)),
    ],
)
@pytest.mark.parametrize("spelling", ["--weights", "--init-weights"])
def test_defaults(
    given: list[str], expected: tuple[object, ...], spelling: str, published: Path, photos: Path
) -> None:
    command = ["--data", str(photos), spelling, str(published), *ARGUMENTS, *given]
    config = resolve(train_imagenet.settings_of(command))
    assert config.init_weights == published
    found = (config.arch, config.image_size, config.val_image_size, config.val_resize_size)
    assert found == expected


def test_evaluation(published: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says which weights were used, and the order of the classes."""
    command = ["--data", str(photos), "--eval-only", "--weights", str(published), *ARGUMENTS]
    assert train_imagenet.main(command) == 0
    said = capsys.readouterr().out
    words = (
        "by its name torchvision's IMAGENET1K_V1, with --arch shufflenet_v2_x1_5, --image-size 224,"
        " --val-image-size 224, --val-resize-size 232; it names no classes: using those of val/, in their"
        " order, because torchvision's are those of ImageNet, ordered by folder name (wnid)\n"
    )
    assert words in said
    results = [line.partition("top-1")[2] for line in said.splitlines() if "top-1" in line]
    assert train_imagenet.main([*command, "--val-resize-size", "400"]) == 0
    other = [line.partition("top-1")[2] for line in capsys.readouterr().out.splitlines() if "top-1" in line]
    assert results != other


def test_what_is_not_taken_over(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "googlenet-1378be20.pth"
    torch.save(build_model("googlenet", 3).state_dict(), file)
    command = ["--data", str(photos), "--eval-only", "--weights", str(file), *ARGUMENTS, "--image-size", "32"]
    assert train_imagenet.main(command) == 0
    said = capsys.readouterr().out
    assert "here: --image-size 32, --val-image-size 32" in said
    words = "; not applied: mean and standard deviation 0.5 of the pixels, so results differ"
    assert words in said


URL = "https://download.pytorch.org/models"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["IMAGENET1K_V1"], f": IMAGENET1K_V1 of resnet50 is {URL}/resnet50-0676ba61.pth"),
        (["DEFAULT"], f": IMAGENET1K_V2 of resnet50 is {URL}/resnet50-11ad3fa6.pth"),
        (
            ["IMAGENET1K_V1", "--arch", "vit_b_16"],
            f": IMAGENET1K_V1 of vit_b_16 is {URL}/vit_b_16-c867db91.pth",
        ),
        (["Swin_T_Weights.DEFAULT"], f": IMAGENET1K_V1 of swin_t is {URL}/swin_t-704ceda3.pth"),
        (["resnet50-11ad3fa6.pth"], f": IMAGENET1K_V2 of resnet50 is {URL}/resnet50-11ad3fa6.pth"),
        (["IMAGENET1K_V7"], "must be a file of weights; there is no file IMAGENET1K_V7"),
        (["w.pt"], "must be a file of weights; there is no file w.pt"),
    ],
)
def test_a_name_is_no_file(
    given: list[str], words: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what to download; nothing is downloaded here."""
    assert train_imagenet.main(["--data", str(photos), *ARGUMENTS, "--weights", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(words)


def test_resize_is_at_least_the_crop() -> None:
    with pytest.raises(ValueError, match="--val-resize-size must be at least --val-image-size 224; got 200"):
        resolve(Config(device="cpu", val_resize_size=200))
    with pytest.raises(ValueError, match="--val-resize-size must be at least 1; got 0"):
        dataclasses.replace(Config(device="cpu"), val_resize_size=0)
