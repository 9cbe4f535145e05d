"""The images of a run: its pipelines, made from the settings, and the guarded loaders around them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader
from pipelines.ramps import Ramp
from pipelines.sources import Order, Source

from .bad_files import GuardedLoader, Quarantine
from .config import Config
from .distributed import Processes


class Loaders:
    """Makes the loaders of one process.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes
        Whose shard it is.
    quarantine : Quarantine
        Where bad files are written down.
    where : callable
        What to write beside them.
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
        self._shard = {"shard_id": processes.rank, "num_shards": processes.size}
        # Images of one pass through the model.
        self._batch_size = config.batch_size // processes.size // config.accumulate
        self._common: dict[str, Any] = {
            "batch_size": self._batch_size,
            "num_threads": config.workers,
            "device": "gpu" if config.device == "cuda" else "cpu",
            "device_id": processes.local_rank,
            "output_layout": "HWC",
            **self._shard,
        }

    def _train_pipeline(self, images: Source, **options: Any) -> Any:
        config = self._config
        return train_pipeline(
            images,
            mix=config.mix,
            num_classes=len(images.classes),
            image_size=config.image_size,
            seed=config.seed,
            mix_alpha=self._alpha(images),
            mix_ratio=config.mix_ratio,
            mix_probability=self._probability(images),
            mix_convention=config.mix_convention,
            label_smoothing=config.label_smoothing,
            auto_augment=config.auto_augment,
            rand_augment=config.rand_augment,
            color_jitter=config.color_jitter,
            random_area=config.crop_area,
            **options,
            **self._common,
        )

    def _order(self, images: Source, *, shuffle: bool) -> Order:
        return Order(
            size=len(images),
            batch_size=self._batch_size,
            shuffle=shuffle,
            seed=self._config.seed,
            **self._shard,
        )

    def _batches(self, images: Source) -> int:
        """Batches that a pipeline makes in an epoch, those included that a step has no use for."""
        return self._order(images, shuffle=True).batches

    def _alpha(self, images: Source) -> float | Ramp | None:
        config = self._config
        if config.mix_alpha_start is None or config.mix_alpha is None:
            return config.mix_alpha
        return Ramp(config.mix_alpha_start, config.mix_alpha, config.mix_ramp_epochs * self._batches(images))

    def _probability(self, images: Source) -> float | Ramp:
        config, batches = self._config, self._batches(images)
        start, off_from = config.mix_probability_start, config.mix_off_epoch
        if start is None and off_from is None:
            return config.mix_probability
        return Ramp(
            config.mix_probability if start is None else start,
            config.mix_probability,
            0.0 if start is None else config.mix_ramp_epochs * batches,
            None if off_from is None else off_from * batches,
        )

    def train(self, images: Source, state: dict[str, Any] | None = None) -> GuardedLoader:
        """The training images, from the beginning or from a ``state()`` of the loader."""
        order = self._order(images, shuffle=True)

        def make(images: Source, state: dict[str, Any] | None) -> DALILoader:
            pipeline = self._train_pipeline(
                images,
                enable_checkpointing=True,
                checkpoint=None if state is None else state["pipeline"],
                report_stand_ins=True,
            )
            return DALILoader(
                pipeline,
                order=order,
                drop_last=True,
                multiple=self._config.accumulate,
                layout="HWC",
                state=state,
            )

        return GuardedLoader(images, make, order, self._quarantine, self._where, state=state)

    def val(self, images: Source) -> GuardedLoader:
        """The validation images. Every evaluation goes through all in one order: there is no state."""
        order = self._order(images, shuffle=False)

        def make(images: Source, _: dict[str, Any] | None) -> DALILoader:
            pipeline = val_pipeline(
                images, image_size=self._config.val_image_size or 0, report_stand_ins=True, **self._common
            )
            return DALILoader(pipeline, order=order, layout="HWC")

        return GuardedLoader(images, make, order, self._quarantine, self._where, resumable=False)

    def first_batch(self, images: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first batch of the training once more, with its masks.

        Parameters
        ----------
        images : Source
            With stand-ins for what cannot be decoded.

        Returns
        -------
        images, targets, masks : ndarray
            float32 NxHxWx3, normalised; NxK; NxHxWx1.
        """
        pipeline = self._train_pipeline(
            images,
            enable_checkpointing=True,
            report_stand_ins=True,
            return_masks=True,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        mixed, targets, _, masks = (np.array(output.as_cpu().as_array()) for output in pipeline.run())
        return mixed, targets, masks


class Timed:
    """Batches of an epoch; how long they were waited for, and how many images they had."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._batches = iter(loader)
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        self.waited_s, self.images = 0.0, 0

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        before = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - before
        self.images += len(batch[0])
        return batch
