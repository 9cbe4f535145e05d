"""Files and folders as users have them: what is accepted, skipped or rejected, and the messages.

Each situation is a change to a good data set, made on disk. A rejected data set leaves no output.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

import train_imagenet
from pipelines.names import shown
from tests.checking import run as check
from tests.image_sets import CLASSES, TRAIN_COUNTS, VAL_COUNTS
from tests.trainer_process import Trainer

SETTINGS = ["--image-size", "8", "--batch-size", "4", "--epochs", "1", "--mix", "none"]
SETTINGS += ["--device", "cpu", "--amp", "none", "--workers", "1", "--warmup-epochs", "0"]
LATIN1 = os.fsdecode(b"caf\xe9")
NFC, NFD = "\u00e9tui", "e\u0301tui"
IMAGES, VAL_IMAGES = sum(TRAIN_COUNTS), sum(VAL_COUNTS)


def rename(folder: Path, change: Callable[[str], str]) -> None:
    for path in sorted(folder.iterdir()):
        path.rename(folder / change(path.name))


# Changes to the data set. Those that keep all images must give the same run.


def untouched(data: Path) -> None:
    pass


def nested_images(data: Path) -> None:
    for split in ("train", "val"):
        deep = data / split / "ant" / "2024" / "camera 1"
        deep.mkdir(parents=True)
        for path in list((data / split / "ant").glob("*.*"))[1:]:
            path.rename(deep / path.name)


def other_extensions(data: Path) -> None:
    rename(data / "train" / "ant", lambda name: name.replace(".JPEG", ".JfiF"))
    rename(data / "val" / "bee", lambda name: name.replace(".JPEG", ".jpe"))


def files_that_are_not_images(data: Path) -> None:
    for number in range(9):
        (data / "train" / "ant" / f"{number}.AVIF").touch()
    for number in range(3):
        (data / "train" / "cat" / f"{number}.gif").touch()
    (data / "train" / "README.txt").touch()
    (data / "train" / "cat" / ".DS_Store").touch()
    (data / "val" / "bee" / "Thumbs.db").touch()
    (data / "val" / "bee" / "frame.0001").touch()
    shutil.copy(data / "val" / "ant" / "000.JPEG", data / "val" / "stray.JPEG")


def system_folders(data: Path) -> None:
    for name in ("@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN"):
        for folder in (data / "train", data / "train" / "ant"):
            shutil.copytree(data / "train" / "bee", folder / name)


def broken_links(data: Path) -> None:
    ant = data / "train" / "ant"
    (ant / "itself.png").symlink_to("itself.png")
    (ant / "first").symlink_to("second")
    (ant / "second").symlink_to("first")
    (ant / "gone.png").symlink_to("nowhere")
    (ant / "up").symlink_to("..")
    (ant / "far up").symlink_to(data.parent)
    (ant / "too long").symlink_to("x" * 300)  # stat fails, also for root
    (data / "train" / "class").symlink_to("class")
    (data / "train" / "all").symlink_to(".")


def names_that_are_not_utf8(data: Path) -> None:
    for split in ("train", "val"):
        rename(data / split / "bee", lambda name: name.replace("0", LATIN1))
        (data / split / "cat").rename(data / split / f"c{LATIN1}")
    (data / "train" / "ant" / f"{LATIN1}.png").write_bytes(b"no image")


def two_unicode_forms(data: Path) -> None:
    (data / "train" / "bee").rename(data / "train" / NFC)
    (data / "val" / "bee").rename(data / "val" / NFD)


def an_empty_class(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "bat").mkdir()
        (data / split / "bat" / "1.gif").touch()


def one_class_twice(data: Path) -> None:
    for name in (NFC, NFD):
        shutil.copytree(data / "train" / "bee", data / "train" / name)


def no_images_at_all(data: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(data / split)
        (data / split / "ant").mkdir(parents=True)


def flat(data: Path, ids: bool = False) -> None:
    """Like ILSVRC's validation images: classes are in a file."""
    rows, numbers = ["ImageId,PredictionString"], []
    number = 0
    for label, name in enumerate(CLASSES):
        for path in sorted((data / "val" / name).iterdir()):
            number += 1
            stem = f"ILSVRC2012_val_{number:08d}"
            path.rename(data / "val" / f"{stem}.JPEG")
            rows.append(f"{stem},{name} 1 2 3 4 {name} 5 6 7 8 ")
            numbers.append((2, 3, 1)[label])  # ILSVRC's ids do not follow the order of class names
        (data / "val" / name).rmdir()
    if ids:
        (data / "truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    else:
        (data / "labels.csv").write_text("\n".join(rows))


def flat_with_ids(data: Path) -> None:
    flat(data, ids=True)


def flat_with_meta(data: Path) -> None:
    flat(data, ids=True)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(1, "cat", "a cat", 0), (2, "ant", "an ant", 0), (3, "bee", "a bee", 0), (4, "all", "all", 3)]
    savemat(data / "meta.mat", {"synsets": np.array(rows, fields)})


