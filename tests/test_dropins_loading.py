"""Mixing where training code does it: in the workers of a loader, in a module's hook; the page's examples."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from dali_msda.torch import HMix
from tests.devices import on_each_device

CLASSES = 4
# Image i is LEVEL * i everywhere, so that a mixed image's mean and its target show the same weights.
LEVEL = 80


def samples(count: int = 8, size: tuple[int, int] = (12, 16)) -> Any:
    return [
        (torch.full((3, *size), LEVEL * (i % CLASSES), dtype=torch.uint8), i % CLASSES) for i in range(count)
    ]


def assert_agree(images: torch.Tensor, targets: torch.Tensor) -> None:
    assert images.dtype == torch.uint8
    levels = (targets.cpu() * torch.arange(CLASSES) * LEVEL).sum(1)
    torch.testing.assert_close(images.cpu().float().mean(dim=(1, 2, 3)), levels, rtol=0, atol=0.6)


class Collate:
    """Collates the same samples with everything that can run in a worker."""

    def __init__(self, **mixers: Any) -> None:
        self.mixers = mixers

    def __call__(self, batch: list[Any]) -> dict[str, Any]:
        return {
            name: mix(batch) if name == "timm" else mix(*default_collate(batch))
            for name, mix in self.mixers.items()
        }


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader(context: str) -> None:
    """They mix, each batch in its own way, and the seed of the main process decides how."""
    drop_in = pytest.importorskip("dali_msda.torch.timm", exc_type=ImportError)
    vision = pytest.importorskip("dali_msda.torch.torchvision", exc_type=ImportError)
    collate = Collate(
        ours=HMix(num_classes=CLASSES),
        timm=drop_in.FastCollateMixup(
            num_classes=CLASSES, mode="elem", cutmix_alpha=1.0, hmix_alpha=1.0, label_smoothing=0.0
        ),
        torchvision=vision.GMix(num_classes=CLASSES),
    )
    loader: Any = DataLoader(
        samples(), batch_size=4, num_workers=1, collate_fn=collate, multiprocessing_context=context
    )

    def run() -> list[dict[str, Any]]:
        torch.manual_seed(11)
        return list(loader)

    first, second = run()
    for name in collate.mixers:
        for batch in (first, second):
            assert_agree(*batch[name])
        assert not torch.equal(first[name][0], second[name][0])
    if context == "fork":  # a start costs seconds otherwise
        for batch, again in zip((first, second), run(), strict=True):
            assert all(torch.equal(batch[name][0], again[name][0]) for name in collate.mixers)


class Classifier(torch.nn.Module):
    """A module in the manner of Lightning: mixing is a submodule, and a hook calls it on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = HMix(num_classes=CLASSES, mean=120.0, std=90.0)
        self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 16, CLASSES))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.mix(batch) if self.training else batch

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, targets = batch
        return torch.nn.functional.cross_entropy(self.network(images), targets)


@on_each_device
def test_in_a_module(device: str) -> None:
    to = torch.device("cuda" if device == "gpu" else "cpu")
    torch.manual_seed(0)
    module = copy.deepcopy(Classifier()).to(to).train()
    assert not [name for name in module.state_dict() if name.startswith("mix")], "checkpoints do not change"
    optimizer = torch.optim.SGD(module.parameters(), lr=0.003)
    whole = next(iter(DataLoader(samples(32), batch_size=32)))

    def loss_of_whole() -> float:
        """Without mixing, so that it depends on no draws of the device."""
        images, labels = module.eval().on_after_batch_transfer([part.to(to) for part in whole], 0)
        assert images.dtype == torch.uint8
        found: float = module.train().training_step(((images.float() - 120.0) / 90.0, labels), 0).item()
        return found

    first = loss_of_whole()
    for _ in range(10):
        for index, (images, labels) in enumerate(DataLoader(samples(32), batch_size=8)):
            batch = module.on_after_batch_transfer((images.to(to), labels.to(to)), 0)
            assert batch[0].dtype == torch.float32
            loss = module.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert loss_of_whole() < 0.8 * first


BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/drop-ins.md").read_text(), re.S
)


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_of_the_page(block: str) -> None:
    """Each makes transforms; all that it makes mixes a batch."""
    pytest.importorskip("timm" if "torch.timm" in block or "hmix_alpha" in block else "torchvision")
    names: dict[str, Any] = {}
    for earlier in BLOCKS[: BLOCKS.index(block)]:
        exec("\n".join(line for line in earlier.splitlines() if "import" in line), names)
    before = set(names)
    exec(block, names)
    made = [names[name] for name in set(names) - before if name.endswith(("mix", "mixup", "mixup_fn"))]
    assert made
    for mix in made:
        images, targets = mix(torch.rand(4, 3, 8, 8), torch.arange(4))
        assert (images.shape, targets.shape) == ((4, 3, 8, 8), (4, 1000))
