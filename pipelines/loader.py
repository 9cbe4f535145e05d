"""From a DALI pipeline to PyTorch tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator


class DALILoader:
    """Iterate over the batches of a pipeline as (images, targets).

    Parameters
    ----------
    pipeline : nvidia.dali.Pipeline
        Two outputs, images and targets, and one reader (made with ``pad_last_batch=True``).
    drop_last : bool
        Leave out the last batch of an epoch where it is not full. Otherwise (default) it comes short, and
        every sample of the shard exactly once.
    layout : {"CHW", "HWC"}
        Layout of the pipeline's images. HWC batches come out as an N x C x H x W view, which is
        PyTorch's ``channels_last`` memory format without a copy.

    Notes
    -----
    Tensors lie on the device of the pipeline's outputs and share their memory; nothing is copied. Every
    ``for`` loop is one epoch. A loop that was left early goes on where it stopped.
    """

    def __init__(self, pipeline: Pipeline, *, drop_last: bool = False, layout: str = "CHW") -> None:
        if layout not in ("CHW", "HWC"):
            raise ValueError(f"layout must be one of 'CHW', 'HWC'; got {layout!r}")
        pipeline.build()
        readers = list(pipeline.reader_meta())
        if len(readers) != 1:
            raise ValueError(f"pipeline must have exactly one reader; got {readers or 'none'}")
        self._layout = layout
        self._iterator = DALIGenericIterator(
            [pipeline],
            ["images", "targets"],
            reader_name=readers[0],
            auto_reset=True,
            last_batch_policy=LastBatchPolicy.DROP if drop_last else LastBatchPolicy.PARTIAL,
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._iterator)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for (batch,) in self._iterator:
            images = batch["images"]
            yield images.permute(0, 3, 1, 2) if self._layout == "HWC" else images, batch["targets"]
