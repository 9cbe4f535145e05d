"""Augmentations of single images before mixing, and values that follow the batch number."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dali_msda import Mixing
from pipelines.imagenet import train_pipeline
from pipelines.ramps import Ramp
from pipelines.records import Augmentation
from tests.devices import array, on_each_device, with_device
from tests.graph_check import operators, problems
from tests.image_sets import photo, pixels, run, train, write_split


@pytest.fixture(scope="module")
def eight_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_split(root / "train", (3, 3, 2), lambda index, _: Image.fromarray(photo(40, 40, index)))
    return root


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grey")
    write_split(root / "train", (8, 8, 8), lambda *_: Image.new("RGB", (32, 32), (100, 100, 100)))
    return root


def images_of(pipeline: Any, batches: int = 1) -> np.ndarray:
    """float64 NxHxWx3, in pixel values."""
    pipeline.build()
    found = np.concatenate([images for images, _ in run(pipeline, batches)])
    return pixels(found).transpose(0, 2, 3, 1)


@on_each_device
@pytest.mark.parametrize("auto_augment", ["rand", "trivial"])
def test_auto_augment(auto_augment: str, device: str, eight_photos: Path) -> None:
    """With fixed crops, most images change, each in its own way."""
    same_place = {
        "batch_size": 8,
        "image_size": 32,
        "crop_area": (1.0, 1.0),
        "crop_aspect_ratio": (1.0, 1.0),
        "mirror_probability": 0.0,
    }
    plain = images_of(train(eight_photos, device=device, **same_place))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = train(eight_photos, auto_augment=auto_augment, device=device, **same_place)
    changed = images_of(pipeline)
    assert changed.shape == plain.shape
    difference = np.abs(changed - plain).max((1, 2, 3))
    assert (difference > 3).sum() >= 5
    assert len(np.unique(np.round(difference, 3))) >= 5


def test_rand_augment_takes_n_and_m(eight_photos: Path) -> None:
    """Magnitude 0 disables all except a few operations; 30 does not."""
    still = {"crop_area": (1.0, 1.0), "crop_aspect_ratio": (1.0, 1.0), "mirror_probability": 0.0}
    arguments: dict[str, Any] = {"batch_size": 8, "image_size": 40, **still}
    plain = images_of(train(eight_photos, **arguments), 4)
    found = [
        np.abs(
            images_of(train(eight_photos, auto_augment="rand", rand_augment=nm, **arguments), 4) - plain
        ).mean()
        for nm in ((1, 0), (1, 30), (4, 30))
    ]
    assert found[0] < found[1] / 2
    assert found[1] < found[2]


@on_each_device
def test_color_jitter(device: str, tmp_path: Path) -> None:
    """Brightness, contrast and saturation are three factors, each uniform in [0.6, 1.4] and independent.

    Two greys give brightness (from their mean, which contrast keeps) and contrast (from their difference); a
    colour beside them gives saturation.
    """

    def image(*_: Any) -> Image.Image:
        pixels = np.empty((48, 48, 3), np.uint8)
        pixels[:, :16], pixels[:, 16:32], pixels[:, 32:] = 100, 156, (156, 128, 100)
        return Image.fromarray(pixels)

    write_split(tmp_path / "train", (8, 8, 8), image)
    for path in (tmp_path / "train").rglob("*.JPEG"):
        path.unlink()  # JPEG would blur borders and colour
    still = {"crop_area": (1.0, 1.0), "crop_aspect_ratio": (1.0, 1.0), "mirror_probability": 0.0}
    form: dict[str, Any] = {"batch_size": 12, "image_size": 48, "device": device, **still}
    found = images_of(train(tmp_path, color_jitter=0.4, **form), 40)
    dark, light, color = found[:, 24, 8], found[:, 24, 24], found[:, 24, 40]
    brightness = (dark + light).mean(1) / 2 / 128
    contrast = (light - dark).mean(1) / 56 / brightness
    saturation = (color[:, 0] - color[:, 2]) / 56 / brightness / contrast
    for factor in (brightness, contrast, saturation):
        # Pixels are integers: one step is a twentieth of the smallest difference.
        assert factor.min() > 0.6 - 0.08
        assert factor.max() < 1.4 + 0.08
        assert stats.kstest(factor, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef([brightness, contrast, saturation]) - np.eye(3)).max() < 0.2
    plain = images_of(train(tmp_path, **form))
    assert np.abs(plain[:, 24, [8, 24]].mean(2) - [100, 156]).max() < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"auto_augment": "auto"}, "auto_augment must be one of 'none', 'rand', 'trivial'; got 'auto'"),
        (
            {"rand_augment": (0, 9)},
            "rand_augment must be two numbers 1 <= n <= 16 and 0 <= m < 31; got (0, 9)",
        ),
        (
            {"rand_augment": (2, 31)},
            "rand_augment must be two numbers 1 <= n <= 16 and 0 <= m < 31; got (2, 31)",
        ),
        ({"rand_augment": 9}, "rand_augment must be two integers"),
        ({"color_jitter": 1.5}, "color_jitter must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str, eight_photos: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        train(eight_photos, **arguments)


@with_device("auto_augment", ["rand", "trivial"], ["trivial"])
def test_checkpoint(auto_augment: str, device: str, eight_photos: Path) -> None:
    """With conditionals, augmentations and ramps: a restored pipeline makes the same batches."""
    arguments: dict[str, Any] = {
        "mix": Mixing("hmix", alpha=Ramp(0.1, 2.0, 5), probability=Ramp(0.0, 1.0, 6)),
        "auto_augment": auto_augment,
        "color_jitter": 0.3,
        "image_size": 16,
        "enable_checkpointing": True,
        "device": device,
    }
    pipeline = train(eight_photos, **arguments)
    pipeline.build()
    list(run(pipeline, 3))
    state = pipeline.checkpoint()
    expected = list(run(pipeline, 4))
    restored = train(eight_photos, **arguments, checkpoint=state)
    restored.build()
    for (images, targets), (found, labels) in zip(expected, run(restored, 4), strict=True):
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(labels, targets)


@on_each_device
def test_masks_come_along_and_change_nothing(device: str, eight_photos: Path) -> None:
    """The mean of each mask is the weight of the own label; images and targets are as without masks."""
    arguments: dict[str, Any] = {"mix": "gmix", "image_size": 16, "batch_size": 8, "num_classes": 3}
    arguments["device"] = device
    plain = train(eight_photos, **arguments)
    with_masks = train(eight_photos, **arguments, return_masks=True)
    for pipeline in (plain, with_masks):
        pipeline.build()
    for images, targets in run(plain, 3):
        found, labels, masks = map(array, with_masks.run())
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(labels, targets)
        assert masks.shape == (8, 16, 16, 1)
        means = masks.mean((1, 2, 3))
        for mean, target in zip(means, targets, strict=True):
            assert np.isclose(target, [[mean], [1 - mean], [1], [0]], atol=1e-5).any(0).all()


# -- Ramps ----------------------------------------------------------------------------------------------


def test_ramp_values() -> None:
    ramp = Ramp(0.2, 1.0, batches=4, off_from=7, off=0.0)
    assert [ramp(batch) for batch in range(9)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 0, 0])
    assert [Ramp(0.3, 0.5)(batch) for batch in range(2)] == [0.5, 0.5]
    assert Ramp(1.0, 1.0, off_from=0)(0) == 0.0


def weights(pipeline: Any, batches: int) -> np.ndarray:
    """Mixup's weights of the own labels, batches x samples (folded to [0.5, 1])."""
    pipeline.build()
    return np.stack([np.array(targets).max(1) for _, targets in run(pipeline, batches)])


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("stop", [0, 3, 10, 11])
def test_switch_is_exact_whatever_is_made_ahead(depth: int, stop: int, eight_photos: Path) -> None:
    """alpha jumps from 1e-3 (nothing is mixed visibly) to 1e4 (halves) in batch 11, also when resumed."""
    arguments: dict[str, Any] = {
        "mix": Mixing("mixup", alpha=Ramp(1e-3, 1e-3, off_from=11, off=1e4)),
        "prefetch_queue_depth": depth,
        "batch_size": 8,
        "enable_checkpointing": True,
        "num_classes": 8,
    }
    pipeline = train(eight_photos, **arguments)
    before = weights(pipeline, stop) if stop else np.zeros((0, 8))
    if stop == 0:
        pipeline.build()
    resumed = train(eight_photos, **arguments, checkpoint=pipeline.checkpoint()) if stop else pipeline
    found = np.concatenate([before, weights(resumed, 20 - stop)])
    # A label that meets its equal stays 1; there are three labels, each at most three times.
    mixed = ((found > 0.4) & (found < 0.6)).sum(1)
    assert (mixed[:11] == 0).all()
    assert (mixed[11:] >= 2).all()


