#!/usr/bin/env python
"""Train an image classifier on batches that DALI decoded, cropped and mixed.

    python train_imagenet.py --mix hmix --data /path/to/imagenet

DIR holds train/ and val/, each with one folder of images per class. Without --data a small set of
photo-like images is made once and a run scaled to this machine follows, to see everything work.

The output folder holds config.json (all settings, versions, the commit), metrics.jsonl (one JSON object a
line), TensorBoard events, last.pt (the newest epoch) and best.pt (the best top-1).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
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
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.utils.tensorboard import SummaryWriter
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from pipelines.demo_data import make_demo_dataset
from pipelines.folders import ImageFolder, check_dataset
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader

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
    """Images per step (32 without --data)."""

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

    workers: int = min(8, len(os.sched_getaffinity(0)))
    """Threads of DALI. Default: the number of cores, at most 8."""

    seed: int = 0
    """Seed of the model, the order of the images and every draw."""

    output: Path | None = None
    """Folder for the results, new or empty. Default: a new one in outputs/."""

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


def resolve(config: Config) -> Config:
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
    config = dataclasses.replace(config, **chosen)
    if config.amp == "auto":
        config = dataclasses.replace(config, amp=_best_precision(config.device))

    def require(fits: bool, option: str, expected: str) -> None:
        if not fits:
            came = getattr(config, option)
            raise ValueError(f"--{option.replace('_', '-')} must be {expected}; got {came}")

    for option in ("image_size", "epochs", "batch_size", "workers", "log_every"):
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


# -- Output folder -------------------------------------------------------------------------------------


class Output:
    """The output folder: metrics, TensorBoard, checkpoints. Files are replaced whole or not at all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._metrics = (folder / "metrics.jsonl").open("a", buffering=1)
        self._tensorboard = SummaryWriter(folder)

    @staticmethod
    def check(folder: Path) -> None:
        """Raise ValueError unless `folder` is new or empty."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"--output must be a new or empty folder; {folder} holds another run or other files"
            )

    def log(self, at_step: int, event: str, **values: float) -> None:
        """Add a line to metrics.jsonl and the values to TensorBoard."""
        self._metrics.write(json.dumps({"event": event, **values}) + "\n")
        for name, value in values.items():
            if name not in ("epoch", "step"):
                self._tensorboard.add_scalar(f"{event}/{name}", value, at_step)

    def save_json(self, name: str, content: dict[str, Any]) -> None:
        """Write `content` to a file of the folder."""
        self._replace(name, lambda path: path.write_text(json.dumps(content, indent=2, default=str) + "\n"))

    def save_checkpoint(self, name: str, content: dict[str, Any]) -> None:
        """Write a checkpoint that ``torch.load(..., weights_only=True)`` reads."""
        self._replace(name, lambda path: torch.save(content, path))

    def _replace(self, name: str, write: Any) -> None:
        temporary = self.folder / f".{name}.tmp"
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.folder / name)

    def close(self) -> None:
        """Flush and close the files."""
        self._metrics.close()
        self._tensorboard.close()


def describe(config: Config) -> dict[str, Any]:
    """Everything that config.json says about a run."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    packages = ("torch", "torchvision", "nvidia-dali-cuda120", "numba", "numpy", "torchmetrics")
    return {
        "settings": dataclasses.asdict(config),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "commit": commit.stdout.strip() or None,
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


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


def build_schedule(optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Linear warm-up to the optimiser's learning rate, then a half cosine down to 0, per step."""
    warmup_steps = min(warmup_steps, total_steps - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=total_steps - warmup_steps)
    if warmup_steps == 0:
        return cosine
    rise = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup_steps])


# -- A run -----------------------------------------------------------------------------------------------


