"""Sources of images: one protocol for every form of storage. Imports nothing heavy.

The forms are :class:`.folders.ImageFolder`, class folders with one file per image, and
:class:`.cifar.CifarRecords`, CIFAR's binary files. :mod:`.datasets` finds out which one a folder has.
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

    All shards have the same number of batches per epoch. Every epoch starts with a new batch: incomplete
    batches at the end of the one before are padded.

    Attributes
    ----------
    size : int
        Number of samples in the source.
    batch_size : int
        Number of samples in a batch.
    shuffle : bool
        Whether to shuffle every epoch; otherwise samples keep the order of the source.
    seed : int or None
        Seed of the shuffled orders, the same in all shards.
    shard : Shard
        The shard that the pipeline reads.
    """

    size: int
    batch_size: int
    shuffle: bool
    seed: int | None = None
    shard: Shard = Shard()

    @property
    def batches(self) -> int:
        """Number of batches in an epoch: that of the longest shard, with its last incomplete batch."""
        return math.ceil(math.ceil(self.size / self.shard.count) / self.batch_size)

    @property
    def part(self) -> range:
        """The places that this shard reads in the order of each epoch, without padding."""
        return self.shard.part(self.size)

    def positions(self, batch: int) -> list[int]:
        """Positions in the source of the samples of a batch; batches count from 0 through all epochs.

        For sources with random access; DALI's readers have another order. The part is padded with its last
        sample.
        """
        epoch, number = divmod(batch, self.batches)
        order = _shuffled(self.size, self.seed or 0, epoch) if self.shuffle else range(self.size)
        start, last = self.part.start + number * self.batch_size, self.part.stop - 1
        return [int(order[min(place, last)]) for place in range(start, start + self.batch_size)]


@functools.lru_cache(maxsize=2)  # pipelines prefetch into the next epoch
def _shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, epoch))).permutation(size)


@runtime_checkable
class Source(Protocol):
    """Encoded images with labels, in any form of storage.

    The pipelines, the trainer, and the search for bad samples use only these members.

    Rules
    -----
    Positions. A sample has a fixed position, 0 to ``len(source) - 1``: checkpoints store positions.
    :meth:`digest` shows whether a source is the one that a checkpoint was made with.

    Orders. The samples that :meth:`read` gives depend only on `order`: the same order gives the same samples
    in every process. In each epoch every position is in the batches of one shard, once, except for padding.
    A shard reads its part of each epoch (:attr:`Order.part`). A reader of DALI must have
    ``pad_last_batch=True``; its shards may rotate through the parts (``stick_to_shard=False``), which the
    loader looks up.

    Checkpoints. The nodes must resume from DALI's checkpoints. DALI's readers do; so does
    ``fn.external_source`` with a stateless function that depends only on the batch number.

    Stand-ins. If a sample cannot be decoded, another replaces it (:meth:`without`) and all others keep their
    positions, so that neither order nor checkpoint changes. ``kept`` is 0 for such a position.

    Failures. A sample that cannot be read raises OSError or RuntimeError when the pipeline runs. The next
    samples (:meth:`upcoming`) are then decoded one by one from :meth:`encoded`, to find the bad one.

    Examples
    --------
    Images in memory:

    >>> from hashlib import sha256
    >>> import numpy as np
    >>> from nvidia.dali import fn
    >>> from pipelines.sources import find_substitutes
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
    ...         others = find_substitutes(self, bad)
    ...         samples = [self.samples[others.get(i, i)] for i in range(len(self))]
    ...         return Memory(self.classes, samples, bad)
    ...     def digest(self):
    ...         return sha256(repr((self.classes, self.samples)).encode()).hexdigest()
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them."""
        ...

    @property
    def labels_present(self) -> frozenset[int]:
        """The labels that occur: a class may have no samples."""
        ...

    @property
    def stand_ins(self) -> frozenset[int]:
        """Positions where another sample replaces one that cannot be decoded."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """Counts of entries that are not samples, by extension (".gif") or kind ("broken link")."""
        ...

    def __len__(self) -> int:
        """Number of samples, stand-ins included."""
        ...

    def __str__(self) -> str:
        """Location of the images, for messages."""
        ...

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[DataNode, ...]:
        """Add the reading of samples to the pipeline being defined.

        Parameters
        ----------
        order : Order
        report_stand_ins : bool
            Return ``kept`` as well. A source with stand-ins is only read with True.

        Returns
        -------
        encoded : DataNode
            Whole image files, uint8 1-D, on the CPU.
        labels : DataNode
            int32 [1], on the CPU.
        kept : DataNode
            int32 [1], on the CPU: 0 for a stand-in, else 1.
        """
        ...

    def upcoming(
        self, order: Order, *, batches: int, epoch: int, taken: int, checkpoint: bytes | None
    ) -> list[int]:
        """Positions of the samples that a pipeline with this `order` reads next.

        They are checked first when a batch fails; if none of them is bad, all samples are checked.

        Parameters
        ----------
        order : Order
        batches : int
            How many batches to look ahead.
        epoch, taken : int
            Number of finished epochs, and of batches taken from the pipeline in the current one.
        checkpoint : bytes or None
            The pipeline's checkpoint at that point; None at the start, and for pipelines without checkpoints.
        """
        ...

    def name(self, position: int) -> str:
        """A name by which people find the sample: a path, or an archive and its member."""
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
        """The same source, with the next good sample in place of every bad one (:func:`find_substitutes`).

        Raises
        ------
        ValueError
            No sample is left.
        """
        ...

    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the listing: equal for equal positions, wherever the images are."""
        ...


def find_substitutes(source: Sized, bad: frozenset[int]) -> dict[int, int]:
    """Find the next good position for every bad one; the first follows the last.

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