def test_probability_follows_the_ramp(grey: Path) -> None:
    """The share of mixed samples in batch b is b / 160, then 1: a chi-square test over groups of batches."""
    batches, per_batch, ramp = 200, 24, Ramp(0.0, 1.0, batches=160)
    mixing = Mixing("mixup", alpha=1e4, probability=ramp)
    found = weights(train(grey, batch_size=per_batch, seed=11, mix=mixing), batches)
    # A partner is any sample of the batch; two of three have another label, and show that they were mixed.
    shares = 2 / 3 * np.array([ramp(batch) for batch in range(batches)])
    assert ((found < 0.6).sum(1)[:1] == 0).all()
    observed = (found < 0.6).sum(1).reshape(20, 10).sum(1)
    expected, variance = (
        (per_batch * values).reshape(20, 10).sum(1) for values in (shares, shares * (1 - shares))
    )
    chi2 = ((observed - expected) ** 2 / variance).sum()
    # Draws without replacement vary less than independent draws.
    assert stats.chi2.sf(chi2, 20) > 1e-3
    assert abs(observed.sum() - expected.sum()) < 4 * np.sqrt(variance.sum())


@pytest.mark.parametrize("method", ["gmix", "stochastic"])
def test_a_function_is_asked_once_a_batch(method: str, eight_photos: Path) -> None:
    """Also if one alpha sets two: their values come from one node."""
    alpha, probability = Ramp(0.1, 1.0, 5), Ramp(0.0, 1.0, 5)
    pipeline = train(eight_photos, mix=Mixing(method, alpha=alpha, probability=probability))
    pipeline.build()
    names = [instance._op.schema.Name() for instance in operators(pipeline._graph_out)]
    assert sum("ExternalSource" in name for name in names) == 2


