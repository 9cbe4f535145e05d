"""The settings of a run: their defaults, what "auto" stands for, what fits together.

Imports nothing heavy, so that a wrong setting is refused at once. What only PyTorch knows about a GPU is in
:mod:`.hardware`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import difflib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dali_msda.methods import ARGUMENTS, METHODS, TABLE, takers
from dali_msda.processors import text_of, usable_processors
from pipelines.constants import MAGNITUDE_BINS

from .architectures import TORCHVISION
from .ranks import Ranks

if TYPE_CHECKING:
    MixName = str
else:  # the names of the table, as choices of the command line
    MixName = Literal[METHODS]


@dataclass(frozen=True)
class Config:
    """Settings of a run: the defaults are the paper's for ImageNet where it gives them (section 5)."""

    config: str | None = None
    """A named run of configs/, by the name of its file: its settings are the defaults of all others."""

    data: Path | None = None
    """Folder with train/ and val/, one folder of images per class in each. Without it: images made here."""

    file_list: Path | None = None
    """Folder with train.txt and val.txt, the images to take, as python -m pipelines.check writes it."""

    mix: MixName = "hmix"
    """Mixing method."""

    mix_alpha: float | None = None
    """lam ~ Beta(alpha, alpha). Default: the paper's for ImageNet, 0.8 for mixup and 1 for the others."""

    mix_ratio: float | None = None
    """Share r of the box in hmix, in [0, 1]. Default: the paper's for ImageNet, 0.75."""

    mix_probability: float = 1.0
    """Probability that an image is mixed at all."""

    mix_convention: Literal["reference", "paper"] = "reference"
    """Masks as the authors' code makes them, or by the formulas of the paper."""

    mix_ramp_epochs: float = 0.0
    """Epochs over which alpha and the probability change, linearly, from their start values to the above."""

    mix_alpha_start: float | None = None
    """What alpha is in the first batch, with --mix-ramp-epochs. Default: no ramp of alpha."""

    mix_probability_start: float | None = None
    """What the probability is in the first batch, with --mix-ramp-epochs. Default: no ramp of it."""

    mix_off_epoch: int | None = None
    """Nothing is mixed from this epoch on, counted from 0. Default: mix to the end."""

    auto_augment: Literal["none", "rand", "trivial"] = "none"
    """DALI's RandAugment or TrivialAugment (wide), before mixing."""

    rand_augment: tuple[int, int] = (2, 9)
    """Number of operations and magnitude, of 31 steps, for --auto-augment rand."""

    color_jitter: float = 0.0
    """Brightness, contrast and saturation are scaled by up to 1 +- this, before mixing."""

    arch: str = "resnet50"
    """Any classification model of torchvision."""

    init_weights: Path | None = None
    """Weights to begin with: a checkpoint of this trainer, or a state_dict. Default: random ones."""

    image_size: int = 224
    """Side of the training and validation images in pixels (64 without --data)."""

    val_image_size: int | None = None
    """Side of the validation images in pixels. Default: --image-size."""

    epochs: int = 300
    """Passes over the training images (8 without --data)."""

    batch_size: int = 256
    """Images per step, over all processes (32 without --data)."""

    accumulate: int = 1
    """Passes through the model per step, each with an equal part of --batch-size: to save memory."""

    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy, or binary cross-entropy of every class, the mean over the classes."""

    lr: float = 0.1
    """Peak learning rate (0.05 without --data)."""

    lr_schedule: Literal["cosine", "step"] = "cosine"
    """After the warm-up: half a cosine down to 0, or a tenth after every --lr-step-epochs."""

    lr_step_epochs: float = 75.0
    """Epochs between two steps of --lr-schedule step, counted from the start."""

    momentum: float = 0.9
    """Nesterov momentum of SGD."""

    weight_decay: float = 1e-4
    """Weight decay, not of biases and normalisation layers."""

    decay_all: bool = False
    """Weight decay of biases and normalisation layers as well."""

    clip_grad_norm: float | None = None
    """Scale gradients down to this norm where theirs is higher. Default: as they are."""

    warmup_epochs: float = 5.0
    """Epochs over which the learning rate rises, linearly (1 without --data)."""

    label_smoothing: float = 0.0
    """Label smoothing of the training targets, in [0, 1]."""

    ema_decay: float | None = None
    """Keep a moving average of the weights with this decay, in [0, 1), and evaluate it as well: the best
    checkpoint is then the one with its best top-1. Default: none."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Share of the area that a random crop keeps (0.5 1 without --data)."""

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

    output: Path | None = None
    """Folder for the results, new or empty unless a run is resumed. Default: a new one in outputs/."""

    resume: str | None = None
    """auto: go on from the newest good checkpoint of --output, or start; else the path of a checkpoint. The
    settings have to be those of the checkpoint; --epochs may be higher."""

    eval_only: bool = False
    """Evaluate --init-weights on the images of val/ and leave."""

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

