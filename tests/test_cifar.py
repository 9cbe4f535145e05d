"""CIFAR's binary files: pixels and labels bit for bit, what is refused, failures while they are read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import check
from pipelines.datasets import check_dataset, list_class_names, list_source
from pipelines.folders import list_images
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.loader import DALILoader
from pipelines.records import Augmentation, Output
from pipelines.sources import Order, Source
from tests.devices import on_each_device
from tests.image_sets import CLASSES, TRAIN_LABELS, VAL_LABELS, indices, photo, pixels
from tests.sources import write_cifar10
from tests.training_runs import losses, status, train, without_clock
from training.bad_files import GuardedLoader, Quarantine
from training.config import Config
from training.inputs import list_dataset
from training.ranks import Ranks
from training.storage import Patience, StorageError

SAME: dict[str, Any] = {"batch_size": 4, "num_threads": 1, "output": Output(image_size=32)}
WHOLE = Augmentation(crop_area=(1, 1), crop_aspect_ratio=(1, 1), mirror_probability=0)
RECORD = 3073


def pictures(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, int]]:
    return [(photo(32, 32, seed + i), int(label)) for i, label in enumerate(labels)]


TRAIN, VAL = pictures(TRAIN_LABELS, 100), pictures(VAL_LABELS[::-1], 200)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the archive was unpacked: 23 training and 17 test images."""
    root = tmp_path_factory.mktemp("photographs")
    folder = root / "cifar-10-batches-bin"
    write_cifar10(folder, TRAIN, VAL, CLASSES)
    return root


@pytest.fixture
def copy(photographs: Path, tmp_path: Path) -> Path:
    """A copy of the files, to change."""
    return Path(shutil.copytree(photographs / "cifar-10-batches-bin", tmp_path / "cifar"))


# What is read


@on_each_device
def test_pixels_and_labels_are_exact(device: str, photographs: Path) -> None:
    """In the training and the validation pipeline; one batch of the former spans files."""
    batches = list(DALILoader(val_pipeline(photographs, resize_size=32, device=device, **SAME)))
    found = pixels(np.concatenate([images.cpu().numpy() for images, _ in batches]))
    exact = np.stack([image for image, _ in VAL]).transpose(0, 3, 1, 2)
    assert np.abs(found - exact).max() < 1e-3
    assert [int(label) for _, labels in batches for label in labels] == VAL_LABELS[::-1].tolist()

    pipeline = train_pipeline(
        photographs, mix="none", num_classes=3, seed=5, device=device, augmentation=WHOLE, **SAME
    )
    order = Order(size=23, batch_size=4, shuffle=True, seed=5)
    for number, (images, targets) in enumerate(DALILoader(pipeline)):
        chosen = order.positions(number)[: len(images)]
        exact = np.stack([TRAIN[i][0] for i in chosen]).transpose(0, 3, 1, 2)
        assert np.abs(pixels(images) - exact).max() < 1e-3
        assert targets.argmax(1).tolist() == TRAIN_LABELS[chosen].tolist()


