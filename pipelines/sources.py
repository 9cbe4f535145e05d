"""What images are read from: one contract for every form. Imports nothing heavy.

The forms: :class:`.folders.ImageFolder`, folders of classes with one file per image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from .records import Shard

if TYPE_CHECKING:
    import numpy as np
    from nvidia.dali.pipeline import DataNode


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which samples of a source a pipeline reads: how epochs are cut into shards and batches.

    Every shard makes as many batches in an epoch. An epoch begins at the start of a batch: what is left of
    the last batches of the one before is padded.

    Attributes
    ----------
    size : int
        Samples of the source.
    batch_size : int
        Samples of a batch.
    shuffle : bool
        Whether every epoch has an order of its own; otherwise it is that of the source.
    seed : int or None
        Of the shuffled orders, the same in all shards.
    shard : Shard
        Whose batches these are.
    """

    size: int
    batch_size: int
    shuffle: bool
    seed: int | None = None
    shard: Shard = Shard()

    @property
    def batches(self) -> int:
        """Batches of an epoch: those of the longest shard, with its rest."""
        return math.ceil(math.ceil(self.size / self.shard.count) / self.batch_size)

    @property
    def part(self) -> range:
        """The places in the order of each epoch that this shard reads, without padding."""
        return self.shard.part(self.size)

    def positions(self, batch: int) -> list[int]:
        """Positions in the source of the samples of a batch, counted from 0 through all epochs.

        For forms that can read any sample at any time; where a reader of DALI shuffles, it has its own order.
        The last sample of the part pads.
        """
        epoch, number = divmod(batch, self.batches)
        order = _shuffled(self.size, self.seed or 0, epoch) if self.shuffle else range(self.size)
        start, last = self.part.start + number * self.batch_size, self.part.stop - 1
        return [int(order[min(place, last)]) for place in range(start, start + self.batch_size)]


@functools.lru_cache(maxsize=2)  # a pipeline works ahead, into the next epoch
def _shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, epoch))).permutation(size)


