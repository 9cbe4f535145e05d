"""What is listed in class folders, and one clear error for each thing that can be wrong with them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder as TorchImageFolder

from pipelines.folders import check_dataset, find_split_folder, list_images
from pipelines.formats import EXTENSIONS
from pipelines.listing import describe
from tests.image_sets import CLASSES, TRAIN_COUNTS, VAL_COUNTS


def tree(root: Path, *files: str) -> Path:
    """Make empty files below `root`; a name that ends in a slash is a folder."""
    for name in files:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return root


def error(root: Path, names: Path) -> str:
    """The message of check_dataset's ValueError, which must name the folder `names` in one line."""
    with pytest.raises(ValueError, match=re.escape(str(names))) as caught:
        check_dataset(root)
    # The folder itself, not a subfolder.
    assert re.search(re.escape(str(names)) + r"(?![\w/])", str(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lists_what_torchvision_lists(coded: Path) -> None:
    for split, counts in (("train", TRAIN_COUNTS), ("val", VAL_COUNTS)):
        found, expected = list_images(coded / split), TorchImageFolder(coded / split)
        assert found.root == coded / split
        assert list(found.classes) == expected.classes
        assert [str(found.root / name) for name in found.files] == [path for path, _ in expected.samples]
        assert found.labels == expected.targets
        assert found.classes == CLASSES
        assert tuple(map(found.labels.count, range(3))) == counts


def test_files_are_in_the_order_of_names(tmp_path: Path) -> None:
    """By code points: capitals first, 10 before 9, class by class."""
    tree(tmp_path, "b/2.jpg", "b/10.jpg", "a/z.png", "B/1.jpg", "10/x.jpg", "9/x.jpg", "b/A.jpg")
    found = list_images(tmp_path)
    assert found.classes == ("10", "9", "B", "a", "b")
    assert found.files == ["10/x.jpg", "9/x.jpg", "B/1.jpg", "a/z.png", "b/10.jpg", "b/2.jpg", "b/A.jpg"]
    assert found.labels == [0, 1, 2, 3, 4, 4, 4]


def test_other_files_are_skipped(tmp_path: Path) -> None:
    tree(
        tmp_path,
        ".cache/x.jpg", "README.txt", "stray.jpg",
        "a/1.jpg", "a/.2.jpg", "a/._1.jpg", "a/.DS_Store",
        "a/notes.txt", "a/jpg", "a/1.jpg.txt", "a/folder.jpg/", "a/deeper/3.jpg",
    )  # fmt: skip
    found = list_images(tmp_path)
    assert (found.classes, found.files, found.labels) == (("a",), ["a/1.jpg", "a/deeper/3.jpg"], [0, 0])


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_extensions_in_any_case(extension: str, tmp_path: Path) -> None:
    names = [f"{i}{variant}" for i, variant in enumerate((extension, extension.upper(), extension.title()))]
    tree(tmp_path, *(f"a/{name}" for name in names))
    assert list_images(tmp_path).files == [f"a/{name}" for name in names]


def test_nested_images_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "b/x/1.jpg", "b/x-y/1.jpg", "b/x/y/1.jpg", "b/2.jpg", "b/y.jpg", "b/x.jpg/3.jpg",
        "a/deep/er/still/1.png",
    )  # fmt: skip
    found, expected = list_images(tmp_path), TorchImageFolder(tmp_path)
    assert [str(tmp_path / name) for name in found.files] == [path for path, _ in expected.samples]
    assert found.labels == expected.targets


def test_circular_links(tmp_path: Path) -> None:
    """Each class has its own images and those behind links; a link that leads back counts as broken."""
    tree(tmp_path / "set", "a/1.jpg", "b/2.jpg", "c/3.jpg")
    for source, target in (
        ("a/more", "../b"), ("b/more", "../a"),  # through two classes
        ("c/again", "../c"), ("c/../d", "c"),  # a class by two names
    ):  # fmt: skip
        (tmp_path / "set" / source).symlink_to(target)
    found = list_images(tmp_path / "set")
    assert found.files == ["a/1.jpg", "a/more/2.jpg", "b/2.jpg", "b/more/1.jpg", "c/3.jpg", "d/3.jpg"]
    assert found.left_out == {"broken link": 4}


def test_labels_of_val_are_those_of_train_in_any_unicode_form(tmp_path: Path) -> None:
    """NFC and NFD sort differently: "\u00e9" comes after "z", "e" with an accent before it."""
    tree(tmp_path, "train/a/1.jpg", "train/\u00e9/1.jpg", "train/z/1.jpg")
    tree(tmp_path, "val/a/1.jpg", "val/e\u0301/1.jpg", "val/z/1.jpg")
    train, val = check_dataset(tmp_path)
    assert train.classes == val.classes == ("a", "z", "\u00e9")
    assert (train.files, train.labels) == (["a/1.jpg", "z/1.jpg", "\u00e9/1.jpg"], [0, 1, 2])
    assert (val.files, val.labels) == (["a/1.jpg", "e\u0301/1.jpg", "z/1.jpg"], [0, 2, 1])
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(ValueError, match=r"must have images; got none.*--allow-empty-classes"):
        check_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"without b$"):
        check_dataset(tmp_path, allow_empty_classes=True)
    (tmp_path / "val" / "b").mkdir()
    train, val = check_dataset(tmp_path, allow_empty_classes=True)
    assert (train.labels, val.labels) == ([0, 2, 3], [0, 3, 2])


