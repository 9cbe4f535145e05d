"""The drop-in for torchvision's MixUp and CutMix: with the same seed the same batches, and more methods."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch

from tests import reference
from tests.devices import on_each_device

v2 = pytest.importorskip("torchvision.transforms.v2")
tv_tensors = pytest.importorskip("torchvision.tv_tensors")

import dali_msda.torch.torchvision as ours  # noqa: E402

CLASSES = 5
SIZE = (23, 34)
# The weights are rounded to float32, and so are both products and their sum.
ULPS = 4 * torch.finfo(torch.float32).eps
NAMES = ["MixUp", "CutMix", "HMix", "GMix", "Stochastic"]


def batch(count: int = 7, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    shape = (count, 3, *SIZE)
    images = rng.normal(size=shape) if dtype.is_floating_point else rng.integers(0, 256, shape)
    return torch.from_numpy(images).to(dtype), torch.from_numpy(rng.integers(0, CLASSES, count))


def seeded(transform: Any, seed: int, *inputs: Any) -> Any:
    torch.manual_seed(seed)
    return transform(*inputs)


def weights_of(transform: Any, seed: int) -> tuple[torch.Tensor, float]:
    """The weight of the own image at every pixel, and the weight of the own label."""
    images = torch.zeros(3, 1, *SIZE)
    images[1] = 1.0  # its partner is image 0
    mixed, targets = seeded(transform, seed, images, torch.arange(3))
    return mixed[1, 0], float(targets[1, 1])


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_takes_what_torchvision_takes(name: str) -> None:
    assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(v2, name))
    assert issubclass(getattr(ours, name), getattr(v2, name))
    assert repr(getattr(ours, name)(num_classes=3)) == repr(getattr(v2, name)(num_classes=3))


def test_other_names_are_those_of_torchvision() -> None:
    """So that ``from dali_msda.torch import torchvision as v2`` is the only line to change."""
    assert ours.RandomChoice is v2.RandomChoice
    assert ours.functional is v2.functional
    assert {*NAMES, "Compose"} <= set(dir(ours))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        ours.nothing_like_it  # noqa: B018


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype"), [("MixUp", torch.float32), ("CutMix", torch.float32), ("CutMix", torch.uint8)]
)
def test_same_seed_same_batch(name: str, dtype: torch.dtype, vectors: bool) -> None:
    images, labels = batch(dtype=dtype)
    if vectors:
        labels = torch.rand(7, CLASSES)
    options = {"alpha": 0.7, "num_classes": CLASSES}
    limit = ULPS * images.abs().max() if name == "MixUp" else 0.0
    changed = 0
    for seed in range(20):
        expected, expected_targets = seeded(getattr(v2, name)(**options), seed, images, labels)
        after = torch.rand(())
        mixed, targets = seeded(getattr(ours, name)(**options), seed, images, labels)
        assert torch.rand(()) == after, "the draws that follow are the same"
        assert (mixed - expected).abs().max() <= limit
        assert torch.equal(targets, expected_targets)
        changed += not torch.equal(mixed, images)
    assert changed >= 10


STRUCTURES: dict[str, Any] = {
    "tuple": lambda images, labels: (images, labels),
    "list": lambda images, labels: [images, labels],
    "two arguments": None,
    "dict": lambda images, labels: {"image": images, "labels": labels, "path": "x", "index": 3},
    "dict beside": lambda images, labels: (images, {"Label": labels, "id": "y"}),
    "image": lambda images, labels: {"image": tv_tensors.Image(images), "label": labels},
    "video": lambda images, labels: (tv_tensors.Video(images[:, None].repeat(1, 2, 1, 1, 1)), labels),
    "two images": lambda images, labels: {
        "a": tv_tensors.Image(images),
        "b": tv_tensors.Image(-images),
        "labels": labels,
    },
}


def flatten(sample: Any) -> tuple[list[Any], Any]:
    leaves, structure = torch.utils._pytree.tree_flatten(sample)
    return leaves, structure


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NAMES)
def test_structures(name: str, structure: str) -> None:
    """Whatever holds images and labels, the result has the structure and the types of torchvision's."""
    make = STRUCTURES[structure]
    inputs = batch() if make is None else (make(*batch()),)
    like = name if name in ("MixUp", "CutMix") else "CutMix"
    expected, expected_structure = flatten(seeded(getattr(v2, like)(num_classes=CLASSES), 3, *inputs))
    leaves, found_structure = flatten(seeded(getattr(ours, name)(num_classes=CLASSES), 3, *inputs))
    assert found_structure == expected_structure
    for leaf, other in zip(leaves, expected, strict=True):
        assert type(leaf) is type(other)
        if not isinstance(leaf, torch.Tensor):
            assert leaf == other
        elif like == name:
            torch.testing.assert_close(leaf.as_subclass(torch.Tensor), other.as_subclass(torch.Tensor))
        else:
            assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)