class Run:
    """Data, model and optimiser of one run, checked and ready to step."""

    def __init__(self, config: Config) -> None:
        self.config = config = resolve(config)
        folder = config.output or _new_folder(config)
        Output.check(folder)
        data = config.data
        if data is None:
            print(
                "No --data given: training on a small set of made images, with settings scaled to this"
                f" machine.\nImages: {config.demo_data}. For your own: --data DIR, where DIR holds train/ and"
                " val/ with one folder of images per class.",
                flush=True,
            )
            data = make_demo_dataset(config.demo_data, workers=config.workers)
        train_images, val_images = check_dataset(data, config.file_list)
        self.num_classes = len(train_images.classes)
        if len(train_images.files) < config.batch_size:
            raise ValueError(
                f"--batch-size must be at most the number of training images ({len(train_images.files)});"
                f" got {config.batch_size}"
            )
        torch.manual_seed(config.seed)
        self.device = torch.device(config.device)
        self.model = build_model(config.arch, self.num_classes).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train_loader, self.val_loader = self._loaders(train_images, val_images)
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
        self.schedule = build_schedule(
            self.optimizer, round(config.warmup_epochs * self.steps_per_epoch), self.total_steps
        )
        self.scaler = GradScaler(self.device.type, enabled=config.amp == "fp16")
        # Last, so that bad input leaves no folder behind.
        self.output = Output(folder)
        self.output.save_json("config.json", describe(config))
        print(
            f"{config.arch} on {len(train_images.files)} training and {len(val_images.files)} validation"
            f" images of {self.num_classes} classes, --mix {config.mix}, {config.image_size} pixels,"
            f" {self.total_steps} steps of {config.batch_size} images, {config.device},"
            f" precision {config.amp}.\nResults: {folder}",
            flush=True,
        )

    def _loaders(self, train_images: ImageFolder, val_images: ImageFolder) -> tuple[DALILoader, DALILoader]:
        config = self.config
        common: dict[str, Any] = {
            "image_size": config.image_size,
            "batch_size": config.batch_size,
            "num_threads": config.workers,
            "device": "gpu" if config.device == "cuda" else "cpu",
            "output_layout": "HWC",
        }
        train = train_pipeline(
            train_images,
            mix=config.mix,
            num_classes=self.num_classes,
            seed=config.seed,
            mix_alpha=config.mix_alpha,
            mix_ratio=config.mix_ratio,
            mix_probability=config.mix_probability,
            mix_convention=config.mix_convention,
            label_smoothing=config.label_smoothing,
            random_area=config.crop_area,
            **common,
        )
        return (
            DALILoader(train, drop_last=True, layout="HWC"),
            DALILoader(val_pipeline(val_images, **common), layout="HWC"),
        )

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        dtype = torch.float16 if self.config.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.config.amp != "none")

    def train_step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step of the optimiser and the schedule; the loss, still on the device."""
        with self.autocast():
            logits = self.model(images)
        # The loss in float32; the targets are already mixed and smoothed.
        loss = functional.cross_entropy(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach()

    def evaluate(self) -> dict[str, float]:
        """Top-1, top-5 in percent and loss over the validation images, each counted once."""
        accuracy: dict[str, Metric | MetricCollection] = {
            f"top{k}": MulticlassAccuracy(self.num_classes, top_k=min(k, self.num_classes), average="micro")
            for k in (1, 5)
        }
        metrics = MetricCollection(accuracy).to(self.device)
        mean_loss = MeanMetric().to(self.device)
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            for images, labels in self.val_loader:
                logits = self.model(images).float()
                metrics.update(logits, labels)
                mean_loss.update(functional.cross_entropy(logits, labels), len(labels))
        self.model.train()
        result = {name: 100 * float(value) for name, value in metrics.compute().items()}
        return result | {"loss": float(mean_loss.compute())}

    def checkpoint(self, epoch: int, step: int, result: dict[str, float]) -> dict[str, Any]:
        """What a checkpoint file holds; the weights under ``model``."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": epoch,
            "step": step,
            "metrics": result,
            "arch": self.config.arch,
            "num_classes": self.num_classes,
        }

    def train(self) -> None:
        """Train to the end, with an evaluation and a checkpoint after every epoch."""
        best = -1.0
        step, epoch = 0, 0
        began = time.perf_counter()
        with tqdm(total=self.total_steps, unit="step", dynamic_ncols=True, mininterval=1.0) as progress:
            while step < self.total_steps:
                step = self._train_epoch(epoch, step, progress)
                result = self.evaluate()
                self.output.log(step, "eval", epoch=epoch, **result)
                progress.write(
                    f"epoch {epoch + 1}: top-1 {result['top1']:.1f} %, top-5 {result['top5']:.1f} %,"
                    f" loss {result['loss']:.3f}"
                )
                content = self.checkpoint(epoch, step, result)
                self.output.save_checkpoint("last.pt", content)
                if result["top1"] > best:
                    best = result["top1"]
                    self.output.save_checkpoint("best.pt", content)
                epoch += 1
        self.output.close()
        minutes = (time.perf_counter() - began) / 60
        print(f"Best top-1 {best:.1f} % of {epoch} epochs, {minutes:.1f} minutes: {self.output.folder}")

    def _train_epoch(self, epoch: int, step: int, progress: tqdm[Any]) -> int:
        waited, images_seen = 0.0, 0
        window_start = before = time.perf_counter()
        for images, targets in self.train_loader:
            waited += time.perf_counter() - before
            lr = float(self.schedule.get_last_lr()[0])
            loss = self.train_step(images, targets)
            step += 1
            images_seen += len(images)
            progress.update()
            if step % self.config.log_every == 0 or step == self.total_steps:
                # The only place where a step waits for the device.
                value, elapsed = float(loss), time.perf_counter() - window_start
                rate, wait = images_seen / elapsed, waited / elapsed
                self.output.log(
                    step,
                    "train",
                    epoch=epoch,
                    step=step,
                    loss=value,
                    lr=lr,
                    images_per_s=round(rate, 2),
                    data_wait=round(wait, 4),
                )
                progress.set_postfix_str(f"loss {value:.3f}, {rate:.0f} images/s, {wait:.0%} data wait")
                waited, images_seen, window_start = 0.0, 0, time.perf_counter()
            if step == self.total_steps:
                break
            before = time.perf_counter()
        return step


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("outputs") / f"{stamp}-{config.arch}-{config.mix}"


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status (2 for bad input)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own_data = any(argument.split("=")[0] in ("--data", "--help", "-h") for argument in arguments)
    config = tyro.cli(
        Config,
        args=arguments,
        default=Config() if own_data else DEMO,
        prog="train_imagenet.py",
        description=__doc__,
    )
    try:
        run = Run(config)
    except (ValueError, TypeError, OSError) as error:
        print(f"train_imagenet.py: error: {error}", file=sys.stderr)
        return 2
    run.train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