def test_describe() -> None:
    assert describe({}) == ""
    assert describe({".gif": 3, ".avif": 9, "broken link": 1, "special file": 2}) == (
        "9 .avif, 3 .gif, 2 special files, 1 broken link"
    )
    assert describe({f".{letter}": 1 for letter in "abcdefghijklm"}).endswith("1 .j, 3 of other kinds")


def test_links_are_followed(tmp_path: Path) -> None:
    tree(tmp_path, "elsewhere/1.jpg", "elsewhere/2.jpg", "set/b/1.jpg")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b" / "0.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "set" / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert list_images(tmp_path / "set").files == ["a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg"]


def test_split_folder(coded: Path, tmp_path: Path) -> None:
    assert find_split_folder(coded, "train") == coded / "train"
    assert find_split_folder(str(coded), "val") == coded / "val"
    assert find_split_folder(coded / "train", "train") == coded / "train"
    assert find_split_folder(coded / "val", "train") == coded / "val"
    tree(tmp_path, "train")  # a file
    assert find_split_folder(tmp_path, "train") == tmp_path


def test_dataset(coded: Path) -> None:
    train, val = check_dataset(coded)
    assert (train, val) == (list_images(coded / "train"), list_images(coded / "val"))
    assert train.classes == val.classes
    assert (len(train.files), len(val.files)) == (sum(TRAIN_COUNTS), sum(VAL_COUNTS))


def test_missing_folder(tmp_path: Path) -> None:
    assert "no such folder" in error(tmp_path / "typo", names=tmp_path / "typo")
    tree(tmp_path, "file.zip")
    assert "no such folder" in error(tmp_path / "file.zip", names=tmp_path / "file.zip")
    with pytest.raises(ValueError, match=re.escape(f"got {tmp_path / 'typo'} (no such folder)")):
        list_images(tmp_path / "typo")


def test_empty_folder(tmp_path: Path) -> None:
    assert "nothing" in error(tmp_path, names=tmp_path)
    expected = f"{tmp_path} must have one folder per class; got no folders"
    with pytest.raises(ValueError, match=re.escape(expected)):
        list_images(tmp_path)


@pytest.mark.parametrize(("present", "absent"), [("train", "val"), ("val", "train")])
def test_split_missing(present: str, absent: str, tmp_path: Path) -> None:
    tree(tmp_path, f"{present}/a/1.jpg", "notes.txt")
    message = error(tmp_path, names=tmp_path)
    assert f"without {absent}/" in message
    assert f"it has notes.txt, {present}" in message


@pytest.mark.parametrize(("full", "empty"), [("train", "val"), ("val", "train")])
def test_split_without_classes(full: str, empty: str, tmp_path: Path) -> None:
    tree(tmp_path, f"{full}/a/1.jpg", f"{empty}/1.jpg")
    assert "no folders" in error(tmp_path, names=tmp_path / empty)


