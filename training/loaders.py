"""A run's pipelines, made from the settings, and the guarded loaders around them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from pipelines.checkpoints import OTHER_OPERATORS, transfer_states
from pipelines.folders import has_class_folders
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.large_images import LargeImages, find_large_images
from pipelines.loader import DALILoader
from pipelines.records import Execution, Output, Shard
from pipelines.sources import Order, Source

from .bad_files import GuardedLoader, Quarantine
from .config import Config
from .distributed import Processes
from .methods import mixing_of_pipeline


class Loaders:
    """Makes the loaders of one process.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes
        Decide the shard.
    quarantine : Quarantine
        Where bad files are recorded.
    where : callable
        Returns what to record with them: the position in the run.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes,
        quarantine: Quarantine,
        where: Callable[[], dict[str, Any]],
    ) -> None:
        self._config = config
        self._quarantine = quarantine
        self._where = where
        self._shard = Shard(index=processes.rank, count=processes.size)
        self._execution = Execution(device_id=processes.local_rank, scaled_decoding=config.scaled_decoding)
        self._output = Output(image_size=config.image_size, layout="HWC")
        # Images per forward pass.
        self._batch_size = config.batch_size // processes.size // config.accumulate
        self._common: dict[str, Any] = {
            "batch_size": self._batch_size,
            "num_threads": config.workers,
            "device": "gpu" if config.device == "cuda" else "cpu",
            "shard": self._shard,
            "execution": self._execution,
        }

    def _train_pipeline(self, images: Source, **options: Any) -> Any:
        config = self._config
        batches = self._order(images, shuffle=True).batches  # including those left over after the last step
        mixing = mixing_of_pipeline(config.mixing)
        schedule = config.mix_schedule.for_method(mixing.entry)
        return train_pipeline(
            images,
            mix=schedule.apply_to(mixing, batches),
            num_classes=len(images.classes),
            seed=config.seed,
            augmentation=config.augmentation,
            output=self._output,
            enable_checkpointing=True,
            report_stand_ins=True,
            **self._common | options,
        )

    def _resume_pipeline(self, images: Source, checkpoint: bytes) -> Any:
        """The training pipeline resumed from a checkpoint, also from an earlier version of the library."""
        pipeline = self._train_pipeline(images, checkpoint=checkpoint)
        try:
            pipeline.build()
        except RuntimeError as error:
            if OTHER_OPERATORS not in str(error):
                raise
            template = self._train_pipeline(images)
            template.build()
            template.run()
            pipeline = self._train_pipeline(
                images, checkpoint=transfer_states(template.checkpoint(), checkpoint)
            )
        return pipeline

    def _order(self, images: Source, *, shuffle: bool) -> Order:
        return Order(
            size=len(images),
            batch_size=self._batch_size,
            shuffle=shuffle,
            seed=self._config.seed,
            shard=self._shard,
        )

    def train(self, images: Source) -> GuardedLoader:
        """The training loader: starts at the beginning or, after ``load_state_dict``, where it stopped."""
        order = self._order(images, shuffle=True)

        def make(images: Source, state: dict[str, Any] | None) -> DALILoader:
            if state is None:
                pipeline = self._train_pipeline(images)
            else:
                pipeline = self._resume_pipeline(images, state["pipeline"])
            return DALILoader(
                pipeline,
                order=order,
                drop_last=True,
                multiple=self._config.accumulate,
                layout="HWC",
                state=state,
            )

        return GuardedLoader(images, make, order, self._quarantine, self._where)

    def val(self, images: Source) -> GuardedLoader:
        """The validation loader. Every evaluation reads all images in the same order, so it has no state."""
        order = self._order(images, shuffle=False)
        size = self._config.val_image_size or self._config.image_size

        def make(images: Source, _: dict[str, Any] | None) -> DALILoader:
            pipeline = val_pipeline(
                images,
                resize_size=self._config.val_resize_size,
                output=Output(image_size=size, layout="HWC"),
                report_stand_ins=True,
                **self._common,
            )
            return DALILoader(pipeline, order=order, layout="HWC")

        loader = GuardedLoader(images, make, order, self._quarantine, self._where, resumable=False)
        len(loader)  # builds it, so that errors appear now
        return loader

    def first_batch(self, images: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recompute the first training batch, with its masks.

        Parameters
        ----------
        images : Source
            With stand-ins for files that cannot be decoded.

        Returns
        -------
        images, targets, masks : ndarray
            float32 NxHxWx3, normalised; NxK; NxHxWx1.
        """
        pipeline = self._train_pipeline(
            images,
            return_masks=True,
            execution=dataclasses.replace(self._execution, prefetch_queue_depth=1),
        )
        pipeline.build()
        mixed, targets, _, masks = (np.array(output.as_cpu().as_array()) for output in pipeline.run())
        return mixed, targets, masks

    def find_large_images(self, images: Source) -> LargeImages | None:
        """Find out whether the training images are much larger than needed, by a short measurement.

        None as well if they cannot be packed.
        """
        if not has_class_folders(images):
            return None
        config = self._config
        return find_large_images(
            images,
            num_threads=self._common["num_threads"],
            batch_size=self._batch_size,
            device=self._common["device"],
            augmentation=config.augmentation,
            output=self._output,
            execution=self._execution,
            largest_size=config.val_image_size or 0,
        )


class Timed:
    """Iterates over an epoch's batches; measures the time spent waiting and counts the images."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._batches = iter(loader)
        self.reset()

    def reset(self) -> None:
        """Restart the counts."""
        self.waited_s, self.images = 0.0, 0

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        before = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - before
        self.images += len(batch[0])
        return batch
