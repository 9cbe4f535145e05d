"""The settings of a run: defaults, values for "auto", and checks of what fits together.

Imports nothing heavy, so that a wrong setting is refused at once. :mod:`.hardware` asks PyTorch about GPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dali_msda.mixing import Mixing
from dali_msda.processors import read_text, usable_processors
from dali_msda.validation import ArgumentError, check_integer, check_type
from pipelines.records import Augmentation, Output, ScaledDecoding

from .architectures import AUXILIARY, full_name
from .limits import batch_bytes, most_workers, require_memory
from .methods import GRIDS, needs_model
from .mix_schedule import MixSchedule
from .optimization import Optimization
from .ranks import IN_ALL, Ranks


def option(name: str) -> str:
    """The command-line form of a setting's name."""
    return f"--{name.replace('_', '-')}"


def require(config: Config, fits: bool, name: str, expected: str) -> None:
    """Raise ValueError, in the form common to all settings, unless the setting `name` fits."""
    if not fits:
        raise ValueError(f"{option(name)} must be {expected}; got {getattr(config, name)}")


@contextlib.contextmanager
def as_options(named: Callable[[str], str] = str) -> Iterator[None]:
    """Turn the errors of records into errors that name the option.

    Parameters
    ----------
    named : callable
        Maps a record's name for a field to the setting's.

    Raises
    ------
    ValueError
        Instead of the record's error.
    """
    try:
        yield
    except ArgumentError as error:
        raise ValueError(f"{option(named(error.name))} must be {error.expected}; got {error.got}") from None


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run. Where the paper gives values for ImageNet (section 5), they are the defaults.

    Raises
    ------
    ValueError
        Names the option, its value and what is expected. :func:`resolve` checks what depends on several
        settings or on the machine.
    """

    config: str | None = None
    """Named run, from a file in configs/. Its settings replace the defaults."""

    from_config: Path | None = None
    """config.json of a run to repeat. Its settings, except --output and --resume, replace the defaults."""

    data: Path | None = None
    """Folder with train/ and val/, each with one folder of images per class, or with CIFAR-10's or
    CIFAR-100's binary files. Default: generated images."""

    file_list: Path | None = None
    """Folder with train.txt and val.txt, the images to use; python -m pipelines.check writes them."""

    val_labels: Path | None = None
    """Labels for a val/ without class folders: ILSVRC2012_validation_ground_truth.txt with meta.mat or
    map_clsloc.txt beside it, LOC_val_solution.csv, or a text file with an image and its class per line."""

    allow_empty_classes: bool = False
    """Accept class folders without images; the other classes keep their numbers."""

    # The fields of a record are options, under their own names, with a prefix, or as "names" says.
    mixing: Mixing = dataclasses.field(
        default=Mixing(),
        metadata={"prefix": "mix_", "names": {"method": "mix", "label_smoothing": "label_smoothing"}},
    )
    """How images are mixed."""

    mix_schedule: MixSchedule = dataclasses.field(default=MixSchedule(), metadata={"prefix": "mix_"})
    """How mixing changes during the run."""

    augmentation: Augmentation = Augmentation()
    """How single images are augmented, before mixing."""

    arch: str = "resnet50"
    """Any classification model of torchvision or, if installed, of timm, as timm/NAME (NAME alone means
    torchvision's model if both have one); or a network for small images: cifar_resnet20, 56, 110,
    preact_resnet18, 34, 50, wrn_28_2, 28_10."""

    init_weights: Path | None = None
    """Weights to start from: a checkpoint of this trainer or another, a state_dict, safetensors, or a file
    published by torchvision. If the file or its name states --arch and the image sizes, they become the
    defaults. Default: random weights."""

    init_entry: str | None = None
    """The entry of --init-weights to load, such as model or state_dict.net, if it holds several. Default: the
    average of the weights, if any."""

    new_classifier: bool = False
    """Start with a random classifier, for classes other than those of --init-weights."""

    class_names: Path | None = None
    """The classes of --init-weights in the order of its outputs, if the file does not name them: a text file
    with one class per line, a folder of class folders, or one with CIFAR's binary files."""

    image_size: int = 224
    """Side of the training and validation images in pixels."""

    val_image_size: int | None = None
    """Side of the validation images in pixels. Default: --image-size."""

    val_resize_size: int | None = None
    """Resize the shorter side of validation images to this before the centre crop of --val-image-size.
    Default: 256/224 of --val-image-size."""

    epochs: int | float = 300
    """Passes over the training images, such as 90 or 0.5. The learning-rate schedule spans them."""

    batch_size: int = 256
    """Images per step, over all processes."""

    accumulate: int = 1
    """To save memory, split each step into this many passes, each with an equal part of --batch-size."""

    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy, or binary cross-entropy averaged over the classes."""

    aux_loss_weight: float | None = None
    """Loss weight of each auxiliary head of googlenet (default: 0.3) and inception_v3 (0.4); 0 removes the
    heads."""

    optimization: Optimization = dataclasses.field(
        default=Optimization(),
        metadata={"names": {"method": "optimizer", "betas": "optimizer_betas", "eps": "optimizer_eps"}},
    )
    """The optimiser and its arguments."""

    lr_schedule: Literal["cosine", "step"] = "cosine"
    """After the warm-up, follow half a cosine down to 0, or divide by 10 every --lr-step-epochs or at
    --lr-milestones."""

    lr_step_epochs: float = 75.0
    """Epochs between the drops of --lr-schedule step, counted from the start."""

    lr_milestones: tuple[float, ...] | None = None
    """Epochs before each drop of --lr-schedule step, such as 150 225, instead of --lr-step-epochs."""

    decay_all: bool = False
    """Apply weight decay to biases, normalisation layers and position embeddings too."""

    warmup_epochs: float = 5.0
    """Epochs of linear learning-rate warm-up."""

    ema_decay: float | None = None
    """Keep a moving average of the weights with this decay, in [0, 1), and evaluate it too; its top-1 then
    decides which checkpoint is best. Default: no average."""

    ema_warmup: bool = False
    """Start with a lower --ema-decay: at most (1 + step) / (10 + step)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where DALI and the model run; auto uses a GPU if there is one."""

    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    """Mixed precision; auto uses bf16 if the hardware has instructions for it."""

    scaled_decoding: ScaledDecoding = "auto"
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size, on the CPU, if the part that is used stays at least as
    large as the network's input. auto: on in runs on the CPU, if simplejpeg and Numba are installed."""

    compile: bool = False
    """Compile the model (torch.compile; needs a C compiler)."""

    grad_checkpointing: bool = False
    """Recompute activations inside blocks during backward: less memory, slower."""

    deterministic: bool = False
    """Use only deterministic algorithms (on the CPU all of them are)."""

    sync_bn: bool = False
    """Compute batch statistics over all processes (SyncBatchNorm; GPUs only)."""

    workers: int | None = None
    """DALI threads per process. Default: each process's share of the cores, at most 8."""

    seed: int = 0
    """Seed of the model, the image order and all random draws."""

    bad_files: Literal["skip", "error"] = "skip"
    """What to do with a file that cannot be decoded: log it to quarantine.jsonl and skip it, or stop."""

    bad_files_limit: float = 0.01
    """Stop if more than ten files, and at least this share of the files, cannot be decoded; 1 never stops."""

    storage_patience: float = 300.0
    """Seconds to wait each time the images or the output cannot be reached; 0 does not wait."""

    output: Path | None = None
    """Output folder, new or empty unless resuming. Default: a new folder in outputs/."""

    resume: str | None = None
    """auto (resume from the newest good checkpoint in --output, or start if there is none), or the path of a
    checkpoint. The settings must be those of the checkpoint; --epochs may be higher."""

    eval_only: bool = False
    """Evaluate --init-weights on val/ and exit."""

    absent_classes: Literal["keep", "mask"] | None = None
    """If val/ has only some of the classes, such as ImageNet-A with 200 of 1000: keep the logits of the other
    classes, or mask them. Default: keep with --eval-only; otherwise val/ must have all classes."""

    checkpoint_every: int = 1000
    """Steps between checkpoints; each epoch ends with one too."""

    keep: int = 3
    """Checkpoints to keep, besides the best one."""

    max_steps: int | None = None
    """Stop after this step, with an evaluation and a checkpoint. The learning rate still follows --epochs; a
    resumed run may go further."""

    log_every: int = 50
    """Steps between lines of metrics.jsonl."""

    demo_data: Path = Path("data/demo")
    """Where a run without --data generates and keeps its images."""

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
            require(self, self.seed < 2**64, "seed", "below 2**64")  # the largest that PyTorch takes
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
            epochs = (0.0, *(self.lr_milestones or ()), math.inf)
            ascending = all(before < after for before, after in itertools.pairwise(epochs))
            require(self, ascending, "lr_milestones", "increasing numbers above 0")
            require(self, 0 < self.bad_files_limit <= 1, "bad_files_limit", "in (0, 1]")
            require(self, self.ema_decay is None or 0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)")


