"""Images in memory as a source, for measurements that must not wait for a disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from .sources import Order, find_substitutes

if TYPE_CHECKING:
    from nvidia.dali.pipeline import DataNode


@dataclass(frozen=True)
class MemorySource:
    """Encoded images in memory, all of one class: a :class:`.sources.Source`.

    Attributes
    ----------
    images : sequence of bytes
        Whole image files.
    stand_ins : frozenset of int
        See :meth:`.sources.Source.without`.
    """

    images: Sequence[bytes]
    stand_ins: frozenset[int] = frozenset()
    classes: tuple[str, ...] = ("all",)

    @property
    def labels_present(self) -> frozenset[int]:
        """The only label."""
        return frozenset((0,))

    @property
    def left_out(self) -> Mapping[str, int]:
        """Nothing."""
        return {}

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        return f"{len(self.images)} images in memory"

    def read(self, order: Order, *, report_stand_ins: bool) -> tuple[DataNode, ...]:
        """See :meth:`.sources.Source.read`."""
        import numpy as np
        from nvidia.dali import fn, types

        def batch(info: types.BatchInfo) -> tuple[list[np.ndarray], ...]:
            positions = order.positions(info.iteration)
            encoded = [np.frombuffer(self.images[position], np.uint8) for position in positions]
            labels = [np.zeros(1, np.int32) for _ in positions]
            kept = [np.array([position not in self.stand_ins], np.int32) for position in positions]
            return (encoded, labels, kept)[: 2 + report_stand_ins]

        nodes = fn.external_source(
            batch,
            num_outputs=2 + report_stand_ins,
            batch_info=True,
            dtype=[types.UINT8, types.INT32, types.INT32][: 2 + report_stand_ins],
            ndim=1,
        )
        return tuple(nodes)

    def upcoming(
        self, order: Order, *, batches: int, epoch: int, taken: int, checkpoint: bytes | None
    ) -> list[int]:
        """See :meth:`.sources.Source.upcoming`."""
        first = epoch * order.batches + taken
        return [position for number in range(first, first + batches) for position in order.positions(number)]

    def name(self, position: int) -> str:
        """The position, for messages."""
        return f"image {position} in memory"

    def encoded(self, position: int) -> bytes:
        """An image file."""
        return self.images[position]

    def without(self, bad: Iterable[int]) -> Self:
        """See :meth:`.sources.Source.without`."""
        stand_ins = self.stand_ins.union(bad)
        others = find_substitutes(self, stand_ins)
        images = [self.images[others.get(position, position)] for position in range(len(self))]
        return replace(self, images=images, stand_ins=stand_ins)

    def digest(self) -> str:
        """SHA-256 of the images."""
        found = hashlib.sha256()
        for image in self.images:
            found.update(hashlib.sha256(image).digest())
        return found.hexdigest()