def test_a_ramp_out_of_range_is_an_error(eight_photos: Path) -> None:
    pipeline = train(eight_photos, mix=Mixing("mixup", probability=lambda batch: 0.5 * batch))
    pipeline.build()
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\] in batch 3; got 1.5"):
        list(run(pipeline, 4))


@pytest.mark.parametrize("mix", ["none", "stochastic", "hmix"])
@pytest.mark.parametrize("auto_augment", ["none", "rand", "trivial"])
def test_gpu_graph(auto_augment: Any, mix: str, eight_photos: Path) -> None:
    """Every operator of the augmentations and every branch can run on a GPU; draws come from the CPU."""
    pipeline = train_pipeline(
        eight_photos,
        mix=Mixing(mix, alpha=Ramp(0.1, 1.0, 5), probability=Ramp(0.0, 1.0, 5)),
        num_classes=3,
        batch_size=8,
        num_threads=2,
        device="gpu",
        augmentation=Augmentation(auto_augment=auto_augment, color_jitter=0.4),
        return_masks=True,
    )
    outputs = pipeline._graph_out
    assert problems(outputs) == []
    names = {(instance._op.schema.Name(), instance._op.device) for instance in operators(outputs)}
    assert ("ColorTwist", "gpu") in names
    assert (("_conditional__Split", "gpu") in names) == (auto_augment != "none")
