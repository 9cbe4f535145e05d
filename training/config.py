"""The settings of a run: their defaults, what "auto" stands for, what fits together.

Imports nothing heavy, so that a wrong setting is refused at once. What only PyTorch knows about a GPU is in
:mod:`.hardware`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dali_msda.methods import TABLE
from dali_msda.mixing import Mixing
from dali_msda.processors import read_text, usable_processors
from dali_msda.validation import ArgumentError, check_integer, check_type
from pipelines.records import Augmentation, Output

from .architectures import AUXILIARY, full_name
from .limits import batch_bytes, most_workers, require_memory
from .mix_schedule import MixSchedule
from .optimization import Optimization
from .ranks import IN_ALL, Ranks


def option(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def require(config: Config, fits: bool, name: str, expected: str) -> None:
    """Raise ValueError, in the words that all settings have in common, unless the setting `name` fits."""
    if not fits:
        raise ValueError(f"{option(name)} must be {expected}; got {getattr(config, name)}")


@contextlib.contextmanager
def as_options(named: Callable[[str], str] = str) -> Iterator[None]:
    """Errors of records name the option.

    Parameters
    ----------
    named : callable
        From the name that a record uses to that of the option.

    Raises
    ------
    ValueError
        Instead of what a record raises.
    """
    try:
        yield
    except ArgumentError as error:
        raise ValueError(f"{option(named(error.name))} must be {error.expected}; got {error.got}") from None


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run: the defaults are the paper's for ImageNet where it gives them (section 5).

    Raises
    ------
    ValueError
        Naming the option, what came and what is expected. :func:`resolve` checks what depends on several
        settings, or on the machine.
    """

    config: str | None = None
    """A named run of configs/, by the name of its file: its settings are the defaults of all others."""

    from_config: Path | None = None
    """The config.json of a run, to repeat it: its settings are the defaults of all others, but for --output
    and --resume."""

    data: Path | None = None
    """Folder with train/ and val/, one folder of images per class in each. Without it: images made here."""

    file_list: Path | None = None
    """Folder with train.txt and val.txt, the images to take, as python -m pipelines.check writes it."""

    val_labels: Path | None = None
    """Labels of a val/ without class folders: ILSVRC2012_validation_ground_truth.txt with meta.mat or
    map_clsloc.txt beside it, LOC_val_solution.csv, or a text with an image and its class in each line."""

    allow_empty_classes: bool = False
    """Take class folders without images; the numbers of the other classes stay."""

    # The fields of a record are options: by their own names, with a prefix, or as "names" says.
    mixing: Mixing = dataclasses.field(
        default=Mixing(),
        metadata={"prefix": "mix_", "names": {"method": "mix", "label_smoothing": "label_smoothing"}},
    )
    """How images are mixed."""

    mix_schedule: MixSchedule = dataclasses.field(default=MixSchedule(), metadata={"prefix": "mix_"})
    """How the mixing changes."""

    augmentation: Augmentation = Augmentation()
    """What is done to single images, before mixing."""

    arch: str = "resnet50"
    """Any classification model of torchvision or, where timm is installed, of timm, as timm/NAME; NAME alone
    is torchvision's where both have it."""

    init_weights: Path | None = None
    """Weights to begin with: a checkpoint of this trainer or another, a state_dict, safetensors, or a file
    that torchvision publishes. What it, or its name, says of --arch and the image sizes is their default.
    Default: random weights."""

    init_entry: str | None = None
    """Which entry of --init-weights to take, such as model or state_dict.net, where it holds several.
    Default: the average of the weights, where there is one."""

    new_classifier: bool = False
    """Begin with a random classifier, for other classes than those of --init-weights."""

    class_names: Path | None = None
    """The classes of --init-weights in the order of its outputs, where it does not name them: a text file
    with a class a line, or a folder of class folders."""

    image_size: int = 224
    """Side of the training and validation images in pixels."""

    val_image_size: int | None = None
    """Side of the validation images in pixels. Default: --image-size."""

    val_resize_size: int | None = None
    """Shorter side to which validation images are resized before the centre crop of --val-image-size.
    Default: 256/224 of that."""

    epochs: int | float = 300
    """Passes over the training images, such as 90 or 0.5; the learning rate is planned over them."""

    batch_size: int = 256
    """Images per step, over all processes."""

    accumulate: int = 1
    """Passes through the model per step, each with an equal part of --batch-size: to save memory."""

    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy, or binary cross-entropy of every class, the mean over the classes."""

    aux_loss_weight: float | None = None
    """Weight of the loss of each auxiliary head of googlenet (default: 0.3) and inception_v3 (0.4); 0:
    without these heads."""

    optimization: Optimization = dataclasses.field(
        default=Optimization(),
        metadata={"names": {"method": "optimizer", "betas": "optimizer_betas", "eps": "optimizer_eps"}},
    )
    """What optimises, and its arguments."""

    lr_schedule: Literal["cosine", "step"] = "cosine"
    """After the warm-up: half a cosine down to 0, or a tenth after every --lr-step-epochs."""

    lr_step_epochs: float = 75.0
    """Epochs between two steps of --lr-schedule step, counted from the start."""

    decay_all: bool = False
    """Weight decay of biases, normalisation layers and position embeddings as well."""

    warmup_epochs: float = 5.0
    """Epochs over which the learning rate rises, linearly."""

    ema_decay: float | None = None
    """Keep a moving average of the weights with this decay, in [0, 1), and evaluate it as well: the best
    checkpoint is then the one with its best top-1. Default: none."""

    ema_warmup: bool = False
    """Begin with a lower --ema-decay: at most (1 + step) / (10 + step)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where DALI and the model run; auto takes a GPU where there is one."""

    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    """Mixed precision; auto takes bf16 where the hardware has instructions for it."""

    compile: bool = False
    """Compile the model (torch.compile; needs a C compiler)."""

    grad_checkpointing: bool = False
    """Keep the activations of the blocks' borders only and compute the others anew: less memory, slower."""

    deterministic: bool = False
    """Only algorithms that give the same result every time (on the CPU all of them do)."""

    sync_bn: bool = False
    """Batch statistics over all processes (SyncBatchNorm; on GPUs)."""

    workers: int | None = None
    """Threads of DALI per process. Default: its share of the cores, at most 8."""

    seed: int = 0
    """Seed of the model, the order of the images and every draw."""

    bad_files: Literal["skip", "error"] = "skip"
    """What to do with a file that cannot be decoded: write it down in quarantine.jsonl and go on, or stop."""

    bad_files_limit: float = 0.01
    """Stop where more than ten files and this share of them cannot be decoded; 1 never stops."""

    storage_patience: float = 300.0
    """Seconds to wait for folders of images or results that cannot be reached, each time; 0 does not wait."""

    output: Path | None = None
    """Folder for the results, new or empty unless a run is resumed. Default: a new one in outputs/."""

    resume: str | None = None
    """auto: go on from the newest good checkpoint of --output, or start; else the path of a checkpoint. The
    settings have to be those of the checkpoint; --epochs may be higher."""

    eval_only: bool = False
    """Evaluate --init-weights on the images of val/ and leave."""

    absent_classes: Literal["keep", "mask"] | None = None
    """For a val/ with some of the classes, as ImageNet-A has 200 of 1000: keep the logits of the others in
    the comparison, or mask them. Default: keep with --eval-only; otherwise val/ must have all classes."""

    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is one after each epoch as well."""

    keep: int = 3
    """Checkpoints that are kept, besides the best one."""

    max_steps: int | None = None
    """Stop after this step, with an evaluation and a checkpoint; the learning rate is that of --epochs, and
    a run that is resumed may go further."""

    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""

    demo_data: Path = Path("data/demo")
    """Where the images for a run without --data are made and kept."""

    def __post_init__(self) -> None:
        check_type("mixing", self.mixing, Mixing)
        check_type("mix_schedule", self.mix_schedule, MixSchedule)
        check_type("augmentation", self.augmentation, Augmentation)
        check_type("optimization", self.optimization, Optimization)
        with as_options():
            for name in ("image_size", "val_image_size", "val_resize_size"):
                size = getattr(self, name)
                if size is not None:
                    with as_options({"image_size": name}.__getitem__):
                        Output(image_size=size)
            for name in (
                *("batch_size", "accumulate", "workers"),
                *("log_every", "checkpoint_every", "keep", "max_steps"),
            ):
                value = getattr(self, name)
                if value is not None:
                    check_integer(name, value, 1)
            check_integer("seed", self.seed, 0)
            require(self, self.seed < 2**64, "seed", "below 2**64")  # PyTorch takes no other
            for name in ("warmup_epochs", "storage_patience"):
                value = getattr(self, name)
                require(self, math.isfinite(value) and value >= 0, name, "a number of at least 0")
            weight = self.aux_loss_weight
            require(
                self, weight is None or 0 <= weight < math.inf, "aux_loss_weight", "a number of at least 0"
            )
            for name in ("epochs", "lr_step_epochs"):
                value = getattr(self, name)
                require(self, 0 < value < math.inf, name, "above 0")
            require(self, 0 < self.bad_files_limit <= 1, "bad_files_limit", "in (0, 1]")
            require(self, self.ema_decay is None or 0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)")


# Other names of options, by the settings.
ALIASES: dict[str, tuple[str, ...]] = {"init_weights": ("--weights",)}

# The run without --data: a few minutes on two CPU cores.
DEMO = Config(
    image_size=64,
    epochs=8,
    batch_size=32,
    optimization=Optimization(lr=0.05),
    warmup_epochs=1.0,
    augmentation=Augmentation(crop_area=(0.5, 1.0)),
    log_every=10,
)

# What may differ between the processes of a run: where things lie. The images are compared by the list of
# their names, wherever they lie, and the first weights are in the checkpoint.
OWN_OPTIONS = frozenset(
    (
        "--config",
        "--from-config",
        "--data",
        "--demo-data",
        "--file-list",
        "--val-labels",
        "--allow-empty-classes",
        "--init-weights",
        "--init-entry",
        "--new-classifier",
        "--class-names",
        "--bad-files",
        "--bad-files-limit",
        "--storage-patience",
        "--output",
        "--resume",
        "--workers",
        "--keep",
    )
)
# What may change when a run goes on: that, where it stops, and how often it reports.
FREE_OPTIONS = OWN_OPTIONS | {"--log-every", "--checkpoint-every", "--max-steps"}


# Longer than torchrun takes to notice that a process has left, and to end the others.
_OTHERS_WAIT_SECONDS = 2.0


def complain(error: Exception, ranks: Ranks = Ranks()) -> None:
    """Print an error of the command line, once for all processes of a run.

    The main process does so. What is wrong with one of the others alone is said by that one, after a while:
    where the main one has left with the same error, torchrun ends the others before.
    """
    if not ranks.is_main:
        if IN_ALL in getattr(error, "__notes__", ()):
            return
        time.sleep(_OTHERS_WAIT_SECONDS * (1 if ranks.local_rank == 0 else 2))
    # Of an error of the system that says it in words of its own, those, without a number.
    words = error.strerror if isinstance(error, OSError) and error.filename is None else None
    print(f"train_imagenet.py: error: {words or error}", file=sys.stderr, flush=True)


def plain(error: BaseException) -> str:
    """The message of a library as one line of plain text: without colours, which PyTorch's have."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return " ".join(text.split()) or type(error).__name__


