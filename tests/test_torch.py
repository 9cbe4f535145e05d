"""Mixed tensors, masks and targets of `dali_msda.torch`, against the NumPy reference and the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import types

import dali_msda
from dali_msda import buffers, reference
from dali_msda import torch as torch_msda
from dali_msda.methods import MIXING, TABLE
from tests import running
from tests.devices import on_each_device
from tests.running import run_mix
from tests.test_own_methods import DIAMOND, FADE

N, K, SIZE = 6, 10, (21, 16)
DTYPES = {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# Largest errors: half a unit of integers, more for 16 bits, because products are float32; for floats, half a
# unit in the last place below 2, and float32's own rounding.
BOUNDS = {
    "uint8": 0.5 + 1e-4,
    "int16": 0.51,
    "uint16": 0.51,
    "float16": 2**-11 + 1e-6,
    "bfloat16": 2**-8 + 1e-6,
    "float32": 1e-6,
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

LAM = torch.tensor([0.0, 0.2, 0.37, 0.5, 0.81, 1.0], dtype=torch.float64)
CENTER = torch.tensor([[0, 0], [20, 15], [10, 8], [3, 12], [19, 1], [7, 7]])
PARTNER, LABELS = torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([0, 9, 3, 3, 7, 1])


def on(device: str) -> torch.device:
    return torch.device("cuda" if device == "gpu" else "cpu")


def random_images(dtype: torch.dtype, form: str = "contiguous", size: tuple[int, int] = SIZE) -> torch.Tensor:
    random = np.random.default_rng(0)
    if dtype.is_floating_point:
        images = torch.tensor(random.uniform(-1.9, 1.9, (N, 3, *size)), dtype=dtype)
    else:
        info = torch.iinfo(dtype)
        images = torch.tensor(random.integers(info.min, info.max + 1, (N, 3, *size))).to(dtype)
    return images.contiguous(memory_format=FORMATS[form])


def given(device: str = "cpu") -> dict[str, torch.Tensor]:
    at = on(device)
    return {"lam": LAM.to(at), "center": CENTER.to(at), "partner": PARTNER.to(at)}


def numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.cpu().to(torch.float64).numpy()


def expected(images: torch.Tensor, method: str, use_mixup: Any = None, **arguments: Any) -> Any:
    """Images (not rounded), targets and masks of the reference."""
    ratio = 0.75 if method == "hmix" else 1.0
    return reference.mix(
        numbers(images), LABELS.numpy(), PARTNER.numpy(), LAM.numpy(), CENTER.numpy(), [ratio] * N, method,
        num_classes=K, use_mixup=use_mixup, layout="CHW", **arguments,
    )  # fmt: skip


@on_each_device
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("convention", ["reference", "paper"])
@pytest.mark.parametrize("method", ["mixup", "cutmix", "stochastic", "hmix", "gmix"])
def test_images_masks_and_targets(method: str, convention: str, backend: str, device: str) -> None:
    mix = torch_msda.Mix(
        method, K, convention=convention, label_smoothing=0.1, return_params=True, backend=backend
    )
    # A type and a memory format each, all of both in turn.
    for i, dtype in enumerate(DTYPES):
        images = random_images(DTYPES[dtype], list(FORMATS)[(i + (convention == "paper")) % 2])
        mixed, targets, params = mix(images.to(on(device)), LABELS.to(on(device)), **given(device))
        use_mixup = numbers(params.mask).reshape(N, -1).std(axis=1) == 0 if method == "stochastic" else None
        exact, exact_targets, masks = expected(
            images, method, use_mixup, convention=convention, label_smoothing=0.1
        )
        assert (mixed.dtype, mixed.stride()) == (images.dtype, images.stride()), dtype
        assert np.abs(numbers(mixed) - exact).max() <= BOUNDS[dtype], dtype
        assert np.abs(numbers(params.mask)[:, 0] - masks).max() <= 1e-7
        assert np.abs(numbers(targets) - exact_targets).max() <= 1e-6
        assert np.abs(numbers(params.lam) - masks.mean(axis=(1, 2))).max() <= 1e-6
        assert params.partner.tolist() == PARTNER.tolist()


def test_both_backends_select_and_round_the_same() -> None:
    """To the bit, pixels that are not finite included."""
    for method in MIXING[:5]:
        for dtype in DTYPES.values():
            images = random_images(dtype)
            if dtype.is_floating_point:
                images[0, 0, :4] = torch.tensor(float("nan"))
                images[1, :, 2] = torch.tensor(float("inf"))
            results = []
            for backend in ("kernel", "torch"):
                torch.manual_seed(1)
                results.append(torch_msda.Mix(method, backend=backend)(images, **given()))
            by_kernel, by_torch = map(numbers, results)
            np.testing.assert_array_equal(by_kernel, by_torch, err_msg=f"{method}, {dtype}")


@pytest.mark.parametrize("method", ["mixup", "cutmix", "hmix", "gmix"])
def test_the_bits_are_those_of_the_pipeline(method: str) -> None:
    """Given the same draws: images in both layouts, masks, label weights and targets."""
    for dtype in (torch.uint8, torch.float32):
        images = random_images(dtype)
        pipeline = run_mix(
            method,
            images.numpy(),
            LABELS.tolist(),
            layout="CHW",
            backend="kernel",
            lam=LAM.numpy(),
            center=CENTER.numpy(),
            partner=PARTNER.numpy(),
        )
        for form in FORMATS.values():
            mix = torch_msda.Mix(method, K, return_params=True)
            mixed, targets, params = mix(images.contiguous(memory_format=form), LABELS, **given())
            for got, wanted in zip((mixed, targets, params.lam, params.mask), (
                pipeline.images, pipeline.targets, pipeline.lam, pipeline.mask,
            ), strict=True):  # fmt: skip
                np.testing.assert_array_equal(got.numpy(), wanted)


@on_each_device
@pytest.mark.parametrize("form", FORMATS)
def test_normalised_images(form: str, device: str) -> None:
    """As the pipeline normalises them: to the bit on the CPU."""
    norm: dict[str, Any] = {
        "mean": [120.0, 110.0, 100.0],
        "std": [50.0, 60.0, 70.0],
        "scale": 2.0,
        "shift": 0.5,
    }
    images = random_images(torch.uint8, form)
    pipeline = run_mix(
        "hmix", images.permute(0, 2, 3, 1).contiguous().numpy(), lam=LAM.numpy(), center=CENTER.numpy(),
        partner=PARTNER.numpy(), output_layout="CHW", output_dtype=types.FLOAT, **norm,
    )  # fmt: skip
    for dtype in (None, torch.float16, torch.bfloat16):
        for backend in ("auto", "torch"):
            mix = torch_msda.HMix(output_dtype=dtype, backend=backend, **norm)
            mixed = mix(images.to(on(device)), **given(device)).cpu()
            wanted = torch.from_numpy(pipeline.images).to(dtype or torch.float32)
            assert mixed.dtype == wanted.dtype
            assert mixed.stride() == images.stride()
            if device == "cpu":
                assert torch.equal(mixed, wanted), (dtype, backend)
            else:
                assert torch.allclose(mixed.float(), wanted.float(), rtol=2**-8, atol=1e-6)
    single = torch_msda.HMix(mean=120, std=50)(images.to(on(device)), **given(device)).cpu()
    plain = torch_msda.HMix()(images.to(on(device)), **given(device)).cpu()
    assert torch.allclose(single, (plain.float() - 120) / 50, atol=1e-6)


@pytest.fixture
def own_methods() -> Iterator[None]:
    dali_msda.register(DIAMOND)
    dali_msda.register(FADE)
    yield
    for name in ("diamond", "fade"):
        TABLE.pop(name, None)


@pytest.mark.usefixtures("own_methods")
def test_own_methods() -> None:
    """A dense mask, and one with arguments of its own, by every backend."""
    images = random_images(torch.uint8)
    for name, make in (("Diamond", torch_msda.Diamond), ("Fade", torch_msda.Fade)):
        results = []
        for backend in ("kernel", "torch"):
            torch.manual_seed(2)
            mix = make(K, return_params=True, backend=backend)
            results.append(mix(images, LABELS, **given()))
        ((mixed, targets, params), other) = results
        assert torch.equal(params.mask, other[2].mask), name
        assert torch.equal(mixed, other[0])
        assert torch.allclose(targets, other[1], atol=1e-6)
        assert params.mask.std() > 0.1
        assert torch.allclose(params.mask.mean((1, 2, 3)), params.lam, atol=1e-6)
        exact = reference.blend(numbers(images)[0], numbers(images)[1], numbers(params.mask)[0, 0], "CHW")
        assert np.abs(numbers(mixed)[0] - exact).max() <= BOUNDS["uint8"]


def test_memory_is_used_again_only_when_nothing_holds_it() -> None:
    images = torch.zeros(4, 3, 300, 300)
    mix = torch_msda.MixUp()
    first = mix(images)
    address, part = first.data_ptr(), first[2, :, 5]
    del first
    images += 1.0
    second = mix(images)
    assert second.data_ptr() != address
    assert part.eq(0.0).all()
    del part
    assert mix(images).data_ptr() == address
    kept: list[torch.Tensor] = [mix(images) for _ in range(4)]
    assert len({tensor.data_ptr() for tensor in kept}) == 4
    assert len(buffers._kept.blocks) == buffers._KEPT


def test_images_that_need_a_gradient_have_one() -> None:
    images = random_images(torch.float32).requires_grad_()
    mixed = torch_msda.MixUp()(images, **given())
    mixed.sum().backward()
    assert images.grad is not None
    weight = LAM + (1 - LAM).roll(1)  # as own image, and as the partner of the sample before
    assert torch.allclose(images.grad[:, 0, 0, 0], weight.float())
    with pytest.raises(ValueError, match="backend must be 'auto' or 'torch' with images that require"):
        torch_msda.MixUp(backend="kernel")(images)


def test_the_pipelines_noise_is_what_the_tests_mix() -> None:
    """Guard: images of both sides have all their values."""
    assert running.random_images(2, (64, 64)).max() == random_images(torch.uint8, size=(64, 64)).max() == 255
