"""Accuracy and loss against NumPy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.distributed import Processes
from training.evaluation import evaluate


class Batches:
    """Batches of logits (in place of images) and labels; `longest` may exceed their number."""

    def __init__(self, logits: np.ndarray, labels: np.ndarray, batch: int, empty: int = 0) -> None:
        self._logits, self._labels, self._batch = logits, labels, batch
        self.longest = -(-len(labels) // batch) + empty

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._labels), self._batch):
            part = slice(start, start + self._batch)
            yield torch.from_numpy(self._logits[part]), torch.from_numpy(self._labels[part])


class AsTheyAre(nn.Module):
    """Returns its input as logits; must be in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images


def result(classes: int, count: int, batch: int, **arguments: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes + count)
    logits, labels = rng.normal(0, 3, (count, classes)).astype(np.float32), rng.integers(0, classes, count)
    model = AsTheyAre()
    batches: Any = Batches(logits, labels, batch, arguments.pop("empty", 0))
    found = evaluate(model, batches, Processes(), contextlib.nullcontext, **arguments)
    assert model.training
    return found, logits.astype(np.float64), labels


@pytest.mark.parametrize(
    ("classes", "count", "batch"), [(10, 33, 8), (10, 1, 4), (5, 20, 20), (3, 17, 5), (1, 4, 3)]
)
@pytest.mark.parametrize("empty", [0, 1])
def test_against_numpy(classes: int, count: int, batch: int, empty: int) -> None:
    """With fewer than five classes top-5 is always right; the last batch may be short."""
    found, logits, labels = result(classes, count, batch, empty=empty)
    order = np.argsort(-logits, axis=1)
    chosen = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), labels]
    assert found == pytest.approx(
        {
            "top1": 100 * np.mean(order[:, 0] == labels),
            "top5": 100 * np.mean((order[:, :5] == labels[:, None]).any(1)),
            "loss": chosen.mean(),
        },
        rel=1e-6,
    )


def test_it_stops_where_it_is_asked_to() -> None:
    asked = iter([False, True])
    found, _, _ = result(10, 33, 8, has_to_stop=lambda: next(asked))
    assert found is None