CSV, TRUTH = ("--val-labels", "labels.csv"), ("--val-labels", "truth.txt")


@dataclass(frozen=True)
class Situation:
    """A change to a data set, and what a run on it must print and write.

    Attributes
    ----------
    change : callable
    line : str
        A regular expression that a line of the output matches; {data} is the folder.
    options : tuple of str
        Names of files in them are relative to the data set.
    status : int
    left_out : dict
        For train/ and val/, in config.json.
    quarantined : tuple of str
        Paths below the data set.
    """

    change: Callable[[Path], None]
    line: str
    options: tuple[str, ...] = ()
    status: int = 0
    left_out: tuple[dict[str, int], dict[str, int]] = ({}, {})
    quarantined: tuple[str, ...] = ()


def run_line(count: int) -> str:
    return rf"resnet50 on {IMAGES} training and {VAL_IMAGES} validation images of {count} classes, .*"


ACCEPTED = [
    Situation(nested_images, run_line(3)),
    Situation(other_extensions, run_line(3)),
    Situation(
        files_that_are_not_images,
        r"Left out of train/: 9 \.avif, 3 \.gif; val/: 1 \.db, 1 file without extension, 1 stray image",
        left_out=({".avif": 9, ".gif": 3}, {".db": 1, "file without extension": 1, "stray image": 1}),
    ),
    Situation(system_folders, run_line(3)),
    Situation(broken_links, r"Left out of train/: 9 broken links", left_out=({"broken link": 9}, {})),
    Situation(
        names_that_are_not_utf8,
        run_line(3).replace(str(IMAGES), str(IMAGES + 1)),
        quarantined=(r"train/ant/caf\xe9.png",),
    ),
    Situation(two_unicode_forms, run_line(3)),
    Situation(
        an_empty_class,
        run_line(4).replace("classes,", r"classes \(val/: 3 of 4 classes, the logits of the others kept\),"),
        ("--allow-empty-classes",),
        left_out=({".gif": 1}, {".gif": 1}),
    ),
    Situation(flat, run_line(3), CSV),
    Situation(flat_with_meta, run_line(3), TRUTH),
]
REJECTED = [
    Situation(
        an_empty_class,
        r"class folder {data}/train/bat must have images; got none; skipped in {data}/train: 1 \.gif\."
        r" --allow-empty-classes accepts empty classes",
    ),
    Situation(
        no_images_at_all,
        r"class folders of {data}/train must have images; got none",
        ("--allow-empty-classes",),
    ),
    Situation(
        one_class_twice,
        rf"class folders must have different names; got {NFC} twice in {{data}}/train, in two Unicode"
        r" forms \(NFC and NFD\): move the images of one into the other",
    ),
    Situation(
        flat,
        r"{data}/val must have one folder per class; got 17 images and no folders\. Move the images"
        r" into class folders, or give labels for val/ as --val-labels: LOC_val_solution\.csv of .*",
    ),
    Situation(
        flat_with_ids,
        r"--val-labels with class ids needs meta\.mat or map_clsloc\.txt of ILSVRC's development kit .*;"
        r" got neither in {data} \(or use LOC_val_solution\.csv, which has class names\)",
        TRUTH,
    ),
    Situation(untouched, r"--val-labels must be .*; got {data}/labels\.csv \(no such file\)", CSV),
]


def situation_id(situation: Situation) -> str:
    return " ".join((situation.change.__name__, *situation.options[:1]))


def prepare(situation: Situation, coded: Path, root: Path) -> tuple[Path, list[str]]:
    """Make the changed data set; returns it and the options of a run on it."""
    data = root / "data"
    shutil.copytree(coded, data)
    situation.change(data)
    files = {"labels.csv", "truth.txt"}
    options = [str(data / word) if word in files else word for word in situation.options]
    return data, ["--data", str(data), "--output", str(root / "run"), *SETTINGS, *options]


def has_line(text: str, situation: Situation, data: Path, before: str = "") -> bool:
    expected = situation.line.format(data=re.escape(str(data))) if situation.status else situation.line
    return any(re.fullmatch(before + expected, line) for line in text.splitlines())


@pytest.mark.parametrize("situation", ACCEPTED, ids=situation_id)
def test_accepted(situation: Situation, trainer: Trainer, coded: Path, tmp_path: Path) -> None:
    data, command = prepare(situation, coded, tmp_path)
    outcome = trainer.run(*command, record=tmp_path, model="plain")
    assert outcome.statuses == [0], outcome.said
    assert has_line(outcome.said, situation, data), outcome.said
    seen = json.loads((tmp_path / "0.json").read_text())
    # Whatever their names and folders, the images are those of the original set.
    assert sorted(seen["val"][0]) == list(range(VAL_IMAGES))
    assert len(set(seen["train"][0])) == len(seen["train"][0]) >= IMAGES - IMAGES % 4 - 1
    config = json.loads((tmp_path / "run" / "config.json").read_bytes().decode())
    assert config["left_out"] == dict(zip(("train", "val"), situation.left_out, strict=True))
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()] if quarantine.exists() else []
    assert [line["path"] for line in lines] == [f"{data}/{name}" for name in situation.quarantined]


