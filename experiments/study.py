"""Does mixing help a small network that overfits? A study on real images, on a CPU.

python -m experiments.study --data DIR [--seeds 5]
python -m experiments.study --quick
python -m experiments.study --data DIR --report     tables and figure of the runs that are there

DIR has train/ and val/ (or test/), class folders of images. Small residual networks are trained on a part of
train/ through the DALI pipeline, with every method and several seeds, one process per core. In the first
part the methods are compared. In the second, as in the paper's Table 1, Mixup and CutMix are compared at
random crops of 80-100 % and of 25-40 % of the image. A seed fixes the initial weights and the order of
the images, so methods are compared seed by seed.

Each run's result and network are in --output as soon as it ends. A stopped study continues where it
was when it is started again, inside a run too; with more --seeds, only the new ones are trained.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from dali_msda.methods import TABLE
from dali_msda.mixing import Mixing
from dali_msda.processors import usable_processors
from experiments.networks import STUDY_VERSION
from experiments.small_networks import Recipe, Training, evaluate, find_split, some_of_each
from experiments.study_report import SUMMARY, report
from pipelines.constants import MEAN, STD
from pipelines.demo_data import make_demo_dataset
from pipelines.files import replace_whole, write_whole
from pipelines.folders import ImageFolder, list_images
from training.machine import describe_code

METHODS = ("none", "mixup", "cutmix", "stochastic", "hmix", "gmix")
CROPS = {"large": (0.8, 1.0), "small": (0.25, 0.4)}
"""Shares of the area, by name: those of the paper's Table 1."""
FOLDER = Path("outputs/study")
SAVE_EVERY = 20.0
"""Seconds between the saved states of a run."""


class Key(NamedTuple):
    """A run."""

    method: str
    crop: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.crop}-{self.seed}"


class Amount(NamedTuple):
    """How much is trained."""

    per_class: int
    """Training images of each class."""
    recipe: Recipe


# Chosen with no mixing and Mixup alone, on a seed that the study does not use: see docs/study.md.
WHOLE = Amount(100, Recipe(network="resnet8", width=32, epochs=250, batch_size=50, weight_decay=1e-3))
QUICK = Amount(6, Recipe(network="resnet8", width=4, epochs=2, batch_size=20))


@dataclass(frozen=True)
class Plan:
    """All that a run needs besides its key; goes to other processes."""

    output: Path
    training: ImageFolder
    validation: ImageFolder
    recipe: Recipe

    def settings(self) -> dict[str, Any]:
        """What results must have in common to be compared."""
        recipe = dataclasses.asdict(self.recipe)
        del recipe["crop_area"]  # each run's own
        images = {"training": self.training, "validation": self.validation}
        return {
            "recipe": recipe,
            "images": {name: {"count": len(of), "digest": of.digest()} for name, of in images.items()},
        }

    def result(self, key: Key) -> Path:
        return self.output / "runs" / f"{key.name}.json"

    def network(self, key: Key) -> Path:
        return self.output / "networks" / f"{key.name}.pt"

    def state(self, key: Key) -> Path:
        return self.output / "states" / f"{key.name}.pt"


def cifar_mixing(method: str) -> Mixing:
    """A method with the paper's values for CIFAR-100 (section 5)."""
    values = {it.name: it.cifar100 for it in TABLE[method].arguments if it.cifar100 is not None}
    return Mixing(method, arguments=values)


def keys(seeds: int, part: str) -> list[Key]:
    """All runs, seed by seed, so that a stopped study has as many of each kind."""
    found = []
    for seed in range(seeds):
        if part != "crops":
            found += [Key(method, "large", seed) for method in METHODS]
        if part != "methods":
            found += [Key(method, crop, seed) for crop in CROPS for method in ("none", "mixup", "cutmix")]
    return list(dict.fromkeys(found))


# -- One run ------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The study was asked to stop; the run's state is saved."""