@pytest.mark.parametrize(("full", "lacking"), [("train", "val"), ("val", "train")])
def test_class_missing(full: str, lacking: str, coded: Path, tmp_path: Path) -> None:
    shutil.copytree(coded, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / lacking / "bee")
    message = error(tmp_path / "set", names=tmp_path / "set" / lacking)
    assert message.endswith("without bee")
    shutil.rmtree(tmp_path / "set" / lacking / "ant")
    message = error(tmp_path / "set", names=tmp_path / "set" / lacking)
    assert message.endswith("without ant and 1 more")


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_without_images(split: str, coded: Path, tmp_path: Path) -> None:
    shutil.copytree(coded, tmp_path / "set")
    for path in (tmp_path / "set" / split / "bee").iterdir():
        path.rename(path.with_suffix(".txt"))
    assert "must have images; got none" in error(tmp_path / "set", names=tmp_path / "set" / split / "bee")


# File lists


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Two classes, with spaces in names."""
    return tree(tmp_path / "set", " a/1.jpg", " a/two  words.jpg", "b c/1.jpg", "b c/é.png", "b c/3.jpg")


def test_file_list_restricts_and_orders(listed: Path, tmp_path: Path) -> None:
    text = "b c/é.png 1\n a/two  words.jpg 0\n\nb c/1.jpg\t 1  \r\n a/1.jpg 0"  # no line break at the end
    (tmp_path / "list.txt").write_text(text, newline="")
    found = list_images(listed, tmp_path / "list.txt")
    assert found.root == listed
    assert found.classes == (" a", "b c")
    assert found.files == ["b c/é.png", " a/two  words.jpg", "b c/1.jpg", " a/1.jpg"]
    assert found.labels == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b c/1.jpg", "the label at the end must be an integer; got 'c/1.jpg'"),
        ("1", "the line must be 'class/image label'; got '1'"),
        ("b c/1.jpg 1.0", "the label at the end must be an integer; got '1.0'"),
        ("b c/1.jpg -1", "the label at the end must be an integer; got '-1'"),
        ("b c/1.jpg ²", "the label at the end must be an integer; got '²'"),
        ("b c/1.jpg 2", "the label must be in [0, 2), the class folders of {root}; got 2"),
        ("b c/2.jpg 1", "the image must be in {root}; got b c/2.jpg"),
        ("a/1.jpg 0", "the image must be in {root}; got a/1.jpg"),
        ("b c/1.jpg 0", "the label of b c/1.jpg must be 1, the position of its class folder; got 0"
         " (a class folder was added or removed after the list was written)"),
        ("b c/3.jpg 1", "images must be listed once; got b c/3.jpg, also in line 1"),
    ],
)  # fmt: skip
def test_file_list_errors(line: str, message: str, listed: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"b c/3.jpg 1\n{line}\n")
    with pytest.raises(ValueError, match="line 2") as caught:
        list_images(listed, path)
    assert str(caught.value) == f"{path}, line 2: {message.format(root=listed)}"


def test_file_list_without_images(listed: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(ValueError, match="must have at least one image; got none"):
        list_images(listed, tmp_path / "list.txt")


def test_dataset_with_file_lists(coded: Path, tmp_path: Path) -> None:
    train, val = check_dataset(coded)
    (tmp_path / "train.txt").write_text(f"{train.files[9]} {train.labels[9]}\n")
    with pytest.raises(ValueError, match=re.escape(f"got {tmp_path} without val.txt")):
        check_dataset(coded, tmp_path)
    (tmp_path / "val.txt").write_text(f"{val.files[2]} {val.labels[2]}\n")
    short_train, short_val = check_dataset(coded, tmp_path)
    assert (short_train.files, short_val.files) == ([train.files[9]], [val.files[2]])
    assert short_train.classes == train.classes


def test_digest_is_of_the_list(tmp_path: Path) -> None:
    """Same names elsewhere give the same digest; another name, class or order does not."""
    names = ["ant/a.png", "ant/b.png", "bee/c.png"]
    digest = list_images(tree(tmp_path / "one", *names)).digest()
    assert list_images(tree(tmp_path / "two", *names)).digest() == digest
    assert list_images(tree(tmp_path / "three", *names, "bee/d.png")).digest() != digest
    assert list_images(tree(tmp_path / "four", "ant/a.png", "bee/b.png", "bee/c.png")).digest() != digest