@pytest.mark.parametrize("situation", REJECTED, ids=situation_id)
def test_rejected(
    situation: Situation, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one line and status 2, before any output."""
    data, command = prepare(situation, coded, tmp_path)
    assert train_imagenet.main(command) == 2
    expected = situation.line.replace("{data}", re.escape(str(data)))
    error = capsys.readouterr().err.rstrip("\n")
    assert re.fullmatch(f"train_imagenet.py: error: {expected}", error), error
    assert not (tmp_path / "run").exists()


def test_the_run_is_the_same(trainer: Trainer, coded: Path, tmp_path: Path) -> None:
    """Bit for bit, whether labels of val/ come from folders or a file, whatever the file names."""
    losses = []
    for number, change in enumerate((untouched, flat, names_that_are_not_utf8)):
        root = tmp_path / str(number)
        root.mkdir()
        situation = Situation(change, "", CSV if change is flat else ())
        data, command = prepare(situation, coded, root)
        (data / "train" / "ant" / f"{LATIN1}.png").unlink(missing_ok=True)
        outcome = trainer.run(*command, model="plain")
        assert outcome.statuses == [0], outcome.said
        lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    assert len(losses[0]) == 2  # training and evaluation
    assert losses[1] == losses[0]
    assert losses[2] == losses[0]


def everything(data: Path) -> None:
    for change in (nested_images, files_that_are_not_images, broken_links, system_folders):
        change(data)
    names_that_are_not_utf8(data)


def test_the_check_reports_everything(coded: Path, tmp_path: Path) -> None:
    """And its lists have the original bytes of names."""
    data, _ = prepare(Situation(everything, ""), coded, tmp_path)
    status, report = check(data, tmp_path / "out")
    assert status == 1
    unusable = dict(report["unusable"]["train"])
    assert unusable.pop(r"ant/caf\xe9.png").startswith("unknown content, b'no image'")
    assert unusable.pop("ant/gone.png") == "broken link"
    assert unusable.pop("all") == unusable.pop("ant/up") == "link to a folder that contains it"
    assert unusable.pop("ant/itself.png") == "broken link (Too many levels of symbolic links)"
    assert len(unusable) == 5
    assert report["left_out"]["train"] == {"broken link": 9, ".avif": 9, ".gif": 3}
    assert report["decoded"] == {"train": IMAGES, "val": VAL_IMAGES}
    assert set(report["classes"]["train"]) == {"ant", "bee", r"ccaf\xe9"}
    listed = (tmp_path / "out" / "val.txt").read_bytes()
    assert rb"\x" not in listed
    assert sum(b"caf\xe9" in line for line in listed.splitlines()) == VAL_COUNTS[1] + VAL_COUNTS[2]
    # A second check decodes no file again.
    json.loads((tmp_path / "out" / "report.json").read_bytes().decode())
    state = (tmp_path / "out" / "state.jsonl").read_bytes()
    assert check(data, tmp_path / "out") == (1, report)
    assert (tmp_path / "out" / "state.jsonl").read_bytes() == state


def test_the_check_accepts_a_flat_val(coded: Path, tmp_path: Path) -> None:
    data, _ = prepare(Situation(flat, ""), coded, tmp_path)
    empty_class_in_train = data / "train" / "bat"
    empty_class_in_train.mkdir()
    options = ("--val-labels", str(data / "labels.csv"))
    status, report = check(data, tmp_path / "out", *options, "--allow-empty-classes")
    assert {name: it["decoded"] for name, it in report["classes"]["val"].items()} == dict(
        zip(CLASSES, VAL_COUNTS, strict=True)
    )
    assert report["missing_classes"] == {"train": [], "val": ["bat"]}
    assert report["empty_classes"]["train"] == ["bat"]
    assert status == 1


def test_data_and_output_folders_that_are_not_utf8(trainer: Trainer, coded: Path, tmp_path: Path) -> None:
    data, output = tmp_path / f"d{LATIN1}", tmp_path / f"o{LATIN1}"
    shutil.copytree(coded, data)
    outcome = trainer.run("--data", data, "--output", output, *SETTINGS, model="plain")
    assert outcome.statuses == [0], outcome.said
    assert f"Results: {shown(output)}" in outcome.said
    config: Any = json.loads((output / "config.json").read_bytes().decode())
    assert config["settings"]["data"] == shown(data)
