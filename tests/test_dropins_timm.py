"""The drop-in for timm's Mixup and FastCollateMixup: the same batches for the same seed, and more methods."""

# ruff: noqa: NPY002 (timm draws from NumPy's global generator)

from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from tests import reference
from tests.devices import on_each_device

original = pytest.importorskip("timm.data.mixup")

from dali_msda.torch.timm import FastCollateMixup, Mixup  # noqa: E402

CLASSES = 5
# Odd sides: timm's boxes are one pixel larger there than those of the authors' code.
SIZE = (23, 34)
# The weights are rounded to float32, and so are both products and their sum.
ULPS = 4 * torch.finfo(torch.float32).eps

METHODS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    "both": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    "rarely": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "prob": 0.4, "switch_prob": 0.7},
    "minmax": {"mixup_alpha": 0.3, "cutmix_minmax": (0.2, 0.8)},
    "often exactly 1": {"mixup_alpha": 0.02, "cutmix_alpha": 0.02},
    "drawn lam": {"cutmix_alpha": 1.0, "correct_lam": False, "label_smoothing": 0.0},
}


def batch(count: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    images = (
        rng.normal(size=(count, 3, *SIZE))
        if dtype.is_floating_point
        else rng.integers(0, 256, (count, 3, *SIZE))
    )
    return torch.from_numpy(images).to(dtype), torch.from_numpy(rng.integers(0, CLASSES, count))


def constant_images(count: int, device: str = "cpu") -> torch.Tensor:
    """Image i is i everywhere, so that the mixed ones show the masks."""
    return torch.arange(float(count), device=device).reshape(-1, 1, 1, 1).expand(-1, 3, *SIZE).contiguous()


def weights(mixed: torch.Tensor) -> torch.Tensor:
    """The weight of the own image at every pixel of mixed :func:`constant_images`; NaN in the middle one."""
    own = torch.arange(float(len(mixed))).reshape(-1, 1, 1)
    partner = own.flip(0)
    return (mixed[:, 0].cpu() - partner) / (own - partner)


def seeded(mix: Any, seed: int, *inputs: Any) -> Any:
    np.random.seed(seed)
    return mix(*inputs)


def next_draw() -> float:
    return float(np.random.rand())


@pytest.mark.parametrize("ours", [Mixup, FastCollateMixup])
def test_takes_what_timm_takes(ours: type) -> None:
    theirs = inspect.signature(original.Mixup).parameters.values()
    first = list(inspect.signature(ours).parameters.values())[: len(theirs)]
    assert [(p.name, p.default) for p in first] == [(p.name, p.default) for p in theirs]
    assert issubclass(ours, getattr(original, ours.__name__))


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_same_seed_same_batch(mode: str, options: dict[str, Any]) -> None:
    images, labels = batch()
    options = {"num_classes": CLASSES, "mode": mode, **options}
    ours, theirs = Mixup(**options), original.Mixup(**options)
    limit = ULPS * images.abs().max()
    changed = 0
    for seed in range(8):
        expected, expected_targets = seeded(theirs, seed, images.clone(), labels)
        after = next_draw()
        mixed, targets = seeded(ours, seed, images, labels)
        assert next_draw() == after, "the draws that follow are the same"
        assert (mixed - expected).abs().max() <= limit
        assert torch.equal(targets, expected_targets)
        changed += not torch.equal(mixed, images)
    assert changed >= 2


@pytest.mark.parametrize("kind", ["ndarray", "tensor"])
@pytest.mark.parametrize("options", [METHODS["both"], METHODS["rarely"]], ids=["both", "rarely"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
def test_same_seed_same_collated_batch(mode: str, options: dict[str, Any], kind: str) -> None:
    images, labels = batch(dtype=torch.uint8)

    def samples() -> list[Any]:  # made anew: timm's "pair" changes them
        stack = images.numpy() if kind == "ndarray" else images
        return [
            (image.copy() if kind == "ndarray" else image.clone(), int(label))
            for image, label in zip(stack, labels, strict=True)
        ]

    options = {"num_classes": CLASSES, "mode": mode, **options}
    ours, theirs = FastCollateMixup(**options), original.FastCollateMixup(**options)
    for seed in range(6):
        expected, expected_targets = seeded(theirs, seed, samples())
        mixed, targets = seeded(ours, seed, samples())
        assert mixed.dtype == torch.uint8
        assert len(mixed) == (4 if mode == "half" else 8)
        # NumPy rounds halves to even, this library away from 0.
        assert (mixed.int() - expected.int()).abs().max() <= 1
        assert (mixed != expected).float().mean() < 0.01
        assert torch.equal(targets, expected_targets)


def test_multi_label() -> None:
    if "multi_label" not in inspect.signature(original.Mixup).parameters:
        pytest.skip("this version of timm mixes class ids only")
    images, _ = batch()
    labels = (torch.rand(8, CLASSES) < 0.5).float()
    options: Any = {"num_classes": CLASSES, "multi_label": True, "mode": "elem"}
    _, expected = seeded(original.Mixup(**options), 1, images.clone(), labels)
    _, targets = seeded(Mixup(**options), 1, images, labels)
    assert torch.equal(targets, expected)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_enabled_turns_mixing_off(mode: str) -> None:
    images, labels = batch()
    mix = Mixup(num_classes=CLASSES, mode=mode, hmix_alpha=1.0)
    mix.mixup_enabled = False
    mixed, targets = mix(images, labels)
    assert mixed is images
    smoothed = torch.nn.functional.one_hot(labels, CLASSES) * 0.9 + 0.1 / CLASSES
    torch.testing.assert_close(targets, smoothed)


def test_the_input_is_kept() -> None:
    """timm mixes in place."""
    images, labels = batch()
    before = images.clone()
    mixed, _ = seeded(Mixup(num_classes=CLASSES), 0, images, labels)
    assert torch.equal(images, before)
    assert not torch.equal(mixed, before)
    seeded(original.Mixup(num_classes=CLASSES), 0, images, labels)
    assert not torch.equal(images, before)


@pytest.mark.parametrize("method", ["mixup", "cutmix", "hmix", "gmix"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("count", [1, 7, 8])
def test_images_and_targets_agree(count: int, mode: str, method: str) -> None:
    """For batches of any size; the middle of an odd one is its own partner."""
    alphas: Any = {"mixup_alpha": 0.0, f"{method}_alpha": 1.0}
    mix = Mixup(num_classes=count, mode=mode, label_smoothing=0.0, **alphas)
    images = constant_images(count)
    labels = torch.arange(count)
    for seed in range(4):
        mixed, targets = seeded(mix, seed, images, labels)
        found = weights(mixed)
        for i in range(count):
            if i == count - 1 - i:
                assert torch.equal(mixed[i], images[i])
                expected = torch.eye(count)[i]
            else:
                lam = float(found[i].mean())
                expected = lam * torch.eye(count)[i] + (1.0 - lam) * torch.eye(count)[count - 1 - i]
            torch.testing.assert_close(targets[i], expected, rtol=0, atol=2e-6)
        per_sample = [i for i in range(count) if i != count - 1 - i]
        different = len({found[i].numpy().tobytes() for i in per_sample[: count // 2]})
        if mode == "batch":
            torch.testing.assert_close(
                found[per_sample], found[per_sample[:1]].expand(len(per_sample), -1, -1)
            )
        elif mode == "pair":
            torch.testing.assert_close(found[per_sample], found[per_sample].flip(0))
        if mode != "batch" and method == "mixup":
            assert different == count // 2


@pytest.mark.parametrize("correct_lam", [True, False])
@pytest.mark.parametrize("method", ["hmix", "gmix"])
def test_masks_are_those_of_the_reference(method: str, correct_lam: bool) -> None:
    """NumPy draws lam, then the row and the column of the centre."""
    options: Any = {"mixup_alpha": 0.0, f"{method}_alpha": 0.7, "ratio": 0.4, "correct_lam": correct_lam}
    mix = Mixup(num_classes=4, label_smoothing=0.0, **options)
    for seed in range(6):
        mixed, targets = seeded(mix, seed, constant_images(4), torch.arange(4))
        np.random.seed(seed)
        next_draw()  # is the batch mixed?
        lam = np.random.beta(0.7, 0.7)
        center = np.random.randint(SIZE[0]), np.random.randint(SIZE[1])
        mask = reference.mask(method, SIZE, lam, center=center, ratio=0.4)
        np.testing.assert_allclose(weights(mixed)[0].numpy(), mask, rtol=0, atol=1e-6)
        weight = mask.mean() if correct_lam else lam
        np.testing.assert_allclose(float(targets[0, 0]), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_switch_prob_chooses_between_mixup_and_the_others(mode: str) -> None:
    images, labels = constant_images(32), torch.arange(32)
    alphas: Any = {"cutmix_alpha": 1.0, "hmix_alpha": 1.0, "gmix_alpha": 1.0}

    def levels(mixed: torch.Tensor) -> list[int]:
        """How many weights each mask has: 1 for Mixup, 2 for CutMix and HMix, more for GMix."""
        return [len(np.unique(np.round(mask, 5))) for mask in weights(mixed).numpy()]

    assert (
        levels(seeded(Mixup(num_classes=32, mode=mode, switch_prob=0.0, **alphas), 0, images, labels)[0])
        == [1] * 32
    )
    counts, seen = [], set()
    for seed in range(20):
        mixed, _ = seeded(Mixup(num_classes=32, mode=mode, switch_prob=1.0, **alphas), seed, images, labels)
        for count, mask in zip(levels(mixed), weights(mixed), strict=True):
            counts.append(count)
            if count > 1:
                seen.add("gmix" if count > 2 else "cutmix" if mask.max() > 0.999 else "hmix")
    assert seen == {"cutmix", "hmix", "gmix"}
    assert np.mean(np.array(counts) == 1) < 0.1  # a box may have no pixel


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"mode": "sample"}, ValueError, "mode must be one of 'batch', 'pair', 'elem'; got 'sample'"),
        ({"mode": "half"}, ValueError, "mode must be one of 'batch', 'pair', 'elem'; got 'half'"),
        ({"hmix_alpha": -1.0}, ValueError, "hmix_alpha must be at least 0; got -1.0"),
        ({"gmix_alpha": "1"}, TypeError, "gmix_alpha must be a number of at least 0; got '1'"),
        ({"hmix_alpha": 1.0, "ratio": 2}, ValueError, "ratio must be in [0, 1]; got 2"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], line: str) -> None:
    with pytest.raises(error) as caught:
        Mixup(**options)
    assert str(caught.value) == line


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_no_active_method(mode: str) -> None:
    with pytest.raises(
        ValueError, match=r"^one of mixup_alpha, cutmix_alpha, hmix_alpha and gmix_alpha must be above 0"
    ):
        Mixup(mixup_alpha=0.0, num_classes=CLASSES, mode=mode)(*batch())


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_images_only(mode: str) -> None:
    images, labels = batch()
    with pytest.raises(ValueError, match=r"^x must be images \[N, C, H, W\]; got \[8, 23, 34\]$"):
        Mixup(num_classes=CLASSES, mode=mode)(images[:, 0], labels)


def test_collates_uint8_only() -> None:
    images, labels = batch()
    with pytest.raises(TypeError, match=r"^images must be uint8; got torch\.float32$"):
        FastCollateMixup(num_classes=CLASSES)(list(zip(images, labels.tolist(), strict=True)))


@on_each_device
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_devices_types_and_layouts(device: str, mode: str, dtype: torch.dtype) -> None:
    """The same draws on every device; the type and the memory format of the images are kept."""
    to = "cuda" if device == "gpu" else "cpu"
    images, labels = batch(dtype=dtype)
    mix = Mixup(num_classes=CLASSES, mode=mode, cutmix_alpha=1.0, hmix_alpha=1.0, gmix_alpha=1.0)
    for seed in range(4):
        expected, expected_targets = seeded(mix, seed, images.float(), labels)
        placed = images.to(to).contiguous(memory_format=torch.channels_last)
        mixed, targets = seeded(mix, seed, placed, labels.to(to))
        assert (mixed.device, mixed.dtype) == (placed.device, dtype)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        bound = 0.501 if dtype == torch.uint8 else 2 * torch.finfo(dtype).eps * float(images.abs().max())
        assert (mixed.float().cpu() - expected).abs().max() <= bound
        torch.testing.assert_close(targets.cpu(), expected_targets)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_a_gpu_is_not_waited_for(mode: str) -> None:
    images, labels = (tensor.cuda() for tensor in batch())
    mix = Mixup(num_classes=CLASSES, mode=mode, cutmix_alpha=1.0, hmix_alpha=1.0)
    for seed in range(6):  # compiles
        seeded(mix, seed, images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed in range(6):
            seeded(mix, seed, images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_loop_of_timm() -> None:
    """``mixup_fn(input, target)`` and SoftTargetCrossEntropy: the losses are those with timm's Mixup."""
    loss_function = pytest.importorskip("timm.loss").SoftTargetCrossEntropy()
    images, labels = batch()

    def losses(mixup_fn: Any) -> list[float]:
        torch.manual_seed(0)
        np.random.seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE[0] * SIZE[1], CLASSES))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        found = []
        for _ in range(12):
            input, target = mixup_fn(images.clone(), labels)
            loss = loss_function(model(input), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    options: Any = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "num_classes": CLASSES}
    ours = losses(Mixup(**options))
    np.testing.assert_allclose(ours, losses(original.Mixup(**options)), rtol=1e-5)
    assert ours[-1] < ours[0]


def test_loader_of_timm_turns_it_off() -> None:
    """As after ``--mixup-off-epoch``: the loader asks whether its collate function is timm's."""
    loaders = pytest.importorskip("timm.data.loader")
    images, labels = batch(dtype=torch.uint8)
    samples: Any = [(image, int(label)) for image, label in zip(images.numpy(), labels, strict=True)]
    loader = loaders.PrefetchLoader(
        torch.utils.data.DataLoader(samples, batch_size=8, collate_fn=FastCollateMixup(num_classes=CLASSES)),
        mean=(0.0,) * 3,
        std=(1.0 / 255.0,) * 3,
        device=torch.device("cpu"),
    )
    assert loader.mixup_enabled
    ((mixed, targets),) = loader
    assert targets.shape == (8, CLASSES)
    assert not torch.equal(mixed, images.float())
    loader.mixup_enabled = False
    ((same, _),) = loader
    torch.testing.assert_close(same, images.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ours", [Mixup, FastCollateMixup])
def test_pickles(ours: type) -> None:
    """For the workers of a loader."""
    mix = ours(num_classes=CLASSES, mode="elem", hmix_alpha=0.5, ratio=0.25)
    copy = pickle.loads(pickle.dumps(mix))
    images, labels = batch(dtype=torch.uint8)
    inputs = (images, labels) if ours is Mixup else (list(zip(images, labels.tolist(), strict=True)),)
    for one, other in zip(seeded(mix, 0, *inputs), seeded(copy, 0, *inputs), strict=True):
        assert torch.equal(one, other)