def test_a_record_by_hand(tmp_path: Path) -> None:
    """Byte by byte, as the published description has it: red, green, blue, each row by row."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("apple\nbed\n\n")
    planes = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    coarse_and_fine = [bytes([19, 1]), bytes([7, 0])]
    data = b"".join(label + plane.tobytes() for label, plane in zip(coarse_and_fine, planes, strict=True))
    (folder / "train.bin").write_bytes(data)
    source = list_source(tmp_path, "train")
    assert source.classes == ("apple", "bed")
    assert source.labels_present == {0, 1}
    assert source.name(1) == f"{folder}/train.bin:1"
    header, pixels = source.encoded(0)[:-3072], np.frombuffer(source.encoded(0)[-3072:], np.uint8)
    assert header == b"P6\n32 32\n255\n"
    place = 5 * 32 + 7
    assert pixels.reshape(32, 32, 3)[5, 7].tolist() == [planes[0][place + 1024 * c] for c in range(3)]
    with pytest.raises(ValueError, match=r"CIFAR-100's binary version; got no test\.bin$"):
        check_dataset(tmp_path)


def test_names_and_digest(coded_cifar: Path, copy: Path) -> None:
    source = list_source(copy.parent / "cifar", "train")
    assert [source.name(position).removeprefix(f"{copy}/") for position in (0, 1, 3, 4, 22)] == [
        "data_batch_1.bin:0",
        "data_batch_2.bin:0",
        "data_batch_2.bin:2",
        "data_batch_3.bin:0",
        "data_batch_5.bin:7",
    ]
    assert source.digest() == list_source(coded_cifar, "train").digest()  # wherever they are
    (copy / "data_batch_1.bin").write_bytes(bytes([1]) + (copy / "data_batch_1.bin").read_bytes()[1:])
    assert list_source(copy, "train").digest() != source.digest()
    assert list_class_names(copy) == list(CLASSES)


def test_class_folders_come_first(coded: Path, copy: Path, tmp_path: Path) -> None:
    """Whatever lies beside train/ and val/; and one stray file does not make a folder of classes CIFAR."""
    mixed = shutil.copytree(coded, tmp_path / "mixed")
    shutil.copytree(copy, mixed / "cifar-10-batches-bin")
    assert check_dataset(mixed)[0].digest() == check_dataset(coded)[0].digest()
    shutil.copy(copy / "test_batch.bin", mixed / "train" / "test.bin")
    assert list_source(mixed / "train", "train") == list_images(mixed / "train")


def test_an_evaluation_lists_only_the_test_images(copy: Path) -> None:
    for number in range(1, 6):
        (copy / f"data_batch_{number}.bin").unlink()
    listing = list_dataset(Config(eval_only=True), copy, Ranks())
    assert {split: len(source) for split, source in listing.items()} == {"val": 17}


# What is refused


def remove(*names: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def change(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return rewrite


def two_data_sets(folder: Path) -> None:
    shutil.copytree(folder, folder / "cifar-10-batches-bin")


def python_version(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "cifar-10-batches-py").mkdir(parents=True)


# A change to the files, options, and the one line that follows.
REFUSED: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "no names": (
        remove("batches.meta.txt"),
        (),
        r"{data} must have the files of CIFAR-10's binary version; got no batches\.meta\.txt",
    ),
    "batches missing": (
        remove("data_batch_2.bin", "data_batch_5.bin"),
        (),
        r"{data} must have the files of .* version; got no data_batch_2\.bin, data_batch_5\.bin",
    ),
    "no test images": (
        remove("test_batch.bin"),
        (),
        r"{data} must have the files of .*; got no test_batch\.bin",
    ),
    "only one file": (
        remove("batches.meta.txt", *(f"data_batch_{number}.bin" for number in range(1, 6))),
        (),
        r"{data} must have the files of .*; got no batches\.meta\.txt, data_batch_1\.bin, .*",
    ),
    "cut file": (
        change("data_batch_3.bin", lambda data: data[:-1]),
        (),
        r"{data}/data_batch_3\.bin must hold whole records of 3073 bytes; got \d+ bytes",
    ),
    "empty file": (
        change("test_batch.bin", lambda data: b""),
        (),
        r"{data}/test_batch\.bin must hold whole records of 3073 bytes; got 0 bytes",
    ),
    "label out of range": (
        change("data_batch_4.bin", lambda data: data[:RECORD] + b"\x03" + data[RECORD + 1 :]),
        (),
        r"labels in {data}/data_batch_4\.bin must be in \[0, 3\), the names in batches\.meta\.txt; got 3 in"
        r" record 1",
    ),
    "empty names": (
        change("batches.meta.txt", lambda data: b"\n\n"),
        (),
        r"{data}/batches\.meta\.txt must have a class name per line; got none",
    ),
    "same name twice": (
        change("batches.meta.txt", lambda data: b"ant\nbee\nant\n"),
        (),
        r"{data}/batches\.meta\.txt: class names must differ by more than their Unicode form; got ant twice",
    ),
    "empty class": (
        change("batches.meta.txt", lambda data: data + b"dog\nelk\n"),
        (),
        r"data_batch_1\.bin, .* in {data} must have images of every class; got none of dog \(nor of 1"
        r" others\)\. --allow-empty-classes accepts empty classes",
    ),
    "two data sets": (
        two_data_sets,
        (),
        r"the data must be one data set; got {data} with two: give {data} or {data}/cifar-10-batches-bin",
    ),
    "Python version": (
        python_version,
        (),
        r"CIFAR must be the binary version, cifar-10-batches-bin or cifar-100-binary; got"
        r" {data}/cifar-10-batches-py, the Python version \(pickles can run code\)",
    ),
    "file list": (
        lambda folder: None,
        ("--file-list", "lists"),
        r"--file-list must not be given for CIFAR's binary files; got lists and {data}",
    ),
    "labels": (
        lambda folder: None,
        ("--val-labels", "labels.csv"),
        r"--val-labels must not be given for CIFAR's binary files; got labels\.csv and {data}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one line and status 2, before any output."""
    edit, options, line = REFUSED[case]
    edit(copy)
    assert status(copy, tmp_path / "run", *options) == 2
    error = capsys.readouterr().err.rstrip("\n")
    expected = line.replace("{data}", re.escape(str(copy)))
    assert re.fullmatch(f"train_imagenet.py: error: {expected}", error), error
    assert not (tmp_path / "run").exists()


