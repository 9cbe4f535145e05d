"""Small image sets, made once and never changed; and runs of the trainer."""

from __future__ import annotations

import os

# Tests run in parallel, each with one thread: threads that wait for each other on busy cores make PyTorch
# many times slower, and their number changes sums. Set before PyTorch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import devices
from tests.image_sets import (
    CLASSES,
    TRAIN_COUNTS,
    TRAIN_LABELS,
    VAL_COUNTS,
    VAL_LABELS,
    photo,
    plain,
    write_split,
)
from tests.sources import write_cifar10
from tests.trainer_process import Trainer, plain_classifier

# Under nohup, or in the background of a script, signals are ignored, and child processes inherit that: tests
# of signals could not stop a run. A handler is not inherited: an empty one restores the default in children.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def pytest_configure(config: pytest.Config) -> None:
    """With ``-m gpu``, a missing package disables only the tests that import it."""
    if config.getoption("markexpr") == "gpu":
        config.option.continue_on_collection_errors = True


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m gpu``, collect only files with devices: other tests may need packages that are missing."""
    if config.getoption("markexpr") != "gpu" or not collection_path.name.startswith("test_"):
        return None
    return None if _uses_devices(collection_path) else True


def _uses_devices(path: Path) -> bool:
    return "from tests.devices import" in path.read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU if there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if unseen := {item.path.name for item in on_gpu if not _uses_devices(item.path)}:
        raise pytest.UsageError(f"-m gpu would not find {unseen}: get the device from tests.devices")
    if on_gpu and (reason := devices.missing()):
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 training and 17 validation images of three classes; each has the colour of its index."""
    root = tmp_path_factory.mktemp("coded")
    write_split(root / "train", TRAIN_COUNTS, plain)
    write_split(root / "val", VAL_COUNTS, plain)
    return root


@pytest.fixture(scope="session")
def coded_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 23 and 17 images as CIFAR-10's binary files, 32 x 32 pixels."""

    def images(labels: np.ndarray) -> list[tuple[np.ndarray, int]]:
        return [(np.asarray(plain(i).resize((32, 32))), int(label)) for i, label in enumerate(labels)]

    root = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    return write_cifar10(root, images(TRAIN_LABELS), images(VAL_LABELS), CLASSES)


@pytest.fixture(scope="session")
def primaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with four images each, plain red, green and blue."""
    root = tmp_path_factory.mktemp("primaries")
    for position, name in enumerate(CLASSES):
        (root / name).mkdir()
        color = tuple(np.eye(3, dtype=int)[position] * 255)
        for i in range(4):
            Image.new("RGB", (40, 30 + i), color).save(root / name / f"{i}.png")
    return root


def _copies(root: Path, image: np.ndarray, count: int) -> Path:
    (root / "same").mkdir()
    Image.fromarray(image).save(root / "same" / "000.png")
    for i in range(1, count):
        (root / "same" / f"{i:03d}.png").hardlink_to(root / "same" / "000.png")
    return root


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images with a dark left and a bright right half."""
    image = np.full((32, 32, 3), 20, np.uint8)
    image[:, 16:] = 235
    return _copies(tmp_path_factory.mktemp("halves"), image, 64)


@pytest.fixture(scope="session")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images with the column in red and the row in green."""
    rows, columns = np.mgrid[0:256, 0:256]
    image = np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8)
    return _copies(tmp_path_factory.mktemp("ramps"), image, 64)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 17 validation photos of three classes."""
    root = tmp_path_factory.mktemp("photos")
    for split, counts in (("train", (9, 8, 7)), ("val", VAL_COUNTS)):
        write_split(root / split, counts, lambda index, _: Image.fromarray(photo(40 + index, 50, index)))
    return root


@pytest.fixture(scope="session")
def trainer() -> Iterator[Trainer]:
    """A process that runs the trainer in child processes."""
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture
def plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the trainer use a small model, without BatchNorm and dropout."""
    monkeypatch.setattr("training.learner.build_model", plain_classifier)
