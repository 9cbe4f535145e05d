"""Iterate over a DALI pipeline as PyTorch tensors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from nvidia.dali.pipeline import Pipeline

try:
    import torch
except ImportError as error:
    raise ImportError(
        "pipelines.loader needs PyTorch, which cannot be imported. To install the build for DALI's CUDA: pip"
        " install 'dali-msda[torch-cuda12]'"
    ) from error
from nvidia.dali.plugin.pytorch import DALIGenericIterator

import dali_msda as msda
from dali_msda.validation import check_choice

from .records import Layout, Shard
from .sources import Order


class DALILoader:
    """Iterate over the batches of a pipeline as (images, targets).

    Parameters
    ----------
    pipeline : nvidia.dali.Pipeline
        Two outputs, images and targets. A third output must be ``kept`` of ``report_stand_ins``: stand-ins
        are removed from the batches (but with `drop_last`, not if a batch would become empty).
    order : Order, optional
        How the samples are divided into epochs; required for a pipeline without a reader of DALI that is not
        from :mod:`.imagenet`. With a reader, which must have ``pad_last_batch=True``, the order is read from
        it.
    drop_last : bool
        Full batches only, the same number in every shard. Otherwise (default) the last batch of an epoch may
        be smaller, and every sample of the shard comes exactly once.
    multiple : int
        With `drop_last`: make the number of batches a multiple of this, for gradient accumulation. The
        remaining batches of the epoch are dropped as well.
    layout : {"CHW", "HWC"}
        Layout of the pipeline's images. HWC batches are returned as an N x C x H x W view, which is
        PyTorch's ``channels_last`` memory format, without a copy.
    state : dict, optional
        A result of :meth:`state`: resume after the batch that came last then. The pipeline must be made with
        ``checkpoint=state["pipeline"]`` and otherwise as before.

    Raises
    ------
    ValueError
        Unknown layout; `multiple` below 1, or above 1 without `drop_last`; an order with another batch size;
        without an order, no reader, several readers, or one that does not pad; `drop_last` without a full
        batch; a pipeline resumed from a checkpoint without `state`, or the reverse.
    RuntimeError
        DALI cannot make a batch; mixing errors are explained by :func:`dali_msda.explain`.

    Notes
    -----
    Tensors are on the device of the pipeline's outputs and share their memory; nothing is copied. Every
    ``for`` loop is one epoch. If a loop ends early, the next one continues there.
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
                "state must be given if and only if the pipeline has checkpoint=state['pipeline']; got"
                f" {'no state' if state is None else 'a state'} and a pipeline"
                f" {'with' if state is None else 'without'} a checkpoint"
            )
        order = order or getattr(pipeline, "sample_order", None)
        self._rotates = False  # whether the shards rotate through the parts of the data
        if order is None or pipeline.reader_meta():
            order, self._rotates = _read_order(pipeline)
        self._order = order
        if order.batch_size != pipeline.max_batch_size:
            raise ValueError(
                f"order must have the batch size of the pipeline, {pipeline.max_batch_size}; got"
                f" {order.batch_size}"
            )
        self._drop_last = drop_last
        self._multiple = multiple
        self._layout = layout
        # Number of finished epochs, and of batches taken from the pipeline in the current one.
        self._epoch: int = 0 if state is None else state["epoch"]
        self._position: int = 0 if state is None else state["position"]
        if drop_last and len(self) == 0:
            raise ValueError(
                f"with drop_last, batch_size must be at most {order.size // order.shard.count}, the number of"
                f" samples in a shard; got {order.batch_size * multiple}"
            )
        # Without a size or reader, DALI's iterator does not count. Its counting (2.4) makes empty batches for
        # shards of different sizes, or starts the next epoch with leftover padding.
        names = ["images", "targets", "kept"][: pipeline.num_outputs]
        with _explain_errors():  # it makes the first batch
            self._batches = DALIGenericIterator([pipeline], names)

    def state(self) -> dict[str, Any]:
        """The position after the last batch returned, whatever DALI has prefetched.

        Returns
        -------
        dict
            ``epoch`` and ``position`` (int), and ``pipeline`` (bytes): DALI's checkpoint with the position of
            the reader and the state of every random operator.

        Raises
        ------
        ValueError
            The pipeline was made without ``enable_checkpointing=True``.
        """
        (checkpoint,) = self._batches.checkpoints()
        return {"epoch": self._epoch, "position": self._position, "pipeline": checkpoint}

    def _shard_size(self) -> int:
        """Number of samples that this shard reads in the current epoch."""
        shard = self._order.shard
        if self._rotates:
            shard = dataclasses.replace(shard, index=(shard.index + self._epoch) % shard.count)
        return len(shard.part(self._order.size))

    @property
    def longest(self) -> int:
        """Number of batches that the pipelines of all shards make in an epoch: that of the longest shard."""
        return self._order.batches

    def __len__(self) -> int:
        """Number of batches in the current epoch."""
        if self._drop_last:
            smallest = self._order.size // self._order.shard.count
            return smallest // self._order.batch_size // self._multiple * self._multiple
        return -(-self._shard_size() // self._order.batch_size)

    @property
    def position(self) -> int:
        """Number of batches taken in the current epoch."""
        return self._position

    def finish_epoch(self) -> None:
        """Take the remaining batches of the epoch, padding included, so that all shards are equally long."""
        for _ in range(self._position, self.longest):
            with _explain_errors():
                next(self._batches)
        self._position = 0
        self._epoch += 1

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next batch of the epoch, which must have one. Without `drop_last` it may be empty."""
        with _explain_errors():
            (batch,) = next(self._batches)
        real = self._shard_size() - self._position * self._order.batch_size
        self._position += 1
        images, targets = batch["images"][:real], batch["targets"][:real]
        if "kept" in batch:
            kept = batch["kept"][:real].flatten() != 0
            # With a fixed number of steps, a batch of stand-ins is better than an empty one.
            if not kept.all() and (kept.any() or not self._drop_last):
                kept = kept.to(images.device)
                images, targets = images[kept], targets[kept]
        return images.permute(0, 3, 1, 2) if self._layout == "HWC" else images, targets

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._position >= len(self):  # the previous loop ended at its last batch
            self.finish_epoch()
        while self._position < len(self):
            batch = self.next_batch()
            if len(batch[0]) > 0:
                yield batch
        self.finish_epoch()


@contextlib.contextmanager
def _explain_errors() -> Iterator[None]:
    """Raise DALI's mixing errors with the text of :func:`dali_msda.explain`."""
    try:
        yield
    except RuntimeError as error:
        if explanation := msda.explain(error):
            raise RuntimeError(explanation) from error
        raise


def _read_order(pipeline: Pipeline) -> tuple[Order, bool]:
    """Get the order from the reader of a built pipeline, and whether its shards rotate."""
    readers = pipeline.reader_meta()
    if len(readers) != 1:
        raise ValueError(
            f"pipeline must have exactly one reader; got {', '.join(readers) or 'none'} (without a reader of"
            " DALI, pass order)"
        )
    (reader,) = readers.values()
    if not reader["pad_last_batch"]:
        raise ValueError("the pipeline's reader must have pad_last_batch=True; got False")
    order = Order(
        size=int(reader["epoch_size"]),
        batch_size=pipeline.max_batch_size,
        shuffle=True,  # unknown, and not used here
        shard=Shard(index=int(reader["shard_id"]), count=int(reader["number_of_shards"])),
    )
    return order, not reader["stick_to_shard"]
