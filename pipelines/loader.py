"""From a DALI pipeline to PyTorch tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from nvidia.dali.pipeline import Pipeline

try:
    import torch
except ImportError as error:
    raise ImportError(
        "pipelines.loader gives batches to PyTorch, which cannot be imported; for one of DALI's CUDA:"
        " pip install 'dali-msda[torch-cuda12]'"
    ) from error
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from dali_msda.validation import check_choice

from .records import Layout, Shard
from .sources import Order


class DALILoader:
    """Iterate over the batches of a pipeline as (images, targets).

    Parameters
    ----------
    pipeline : nvidia.dali.Pipeline
        Two outputs, images and targets. A third one is taken for what ``report_stand_ins`` adds: stand-ins
        are left out of the batches (with `drop_last` unless nothing would be left of a batch).
    order : Order, optional
        How the samples fall into epochs, for a pipeline without a reader of DALI's. Otherwise it has exactly
        one, made with ``pad_last_batch=True``, which says so itself.
    drop_last : bool
        Full batches only, as many in every shard. Otherwise (default) the last batch of an epoch may come
        short, and every sample of the shard comes exactly once.
    multiple : int
        With `drop_last`: as many batches as are a multiple of this, for gradients that are accumulated over
        so many; the others of the epoch are left out as well.
    layout : {"CHW", "HWC"}
        Layout of the pipeline's images. HWC batches come out as an N x C x H x W view, which is
        PyTorch's ``channels_last`` memory format without a copy.
    state : dict, optional
        What :meth:`state` returned: go on after the batch that came last then. The pipeline has to be made
        with ``checkpoint=state["pipeline"]`` and otherwise as before.

    Raises
    ------
    ValueError
        Another layout; `multiple` below 1, or above without `drop_last`; an order of another batch size, or
        none and no reader, several, or one that does not pad; `drop_last` that leaves no batch; a pipeline
        that goes on from a checkpoint without `state`, or the reverse.

    Notes
    -----
    Tensors lie on the device of the pipeline's outputs and share their memory; nothing is copied. Every
    ``for`` loop is one epoch. A loop that was left early goes on where it stopped.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        order: Order | None = None,
        drop_last: bool = False,
        multiple: int = 1,
        layout: str = "CHW",
        state: dict[str, Any] | None = None,
    ) -> None:
        check_choice("layout", layout, get_args(Layout))
        if multiple < 1 or (multiple > 1 and not drop_last):
            raise ValueError(f"multiple must be at least 1, and 1 without drop_last; got {multiple}")
        pipeline.build()
        if pipeline.is_restored_from_checkpoint != (state is not None):
            raise ValueError(
                "state must be given with a pipeline made with checkpoint=state['pipeline'], and only then;"
                f" got {'no state' if state is None else 'a state'} and a pipeline that"
                f" {'goes on from a checkpoint' if state is None else 'begins'}"
            )
        self._moves = False  # whether the shards take turns at the parts of an epoch
        if order is None or pipeline.reader_meta():
            order, self._moves = _order_of_reader(pipeline)
        self._order = order
        if order.batch_size != pipeline.max_batch_size:
            raise ValueError(
                f"order must have the batch size of the pipeline, {pipeline.max_batch_size}; got"
                f" {order.batch_size}"
            )
        self._drop_last = drop_last
        self._multiple = multiple
        self._layout = layout
        # Epochs that were finished, and batches taken from the pipeline in this one.
        self._epoch: int = 0 if state is None else state["epoch"]
        self._position: int = 0 if state is None else state["position"]
        if drop_last and len(self) == 0:
            raise ValueError(
                f"drop_last leaves no batch: batch_size {order.batch_size * multiple} is more than the"
                f" {order.size // order.shard.count} samples of a shard"
            )
        # Without a size or reader the iterator does no counting of its own: with shards of different
        # sizes DALI's (2.4) makes empty batches, or leaves padding for the next epoch to begin with.
        names = ["images", "targets", "kept"][: pipeline.num_outputs]
        self._batches = DALIGenericIterator([pipeline], names)

    def state(self) -> dict[str, Any]:
        """Where the loop stands: after the batch that came last, whatever DALI has made ahead.

        Returns
        -------
        dict
            ``epoch`` and ``position`` (int), and ``pipeline`` (bytes): DALI's checkpoint, which holds the
            position of the reader and the state of every random operator.

        Raises
        ------
        ValueError
            The pipeline was made without ``enable_checkpointing=True``.
        """
        (checkpoint,) = self._batches.checkpoints()
        return {"epoch": self._epoch, "position": self._position, "pipeline": checkpoint}

    def _shard_size(self) -> int:
        """Samples of the part that is read in this epoch."""
        shard = self._order.shard
        if self._moves:
            shard = dataclasses.replace(shard, index=(shard.index + self._epoch) % shard.count)
        return len(shard.part(self._order.size))

    @property
    def longest(self) -> int:
        """Batches of the longest shard with its rest: what the pipelines of all shards make in an epoch."""
        return self._order.batches

    def __len__(self) -> int:
        """Batches of this epoch."""
        if self._drop_last:
            smallest = self._order.size // self._order.shard.count
            return smallest // self._order.batch_size // self._multiple * self._multiple
        return -(-self._shard_size() // self._order.batch_size)

    @property
    def position(self) -> int:
        """Batches that were taken in this epoch."""
        return self._position

    def finish_epoch(self) -> None:
        """Take what is left of the epoch: padding, which makes all shards as long as the longest."""
        for _ in range(self._position, self.longest):
            next(self._batches)
        self._position = 0
        self._epoch += 1

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch of this epoch, which has one left. Without `drop_last` it may be empty."""
        (batch,) = next(self._batches)
        real = self._shard_size() - self._position * self._order.batch_size
        self._position += 1
        images, targets = batch["images"][:real], batch["targets"][:real]
        if "kept" in batch:
            kept = batch["kept"][:real].flatten() != 0
            # Where all steps count, a batch of nothing but stand-ins is better than an empty one.
            if not kept.all() and (kept.any() or not self._drop_last):
                kept = kept.to(images.device)
                images, targets = images[kept], targets[kept]
        return images.permute(0, 3, 1, 2) if self._layout == "HWC" else images, targets

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._position >= len(self):  # the last loop was left after its last batch
            self.finish_epoch()
        while self._position < len(self):
            batch = self.next_batch()
            if len(batch[0]) > 0:
                yield batch
        self.finish_epoch()


def _order_of_reader(pipeline: Pipeline) -> tuple[Order, bool]:
    """What the reader of a pipeline that was built says; and whether its shards take turns."""
    readers = pipeline.reader_meta()
    if len(readers) != 1:
        raise ValueError(
            f"pipeline must have exactly one reader; got {', '.join(readers) or 'none'} (for a source that"
            " does not read with one of DALI's, give order)"
        )
    (reader,) = readers.values()
    if not reader["pad_last_batch"]:
        raise ValueError("the pipeline's reader must be made with pad_last_batch=True; got False")
    order = Order(
        size=int(reader["epoch_size"]),
        batch_size=pipeline.max_batch_size,
        shuffle=True,  # or not: it does not say, and nothing here depends on it
        shard=Shard(index=int(reader["shard_id"]), count=int(reader["number_of_shards"])),
    )
    return order, not reader["stick_to_shard"]
