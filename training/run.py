"""A run of the trainer: its parts, its steps, what it saves. Settings are checked before this is imported."""

from __future__ import annotations

import contextlib
import json
import resource
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from tqdm import tqdm

from .bad_files import Quarantine
from .checkpoints import Checkpoints, unpack
from .config import FREE_OPTIONS, Config, option
from .demo import Size, data_folder, fit_to_machine, with_size
from .distributed import Processes
from .evaluation import evaluate
from .hardware import autocast, choose_hardware, start_device
from .inputs import Listing, list_dataset
from .loaders import Loaders, Timed
from .model import (
    Average,
    build_model,
    build_schedule,
    checkpoint_activations,
    load_weights,
    parameter_groups,
)
from .nonfinite import FiniteWatch
from .options import saved_settings, settings
from .output import Output, describe_software, metrics_until
from .random_states import random_states, seed_all, set_random_states
from .report import batch_picture, table
from .resume import Start, check_same, find_start
from .signals import StopSignals


class Run:
    """Data, model and optimiser of one run, checked and ready to step.

    What has to survive a stop is in :meth:`state`; where it is put back is `_restore`.

    Parameters
    ----------
    config : Config
        Resolved.
    processes : Processes, optional
    listing : dict, optional
        The images of train/ and val/, where they were listed already.
    fit : bool
        Choose image size and epochs by the speed of this machine; a run that goes on keeps its own.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes | None = None,
        listing: Listing | None = None,
        *,
        fit: bool = False,
    ) -> None:
        self.processes = processes = processes or Processes()
        config = choose_hardware(config, processes)
        self.device = start_device(config, processes)
        listing = listing or list_dataset(config, data_folder(config, processes), processes)
        train_images, val_images = listing["train"], listing["val"]
        self.num_classes = len(train_images.classes)
        self.images = {"train": train_images.digest(), "val": val_images.digest()}
        processes.require_same(self._comparable(settings(config), self.images, own=FREE_OPTIONS))
        self.step = 0  # steps of the optimiser that are done
        self.epoch = 0  # the epoch that the next step belongs to, or whose evaluation is due
        self.stopped_by = 0  # number of the signal that ended the training before its end
        self.best: dict[str, float] = {"top1": -1.0, "epoch": -1, "step": -1}
        self.evaluation: dict[str, float] = {}  # the last one

        start = processes.from_main(lambda: find_start(config.resume, config.output, _new_folder(config)))
        saved = unpack(start.data) if start.data else None
        minutes = 0.0
        if fit and saved is not None:
            config = with_size(config, Size(*(saved["settings"][name] for name in Size._fields)))
        elif fit:
            config, seconds = fit_to_machine(config, processes, len(train_images), len(val_images))
            minutes = seconds / 60
        self.config = config
        if saved is not None:
            self._check_fits(saved)
        mine = None if saved is None else saved["ranks"][processes.rank]

        self._make_model(saved)
        this = weakref.proxy(self)  # the loaders shall not keep the run alive
        self.loaders = Loaders(
            config,
            processes,
            Quarantine(start.folder / "quarantine.jsonl", skip=config.bad_files == "skip"),
            lambda: {"epoch": this.epoch, "step": this.step, "rank": processes.rank},
        )
        self.train_loader = self.loaders.train(train_images, mine and mine["loader"])
        self.val_loader = self.loaders.val(val_images)
        self.steps_per_epoch = len(self.train_loader) // config.accumulate
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, config.weight_decay, decay_all=config.decay_all),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            fused=True,
        )
        self.scaler = GradScaler(self.device.type, enabled=config.amp == "fp16")
        if saved is not None:
            self._restore(saved)
        tenth = max(1, round(config.lr_step_epochs * self.steps_per_epoch))
        self.schedule = build_schedule(
            self.optimizer,
            round(config.warmup_epochs * self.steps_per_epoch),
            self.total_steps,
            self.step,
            tenth_every=tenth if config.lr_schedule == "step" else None,
        )
        self.checkpoints = Checkpoints(start.folder, config.keep)
        self.watch = FiniteWatch(
            self.device,
            self.train_loader,
            lambda state: this.loaders.train(train_images, state),
            config.accumulate,
            self.checkpoints,
            processes,
            self.step,
        )
        # Last, so that bad input leaves no folder behind.
        self.output: Output | None = None  # of the main process
        processes.from_main(lambda: self._open_output(start, saved))
        processes.say(
            f"{config.arch} on {len(train_images)} training and {len(val_images)} validation"
            f" images of {self.num_classes} classes, --mix {config.mixing.method},"
            f" {config.image_size} pixels, {self.total_steps} steps of {config.batch_size} images,"
            f" {config.device}, precision {config.amp}.\n"
            + (f"Expected time, by a short measurement: about {minutes:.1f} minutes.\n" if minutes else "")
            + f"Results: {start.folder}",
        )
        if mine is None:
            seed_all(config.seed, processes.rank)  # for dropout and the like
        else:
            set_random_states(mine["random"], self.device)

    def _make_model(self, saved: dict[str, Any] | None) -> None:
        """The model as it is saved, its average, and what the training steps call."""
        config = self.config
        torch.manual_seed(config.seed)
        self.model = build_model(config.arch, self.num_classes)
        if config.init_weights is not None and saved is None:
            said = load_weights(self.model, config.init_weights, new_classifier=True)
            self.processes.say(f"Beginning with the {said}")
        if config.sync_bn:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if saved is not None:
            self.model.load_state_dict(saved["model"])
        self.average = None if config.ema_decay is None else Average(self.model, config.ema_decay)
        if self.average is not None and saved is not None:
            self.average.module.load_state_dict(saved["ema"])
            self.average.updates = saved["ema_updates"]
        if config.grad_checkpointing:
            checkpoint_activations(self.model)
        # Two images are enough to find the order of the layers.
        example = torch.zeros(2, 3, config.image_size, config.image_size, device=self.device)
        self.replica = self.processes.wrap(self.model, example)
        self.stepped = torch.compile(self.replica) if config.compile else self.replica

    def _check_fits(self, saved: dict[str, Any]) -> None:
        """Raise ValueError unless this run may go on from a checkpoint."""
        if saved["processes"] != self.processes.size:
            raise ValueError(
                f"--resume needs as many processes as the checkpoint was made with, {saved['processes']}; got"
                f" {self.processes.size}: with other shards of the images it would be another run"
            )
        then = self._comparable(saved_settings(saved["settings"]), saved["images"])
        now = self._comparable(settings(self.config), self.images)
        check_same(then, now, free=FREE_OPTIONS, may_grow=("--epochs",))

    @staticmethod
    def _comparable(
        options: dict[str, Any], images: dict[str, str], own: Collection[str] = ()
    ) -> dict[str, Any]:
        """What makes a run this run and no other, by name; without the options in `own`."""
        named = {option(name): value for name, value in options.items() if option(name) not in own}
        return named | {f"images in {split}/ (SHA-256 of the list)": it for split, it in images.items()}

    def _open_output(self, start: Start, saved: dict[str, Any] | None) -> None:
        about = {"settings": settings(self.config), "processes": self.processes.size}
        about |= describe_software(Path(__file__).parent.parent)
        if saved is None or start.source is None:
            self.output = Output(start.folder)
            self.checkpoints.start()
            images = self.train_loader.images
            self.output.picture(
                "first_batch",
                batch_picture(
                    *self.loaders.first_batch(images),
                    images.classes,
                    f"The first batch, --mix {self.config.mixing.method}; below: the own image's weight,"
                    " white is 1",
                ),
            )
        else:
            metrics = metrics_until(start.source, saved["metrics_bytes"])
            self.output = Output(start.folder, metrics=metrics, step=self.step)
            is_best = self.best["step"] == self.step
            self.checkpoints.go_on(self.step, start.data, is_best=is_best, source=start.source)
            file = start.folder / "config.json"
            before = json.loads(file.read_text()) if file.exists() else {}
            about["resumed_at_step"] = self.step
            about["before"] = [*before.pop("before", []), before]
        self.output.save_json("config.json", about)

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        return autocast(self.config, self.device)

    def train_step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """One step of the optimiser and the schedule, on the next --accumulate batches.

        Returns
        -------
        Tensor
            The loss of this process, a float32 scalar, still on the device: nothing here waits for it.
        """
        config, losses = self.config, []
        self.optimizer.zero_grad(set_to_none=True)
        for left in reversed(range(config.accumulate)):
            images, targets = next(batches)
            # Gradients are added up here; the last pass reduces them over the processes.
            with self.processes.without_reduction(self.replica) if left else contextlib.nullcontext():
                with self.autocast():
                    logits = self.stepped(images)
                # The loss in float32; the targets are already mixed and smoothed.
                loss = _LOSSES[config.loss](logits.float(), targets) / config.accumulate
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if config.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def evaluate(self, stop: StopSignals | None = None) -> dict[str, float] | None:
        """Accuracy and loss of the model and, as ``ema_...``, of the average; None where `stop` came."""
        result: dict[str, float] = {}
        for prefix, model in (
            ("", self.model),
            ("ema_", None if self.average is None else self.average.module),
        ):
            if model is not None:
                found = evaluate(
                    model,
                    self.val_loader,
                    self.num_classes,
                    self.processes,
                    self.autocast,
                    lambda: stop is not None and self._has_to_stop(stop),
                )
                if found is None:
                    return None
                result |= {prefix + name: value for name, value in found.items()}
        return result

    def state(self, evaluation: dict[str, float] | None) -> dict[str, Any]:
        """What a checkpoint file holds; the weights under ``model``. Empty but in the main process.

        Parameters
        ----------
        evaluation : dict or None
            Result of the evaluation at the end of this epoch, None before it.
        """
        ranks = self.processes.gather(
            {"loader": self.train_loader.state(), "random": random_states(self.device)}
        )
        if not self.processes.is_main:
            return {}
        average: dict[str, Any] = {}
        if self.average is not None:
            average["ema"] = self.average.module.state_dict()
            average["ema_updates"] = self.average.updates
        return {
            "model": self.model.state_dict(),
            **average,
            "optimizer": self.optimizer.state_dict(),  # with the learning rate, which follows from the step
            "scaler": self.scaler.state_dict(),
            "ranks": ranks,
            "epoch": self.epoch,
            "step": self.step,
            "evaluation": evaluation,
            "best": self.best,
            "settings": settings(self.config),
            "images": self.images,
            "processes": self.processes.size,
            "arch": self.config.arch,
            "num_classes": self.num_classes,
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        """Put back what :meth:`state` held, but for the models and the loader, which are made with it."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]
        self.epoch = saved["epoch"] + (saved["evaluation"] is not None)
        self.evaluation = saved["evaluation"] or {}
        self.best = saved["best"]

    def save(self, evaluation: dict[str, float] | None = None) -> None:
        """Write a checkpoint of all processes, of which the main one writes; a good one, or none."""
        self.watch.check_weights(self.model, self.step)
        content = self.state(evaluation)

        def write() -> None:
            assert self.output is not None
            content["metrics_bytes"] = self.output.sync()
            self.checkpoints.save(self.step, content, is_best=self.best["step"] == self.step)

        self.processes.from_main(write)

    def train(self) -> int:
        """Train to the end or until a signal comes, with an evaluation and a checkpoint after every epoch.

        Returns
        -------
        int
            Exit status: 0 at the end, 128 + signal before.

        Raises
        ------
        SaveError
            The output folder cannot be written to.
        NotFiniteError
            The loss is no number any more.
        """
        began, first_step = time.perf_counter(), self.step
        self.trained_s = self.waited_s = 0.0  # in the steps; of that, for the loader
        with (
            StopSignals(quiet=not self.processes.is_main) as stop,
            tqdm(
                total=self.total_steps,
                initial=self.step,
                disable=not self.processes.is_main,
                unit="step",
                dynamic_ncols=True,
                mininterval=1.0,
            ) as progress,
        ):
            finished = True
            while finished and not self._is_complete():
                finished = self._train_epoch(stop, progress) and self._end_epoch(stop, progress)
        if self.output is not None:
            self.output.close()
        minutes = (time.perf_counter() - began) / 60
        if not finished:
            self.processes.say(
                f"Stopped at step {self.step} of {self.total_steps}, {minutes:.1f} minutes; go on with"
                f" --resume auto --output {self.checkpoints.folder}",
            )
            return 128 + self.stopped_by
        self.processes.say(table(self._summary(minutes, self.step - first_step)))
        return 0

    def _summary(self, minutes: float, steps: int) -> dict[str, str]:
        prefix = "" if self.average is None else "ema_"
        kind = "" if self.average is None else " (averaged weights)"
        rows = {
            "best top-1": f"{self.best['top1']:.1f} %{kind}, epoch {self.best['epoch'] + 1} of {self.epoch}",
            "last epoch": f"top-1 {self.evaluation[prefix + 'top1']:.1f} %, top-5"
            f" {self.evaluation[prefix + 'top5']:.1f} %, loss {self.evaluation[prefix + 'loss']:.3f}",
            "time": f"{minutes:.1f} minutes for {steps} steps",
        }
        if steps:
            rate = steps * self.config.batch_size / self.trained_s
            rows["training"] = f"{rate:.0f} images/s, {self.waited_s / self.trained_s:.0%} data wait"
        if self.device.type == "cuda":
            rows["memory"] = (
                f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB of PyTorch on the GPU, at most"
            )
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB
            rows["memory"] = f"{peak / 2**20:.1f} GiB, at most"
        quarantine = self.checkpoints.folder / "quarantine.jsonl"
        if quarantine.exists():
            count = len(quarantine.read_bytes().splitlines())
            rows["bad files"] = f"{count} lines in {quarantine}"
        return rows | {"results": str(self.checkpoints.folder)}

    def _end_of_epoch(self) -> int:
        return min((self.epoch + 1) * self.steps_per_epoch, self.total_steps)

    def _is_complete(self) -> bool:
        return self.epoch * self.steps_per_epoch >= self.total_steps

    def _train_epoch(self, stop: StopSignals, progress: tqdm[Any]) -> bool:
        """Train to the end of the epoch; False where a signal came before, after a checkpoint."""
        config, end = self.config, self._end_of_epoch()
        batches = Timed(self.train_loader)
        window_start = time.perf_counter()
        # A run may be resumed where only the evaluation is left of its epoch.
        while self.step < end:
            lr = float(self.schedule.get_last_lr()[0])
            loss = self.train_step(batches)
            self.step += 1
            self.watch.look(loss, self.step)
            progress.update()
            if self.step % config.log_every == 0 or self.step == end:
                # The only place where a step waits for the device.
                self.watch.check(self.step)
                value, elapsed = float(self.processes.mean(loss)), time.perf_counter() - window_start
                self.trained_s, self.waited_s = self.trained_s + elapsed, self.waited_s + batches.waited_s
                rate, wait = batches.images * self.processes.size / elapsed, batches.waited_s / elapsed
                if self.step % config.log_every == 0 or self.step == self.total_steps:
                    self._log(
                        "train",
                        epoch=self.epoch,
                        step=self.step,
                        loss=value,
                        lr=lr,
                        images_per_s=round(rate, 2),
                        data_wait=round(wait, 4),
                    )
                progress.set_postfix_str(f"loss {value:.3f}, {rate:.0f} images/s, {wait:.0%} data wait")
                batches.reset()
                window_start = time.perf_counter()
            if self._has_to_stop(stop):
                self.save()
                return False
            if self.step < end and self.step % config.checkpoint_every == 0:
                self.save()
        return True

    def _end_epoch(self, stop: StopSignals, progress: tqdm[Any]) -> bool:
        """Evaluate and write a checkpoint; False where a signal came before the evaluation was done."""
        result = self.evaluate(stop)
        if result is None:
            self.save()
            return False
        self.evaluation = result
        self._log("eval", epoch=self.epoch, **result)
        top1 = result["top1"] if self.average is None else result["ema_top1"]
        if self.processes.is_main:
            progress.write(
                f"epoch {self.epoch + 1}: top-1 {result['top1']:.1f} %, top-5 {result['top5']:.1f} %,"
                f" loss {result['loss']:.3f}"
                + ("" if self.average is None else f"; averaged weights: top-1 {top1:.1f} %")
            )
        if top1 > self.best["top1"]:
            self.best = {"top1": top1, "epoch": self.epoch, "step": self.step}
        self.save(result)
        self.epoch += 1
        return True

    def _has_to_stop(self, stop: StopSignals) -> bool:
        """Whether a signal has come, to any of the processes."""
        self.stopped_by = self.processes.highest(stop.number)
        return self.stopped_by > 0

    def _log(self, event: str, **values: float) -> None:
        if self.output is not None:
            self.output.log(self.step, event, **values)


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": functional.cross_entropy,
    "bce": functional.binary_cross_entropy_with_logits,
}


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("outputs") / f"{stamp}-{config.arch}-{config.mixing.method}"