# What may change when a run goes on: where things lie and how often it reports. The images are compared by
# the list of their names, wherever they lie, and the first weights are in the checkpoint.
FREE_OPTIONS = frozenset(
    (
        "--config",
        "--data",
        "--demo-data",
        "--file-list",
        "--init-weights",
        "--bad-files",
        "--output",
        "--resume",
        "--workers",
        "--log-every",
        "--checkpoint-every",
        "--keep",
    )
)


def option(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def complain(error: object) -> None:
    """Print an error of the command line."""
    print(f"train_imagenet.py: error: {error}", file=sys.stderr, flush=True)


def settings(config: Config) -> dict[str, Any]:
    """The settings in types that JSON and checkpoints hold."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[no-any-return]


def resolve(config: Config, ranks: Ranks = Ranks()) -> Config:  # noqa: B008, it is frozen
    """Replace None, and "auto" as far as there is no GPU to ask, by what they stand for; check the values.

    Raises
    ------
    ValueError
        Naming the option, what came and what is expected.
    """
    chosen: dict[str, Any] = {}
    require(config, config.mix in METHODS, "mix", f"one of {', '.join(METHODS)}")
    method = TABLE[config.mix]
    if config.mix_alpha is None and method.alphas:
        chosen["mix_alpha"] = method.defaults[method.alphas[0]]  # one option for all of them
    if config.mix_ratio is None:
        chosen["mix_ratio"] = method.defaults.get("ratio")
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
    _check_numbers(config)
    _check_mixing(config)
    _check_together(config, ranks)
    if config.arch not in TORCHVISION:
        close = difflib.get_close_matches(config.arch, TORCHVISION, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"--arch must be a classification model of torchvision; got {config.arch}"
            f" ({hint}it has {', '.join(TORCHVISION)})"
        )
    return config


def require(config: Config, fits: bool, name: str, expected: str) -> None:
    """Raise ValueError, in the words that all settings have in common, unless the setting `name` fits."""
    if not fits:
        raise ValueError(f"{option(name)} must be {expected}; got {getattr(config, name)}")


def _check_numbers(config: Config) -> None:
    """Each number for itself."""
    at_least_one = ["image_size", "val_image_size", "epochs", "batch_size", "accumulate", "workers"]
    for name in (*at_least_one, "log_every", "checkpoint_every", "keep", "max_steps"):
        value = getattr(config, name)
        require(config, value is None or value >= 1, name, "at least 1")
    for name in ("lr", "weight_decay", "warmup_epochs", "momentum", "mix_ramp_epochs"):
        value = getattr(config, name)
        require(config, math.isfinite(value) and value >= 0, name, "a number of at least 0")
    for name in ("alpha", "ratio"):
        value, argument = getattr(config, f"mix_{name}"), ARGUMENTS[name]
        require(config, value is None or argument.takes(value), f"mix_{name}", argument.expected)
    for name in ("mix_probability", "mix_probability_start", "label_smoothing", "color_jitter"):
        value = getattr(config, name)
        require(config, value is None or 0 <= value <= 1, name, "in [0, 1]")
    for name in ("mix_alpha_start", "clip_grad_norm", "lr_step_epochs"):
        value = getattr(config, name)
        require(config, value is None or 0 < value < math.inf, name, "above 0")
    require(config, config.ema_decay is None or 0 <= config.ema_decay < 1, "ema_decay", "in [0, 1)")
    require(config, config.seed >= 0, "seed", "at least 0")
    low, high = config.crop_area
    require(config, 0 < low <= high <= 1, "crop_area", "two numbers 0 < a <= b <= 1")
    count, magnitude = config.rand_augment
    require(
        config,
        count >= 1 and 0 <= magnitude < MAGNITUDE_BINS,
        "rand_augment",
        f"two numbers n >= 1 and 0 <= m < {MAGNITUDE_BINS}",
    )


def _check_mixing(config: Config) -> None:
    """Settings that need each other."""
    with_ratio = takers("ratio")
    require(
        config,
        config.mix_ratio is None or config.mix in with_ratio,
        "mix_ratio",
        f"left out unless --mix is {' or '.join(with_ratio)}",
    )
    if config.mix == "none":
        for name in ("mix_alpha_start", "mix_probability_start", "mix_off_epoch"):
            require(config, getattr(config, name) is None, name, "left out with --mix none")
    require(config, config.mix_off_epoch is None or config.mix_off_epoch >= 0, "mix_off_epoch", "at least 0")
    starts = config.mix_alpha_start is not None or config.mix_probability_start is not None
    require(
        config,
        starts == (config.mix_ramp_epochs > 0),
        "mix_ramp_epochs",
        "above 0 with --mix-alpha-start or --mix-probability-start, and only then",
    )


def _check_together(config: Config, ranks: Ranks) -> None:
    """Settings of the run that need or exclude each other."""
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
    require(config, not config.eval_only or config.resume is None, "resume", "left out with --eval-only")
    require(
        config,
        not (config.compile and config.grad_checkpointing),
        "grad_checkpointing",
        "left out with --compile, which decides itself what to compute anew",
    )
    check_device(config)


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
    flags = text_of("/proc/cpuinfo") or ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "none"
