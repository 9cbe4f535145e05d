"""Given the same draws, mixup and cutmix agree with timm and torchvision on the same batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.running import random_images, run_mix

timm_mixup = pytest.importorskip("timm.data.mixup")
v2 = pytest.importorskip("torchvision.transforms.v2")

HEIGHT, WIDTH, COUNT = 24, 32, 6
PLACES = [(0, 0), (11, 20), (23, 4), (12, 15)]
# Boxes of even sides: where the rounded side is odd, the authors' code and torchvision take one pixel less
# (in either direction half of it, rounded down), and so do we; newer versions of timm do not.
EVEN = [(lam, *place) for lam in (0.0, 0.4375, 0.75, 0.9375, 1.0) for place in PLACES]
ANY = EVEN + [(lam, *place) for lam in (0.13, 0.36, 0.5, 0.9) for place in PLACES]
IMAGES = random_images(COUNT, (HEIGHT, WIDTH), dtype=np.float32)
LABELS = [0, 1, 2, 2, 1, 3]


def ours(method: str, lam: float, row: int, column: int, partner: np.ndarray, smoothing: float) -> Any:
    return run_mix(
        method,
        IMAGES,
        LABELS,
        num_classes=4,
        lam=lam,
        center=(row, column),
        partner=partner,
        label_smoothing=smoothing,
    )


def assert_agree(result: Any, images: torch.Tensor, targets: torch.Tensor) -> None:
    np.testing.assert_allclose(result.images, images.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.targets, targets.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
@pytest.mark.parametrize(("lam", "row", "column"), EVEN)
def test_timm(method: str, lam: float, row: int, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's partner is the batch in reverse order; it draws the row first."""
    peer = timm_mixup.Mixup(
        mixup_alpha=1.0 if method == "mixup" else 0.0,
        cutmix_alpha=1.0 if method == "cutmix" else 0.0,
        label_smoothing=0.1,
        num_classes=4,
    )
    places: Iterator[int] = iter([row, column])
    monkeypatch.setattr(np.random, "beta", lambda *_: lam)
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(places))
    images, targets = peer(torch.tensor(IMAGES).permute(0, 3, 1, 2).contiguous(), torch.tensor(LABELS))
    monkeypatch.undo()
    assert_agree(ours(method, lam, row, column, np.arange(COUNT)[::-1].copy(), 0.1), images, targets)


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
@pytest.mark.parametrize(("lam", "row", "column"), ANY)
def test_torchvision(method: str, lam: float, row: int, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's partner is the sample before; it draws the column first."""
    peer = (v2.MixUp if method == "mixup" else v2.CutMix)(num_classes=4)
    places = iter([column, row])
    monkeypatch.setattr(peer, "_dist", torch.distributions.Beta(1.0, 1.0))
    monkeypatch.setattr(peer._dist, "sample", lambda *_: torch.tensor(lam, dtype=torch.float64))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(places)]))
    images, targets = peer(torch.tensor(IMAGES).permute(0, 3, 1, 2).contiguous(), torch.tensor(LABELS))
    monkeypatch.undo()
    assert_agree(ours(method, lam, row, column, np.roll(np.arange(COUNT), 1), 0.0), images, targets)
