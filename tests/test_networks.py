"""The networks for small images: sizes from the literature, structure, runs of the trainer."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.grad_checkpointing import assert_checkpointing_changes_nothing
from tests.training_runs import losses, train
from training.architectures import SMALL_IMAGES, TORCHVISION, full_name, timm_names
from training.model import build_model
from training.networks import NETWORKS, CifarResNet, PreActResNet, WideResNet
from training.weight_settings import About

# -- Sizes -------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    """What a source says of a network.

    Attributes
    ----------
    source : str
    network : callable
        Makes the network.
    parameters, operations : float, optional
        In millions; a multiplication with its addition is one operation.
    digits : tuple of int
        Decimals of the two.
    norms : bool
        Whether the parameters of norms are counted.
    """

    source: str
    network: Callable[[], nn.Module]
    parameters: float | None
    operations: float | None
    digits: tuple[int, int] = (2, 0)
    norms: bool = True


HE = "He et al., Deep residual learning, 2016, Table 6"
LI = "Li et al., Pruning filters for efficient ConvNets, 2017, Table 1"
ZAGORUYKO = "Zagoruyko and Komodakis, Wide residual networks, 2016, Table 4"
FIXMATCH = "Sohn et al., FixMatch, 2020, section 4.1"
OSMR = "github.com/osmr/imgclsmob, pytorch/README.md at 017fe2c, CIFAR-10"
PUZZLEMIX = "github.com/snu-mllab/PuzzleMix, models/preresnet.py at e2dbf3a, counted with the same tool"

SIZES = [
    Size(HE, partial(CifarResNet, 20, 10), 0.27, None),
    Size(HE, partial(CifarResNet, 32, 10), 0.46, None),
    Size(HE, partial(CifarResNet, 44, 10), 0.66, None),
    Size(HE, partial(CifarResNet, 56, 10), 0.85, None),
    Size(HE, partial(CifarResNet, 110, 10), 1.7, None, (1, 0)),
    Size(LI, partial(CifarResNet, 56, 10), 0.85, 125, norms=False),
    Size(LI, partial(CifarResNet, 110, 10), 1.72, 253, norms=False),
    Size(ZAGORUYKO, partial(WideResNet, 40, 1, 10), 0.6, None, (1, 0)),
    Size(ZAGORUYKO, partial(WideResNet, 40, 2, 10), 2.2, None, (1, 0)),
    Size(ZAGORUYKO, partial(WideResNet, 16, 8, 10), 11.0, None, (1, 0)),
    Size(ZAGORUYKO, partial(WideResNet, 28, 10, 10), 36.5, None, (1, 0)),
    Size(FIXMATCH, partial(WideResNet, 28, 2, 10), 1.5, None, (1, 0)),
    Size(OSMR, partial(WideResNet, 16, 10, 10), 17.116634, None, (6, 0)),
    Size(OSMR, partial(WideResNet, 28, 10, 10), 36.479194, None, (6, 0)),
    Size(OSMR, partial(WideResNet, 40, 8, 10), 35.748314, None, (6, 0)),
    Size(PUZZLEMIX, partial(PreActResNet, 18, 100), 11.217316, 555.4688, (6, 4)),
    Size(PUZZLEMIX, partial(PreActResNet, 34, 100), 21.325476, 1159.448576, (6, 6)),
    Size(PUZZLEMIX, partial(PreActResNet, 50, 100), 23.693476, 1298.014208, (6, 6)),
]


def operations(model: nn.Module) -> float:
    """Multiplications with additions for one image of 32 x 32 pixels, without norms and the like."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(2, 3, 32, 32, device="meta"))
    return float(counter.get_total_flops()) / 2 / 2  # two operations each, two images


@pytest.mark.parametrize("size", SIZES, ids=lambda it: f"{it.network.args[:2]} {it.source.partition(',')[0]}")
def test_sizes_are_those_of_the_literature(size: Size) -> None:
    with torch.device("meta"):
        model = size.network()
    counted = [it for it in model.modules() if size.norms or not isinstance(it, nn.BatchNorm2d)]
    parameters = sum(it.numel() for module in counted for it in module.parameters(recurse=False)) / 1e6
    assert round(parameters, size.digits[0]) == size.parameters, size.source
    if size.operations is not None:
        assert round(operations(model) / 1e6, size.digits[1]) == size.operations, size.source


