"""The epochs of a run: training steps, evaluations, logs, checkpoints, the table at the end."""

from __future__ import annotations

import resource
import shlex
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipelines.large_images import LargeImages
from pipelines.names import shown

from .bad_files import BadFileError, GuardedLoader, PipelineError
from .checkpoints import Checkpoints, SaveError
from .classes import ClassMap
from .config import Config, complain
from .distributed import Processes
from .evaluation import evaluate
from .inputs import RECORD, Listing, left_out_line, read_record
from .learner import Learner
from .loaders import Loaders, Timed
from .nonfinite import FiniteWatch
from .options import settings
from .output import Output, describe_software
from .progress import Progress
from .report import batch_picture, table
from .resume import Start
from .signals import StopSignals
from .state import RunState
from .storage import STATUS, Patience, StorageError
from .window import Window


@dataclass
class Run:
    """The parts of a run, put together by :func:`.recipe.train`, and what it does with them.

    Attributes
    ----------
    config : Config
        Resolved.
    processes : Processes
    progress : Progress
    state : RunState
        What checkpoints hold.
    learner : Learner
    train_loader, val_loader : GuardedLoader
    val_classes : ClassMap
        Maps the labels of the validation images to outputs of the model.
    checkpoints : Checkpoints
    watch : FiniteWatch
    window : Window
        The steps since the last line of metrics.jsonl.
    output : Output
    patience : Patience
        How long to wait for storage when writing a checkpoint.
    stopped_by : int
        Number of the signal that stopped the training early, 0 if none.
    failure : Exception or None
        Another reason it stopped: images that cannot be read.
    """

    config: Config
    processes: Processes
    progress: Progress
    state: RunState
    learner: Learner
    train_loader: GuardedLoader
    val_loader: GuardedLoader
    val_classes: ClassMap
    checkpoints: Checkpoints
    watch: FiniteWatch
    window: Window
    output: Output
    patience: Patience
    stopped_by: int = field(default=0, init=False)
    failure: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._first_step = self.progress.step
        self._trained_s = self._waited_s = 0.0  # in the steps; of that, for the loader

    def open_output(self, start: Start, loaders: Loaders) -> None:
        """Prepare the output folder, in the main process."""
        about: dict[str, Any] = {"settings": settings(self.config), "processes": self.processes.size}
        about["classes"] = [shown(name) for name in self.train_loader.images.classes]
        about["left_out"] = {
            split: dict(loader.images.left_out)
            for split, loader in (("train", self.train_loader), ("val", self.val_loader))
        }
        about |= describe_software(Path(__file__).parent.parent)
        self.output.open(self.progress.step)
        if start.source is None:
            self.patience.keep_trying(self.checkpoints.start)
            method = self.config.mixing.method
            title = f"First batch, --mix {method}; below: the mask, the weight of the image itself (white: 1)"
            batch = self.train_loader.attempt(lambda: loaders.first_batch(self.train_loader.images))
            if self.learner.mixer is not None:
                batch = self.learner.mixer.preview(*batch[:2])
            picture = batch_picture(*batch, self.train_loader.images.classes, title)
            self.output.picture("first_batch", picture)
        else:
            prepare = partial(self.checkpoints.prepare_resume, self.progress.step, start.data)
            is_best, source = self.progress.is_best, start.source
            self.patience.keep_trying(lambda: prepare(is_best=is_best, source=source))
            before = read_record(start.folder)
            about["resumed_at_step"] = self.progress.step
            about["before"] = [*before.pop("before", []), before]
        self.output.save_json(RECORD, about)

    def announce(self, images: Listing, minutes: float, large: LargeImages | None) -> None:
        """Print what is trained, on which images, the expected time if it was measured, and a way to load
        images faster if they are large.
        """
        config, train, val = self.config, images["train"], images["val"]
        self.processes.say(
            f"{config.arch} on {len(train)} training and {len(val)} validation images"
            f" of {len(train.classes)} classes{self._classes_note},"
            f" --mix {config.mixing.method}, {config.image_size} pixels,"
            f" {self.progress.last_step} steps of {config.batch_size} images, {self.learner.device},"
            f" precision {config.amp}.\n"
            + (f"Expected time, by a short measurement: about {minutes:.1f} minutes.\n" if minutes else "")
            + f"Results: {shown(self.output.folder)}",
        )
        if line := left_out_line(images):
            self.processes.say(line)
        if large is not None and config.data is not None:
            self.processes.say("\n".join(large.lines(config.data)))

    def progress_bar(self) -> tqdm[Any]:
        """A progress bar of the steps, shown by the main process."""
        self._began = time.perf_counter()
        return tqdm(
            total=self.progress.last_step,
            initial=self.progress.step,
            disable=not self.processes.is_main,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
        )

    def epoch(self, stop: StopSignals, bar: tqdm[Any]) -> bool:
        """Train and evaluate; False if a signal stopped it or images cannot be read."""
        try:
            return self.train_epoch(stop, bar) and self.evaluate_epoch(stop)
        except (StorageError, BadFileError, PipelineError) as error:
            if not self._stop_requested(stop):
                self.failure = error
                if self.processes.is_main:
                    bar.clear()  # the line of an error is its own
                    complain(error)
            return False

    def train_epoch(self, stop: StopSignals, bar: tqdm[Any]) -> bool:
        """Train to the end of the epoch, with checkpoints in between; False if a signal stopped it."""
        config, progress, end = self.config, self.progress, self.progress.end_of_epoch
        progress.evaluation = None
        batches = Timed(self.train_loader)
        began = time.perf_counter()
        # A run may be resumed with only the epoch's evaluation left.
        while progress.step < end:
            lr = float(self.learner.schedule.get_last_lr()[0])
            loss = self.learner.train_step(iter(self._next_batches(batches)))
            progress.step += 1
            self.watch.record(loss, progress.step)
            self.window.add(loss, self.learner.right, config.batch_size // self.processes.size)
            bar.update()
            is_due = progress.step % config.log_every == 0
            if is_due or progress.step == end:
                # The only place where a step waits for the device.
                self.watch.check(progress.step)
                elapsed = time.perf_counter() - began
                self._trained_s += elapsed
                self._waited_s += batches.waited_s
                self.window.add_time(elapsed, batches.waited_s, batches.images)
                if is_due or progress.step == progress.last_step:
                    means = self.window.close(self.processes)
                    self._log("train", epoch=progress.epoch, step=progress.step, lr=lr, **means)
                    bar.set_postfix_str(
                        f"loss {means['loss']:z.3f}, {means['images_per_s']:.0f} images/s,"
                        f" {means['data_wait']:.0%} data wait"
                    )
                batches.reset()
                began = time.perf_counter()
            if self._stop_requested(stop):
                return False
            if progress.step < end and progress.step % config.checkpoint_every == 0:
                self.save()
        return True

    def _next_batches(self, batches: Timed) -> list[tuple[Tensor, Tensor]]:
        """Fetch the batches of a step before its first pass; if one process has none, no process takes any.

        The loader then returns to its state before the step, which weights and random states still have: a
        checkpoint holds the run after the last step.
        """
        before = self.train_loader.state_dict()
        try:
            return self.processes.together(lambda: [next(batches) for _ in range(self.config.accumulate)])
        except (StorageError, BadFileError, PipelineError):
            # Files found bad since then would otherwise be found and recorded again.
            stand_ins = {"stand_ins": sorted(self.train_loader.images.stand_ins)}
            self.train_loader.load_state_dict({**before, **stand_ins})
            raise

    def evaluate_epoch(self, stop: StopSignals) -> bool:
        """Evaluate, log and record the result; False if a signal stopped it."""
        result, progress = self.evaluate(stop), self.progress
        if result is None:
            return False
        self.watch.check_evaluation(result, self._models().values(), progress.step)
        self._log("eval", epoch=progress.epoch, step=progress.step, **result)
        progress.record(result, result["top1"] if self.learner.average is None else result["ema_top1"])
        return True

    def print_result(self, bar: tqdm[Any]) -> None:
        """Print the result of the epoch, if any; called after saving it."""
        if (result := self.progress.evaluation) is None or not self.processes.is_main:
            return
        averaged = f"; averaged weights: top-1 {result['ema_top1']:.1f} %" if "ema_top1" in result else ""
        bar.write(
            f"epoch {self.progress.epoch + 1}: top-1 {result['top1']:.1f} %, top-5 {result['top5']:.1f} %,"
            f" loss {result['loss']:z.3f}{self._classes_note}{averaged}"
        )

    def evaluate(self, stop: StopSignals | None = None) -> dict[str, float] | None:
        """Accuracy and loss of the model and, as ``ema_...``, of the average; None if a signal stopped it."""
        result: dict[str, float] = {}
        for prefix, model in self._models().items():
            found = evaluate(
                model,
                self.val_loader,
                self.processes,
                self.learner.autocast,
                lambda: stop is not None and self._stop_requested(stop),
                self.val_classes,
            )
            if found is None:
                return None
            result |= {prefix + name: value for name, value in found.items()}
        return result

    def _models(self) -> dict[str, nn.Module]:
        """The evaluated models, by the prefix of their results."""
        average = self.learner.average
        return {"": self.learner.model} | ({} if average is None else {"ema_": average.module})

    def save(self) -> None:
        """Check the weights and let the main process write a checkpoint of all processes."""
        self.watch.check_weights(self._models().values(), self.progress.step)
        self.state.save(self._save)

    def _save(self, content: dict[str, Any]) -> None:
        progress = self.progress
        try:
            self.patience.keep_trying(
                lambda: self.checkpoints.save(progress.step, content, is_best=progress.is_best)
            )
        except StorageError as error:
            if self.patience.interrupted():
                raise  # the signal is what ends the run, after one more attempt
            # Not as where images are out of reach: it would be waited for, and told, once more.
            raise SaveError(error.errno, error.strerror) from error

    def end(self, *, finished: bool) -> int:
        """Close the files, print the outcome, and return the exit status, see train_imagenet.py."""
        self.output.close()
        progress, minutes = self.progress, (time.perf_counter() - self._began) / 60
        if finished:
            self.processes.say(table(self._summary(minutes)))
            return 0
        self.processes.say(
            f"Stopped at step {progress.step} of {progress.last_step} after {minutes:.1f} minutes."
            f" {self.how_to_resume()}"
        )
        if self.failure is not None:
            return STATUS if isinstance(self.failure, StorageError) else 1
        return 128 + self.stopped_by

    def how_to_resume(self) -> str:
        """How to resume a stopped run."""
        folder = shlex.quote(str(self.output.folder))
        return f"To resume: the same command with --resume auto --output {folder}"

    def _summary(self, minutes: float) -> dict[str, str]:
        progress, folder = self.progress, self.output.folder
        assert progress.evaluation is not None  # of the last epoch
        prefix, kind = ("", "") if self.learner.average is None else ("ema_", " (averaged weights)")
        top1, top5, loss = (progress.evaluation[prefix + name] for name in ("top1", "top5", "loss"))
        best, steps = progress.best, progress.step - self._first_step
        rows = {
            "best top-1": f"{best['top1']:.1f} %{kind}, epoch {best['epoch'] + 1} of {progress.epochs_begun}",
            "last epoch": f"top-1 {top1:.1f} %, top-5 {top5:.1f} %, loss {loss:z.3f}{self._classes_note}",
            "time": f"{minutes:.1f} minutes for {steps} steps",
        }
        if steps:
            rate = steps * self.config.batch_size / self._trained_s
            rows["training"] = f"{rate:.0f} images/s, {self._waited_s / self._trained_s:.0%} data wait"
        if self.learner.device.type == "cuda":
            rows["memory"] = (
                f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB on the GPU at peak (PyTorch)"
            )
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB
            rows["memory"] = f"{peak / 2**20:.1f} GiB at peak"
        quarantine = folder / "quarantine.jsonl"
        if quarantine.exists():
            count = len(quarantine.read_bytes().splitlines())
            rows["bad files"] = f"{count} lines in {shown(quarantine)}"
        return rows | {"results": shown(folder)}

    @property
    def _classes_note(self) -> str:
        """Which classes the results cover, if val/ does not have all."""
        return "" if self.val_classes.is_complete else f" (val/: {self.val_classes})"

    def _log(self, event: str, **values: float) -> None:
        """Log measurements in the main process; if it cannot write, all processes stop."""

        def log() -> None:
            try:
                self.output.log(self.progress.step, event, **values)
            except SaveError as error:
                newest = list(self.checkpoints.numbered().values())[-1:]
                kept = f"; the newest good checkpoint is {newest[0]}" if newest else ""
                raise SaveError(error.errno, f"{error.strerror}{kept}") from error

        self.processes.together(log)

    def _stop_requested(self, stop: StopSignals) -> bool:
        """Whether any process has received a signal."""
        self.stopped_by = self.processes.max_over_ranks(stop.number)
        return self.stopped_by > 0