def test_empty_classes_may_be_accepted(copy: Path) -> None:
    REFUSED["empty class"][0](copy)
    training, val = check_dataset(copy, allow_empty_classes=True)
    assert training.classes == val.classes == (*CLASSES, "dog", "elk")
    assert training.labels_present == val.labels_present == {0, 1, 2}


# Failures while they are read


def guarded(source: Source, folder: Path, patience: Patience) -> GuardedLoader:
    """A loader of the validation images, which waits for the storage."""
    order = Order(size=len(source), batch_size=4, shuffle=False)

    def make(images: Source, _: Any) -> DALILoader:
        output = Output(image_size=8)
        pipeline = val_pipeline(images, batch_size=4, num_threads=1, output=output, report_stand_ins=True)
        return DALILoader(pipeline, order=order)

    quarantine = Quarantine(folder / "quarantine.jsonl", skip=True, patience=patience)
    return GuardedLoader(source, make, order, quarantine, dict, resumable=False)


@pytest.mark.parametrize("failure", ["no such file", "file has become shorter"])
def test_a_file_that_cannot_be_read(
    failure: str, coded_cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds many images: no image is bad, and the loader waits until the file is back."""
    folder = Path(shutil.copytree(coded_cifar, tmp_path / "cifar"))
    file = folder / "test_batch.bin"
    whole = file.read_bytes()
    source = list_source(folder, "val")
    file.write_bytes(whole[: 9 * RECORD + 100])
    if failure == "no such file":
        file.unlink()
    with pytest.raises(StorageError, match=re.escape(f"cannot read {folder}: {failure} ({file})")):
        list(guarded(source, tmp_path, Patience(0)))

    def put_back() -> bool:
        file.write_bytes(whole)
        return False

    loader = guarded(source, tmp_path, Patience(60, interrupted=put_back))  # called when it waits
    assert [i for images, _ in loader for i in indices(images)] == list(range(len(VAL_LABELS)))
    assert "storage: back after" in capsys.readouterr().err
    assert not (tmp_path / "quarantine.jsonl").exists()


# The trainer and the check


@pytest.mark.usefixtures("plain_model")
def test_trainer(photographs: Path, tmp_path: Path) -> None:
    """Resumes bit for bit."""
    extra = ["--image-size", 32, "--mix", "hmix", "--checkpoint-every", 1, "--keep", 9]
    whole = train(photographs, tmp_path / "whole", *extra)
    assert len(losses(whole)) == 4
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000001.pt"
    assert status(photographs, tmp_path / "resumed", *extra, "--resume", checkpoint) == 0
    assert without_clock(tmp_path / "resumed") == without_clock(tmp_path / "whole")


def test_check(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts, duplicates and empty classes; a second check decodes only a file that changed."""
    first = (copy / "data_batch_1.bin").read_bytes()[:RECORD]
    tests = (copy / "test_batch.bin").read_bytes()
    (copy / "test_batch.bin").write_bytes(tests + first)
    (copy / "batches.meta.txt").write_text("ant\nbee\ncat\ndog\n")
    command = [str(copy), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert check.main(command) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["decoded"] == {"train": 23, "val": 18}
    assert report["in_train_and_val"] == [{"train": ["data_batch_1.bin:0"], "val": ["test_batch.bin:17"]}]
    assert report["empty_classes"] == {"train": ["dog"], "val": ["dog"]}
    assert report["warnings"] == {"train": {}, "val": {}}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "state.jsonl"}
    assert f"Report: {tmp_path / 'out'}\n" in capsys.readouterr().out
    (copy / "test_batch.bin").write_bytes(tests)
    assert check.main([*command, "--allow-empty-classes"]) == 0
    assert "23 of 40 files were already checked." in capsys.readouterr().out
    assert check.main([*command, "--val-labels", "labels.csv"]) == 2
    assert "--val-labels must not be given for CIFAR's binary files" in capsys.readouterr().err