def test_labels_getter() -> None:
    images, labels = batch()
    sample = {"x": images, "meta": (labels, "name")}
    options = {"num_classes": CLASSES, "labels_getter": lambda inputs: inputs["meta"][0]}
    expected = seeded(v2.CutMix(**options), 1, sample)
    found = seeded(ours.CutMix(**options), 1, sample)
    assert torch.equal(found["x"], expected["x"])
    assert torch.equal(found["meta"][0], expected["meta"][0])


@pytest.mark.parametrize("name", ["HMix", "GMix"])
def test_masks_are_those_of_the_reference(name: str) -> None:
    """Drawn like torchvision's CutMix: lam, then the column and the row of the centre."""
    options = {"alpha": 0.7, "num_classes": 3} | ({"ratio": 0.4} if name == "HMix" else {})
    for seed in range(8):
        mask, lam = weights_of(getattr(ours, name)(**options), seed)
        torch.manual_seed(seed)
        drawn = float(torch.distributions.Beta(torch.tensor([0.7]), torch.tensor([0.7])).sample(()))
        column, row = (int(torch.randint(length, (1,))) for length in (SIZE[1], SIZE[0]))
        expected = reference.mask(name.lower(), SIZE, drawn, center=(row, column), ratio=0.4)
        np.testing.assert_allclose(mask.numpy(), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(lam, expected.mean(), rtol=0, atol=1e-6)


def test_stochastic_is_mixup_or_cutmix() -> None:
    def is_constant(switch_probability: float, seed: int) -> bool:
        mask, lam = weights_of(ours.Stochastic(switch_probability=switch_probability, num_classes=3), seed)
        assert float(mask.mean()) == pytest.approx(lam, abs=1e-6)
        return bool((mask == mask[0, 0]).all())

    assert all(is_constant(1.0, seed) for seed in range(10))
    assert sum(is_constant(0.0, seed) for seed in range(10)) < 3  # a box may have no pixel
    assert 3 < sum(is_constant(0.5, seed) for seed in range(20)) < 17


@pytest.mark.parametrize("name", NAMES)
def test_images_and_targets_agree(name: str) -> None:
    """The partner is the sample before. Integers are mixed too; torchvision's MixUp takes floats only."""
    images = torch.arange(0, 250, 50, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, *SIZE)
    for seed in range(5):
        mixed, targets = seeded(getattr(ours, name)(num_classes=5), seed, images, torch.arange(5))
        assert mixed.dtype == torch.uint8
        own = torch.arange(5) * 50.0
        expected = (targets * own).sum(1)
        torch.testing.assert_close(mixed.float().mean(dim=(1, 2, 3)), expected, rtol=0, atol=0.6)
        assert torch.equal(targets > 0, (targets > 0) & (torch.eye(5) + torch.eye(5).roll(1, 0) > 0))


IMAGES, LABELS = batch()

BAD_INPUTS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "ids without num_classes": ({}, (IMAGES, LABELS)),
    "vectors of another length": ({"num_classes": 4}, (IMAGES, torch.rand(7, 5))),
    "labels of three dimensions": ({"num_classes": 5}, (IMAGES, torch.rand(7, 5, 1))),
    "labels that are no tensor": ({"num_classes": 5}, ((IMAGES, {"labels": [1, 2]}),)),
    "no labels": ({"num_classes": 5}, ((IMAGES, {"name": LABELS}),)),
    "no labels at all": ({"num_classes": 5}, ((IMAGES, "x"),)),
    "one image": ({"num_classes": 5}, (IMAGES[0], LABELS)),
    "fewer images": ({"num_classes": 5}, (IMAGES[1:], LABELS)),
    "frames as a batch": ({"num_classes": 5}, (tv_tensors.Video(IMAGES), LABELS)),
    "masks": ({"num_classes": 5}, ((IMAGES, {"labels": LABELS, "mask": tv_tensors.Mask(IMAGES[:, 0])}),)),
    "an id out of range": ({"num_classes": 2}, (IMAGES, LABELS)),
    "labels_getter": ({"num_classes": 5, "labels_getter": "first"}, (IMAGES, LABELS)),
    "alpha of zero": ({"num_classes": 5, "alpha": 0.0}, (IMAGES, LABELS)),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "HMix", "GMix"])
