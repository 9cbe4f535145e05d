#!/usr/bin/env python
"""Train an image classifier on batches that DALI decoded, cropped and mixed.

    python train_imagenet.py --mix hmix --data /path/to/imagenet

DIR holds train/ and val/, each with one folder of images per class. Without --data a small set of
photo-like images is made once and a run scaled to this machine follows, to see everything work.

The output folder holds config.json (all settings, versions, the commit), metrics.jsonl (one JSON object a
line), TensorBoard events, checkpoints/, last.pt (the newest of them) and best.pt (the best top-1).

SIGTERM, SIGINT and SIGUSR1 finish the step, save and leave with status 128 + signal; --resume auto goes on
from there, bit for bit. torchrun starts it in several processes. Other statuses: 0 the run is complete, 1 the
output folder could not be written to, 2 bad input.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import sys
import time
import weakref
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
import tyro
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from pipelines.demo_data import make_demo_dataset
from pipelines.folders import ImageFolder, check_dataset
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader
from pipelines.upcoming import upcoming
from training.bad_files import LOOK_AHEAD, BadFileError, GuardedLoader, Quarantine
from training.checkpoints import Checkpoints, SaveError, unpack
from training.distributed import Processes
from training.output import Output, describe_software, metrics_until
from training.random_states import random_states, seed_all, set_random_states
from training.resume import Start, check_same, find_start
from training.signals import StopSignals

# -- Settings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Settings of a run: the defaults are the paper's for ImageNet where it gives them (section 5)."""

    data: Path | None = None
    """Folder with train/ and val/, one folder of images per class in each. Without it: images made here."""

    file_list: Path | None = None
    """Folder with train.txt and val.txt, the images to take, as python -m pipelines.check writes it."""

    mix: Literal["none", "mixup", "cutmix", "stochastic", "hmix", "gmix"] = "hmix"
    """Mixing method."""

    mix_alpha: float | None = None
    """lam ~ Beta(alpha, alpha). Default: the paper's for ImageNet, 0.8 for mixup and 1 for the others."""

    mix_ratio: float | None = None
    """Share r of the box in hmix, in [0, 1]. Default: the paper's for ImageNet, 0.75."""

    mix_probability: float = 1.0
    """Probability that an image is mixed at all."""

    mix_convention: Literal["reference", "paper"] = "reference"
    """Masks as the authors' code makes them, or by the formulas of the paper."""

    arch: str = "resnet50"
    """Any classification model of torchvision."""

    image_size: int = 224
    """Side of the training and validation images in pixels (64 without --data)."""

    epochs: int = 300
    """Passes over the training images (8 without --data)."""

    batch_size: int = 256
    """Images per step, over all processes (32 without --data)."""

    lr: float = 0.1
    """Peak learning rate (0.05 without --data)."""

    momentum: float = 0.9
    """Nesterov momentum of SGD."""

    weight_decay: float = 1e-4
    """Weight decay, not of biases and normalisation layers."""

    warmup_epochs: float = 5.0
    """Epochs over which the learning rate rises, linearly (1 without --data)."""

    label_smoothing: float = 0.0
    """Label smoothing of the training targets, in [0, 1]."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Share of the area that a random crop keeps (0.5 1 without --data)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where DALI and the model run; auto takes a GPU where there is one."""

    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    """Mixed precision; auto takes bf16 where the hardware has instructions for it."""

    sync_bn: bool = False
    """Batch statistics over all processes (SyncBatchNorm; on GPUs)."""

    workers: int | None = None
    """Threads of DALI per process. Default: its share of the cores, at most 8."""

    seed: int = 0
    """Seed of the model, the order of the images and every draw."""

    bad_files: Literal["skip", "error"] = "skip"
    """What to do with a file that cannot be decoded: write it down in quarantine.jsonl and go on, or stop."""

    output: Path | None = None
    """Folder for the results, new or empty unless a run is resumed. Default: a new one in outputs/."""

    resume: str | None = None
    """auto: go on from the newest good checkpoint of --output, or start; else the path of a checkpoint. The
    settings have to be those of the checkpoint; --epochs may be higher."""

    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is one after each epoch as well."""

    keep: int = 3
    """Checkpoints that are kept, besides the best one."""

    max_steps: int | None = None
    """Stop after this many steps."""

    log_every: int = 50
    """Steps between two lines of metrics.jsonl (10 without --data)."""

    demo_data: Path = Path("data/demo")
    """Where the images for a run without --data are made and kept."""


# The run without --data: a few minutes on two CPU cores.
DEMO = Config(
    image_size=64,
    epochs=8,
    batch_size=32,
    lr=0.05,
    warmup_epochs=1.0,
    crop_area=(0.5, 1.0),
    log_every=10,
)


def resolve(config: Config, processes: Processes = Processes()) -> Config:  # noqa: B008, it is frozen
    """Replace "auto" and None by what they stand for and check the values.

    Raises
    ------
    ValueError
        Naming the option, what came and what is expected.
    """
    chosen: dict[str, Any] = {}
    if config.mix_alpha is None and config.mix != "none":
        chosen["mix_alpha"] = 0.8 if config.mix == "mixup" else 1.0
    if config.mix == "hmix" and config.mix_ratio is None:
        chosen["mix_ratio"] = 0.75
    if config.device == "auto":
        chosen["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if config.workers is None:
        chosen["workers"] = min(8, max(1, len(os.sched_getaffinity(0)) // processes.local_size))
    config = dataclasses.replace(config, **chosen)
    if config.amp == "auto":
        config = dataclasses.replace(config, amp=_best_precision(config.device))

    def require(fits: bool, option: str, expected: str) -> None:
        if not fits:
            came = getattr(config, option)
            raise ValueError(f"--{option.replace('_', '-')} must be {expected}; got {came}")

    for option in ("image_size", "epochs", "batch_size", "workers", "log_every", "checkpoint_every", "keep"):
        require(getattr(config, option) >= 1, option, "at least 1")
    for option in ("lr", "weight_decay", "warmup_epochs", "momentum"):
        value = getattr(config, option)
        require(math.isfinite(value) and value >= 0, option, "a number of at least 0")
    for option in ("mix_ratio", "mix_probability", "label_smoothing"):
        value = getattr(config, option)
        require(value is None or 0 <= value <= 1, option, "in [0, 1]")
    require(config.mix_alpha is None or 0 < config.mix_alpha < math.inf, "mix_alpha", "above 0")
    require(config.mix_ratio is None or config.mix == "hmix", "mix_ratio", "left out unless --mix is hmix")
    require(config.max_steps is None or config.max_steps >= 1, "max_steps", "at least 1")
    require(config.seed >= 0, "seed", "at least 0")
    require(0 < config.crop_area[0] <= config.crop_area[1] <= 1, "crop_area", "two numbers 0 < a <= b <= 1")
    require(config.device != "cuda" or torch.cuda.is_available(), "device", "cpu: PyTorch finds no GPU here")
    require(
        config.batch_size % processes.size == 0, "batch_size", f"a multiple of the {processes.size} processes"
    )
    require(not config.sync_bn or config.device == "cuda", "sync_bn", "left out on the CPU")
    require(
        config.device != "cuda" or processes.local_rank < torch.cuda.device_count(),
        "device",
        f"cpu, or torchrun's --nproc-per-node at most the number of GPUs ({torch.cuda.device_count()})",
    )
    require(config.amp != "fp16" or config.device == "cuda", "amp", "none or bf16 on the CPU")
    known = torchvision.models.list_models(module=torchvision.models)
    if config.arch not in known:
        close = difflib.get_close_matches(config.arch, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"--arch must be a classification model of torchvision; got {config.arch}"
            f" ({hint}it has {', '.join(known)})"
        )
    return config


def _best_precision(device: str) -> Literal["none", "bf16", "fp16"]:
    """bf16 where the hardware multiplies it, which is where it is faster than float32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "none"
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "none"


