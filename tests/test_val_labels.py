"""Labels for a val/ without class folders: every accepted form, and labels that do not match."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pipelines.folders import check_dataset, list_images
from tests.test_folders import tree

FIRST, SECOND, THIRD = (f"ILSVRC2012_val_{number:08d}" for number in (1, 2, 3))
HEADER = "ImageId,PredictionString\n"
CSV = HEADER + f"{SECOND},n02 1 2 3 4 \n{FIRST},n03 5 6 7 8 n03 1 2 3 4 \n{THIRD},n02 1 2 3 4\n"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tree(tmp_path / "val", f"{FIRST}.JPEG", f"{SECOND}.JPEG", f"{THIRD}.JPEG", "README.txt")


def found(root: Path, labels: Path, text: str | bytes) -> list[str]:
    """The class names of the images."""
    labels.write_bytes(text if isinstance(text, bytes) else text.encode())
    listing = list_images(root, val_labels=labels)
    assert list(listing.classes) == sorted(set(listing.classes))
    return [listing.classes[label] for label in listing.labels]


FORMS = {
    "csv": CSV,
    "csv with more images": CSV + "another,n9 1 2 3 4",
    "csv from Windows": "\ufeff" + CSV.replace("\n", "\r\n"),
    "a class a line": "n03\nn02\nn02\n",
    "image and class": f"{THIRD}.JPEG n02\n{FIRST}.JPEG n03\n{SECOND}.JPEG n02\n",
    "image, class and box": f"{THIRD}.JPEG\tn02\t0\t9\n{FIRST}.JPEG\tn03\t0\t9\n{SECOND}.JPEG\tn02\t0\t9\n",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, images: Path, tmp_path: Path) -> None:
    assert found(images, tmp_path / "labels", FORMS[form]) == ["n03", "n02", "n02"]


def test_class_names_that_are_not_utf8(images: Path, tmp_path: Path) -> None:
    assert found(images, tmp_path / "labels", b"caf\xe9\na\na") == [os.fsdecode(b"caf\xe9"), "a", "a"]


@pytest.mark.parametrize("kit", ["map_clsloc.txt", "meta.mat"])
def test_ilsvrc_class_ids(kit: str, images: Path, tmp_path: Path) -> None:
    """The ids of the development kit, which do not follow the order of class names."""
    if kit == "meta.mat":
        fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
        rows: Any = np.array([(1, "n09", "nine"), (2, "n03", "three"), (1860, "n00", "root")], fields)
        savemat(tmp_path / kit, {"synsets": rows})
    else:
        (tmp_path / kit).write_text("n09 1 nine\nn03 2 three\n")
    assert found(images, tmp_path / "labels", "2\n1\n1\n") == ["n03", "n09", "n09"]
    # The number in a file name is its line, so files may be missing.
    (images / f"{SECOND}.JPEG").unlink()
    assert found(images, tmp_path / "labels", "2\n1\n1\n") == ["n03", "n09"]
    with pytest.raises(ValueError, match=r"must have class ids .*; got 7 in "):
        found(images, tmp_path / "labels", "2\n7\n1\n")


def test_images_at_any_depth(tmp_path: Path) -> None:
    """As in Tiny ImageNet."""
    tree(tmp_path / "val", "images/val_1.JPEG", "images/val_0.JPEG")
    text = "val_0.JPEG\tb\t0\t0\t9\t9\nval_1.JPEG\ta\t0\t0\t9\t9\n"
    assert found(tmp_path / "val", tmp_path / "labels", text) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got {labels}, which is empty"),
        ("n1\nn2\n", r"must have a line for every image; got 2 lines in {labels} for images numbered 1 to 3"),
        (HEADER + f"{FIRST},n02 1 2 3 4\n",
         rf"must list every image; got {{labels}} without {SECOND}.JPEG and 1 more"),
        (HEADER + f"{FIRST},n02 1 2 3 4 n03 1 2 3 4\n", "objects of one class, .*; got '.*' in {labels}"),
        (HEADER + f"{FIRST},n02\n", "objects of one class, .*; got '.*' in {labels}"),
        (HEADER + f"{FIRST}\n", "objects of one class, .*; got '.*' in {labels}"),
        (f"{FIRST}.JPEG a\n{SECOND}.JPEG\n",
         rf"an image and its class in each line; got '{SECOND}.JPEG' in {{labels}}"),
        ("1\n2\n3\n", r"needs meta.mat or map_clsloc.txt of ILSVRC's development kit beside it"),
    ],
)  # fmt: skip
def test_labels_that_do_not_match(text: str, message: str, images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    with pytest.raises(ValueError, match=message.format(labels=re.escape(str(labels)))) as caught:
        found(images, labels, text)
    assert str(caught.value).startswith("--val-labels ")
    assert "\n" not in str(caught.value)


def test_a_damaged_kit(images: Path, tmp_path: Path) -> None:
    (tmp_path / "meta.mat").write_bytes(b"no MATLAB file" * 20)
    with pytest.raises(ValueError, match=r"needs the meta.mat .*; got .*meta.mat, which cannot be read"):
        found(images, tmp_path / "labels", "1\n2\n1\n")
    (tmp_path / "map_clsloc.txt").write_text("n01 one 1\n")
    with pytest.raises(ValueError, match=r"needs a map_clsloc.txt beside it with a class name and its id"):
        found(images, tmp_path / "labels", "1\n2\n1\n")


def test_other_images_and_no_images(tmp_path: Path) -> None:
    tree(tmp_path / "val", "b.png", "a.png")
    assert found(tmp_path / "val", tmp_path / "labels", "n1\nn2\n") == ["n1", "n2"]
    with pytest.raises(ValueError, match=r"one line per image \(2\); got 3 lines in "):
        found(tmp_path / "val", tmp_path / "labels", "n1\nn2\nn3\n")
    with pytest.raises(ValueError, match=r"needs images in .*; got none"):
        found(tree(tmp_path / "empty", "a.txt"), tmp_path / "labels", "n1\n")


def test_classes_are_matched_with_those_of_train(images: Path, tmp_path: Path) -> None:
    tree(tmp_path, "train/n02/1.png", "train/n03/1.png")
    (tmp_path / "labels").write_text("n03\nn02\nn02\n")
    train, val = check_dataset(tmp_path, val_labels=tmp_path / "labels")
    assert (val.classes, val.labels) == (train.classes, [1, 0, 0])
    (tmp_path / "labels").write_text("n03\nn02\nn07\n")
    with pytest.raises(ValueError, match="train without n07"):
        check_dataset(tmp_path, val_labels=tmp_path / "labels")