def test_operations_of_wide_networks() -> None:
    """imgclsmob counts 5,246.98 million; its counter adds norms and activations, below 0.1 %."""
    with torch.device("meta"):
        found = operations(WideResNet(28, 10, 10)) / 1e6
    assert 0.999 * 5246.98 < found < 5246.98


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, it) for n, it in model.named_modules() if isinstance(it, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_depth_of_a_residual_network(depth: int) -> None:
    """Every layer with weights counts; shortcuts have none."""
    assert len(layers(CifarResNet(depth, 10, width=2))) == depth


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_depth_of_a_preactivation_network(depth: int) -> None:
    """Every layer with weights counts, except shortcuts."""
    found = [name for name, _ in layers(PreActResNet(depth, 10, width=4)) if "shortcut" not in name]
    assert len(found) == depth


@pytest.mark.parametrize("depth", [10, 16, 28])
def test_depth_of_a_wide_network(depth: int) -> None:
    """Every convolution counts."""
    found = [it for _, it in layers(WideResNet(depth, 2, 10)) if isinstance(it, nn.Conv2d)]
    assert len(found) == depth


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CifarResNet(18, 10), "depth must be 6n + 2, at least 8; got 18"),
        (lambda: CifarResNet(2, 10), "depth must be 6n + 2, at least 8; got 2"),
        (lambda: WideResNet(28 - 1, 2, 10), "depth must be 6n + 4, at least 10; got 27"),
        (lambda: WideResNet(4, 2, 10), "depth must be 6n + 4, at least 10; got 4"),
        (lambda: PreActResNet(20, 10), "depth must be one of 18, 34, 50, 101, 152; got 20"),
    ],
)
def test_depths_that_do_not_exist(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


# -- What they compute -------------------------------------------------------------------------------------

SMALL: dict[str, Callable[[], nn.Module]] = {
    "residual": partial(CifarResNet, 8, 5, width=4),
    "preactivation": partial(PreActResNet, 18, 5, width=4),
    "bottlenecks": partial(PreActResNet, 50, 5, width=4),
    "wide": partial(WideResNet, 10, 1, 5),
}


@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("size", [1, 31, 32, 64])
def test_images_of_any_size(network: Callable[[], nn.Module], size: int) -> None:
    model = network().eval()
    assert model(torch.randn(2, 3, size, size)).shape == (2, 5)


def without_branches(model: nn.Module) -> None:
    """Leave only the shortcuts of blocks: their last convolutions and norms return zero."""
    for name, parameter in model.named_parameters():
        if re.search(r"stages.*\.(norm2|conv2|conv3)\.(weight|bias)", name):
            parameter.data.zero_()


def test_shortcuts_have_no_parameters_in_a_residual_network() -> None:
    """A stage takes every other pixel, and adds channels of zeros."""
    model = CifarResNet(14, 5, width=4).eval()
    without_branches(model)
    model.conv, model.norm = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    images = torch.rand(2, 4, 9, 9)
    features = model.stages(images)
    assert features.shape == (2, 16, 3, 3)
    assert torch.equal(features[:, :4], images[:, :, ::4, ::4])
    assert not features[:, 4:].any()


def test_shortcuts_of_preactivation() -> None:
    """The input itself where the shape stays; else a convolution of its first activation."""
    model = PreActResNet(18, 5, width=4).eval()
    without_branches(model)
    images = torch.randn(2, 4, 8, 8)
    stages: Any = model.stages
    assert torch.equal(stages[0](images), images)
    first = stages[1][0]
    active = torch.relu(images / (1 + 1e-5) ** 0.5)  # new norms have mean 0 and variance 1
    expected = nn.functional.conv2d(active, first.shortcut.weight, stride=2)
    assert torch.allclose(stages[1](images), expected, atol=1e-6)


def test_initial_weights_follow_he() -> None:
    """The variance of 2 / (size² outputs) keeps gradients' sizes through the layers."""
    torch.manual_seed(0)
    for model in (CifarResNet(8, 5, width=64), PreActResNet(18, 5, width=32), WideResNet(10, 4, 5)):
        for name, layer in layers(model):
            if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 10_000:
                expected = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
                assert layer.weight.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
def test_grad_checkpointing(network: Callable[[], nn.Module]) -> None:
    assert_checkpointing_changes_nothing(network, (4, 3, 16, 16))


# -- As --arch ---------------------------------------------------------------------------------------------


def test_names() -> None:
    """They are the networks', and no other library has one of them."""
    assert sorted(NETWORKS) == list(SMALL_IMAGES)
    assert not {*SMALL_IMAGES} & {*TORCHVISION, *(timm_names() or ())}


@pytest.mark.parametrize("arch", SMALL_IMAGES)
def test_any_number_of_classes(arch: str) -> None:
    with torch.device("meta"):
        model = build_model(full_name(arch), 7)
        assert model(torch.empty(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("cifar_resnet65", "cifar_resnet56"),
        ("preactresnet18", "preact_resnet18"),
        ("wrn_28_4", "wrn_28_2"),
    ],
)
def test_a_wrong_name(name: str, suggested: str) -> None:
    words = (
        f"--arch must be a classification model of this trainer, of torchvision or, .*; got {name} (did you"
    )
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        full_name(name)
    assert suggested in str(caught.value).partition("?")[0]
    assert f"the trainer has {', '.join(SMALL_IMAGES)}; torchvision has " in str(caught.value)


def test_a_run(photos: Path, tmp_path: Path) -> None:
    """It trains, and its weights say which network they belong to."""
    found = train(
        photos, tmp_path / "run", "--arch", "cifar_resnet20", "--grad-checkpointing", "--max-steps", 1
    )
    assert losses(found)
    saved = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert About.of(saved).arch == "cifar_resnet20"