@runtime_checkable
class Source(Protocol):
    """Encoded images with labels, in whichever form they are stored.

    The pipelines, the trainer, and what finds and skips bad samples know these members and no others.

    Rules
    -----
    Positions. A sample has a position, 0 to ``len(source) - 1``, for good: checkpoints hold positions.
    :meth:`digest` tells whether a source is the one that a checkpoint was made with.

    Orders. All that decides what :meth:`read` gives is `order`: the same order gives the same samples in
    every process. In each epoch every position is in one shard's batches once, padding apart. A shard reads
    its part of each epoch, as in :attr:`Order.part`; if a reader of DALI's reads, its ``pad_last_batch`` is
    True, and the shards may take turns at the parts (``stick_to_shard``), which the loader looks up.

    Checkpoints. The nodes go on with DALI's checkpoints. DALI's readers do; so does ``fn.external_source`` of
    a function that remembers nothing and depends on the number of the batch alone.

    Stand-ins. Where a sample cannot be decoded, another takes its place (:meth:`without`) and all others stay
    where they are, so that neither order nor checkpoint changes. Such a place is read as not ``kept``.

    Failures. What cannot be read raises OSError or RuntimeError when the pipeline runs. The samples that come
    next (:meth:`upcoming`) are then decoded one by one from :meth:`encoded`, to find which it was.

    Examples
    --------
    Images in memory:

    >>> from hashlib import sha256
    >>> import numpy as np
    >>> from nvidia.dali import fn
    >>> from pipelines.sources import substitutes
    >>> class Memory:
    ...     left_out = {}
    ...     def __init__(self, classes, samples, stand_ins=frozenset()):
    ...         self.classes, self.samples, self.stand_ins = classes, samples, stand_ins
    ...     @property
    ...     def labels_present(self):
    ...         return frozenset(label for _, label in self.samples)
    ...     def __len__(self):
    ...         return len(self.samples)
    ...     def __str__(self):
    ...         return "memory"
    ...     def read(self, order, *, report_stand_ins):
    ...         def batch(info):
    ...             chosen = order.positions(info.iteration)
    ...             encoded = [np.frombuffer(self.encoded(i), np.uint8) for i in chosen]
    ...             labels = np.array([[self.samples[i][1]] for i in chosen], np.int32)
    ...             kept = np.array([[i not in self.stand_ins] for i in chosen], np.int32)
    ...             return (encoded, labels, kept)[: 2 + report_stand_ins]
    ...         return fn.external_source(batch, num_outputs=2 + report_stand_ins, batch_info=True)
    ...     def upcoming(self, order, *, batches, epoch, taken, checkpoint):
    ...         first = epoch * order.batches + taken
    ...         return [i for number in range(first, first + batches) for i in order.positions(number)]
    ...     def name(self, position):
    ...         return f"sample {position}"
    ...     def encoded(self, position):
    ...         return self.samples[position][0]
    ...     def without(self, bad):
    ...         bad = self.stand_ins.union(bad)
    ...         others = substitutes(self, bad)
    ...         samples = [self.samples[others.get(i, i)] for i in range(len(self))]
    ...         return Memory(self.classes, samples, bad)
    ...     def digest(self):
    ...         return sha256(repr((self.classes, self.samples)).encode()).hexdigest()
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is a position in it."""
        ...

    @property
    def labels_present(self) -> frozenset[int]:
        """The labels that samples have: a class may have none."""
        ...

    @property
    def stand_ins(self) -> frozenset[int]:
        """Positions where another sample stands in for one that cannot be decoded."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """How much there is besides the samples, by what it is: an extension (".gif") or a noun."""
        ...

    def __len__(self) -> int:
        """Samples, stand-ins included."""
        ...

    def __str__(self) -> str:
        """Where the images are, for messages."""
        ...

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[DataNode, ...]:
        """Read in the pipeline that is being defined.

        Parameters
        ----------
        order : Order
        report_stand_ins : bool
            Give ``kept`` as well. There are stand-ins only where it is True.

        Returns
        -------
        encoded : DataNode
            Whole image files, uint8 1-D, on the CPU.
        labels : DataNode
            int32 [1], on the CPU.
        kept : DataNode
            int32 [1], on the CPU: 0 where a stand-in was read, else 1.
        """
        ...

    def upcoming(
        self, order: Order, *, batches: int, epoch: int, taken: int, checkpoint: bytes | None
    ) -> list[int]:
        """Positions of the samples that come next in a pipeline that reads in `order`.

        They are looked at first when a batch fails; if none of them is bad, all samples are.

        Parameters
        ----------
        order : Order
        batches : int
            How many batches to look ahead.
        epoch, taken : int
            Epochs that were finished, and batches taken from the pipeline in this one.
        checkpoint : bytes or None
            The pipeline's checkpoint there; None at the beginning, and for pipelines that have none.
        """
        ...

    def name(self, position: int) -> str:
        """What a person finds the sample by: a path, or an archive and the member of it."""
        ...

    def encoded(self, position: int) -> bytes:
        """The whole image file, as :meth:`read` gives it to the decoder.

        Raises
        ------
        OSError
            It cannot be read.
        """
        ...

    def without(self, bad: Iterable[int]) -> Self:
        """The same source, in which the next good sample stands in for every bad one (:func:`substitutes`).

        Raises
        ------
        ValueError
            No sample is left.
        """
        ...

    def digest(self) -> str:
        """SHA-256 (hexadecimal) of what is listed, wherever it lies: the same for the same positions."""
        ...


def substitutes(source: Sized, bad: frozenset[int]) -> dict[int, int]:
    """The next good position of a source for every bad one; after the last comes the first.

    Raises
    ------
    ValueError
        All positions are bad.
    """
    size = len(source)
    if len(bad) == size:
        raise ValueError(f"none of the {size} images in {source} can be decoded")
    found = {}
    for position in bad:
        other = position
        while other in bad:
            other = (other + 1) % size
        found[position] = other
    return found
