"""What a seed stands for: the order of the samples and the draws of each shard. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .records import Shard

if TYPE_CHECKING:
    import numpy as np

# The name of the reader in a pipeline: its state is looked for in checkpoints.
READER = "Reader"


def training_order(count: int, seed: int | None) -> np.ndarray:
    """Positions in the listing, in the order in which the reader is given them.

    DALI shuffles with a seed of its own; shuffling the list first makes the order depend on ours.
    """
    import numpy as np

    seeds = np.random.SeedSequence(0 if seed is None else seed)
    return np.random.default_rng(seeds.spawn(1)[0]).permutation(count)


def pipeline_seed(seed: int, shard: Shard) -> int:
    """The seed of one shard's pipeline: the first stream is that of the order."""
    import numpy as np

    stream = np.random.SeedSequence(seed).spawn(1 + shard.count)[1 + shard.index]
    return int(stream.generate_state(1)[0] >> 1)