def test_errors_are_those_of_torchvision(name: str, case: str) -> None:
    """The same kind of error; the same words where torchvision raises it."""
    # torch.compile turns them off for the whole process.
    torch.distributions.Distribution.set_default_validate_args(True)
    options, inputs = BAD_INPUTS[case]
    with pytest.raises((ValueError, RuntimeError)) as expected:
        getattr(v2, name if name == "MixUp" else "CutMix")(**options)(*inputs)
    with pytest.raises(type(expected.value)) as found:
        getattr(ours, name)(**options)(*inputs)
    by_us = {
        "one image": "images must be a batch [N, C, H, W]; got [3, 23, 34]",
        "fewer images": "images must be as many as labels, 7; got 6",
        "frames as a batch": "images must be a batch [N, T, C, H, W]; got [7, 3, 23, 34]",
    }
    words = str(expected.value).replace("CutMix()", f"{name}()")
    assert str(found.value) == by_us.get(case, words)


@pytest.mark.parametrize("name", ["CutMix", "HMix", "GMix"])
@pytest.mark.parametrize(("images", "error"), [((), TypeError), (((4, 4), (4, 5)), ValueError)])
def test_boxes_need_one_size(name: str, images: tuple[Any, ...], error: type[Exception]) -> None:
    sample = {"labels": LABELS, **{str(size): tv_tensors.Image(torch.rand(7, 3, *size)) for size in images}}
    for module in (v2, ours):
        with pytest.raises(error):
            getattr(module, name if module is ours else "CutMix")(num_classes=CLASSES)(sample)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: ours.HMix(ratio=1.5), "ratio must be in [0, 1]; got 1.5"),
        (lambda: ours.Stochastic(switch_probability=-1), "switch_probability must be in [0, 1]; got -1"),
    ],
)
def test_bad_arguments(make: Any, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        make()


def test_collate_function() -> None:
    """The example of torchvision's documentation: a choice of both, in the collate function of a loader."""
    images, labels = batch(8)
    samples: Any = list(zip(images, labels.tolist(), strict=True))
    default_collate = torch.utils.data.default_collate

    def batches(module: Any) -> list[Any]:
        cutmix_or_mixup = module.RandomChoice(
            [module.CutMix(num_classes=CLASSES), module.MixUp(num_classes=CLASSES)]
        )
        loader: Any = torch.utils.data.DataLoader(
            samples,
            batch_size=3,
            shuffle=True,
            collate_fn=lambda batch: cutmix_or_mixup(*default_collate(batch)),
        )
        torch.manual_seed(5)
        return [pair for _ in range(3) for pair in loader]

    for (mixed, targets), (expected, expected_targets) in zip(batches(ours), batches(v2), strict=True):
        assert (mixed - expected).abs().max() <= ULPS * images.abs().max()
        assert torch.equal(targets, expected_targets)
        loss = torch.nn.functional.cross_entropy(mixed.mean(dim=(2, 3)) @ torch.ones(3, CLASSES), targets)
        assert torch.isfinite(loss)


def test_in_a_list_of_transforms() -> None:
    images, labels = batch(dtype=torch.uint8)
    transform = v2.Compose([ours.HMix(num_classes=CLASSES), v2.ToDtype(torch.float32, scale=True)])
    mixed, targets = transform(tv_tensors.Image(images), labels)
    assert (mixed.dtype, targets.shape) == (torch.float32, (7, CLASSES))
    assert isinstance(mixed, tv_tensors.Image)
    assert mixed.max() <= 1.0


@on_each_device
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_devices_types_and_layouts(device: str, name: str, dtype: torch.dtype) -> None:
    """The same draws on every device; the type and the memory format of the images are kept."""
    images, labels = batch(dtype=dtype)
    placed = images.to("cuda" if device == "gpu" else "cpu").contiguous(memory_format=torch.channels_last)
    transform = getattr(ours, name)(num_classes=CLASSES)
    for seed in range(3):
        expected, expected_targets = seeded(transform, seed, images.float(), labels)
        mixed, targets = seeded(transform, seed, placed, labels.to(placed.device))
        assert (mixed.device, mixed.dtype) == (placed.device, dtype)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        bound = 0.501 if dtype == torch.uint8 else 2 * torch.finfo(dtype).eps * float(images.abs().max())
        assert (mixed.float().cpu() - expected).abs().max() <= bound
        torch.testing.assert_close(targets.cpu(), expected_targets)


@pytest.mark.parametrize("name", NAMES)
def test_pickles(name: str) -> None:
    """For the workers of a loader."""
    transform = getattr(ours, name)(num_classes=CLASSES)
    copy = pickle.loads(pickle.dumps(transform))
    for one, other in zip(seeded(transform, 2, *batch()), seeded(copy, 2, *batch()), strict=True):
        assert torch.equal(one, other)