# -- What a run is ------------------------------------------------------------------------------------

# What may change when a run goes on: where things lie and how often it reports. The images are compared by
# the list of their names, wherever they lie.
FREE_OPTIONS = frozenset(
    (
        "--data",
        "--demo-data",
        "--file-list",
        "--bad-files",
        "--output",
        "--resume",
        "--workers",
        "--log-every",
        "--checkpoint-every",
        "--keep",
    )
)


def settings(config: Config) -> dict[str, Any]:
    """The settings in types that JSON and checkpoints hold."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[no-any-return]


# -- Model, optimiser, schedule --------------------------------------------------------------------------


def build_model(arch: str, num_classes: int) -> nn.Module:
    """A torchvision classifier with random weights, without auxiliary heads."""
    extra: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    elif "resne" in arch:
        # Every residual branch starts at zero, as in the usual ImageNet recipes (Goyal et al., 2017).
        extra = {"zero_init_residual": True}
    model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **extra)
    return model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases and the parameters of normalisation layers, found by type, without."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    without = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, norms) or name == "bias"
    }
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) not in without], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in without], "weight_decay": 0.0},
    ]


def build_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, steps_done: int = 0
) -> LRScheduler:
    """Linear warm-up to the optimiser's learning rate, then a half cosine down to 0, per step.

    The rate is a function of the step alone, so that a resumed run has it from its step, and one with more
    epochs joins the longer curve where it stands.
    """
    warmup_steps = min(warmup_steps, total_steps - 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2

    return LambdaLR(optimizer, factor, last_epoch=steps_done - 1)


# -- A run -----------------------------------------------------------------------------------------------


class Run:
    """Data, model and optimiser of one run, checked and ready to step.

    What has to survive a stop is in :meth:`state`; where it is put back is `_restore`.
    """

    def __init__(self, config: Config, processes: Processes | None = None) -> None:
        self.processes = processes = processes or Processes()
        self.config = config = resolve(config, processes)
        self.device = torch.device(config.device, processes.local_rank if config.device == "cuda" else 0)
        processes.start(self.device)
        train_images, val_images = self._list_images()
        self.num_classes = len(train_images.classes)
        self.images = {"train": train_images.digest(), "val": val_images.digest()}
        self.step = 0  # steps of the optimiser that are done
        self.epoch = 0  # the epoch that the next step belongs to, or whose evaluation is due
        self.stopped_by = 0  # number of the signal that ended the training before its end
        self.best: dict[str, float] = {"top1": -1.0, "epoch": -1, "step": -1}

        start = processes.from_main(lambda: find_start(config.resume, config.output, _new_folder(config)))
        saved = unpack(start.data) if start.data else None
        if saved is not None:
            self._check_fits(saved)
        mine = None if saved is None else saved["ranks"][processes.rank]

        torch.manual_seed(config.seed)
        self.model = build_model(config.arch, self.num_classes)
        if config.sync_bn:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if saved is not None:
            self.model.load_state_dict(saved["model"])
        # What the optimiser steps on; two images are enough to find the order of the layers.
        example = torch.zeros(2, 3, config.image_size, config.image_size, device=self.device)
        self.replica = processes.wrap(self.model, example)
        quarantine = Quarantine(start.folder / "quarantine.jsonl", skip=config.bad_files == "skip")
        self.train_loader, self.val_loader = self._loaders(
            train_images, val_images, quarantine, mine and mine["loader"]
        )
        self.steps_per_epoch = len(self.train_loader)
        self.total_steps = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, config.weight_decay),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            fused=True,
        )
        self.scaler = GradScaler(self.device.type, enabled=config.amp == "fp16")
        if saved is not None:
            self._restore(saved)
        self.schedule = build_schedule(
            self.optimizer, round(config.warmup_epochs * self.steps_per_epoch), self.total_steps, self.step
        )
        # Last, so that bad input leaves no folder behind.
        self.checkpoints = Checkpoints(start.folder, config.keep)
        self.output: Output | None = None  # of the main process
        processes.from_main(lambda: self._open_output(start, saved))
        self._say(
            f"{config.arch} on {len(train_images.files)} training and {len(val_images.files)} validation"
            f" images of {self.num_classes} classes, --mix {config.mix}, {config.image_size} pixels,"
            f" {self.total_steps} steps of {config.batch_size} images, {config.device},"
            f" precision {config.amp}.\nResults: {start.folder}"
        )
        if mine is None:
            seed_all(config.seed, processes.rank)  # for dropout and the like
        else:
            set_random_states(mine["random"], self.device)

    def _list_images(self) -> tuple[ImageFolder, ImageFolder]:
        config, processes = self.config, self.processes
        data = config.data
        if data is None:
            self._say(
                "No --data given: training on a small set of made images, with settings scaled to this"
                f" machine.\nImages: {config.demo_data}. For your own: --data DIR, where DIR holds train/ and"
                " val/ with one folder of images per class."
            )
            if processes.local_rank > 0:
                processes.barrier()  # one process of a machine makes them
            data = make_demo_dataset(config.demo_data, workers=config.workers)
            if processes.local_rank == 0:
                processes.barrier()
        train, val = check_dataset(data, config.file_list)
        largest = len(train.files) // processes.size * processes.size
        if largest < config.batch_size:
            raise ValueError(
                f"--batch-size must be at most the number of training images ({largest});"
                f" got {config.batch_size}"
            )
        return train, val

    def _loaders(
        self,
        train_images: ImageFolder,
        val_images: ImageFolder,
        quarantine: Quarantine,
        state: dict[str, Any] | None,
    ) -> tuple[GuardedLoader, GuardedLoader]:
        config, processes = self.config, self.processes
        num_classes = self.num_classes
        shard = {"shard_id": processes.rank, "num_shards": processes.size}
        batch_size = config.batch_size // processes.size
        common: dict[str, Any] = {
            "image_size": config.image_size,
            "batch_size": batch_size,
            "num_threads": config.workers,
            "device": "gpu" if config.device == "cuda" else "cpu",
            "device_id": processes.local_rank,
            "output_layout": "HWC",
            "report_stand_ins": True,
            **shard,
        }

        def train(images: ImageFolder, state: dict[str, Any] | None) -> DALILoader:
            pipeline = train_pipeline(
                images,
                mix=config.mix,
                num_classes=num_classes,
                seed=config.seed,
                mix_alpha=config.mix_alpha,
                mix_ratio=config.mix_ratio,
                mix_probability=config.mix_probability,
                mix_convention=config.mix_convention,
                label_smoothing=config.label_smoothing,
                random_area=config.crop_area,
                enable_checkpointing=True,
                checkpoint=None if state is None else state["pipeline"],
                **common,
            )
            return DALILoader(pipeline, drop_last=True, layout="HWC", state=state)

        def train_candidates(state: dict[str, Any] | None, _: int) -> list[int]:
            return upcoming(
                len(train_images.files),
                None if state is None else state["pipeline"],
                batches=LOOK_AHEAD,
                batch_size=batch_size,
                seed=config.seed,
                **shard,
            )

        def val(images: ImageFolder, _: dict[str, Any] | None) -> DALILoader:
            return DALILoader(val_pipeline(images, **common), layout="HWC")

        def val_candidates(_: dict[str, Any] | None, taken: int) -> list[int]:
            count = len(val_images.files)
            first = count * processes.rank // processes.size + taken * batch_size
            return list(range(first, min(first + LOOK_AHEAD * batch_size, count)))

        this = weakref.proxy(self)  # the loaders shall not keep the run alive

        def where() -> dict[str, Any]:
            return {"epoch": this.epoch, "step": this.step, "rank": processes.rank}

        return (
            GuardedLoader(train_images, train, train_candidates, quarantine, where, state=state),
            # Every evaluation goes through the whole set, in one order: there is no state to keep.
            GuardedLoader(val_images, val, val_candidates, quarantine, where, resumable=False),
        )

    def _check_fits(self, saved: dict[str, Any]) -> None:
        """Raise ValueError unless this run may go on from a checkpoint."""
        if saved["processes"] != self.processes.size:
            raise ValueError(
                f"--resume needs as many processes as the checkpoint was made with, {saved['processes']}; got"
                f" {self.processes.size}: with other shards of the images it would be another run"
            )
        sides = [
            {f"--{name.replace('_', '-')}": value for name, value in options.items()}
            | {f"images in {split}/ (SHA-256 of the list)": digest for split, digest in images.items()}
            for options, images in (
                # A setting that the checkpoint does not know had its default.
                (settings(Config()) | saved["settings"], saved["images"]),
                (settings(self.config), self.images),
            )
        ]
        check_same(*sides, free=FREE_OPTIONS, may_grow=("--epochs",))

    def _open_output(self, start: Start, saved: dict[str, Any] | None) -> None:
        about = {"settings": settings(self.config), "processes": self.processes.size}
        about |= describe_software(Path(__file__).parent)
        if saved is None or start.source is None:
            self.output = Output(start.folder)
            self.checkpoints.start()
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

    def _say(self, text: str) -> None:
        if self.processes.is_main:
            print(text, flush=True)

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        dtype = torch.float16 if self.config.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.config.amp != "none")

    def train_step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step of the optimiser and the schedule; the loss of this process, still on the device."""
        with self.autocast():
            logits = self.replica(images)
        # The loss in float32; the targets are already mixed and smoothed.
        loss = functional.cross_entropy(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach()

    def evaluate(self, stop: StopSignals | None = None) -> dict[str, float] | None:
        """Top-1, top-5 in percent and loss over the validation images, each counted once.

        None where `stop` came in between.
        """
        accuracy: dict[str, Metric | MetricCollection] = {
            f"top{k}": MulticlassAccuracy(self.num_classes, top_k=min(k, self.num_classes), average="micro")
            for k in (1, 5)
        }
        # They add up over the processes by themselves.
        metrics = MetricCollection(accuracy).to(self.device)
        mean_loss = MeanMetric().to(self.device)
        self.processes.copy_buffers_of_main(self.model)
        self.model.eval()
        try:
            with torch.inference_mode(), self.autocast():
                batches = iter(self.val_loader)
                # Shards may differ by a batch, but all processes have to ask as often whether to stop.
                for _ in range(self.val_loader.longest):
                    if stop is not None and self._has_to_stop(stop):
                        return None
                    if (batch := next(batches, None)) is None:
                        continue
                    images, labels = batch
                    logits = self.model(images).float()
                    metrics.update(logits, labels)
                    mean_loss.update(functional.cross_entropy(logits, labels), len(labels))
                next(batches, None)  # lets the loader finish its epoch
        finally:
            self.model.train()
        result = {name: 100 * float(value) for name, value in metrics.compute().items()}
        return result | {"loss": float(mean_loss.compute())}

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
        return {
            "model": self.model.state_dict(),
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
        """Put back what :meth:`state` held, but for the model and the loader, which are made with it."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]
        self.epoch = saved["epoch"] + (saved["evaluation"] is not None)
        self.best = saved["best"]

    def save(self, evaluation: dict[str, float] | None = None) -> None:
        """Write a checkpoint of all processes, of which the main one writes."""
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
        """
        began = time.perf_counter()
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
            self._say(
                f"Stopped at step {self.step} of {self.total_steps}, {minutes:.1f} minutes; go on with"
                f" --resume auto --output {self.checkpoints.folder}"
            )
            return 128 + self.stopped_by
        self._say(
            f"Best top-1 {self.best['top1']:.1f} % of {self.epoch} epochs, {minutes:.1f} minutes:"
            f" {self.checkpoints.folder}"
        )
        return 0

    def _end_of_epoch(self) -> int:
        return min((self.epoch + 1) * self.steps_per_epoch, self.total_steps)

    def _is_complete(self) -> bool:
        return self.epoch * self.steps_per_epoch >= self.total_steps

    def _train_epoch(self, stop: StopSignals, progress: tqdm[Any]) -> bool:
        """Train to the end of the epoch; False where a signal came before, after a checkpoint."""
        config, end = self.config, self._end_of_epoch()
        waited, images_seen = 0.0, 0
        window_start = before = time.perf_counter()
        # A run may be resumed where only the evaluation is left of its epoch.
        for images, targets in self.train_loader if self.step < end else ():
            waited += time.perf_counter() - before
            lr = float(self.schedule.get_last_lr()[0])
            loss = self.train_step(images, targets)
            self.step += 1
            images_seen += len(images)
            progress.update()
            if self.step % config.log_every == 0 or self.step == self.total_steps:
                # The only place where a step waits for the device.
                value, elapsed = float(self.processes.mean(loss)), time.perf_counter() - window_start
                rate, wait = images_seen * self.processes.size / elapsed, waited / elapsed
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
                waited, images_seen, window_start = 0.0, 0, time.perf_counter()
            if self._has_to_stop(stop):
                self.save()
                return False
            if self.step == end:
                break
            if self.step % config.checkpoint_every == 0:
                self.save()
            before = time.perf_counter()
        return True

    def _end_epoch(self, stop: StopSignals, progress: tqdm[Any]) -> bool:
        """Evaluate and write a checkpoint; False where a signal came before the evaluation was done."""
        result = self.evaluate(stop)
        if result is None:
            self.save()
            return False
        self._log("eval", epoch=self.epoch, **result)
        if self.processes.is_main:
            progress.write(
                f"epoch {self.epoch + 1}: top-1 {result['top1']:.1f} %, top-5 {result['top5']:.1f} %,"
                f" loss {result['loss']:.3f}"
            )
        if result["top1"] > self.best["top1"]:
            self.best = {"top1": result["top1"], "epoch": self.epoch, "step": self.step}
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


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("outputs") / f"{stamp}-{config.arch}-{config.mix}"


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status, see above."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own_data = any(argument.split("=")[0] in ("--data", "--help", "-h") for argument in arguments)
    config = tyro.cli(
        Config,
        args=arguments,
        default=Config() if own_data else DEMO,
        prog="train_imagenet.py",
        description=__doc__,
    )
    processes = Processes.from_environment()
    try:
        run = Run(config, processes)
    except (ValueError, TypeError, OSError, BadFileError) as error:
        print(f"train_imagenet.py: error: {error}", file=sys.stderr)
        status = 2
    else:
        try:
            status = run.train()
        except (SaveError, BadFileError) as error:
            print(f"train_imagenet.py: error: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
            status = 1
        # Its model holds on to the connections; let go of after them, it may wait for their threads forever.
        del run
    processes.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