def run(plan: Plan, key: Key) -> None:
    """Train and measure one network; write its result, and the network before it.

    Raises
    ------
    Stopped
        Before the end.
    """
    if _is_stopping():
        raise Stopped
    recipe = dataclasses.replace(plan.recipe, crop_area=CROPS[key.crop])
    saved: dict[str, Any] = {"training": None, "losses": [], "seconds": [], "cpu_seconds": []}
    if plan.state(key).is_file():
        # With DALI's checkpoint, which is bytes. The study wrote the file itself.
        saved = torch.load(plan.state(key), weights_only=True)
    training = Training(
        plan.training, cifar_mixing(key.method), key.seed, recipe, threads=1, state=saved["training"]
    )
    losses, wall, cpu = saved["losses"], saved["seconds"], saved["cpu_seconds"]
    last_saved = time.monotonic()
    while training.epoch < recipe.epochs:
        stopping = _is_stopping()
        if stopping or time.monotonic() - last_saved > SAVE_EVERY:
            saved = {"training": training.state(), "losses": losses, "seconds": wall, "cpu_seconds": cpu}
            replace_whole(plan.state(key), lambda path, saved=saved: torch.save(saved, path))  # type: ignore[misc]
            last_saved = time.monotonic()
        if stopping:
            raise Stopped
        start, start_cpu = time.perf_counter(), time.process_time()
        losses.append(training.run_epoch())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        _report_epoch(key)
    result = {
        **key._asdict(),
        "arguments": cifar_mixing(key.method).arguments,
        "settings": plan.settings(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **describe_code(),
        "training": evaluate(training.model, plan.training, recipe, threads=1),
        "validation": evaluate(training.model, plan.validation, recipe, threads=1),
        "losses": losses,
        "epoch_seconds": sorted(wall)[len(wall) // 2],
        "epoch_cpu_seconds": sorted(cpu)[len(cpu) // 2],
    }
    content = {
        "study": STUDY_VERSION,
        **key._asdict(),
        "recipe": dataclasses.asdict(recipe),
        "classes": list(plan.training.classes),
        "image_size": recipe.image_size,
        "arch": recipe.network,
        "arch_settings": {"width": recipe.width},
        "mean": list(MEAN),
        "std": list(STD),
        "model": training.model.state_dict(),
    }
    replace_whole(plan.network(key), lambda path: torch.save(content, path))
    write_whole(plan.result(key), (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    plan.state(key).unlink(missing_ok=True)


# -- A process that runs ------------------------------------------------------------------------------

_stop: Event | None = None
_epochs: Queue[Key] | None = None


def _start_process(stop: Event, epochs: Queue[Key]) -> None:
    """Prepare a process: one thread, and a terminal's Ctrl-C is left to the parent."""
    global _stop, _epochs
    _stop, _epochs = stop, epochs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _is_stopping() -> bool:
    parent = multiprocessing.parent_process()
    return (_stop is not None and _stop.is_set()) or (parent is not None and not parent.is_alive())


def _report_epoch(key: Key) -> None:
    if _epochs is not None:
        _epochs.put(key)


# -- All runs -----------------------------------------------------------------------------------------


def run_all(plan: Plan, missing: Sequence[Key], workers: int) -> bool:
    """Run what is missing, several at a time; return whether all ended, or a signal stopped them."""
    for folder in ("runs", "networks", "states"):
        (plan.output / folder).mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    epochs: Queue[Key] = context.Queue()
    done = sum(_epochs_done(plan, key) for key in missing)
    total = len(missing) * plan.recipe.epochs
    with (
        _one_thread(),
        _stopping_on_signals(stop),
        tqdm(total=total, initial=done, desc="epochs", file=sys.stderr, smoothing=0.02) as bar,
        ProcessPoolExecutor(min(workers, len(missing)), context, _start_process, (stop, epochs)) as pool,
    ):
        futures = {pool.submit(run, plan, key): key for key in missing}
        waiting = set(futures)
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
                with contextlib.suppress(Empty):
                    while True:
                        epochs.get_nowait()
                        bar.update()
                rate = bar.format_dict["rate"]
                if rate:
                    end = datetime.now() + timedelta(seconds=(total - bar.n) / rate)
                    bar.set_postfix_str(f"ends about {end:%H:%M}")
                for future in ended:
                    future.result()
        except Stopped:
            return False
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return True


def _epochs_done(plan: Plan, key: Key) -> int:
    if not plan.state(key).is_file():
        return 0
    return len(torch.load(plan.state(key), weights_only=True)["losses"])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries of the processes that start here use one thread each: they read this as they load."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _stopping_on_signals(stop: Event) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a request to the runs, which end after their epoch."""
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_results(plan: Plan, wanted: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """The results that are there.

    Raises
    ------
    ValueError
        One is from a study with other settings.
    """
    settings = plan.settings()
    found = {}
    for key in wanted:
        if not plan.result(key).is_file():
            continue
        result = json.loads(plan.result(key).read_text())
        if result["settings"] != settings:
            raise ValueError(
                f"--output must be a folder of this study; {plan.result(key)} has other settings or images"
            )
        found[key] = result
    return found


# -- Command line -------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the options."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; needed without --quick")
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"folder; default: {FOLDER}")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind; default: 5")
    parser.add_argument(
        "--part", choices=("all", "methods", "crops"), default="all", help="what to compare; default: all"
    )
    parser.add_argument("--workers", type=int, help="runs at a time; default: one per core")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that everything runs")
    options = parser.parse_args(arguments)
    for name in ("seeds", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1; got {value}")
    if options.data is None and not options.quick:
        parser.error("--data must be a folder with train/ and val/; got none, and no --quick")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and report; return 0, or 130 if stopped."""
    options = parse(arguments)
    amount = QUICK if options.quick else WHOLE
    with tempfile.TemporaryDirectory() as temporary:
        data: Path = options.data or make_demo_dataset(
            Path(temporary) / "demo", train_per_class=amount.per_class, val_per_class=2
        )
        try:
            plan = Plan(
                options.output,
                some_of_each(list_images(find_split(data, ("train",))), amount.per_class),
                list_images(find_split(data, ("val", "test"))),
                amount.recipe,
            )
            if plan.training.classes != plan.validation.classes:
                raise ValueError("--data must have the same classes in both folders")
            wanted = keys(options.seeds, options.part)
            results = read_results(plan, wanted)
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from None
        missing = [key for key in wanted if key not in results]
        workers = options.workers or usable_processors()
        finished = options.report or not missing or run_all(plan, missing, workers)
        results = read_results(plan, wanted)
    if results:
        report(list(results.values()), plan.settings(), options.output)
        print(f"wrote {options.output / SUMMARY} and its figure: {len(results)} of {len(wanted)} runs")
    if not finished:
        print("stopped; the same command continues", file=sys.stderr)
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