def resolve(config: Config, ranks: Ranks = Ranks()) -> Config:
    """Replace None, and "auto" as far as there is no GPU to ask, by what they stand for; check the values.

    Raises
    ------
    ValueError
        Naming the option, what came and what is expected.
    """
    chosen: dict[str, Any] = {}
    if config.val_image_size is None:
        chosen["val_image_size"] = config.image_size
    if config.device != "cpu" and not _has_driver():
        require(config, config.device == "auto", "device", "cpu: there is no driver of an NVIDIA GPU here")
        chosen["device"] = "cpu"
    if config.workers is None:
        chosen["workers"] = min(8, max(1, usable_processors() // ranks.local_size))
    config = dataclasses.replace(config, **chosen)
    if config.amp == "auto" and config.device == "cpu":
        config = dataclasses.replace(config, amp=cpu_precision())
    _check_mixing(config)
    _check_together(config, ranks)
    _check_size(config, ranks)
    require(
        config,
        config.val_resize_size is None or config.val_resize_size >= (config.val_image_size or 0),
        "val_resize_size",
        f"at least --val-image-size {config.val_image_size}",
    )
    config = dataclasses.replace(config, arch=full_name(config.arch))
    if config.aux_loss_weight is None:
        config = dataclasses.replace(config, aux_loss_weight=AUXILIARY.get(config.arch))
    require(
        config,
        config.aux_loss_weight is None or config.arch in AUXILIARY,
        "aux_loss_weight",
        f"left out with --arch {config.arch}, which has no auxiliary heads",
    )
    return config


def _check_mixing(config: Config) -> None:
    """The schedule changes what the method has."""
    method, schedule = TABLE[config.mixing.method], config.mix_schedule
    for name, fits in (
        ("alpha_start", bool(method.alphas)),
        ("probability_start", method.name != "none"),
        ("off_epoch", method.name != "none"),
    ):
        value = getattr(schedule, name)
        if value is not None and not fits:
            raise ValueError(
                f"{option(f'mix_{name}')} must be left out with --mix {method.name}; got {value}"
            )


def _check_together(config: Config, ranks: Ranks) -> None:
    """Settings of the run that need or exclude each other, or something that is installed."""
    if config.optimization.method == "lamb" and importlib.util.find_spec("timm") is None:
        raise ValueError("--optimizer must be sgd or adamw where timm is not installed; got lamb")
    require(
        config,
        config.batch_size % (ranks.size * config.accumulate) == 0,
        "batch_size",
        f"a multiple of the {ranks.size} processes times --accumulate {config.accumulate}"
        if config.accumulate > 1
        else f"a multiple of the {ranks.size} processes",
    )
    require(config, config.config is None or config.data is not None, "config", "used together with --data")
    require(
        config,
        not config.eval_only or config.init_weights is not None,
        "eval_only",
        "used with --init-weights",
    )
    for name in ("init_entry", "new_classifier", "class_names"):
        unused = config.init_weights is not None or not getattr(config, name)
        require(config, unused, name, "used with --init-weights")
    require(
        config,
        not (config.new_classifier and config.eval_only),
        "new_classifier",
        "left out with --eval-only: a random classifier knows no class",
    )
    require(
        config,
        not (config.new_classifier and config.class_names),
        "class_names",
        "left out with --new-classifier, which takes no classes from the weights",
    )
    require(config, not config.eval_only or config.resume is None, "resume", "left out with --eval-only")
    warms_up = config.ema_warmup and config.ema_decay is None
    require(config, not warms_up, "ema_warmup", "used with --ema-decay")
    require(
        config,
        not (config.compile and config.grad_checkpointing),
        "grad_checkpointing",
        "left out with --compile, which decides itself what to compute anew",
    )
    check_device(config)


def _check_size(config: Config, ranks: Ranks) -> None:
    """What is too large for this machine, as far as that is known before the model."""
    require(config, (config.workers or 1) <= most_workers(), "workers", f"at most {most_workers()} here")
    if config.device != "cpu":  # the batches lie on the GPU
        return
    images = config.batch_size // ranks.size // config.accumulate
    for name, size in (("image_size", config.image_size), ("val_image_size", config.val_image_size)):
        if size is not None:
            require_memory(
                *(batch_bytes(size), images, ranks.local_size),
                sized=(option(name), size),
                batch=("--batch-size", config.batch_size),
                purpose="the loader",
            )


def check_device(config: Config) -> None:
    """Raise ValueError for what the chosen device cannot do; "auto" is still open."""
    require(config, config.device != "cpu" or not config.sync_bn, "sync_bn", "left out on the CPU")
    require(config, config.device != "cpu" or config.amp != "fp16", "amp", "none or bf16 on the CPU")


def _has_driver() -> bool:
    """Whether there is a driver of an NVIDIA GPU, without which PyTorch need not be asked."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def cpu_precision() -> Literal["none", "bf16"]:
    """bf16 where the processor has instructions for it, which is where it is faster than float32."""
    flags = read_text("/proc/cpuinfo") or ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "none"
