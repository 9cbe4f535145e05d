"""Derive the order of samples and the seeds of shards from one seed. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .records import Shard

if TYPE_CHECKING:
    import numpy as np

# The name of the reader in a pipeline, by which checkpoints store its state.
READER = "Reader"


def training_order(count: int, seed: int | None) -> np.ndarray:
    """Shuffle the positions in the listing, for the list that the reader gets.

    DALI shuffles with a fixed seed; shuffling the list first makes the order depend on `seed`.
    """
    import numpy as np

    seeds = np.random.SeedSequence(0 if seed is None else seed)
    return np.random.default_rng(seeds.spawn(1)[0]).permutation(count)


def pipeline_seed(seed: int, shard: Shard) -> int:
    """Derive the seed of a shard's pipeline; stream 0 is for the order."""
    import numpy as np

    stream = np.random.SeedSequence(seed).spawn(1 + shard.count)[1 + shard.index]
    return int(stream.generate_state(1)[0] >> 1)
