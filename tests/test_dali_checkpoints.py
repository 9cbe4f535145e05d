"""DALI's checkpoints from an earlier version of the library, whose operators have other numbers."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import torch

from dali_msda import Mixing
from pipelines import checkpoints
from pipelines.folders import list_split
from tests.devices import with_device
from training.bad_files import Quarantine
from training.config import Config, resolve
from training.distributed import Processes
from training.loaders import Loaders


def renumber(checkpoint: bytes) -> bytes:
    """As if the pipeline had one more compiled operator, and other operators before it."""
    message = checkpoints._Checkpoint.FromString(checkpoint)
    for operator in message.operators:
        operator.name = re.sub(r"_(\d+)$", lambda found: f"_{int(found[1]) + 7}", operator.name)
    message.operators.add().name = "__CompiledOperator_99"
    found: bytes = message.SerializeToString()
    return found


@with_device("method", ["stochastic", "gmix"], ["gmix"])
def test_the_run_continues(method: str, device: str, coded: Path) -> None:
    """Reader, crop, mirror and all draws: the next batches are the same bit for bit."""
    config = resolve(
        Config(
            mixing=Mixing(method, probability=0.8),
            image_size=16,
            batch_size=4,
            workers=1,
            device="cuda" if device == "gpu" else "cpu",
            amp="none",
            data=coded,
        )
    )
    loaders = Loaders(config, Processes(), Quarantine(Path(os.devnull), skip=False), dict)
    loader = loaders.train(list_split(coded, "train"))
    batches: Any = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in range(7):  # into the second epoch
        next(batches)
    state = loader.state_dict()
    expected = [[tensor.clone() for tensor in next(batches)] for _ in range(4)]
    old = {**state, "pipeline": renumber(state["pipeline"])}
    assert old["pipeline"] != state["pipeline"]
    found = itertools.chain.from_iterable(itertools.repeat(loader.another(old)))
    for ours, theirs in zip(expected, itertools.islice(found, 4), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