# Other names of options, by setting.
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

# What may differ between the processes of a run: mostly paths. The images are compared by their list of
# names, wherever they are, and the first weights are in the checkpoint.
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
# What may change when a run resumes: these options, where it stops, and how often it reports.
FREE_OPTIONS = OWN_OPTIONS | {"--log-every", "--checkpoint-every", "--max-steps"}


# Longer than torchrun takes to notice that a process has exited and to end the others.
_OTHERS_WAIT_SECONDS = 2.0


def complain(error: Exception, ranks: Ranks = Ranks()) -> None:
    """Print an error of the command line, once for all processes of a run.

    The main process prints it. Another process prints an error that it alone may have, after a pause: if the
    main one exits with the same error, torchrun ends the others first.
    """
    if not ranks.is_main:
        if IN_ALL in getattr(error, "__notes__", ()):
            return
        time.sleep(_OTHERS_WAIT_SECONDS * (1 if ranks.local_rank == 0 else 2))
    # An OSError without a file name has our own words: print those without the error number.
    words = error.strerror if isinstance(error, OSError) and error.filename is None else None
    print(f"train_imagenet.py: error: {words or error}", file=sys.stderr, flush=True)


def plain(error: BaseException) -> str:
    """A library's message as one line of plain text, without the colour codes that PyTorch adds."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return " ".join(text.split()) or type(error).__name__


def resolve(config: Config, ranks: Ranks = Ranks()) -> Config:
    """Replace None, and "auto" where no GPU has to be asked, by actual values; check the settings.

    Raises
    ------
    ValueError
        Names the option, its value and what is expected.
    """
    chosen: dict[str, Any] = {}
    if config.val_image_size is None:
        chosen["val_image_size"] = config.image_size
    if config.device != "cpu" and not _has_driver():
        require(config, config.device == "auto", "device", "cpu: this machine has no NVIDIA driver")
        chosen["device"] = "cpu"
    if config.workers is None:
        chosen["workers"] = min(8, max(1, usable_processors() // ranks.local_size))
    config = dataclasses.replace(config, **chosen)
    if config.amp == "auto" and config.device == "cpu":
        config = dataclasses.replace(config, amp=cpu_precision())
    _check_mixing(config)
    with as_options():
        config.augmentation.check_fits(config.image_size)
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
    """Check that the schedule changes only what the method has, and that the method can use the images."""
    method, schedule = config.mixing.entry, config.mix_schedule
    fits = not needs_model(config.mixing) or config.image_size % GRIDS[0] == 0
    require(config, fits, "image_size", f"even with --mix {method.name}")
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
    """Check settings that need or exclude each other, or need something installed."""
    if config.optimization.method == "lamb" and importlib.util.find_spec("timm") is None:
        raise ValueError("--optimizer must be sgd or adamw unless timm is installed; got lamb")
    require(
        config,
        config.batch_size % (ranks.size * config.accumulate) == 0,
        "batch_size",
        f"a multiple of the number of processes ({ranks.size})"
        + (f" times --accumulate {config.accumulate}" if config.accumulate > 1 else ""),
    )
    require(config, config.config is None or config.data is not None, "config", "used with --data")
    require(
        config,
        not config.eval_only or config.init_weights is not None,
        "eval_only",
        "used with --init-weights",
    )
    for name in ("init_entry", "new_classifier", "class_names"):
        fits = config.init_weights is not None or not getattr(config, name)
        require(config, fits, name, "used with --init-weights")
    require(
        config,
        not (config.new_classifier and config.eval_only),
        "new_classifier",
        "left out with --eval-only: a random classifier has learned no classes",
    )
    require(
        config,
        not (config.new_classifier and config.class_names),
        "class_names",
        "left out with --new-classifier, which ignores the classes of the weights",
    )
    require(config, not config.eval_only or config.resume is None, "resume", "left out with --eval-only")
    fits = config.lr_milestones is None or config.lr_schedule == "step"
    require(config, fits, "lr_milestones", "used with --lr-schedule step")
    fits = not config.ema_warmup or config.ema_decay is not None
    require(config, fits, "ema_warmup", "used with --ema-decay")
    require(
        config,
        not (config.compile and config.grad_checkpointing),
        "grad_checkpointing",
        "left out with --compile, which itself decides what to recompute",
    )
    check_device(config)


def _check_size(config: Config, ranks: Ranks) -> None:
    """Check for what is too large for this machine, as far as is known before the model is built."""
    require(config, (config.workers or 1) <= most_workers(), "workers", f"at most {most_workers()} here")
    if config.device != "cpu":  # the batches are on the GPU
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
    """Raise ValueError for what the chosen device cannot do; "auto" is still undecided."""
    require(config, config.device != "cpu" or not config.sync_bn, "sync_bn", "left out on the CPU")
    require(config, config.device != "cpu" or config.amp != "fp16", "amp", "none or bf16 on the CPU")


def _has_driver() -> bool:
    """Whether this machine has an NVIDIA driver; without one PyTorch need not be asked."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def cpu_precision() -> Literal["none", "bf16"]:
    """bf16 if the processor has instructions for it, which make it faster than float32; otherwise none."""
    flags = read_text("/proc/cpuinfo") or ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "none"
