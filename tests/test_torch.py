"""Mixing batches of tensors with PyTorch, against the NumPy reference."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from dali_msda import reference
from dali_msda import torch as torch_msda
from dali_msda.methods import MIXING
from tests.devices import on_each_device
from tests.trainer_process import ROOT

N, K, SIZE = 6, 10, (21, 16)
DTYPES = {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# Largest errors: half a unit of integers, and more for 16 bits, because products are float32; half a unit in
# the last place of floats below 2, and a bit for float32's own rounding.
BOUNDS = {
    "uint8": 0.5 + 1e-4,
    "int16": 0.51,
    "uint16": 0.51,
    "float16": 2**-11 + 1e-6,
    "bfloat16": 2**-8 + 1e-6,
    "float32": 1e-6,
}


def on(device: str) -> torch.device:
    return torch.device("cuda" if device == "gpu" else "cpu")


def random_images(dtype: torch.dtype, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    if dtype.is_floating_point:
        return torch.tensor(random.uniform(-1.9, 1.9, (N, 3, *size)), dtype=dtype)
    info = torch.iinfo(dtype)
    return torch.tensor(random.integers(info.min, info.max + 1, (N, 3, *size))).to(dtype)


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().to(torch.float64).numpy()


@on_each_device
@pytest.mark.parametrize("convention", ["reference", "paper"])
@pytest.mark.parametrize("method", ["mixup", "cutmix", "stochastic", "hmix", "gmix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_images_masks_and_targets_are_those_of_the_reference(
    dtype: str, method: str, convention: str, device: str
) -> None:
    lam = torch.tensor([0.0, 0.2, 0.37, 0.5, 0.81, 1.0], dtype=torch.float64)
    center = torch.tensor([[0, 0], [20, 15], [10, 8], [3, 12], [19, 1], [7, 7]])
    partner, labels = torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([0, 9, 3, 3, 7, 1])
    images = random_images(DTYPES[dtype]).contiguous(
        memory_format=torch.channels_last if convention == "paper" else torch.contiguous_format
    )
    mix = torch_msda.Mix(method, K, convention=convention, label_smoothing=0.1, return_params=True)
    at = on(device)
    mixed, targets, params = mix(
        images.to(at), labels.to(at), lam=lam.to(at), center=center.to(at), partner=partner.to(at)
    )
    assert mixed.dtype == images.dtype
    assert mixed.stride() == images.stride()
    ratio = 0.75 if method == "hmix" else 1.0
    use_mixup = numbers(params.mask).reshape(N, -1).std(axis=1) == 0 if method == "stochastic" else None
    exact, exact_targets, masks = reference.mix(
        numbers(images), labels.numpy(), partner.numpy(), lam.numpy(), center.numpy(), [ratio] * N, method,
        num_classes=K, label_smoothing=0.1, convention=convention, use_mixup=use_mixup, layout="CHW",
    )  # fmt: skip
    assert np.abs(numbers(mixed) - exact).max() <= BOUNDS[dtype]
    assert np.abs(numbers(params.mask)[:, 0] - masks).max() <= 1e-7
    assert np.abs(numbers(targets) - exact_targets).max() <= 1e-6
    assert np.abs(numbers(params.lam) - masks.mean(axis=(1, 2))).max() <= 1e-6
    assert params.partner.tolist() == partner.tolist()


def test_the_classes_are_those_of_the_table() -> None:
    assert [torch_msda.mixers.class_name(name) for name in MIXING[:5]] == [
        "MixUp",
        "CutMix",
        "Stochastic",
        "HMix",
        "GMix",
    ]
    for name in MIXING:
        assert getattr(torch_msda, torch_msda.mixers.class_name(name))(K).method == name


def test_the_modules_stay_light() -> None:
    script = (
        "import sys, dali_msda\nassert 'torch' not in sys.modules\nimport dali_msda.torch\n"
        "print(*(name for name in sys.modules if name.startswith(('nvidia.dali', 'numba', 'triton'))))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
