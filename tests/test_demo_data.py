"""The generated demo set: its contents, and when it is made, used or rejected."""

import collections
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import demo_data
from pipelines.demo_data import CLASSES, make_demo_dataset

ROOT = Path(__file__).resolve().parent.parent
TRAIN, VAL = 3, 2


def make(root: Path, **changes: Any) -> Path:
    return make_demo_dataset(root, **{"train_per_class": TRAIN, "val_per_class": VAL, **changes})


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set; tests must not change it."""
    root = tmp_path_factory.mktemp("demo") / "parent" / "set"
    assert make(root) == root
    return root


def test_structure(demo: Path) -> None:
    files = {
        f"{split}/{name}/{index:05d}.jpg"
        for split, count in (("train", TRAIN), ("val", VAL))
        for name in CLASSES
        for index in range(count)
    }
    assert set(contents(demo)) == {"demo.json", *files}
    assert [path.name for path in demo.parent.iterdir()] == ["set"]
    # Folders made by tempfile are closed to other users.
    assert demo.stat().st_mode == demo.parent.stat().st_mode


def test_files_are_plain_jpegs_of_varied_size(demo: Path) -> None:
    sizes, lengths, tables = [], [], set()
    for data in (path.read_bytes() for path in demo.rglob("*.jpg")):
        frame = data.index(b"\xff\xc0\x00\x11\x08")  # baseline, three components of 8 bits
        assert data[frame + 11 : frame + 18 : 3] == b"\x22\x11\x11"  # chroma at half the resolution
        height, width = (int.from_bytes(data[frame + i : frame + i + 2], "big") for i in (5, 7))
        sizes.append((width, height))
        lengths.append(len(data))
        tables.add(data[data.index(b"\xff\xdb") : frame])
    widths, heights = np.array(sizes).T
    short = np.minimum(widths, heights)
    assert len(set(sizes)) > 40
    assert 5 < np.count_nonzero(heights > widths) < 20
    assert short.min() >= 250
    assert short.max() <= 500
    assert 440 < widths.mean() < 500
    assert 360 < heights.mean() < 420
    assert 40e3 < np.mean(lengths) < 120e3
    assert len(tables) > 10, "the JPEG quality varies"


def test_no_two_attributes_determine_the_class() -> None:
    table = [name.split("-") for name in CLASSES]
    assert len(set(CLASSES)) == 10
    assert sorted(CLASSES) == list(CLASSES), "labels follow the order of the folders"
    for values in zip(*table, strict=True):
        assert sorted(collections.Counter(values).values()) == [3, 3, 4]
    for first, second in itertools.combinations(range(3), 2):
        # The best guess from a pair is right for one class per value.
        assert len({(row[first], row[second]) for row in table}) == 9


def hue(path: Path) -> float:
    """The mean hue, in turns, of strongly coloured pixels, most of which are in the object."""
    with Image.open(path) as image:
        small = np.asarray(image.resize((64, 64), Image.Resampling.BOX).convert("HSV"), np.float64)
    clear = (small[..., 1] > 150) & (small[..., 2] > 60)
    return float(np.angle(np.exp(2j * np.pi / 256 * small[clear, 0]).mean()) / (2 * np.pi) % 1)


def distance(first: float, second: float) -> float:
    return abs((first - second + 0.5) % 1 - 0.5)


def test_hue_gives_the_colour_but_not_the_class(demo: Path) -> None:
    hues = {"red": 0.0, "green": 1 / 3, "blue": 2 / 3}
    seen = {path: hue(path) for path in demo.rglob("*.jpg")}
    for path, value in seen.items():
        nearest = min(hues, key=lambda name: distance(hues[name], value))
        assert nearest == path.parent.name.split("-")[0], path
    # Within a colour, the class of the training image nearest in hue is right only by chance.
    train = {path: value for path, value in seen.items() if path.parts[-3] == "train"}
    right = [
        min(train, key=lambda other: distance(train[other], seen[path])).parent.name == path.parent.name
        for path in seen.keys() - train.keys()
    ]
    assert np.mean(right) < 0.6


def test_textures_are_visible_at_64_pixels(demo: Path) -> None:
    """Both tones of the object are visible at 64 pixels."""
    contrasts = []
    for path in demo.rglob("*.jpg"):
        with Image.open(path) as image:
            small = np.asarray(image.resize((64, 64), Image.Resampling.BOX).convert("HSV"), np.float64)
        values = small[..., 2][small[..., 1] > 150]
        low, high = np.quantile(values, [0.15, 0.85])
        contrasts.append(low / high)
    assert np.median(contrasts) < 0.65


@pytest.mark.parametrize("workers", [1, 3])
def test_images_do_not_depend_on_the_workers(demo: Path, tmp_path: Path, workers: int) -> None:
    assert contents(make(tmp_path / "set", workers=workers)) == contents(demo)


def test_images_do_not_depend_on_their_number(demo: Path, tmp_path: Path) -> None:
    smaller = contents(make(tmp_path / "set", train_per_class=1, val_per_class=1))
    larger = contents(demo)
    assert {name for name in smaller if smaller[name] != larger[name]} == {"demo.json"}


def test_all_images_differ(demo: Path, tmp_path: Path) -> None:
    images = [path.read_bytes() for path in demo.rglob("*.jpg")]
    other = make(tmp_path / "set", train_per_class=1, val_per_class=1, seed=1)
    images += [path.read_bytes() for path in other.rglob("*.jpg")]
    assert len(set(images)) == len(images) == 10 * (TRAIN + VAL + 2)


def test_a_complete_set_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "set", train_per_class=1, val_per_class=1)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(demo_data, "_write", None)
    assert make(root, train_per_class=1, val_per_class=1, workers=2) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere")
    assert make(link, train_per_class=1, val_per_class=1) == link
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "demo.json").is_file()
    assert make(link, train_per_class=1, val_per_class=1) == link


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"train_per_class": 2}, {"val_per_class": 1}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_set_with_other_settings_is_rejected(demo: Path, changes: dict[str, int]) -> None:
    before = contents(demo)
    settings = json.loads(before["demo.json"])
    with pytest.raises(ValueError, match="must be missing, empty or a demo set with") as error:
        make(demo, **changes)
    assert str(demo) in str(error.value)
    assert json.dumps(settings) in str(error.value)
    assert contents(demo) == before


def test_a_set_of_another_version_is_rejected(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "_VERSION", demo_data._VERSION + 1)
    with pytest.raises(ValueError, match="must be missing, empty or a demo set with"):
        make(demo)


def test_foreign_content_is_rejected(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    (folder / "train").mkdir(parents=True)
    file.write_text("mine")
    for root in (folder, file):
        with pytest.raises(
            ValueError, match=r"must be missing, empty or a demo set .*; got no demo\.json"
        ) as error:
            make(root)
        assert str(root) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == [file, folder, folder / "train"]
    assert file.read_text() == "mine"


def test_missing_and_added_images_are_rejected(tmp_path: Path) -> None:
    root = make(tmp_path / "set", train_per_class=1, val_per_class=1)
    image = root / "train" / CLASSES[0] / "00000.jpg"
    image.rename(image.with_name("mine.jpg"))
    with pytest.raises(ValueError, match=r"2 missing or foreign files such as train/.*/00000\.jpg"):
        make(root, train_per_class=1, val_per_class=1)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_call_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], workers: int
) -> None:
    write, lock, calls = demo_data._write, threading.Lock(), itertools.count()

    def interrupted(*args: Any) -> None:
        with lock:
            if next(calls) == 10:
                raise kind
        write(*args)

    monkeypatch.setattr(demo_data, "_write", interrupted)
    with pytest.raises(kind):
        make(tmp_path / "set", workers=workers)
    assert list(tmp_path.iterdir()) == []
    assert next(calls) < 10 * (TRAIN + VAL), "the remaining images were made first"


@pytest.mark.parametrize("same", [True, False])
def test_the_loser_of_a_race_uses_or_rejects_the_other_set(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    root, write = tmp_path / "set", demo_data._write

    def overtaken(*args: Any) -> None:
        monkeypatch.setattr(demo_data, "_write", write)
        make(root, seed=0 if same else 1)
        write(*args)

    monkeypatch.setattr(demo_data, "_write", overtaken)
    if same:
        assert make(root, workers=1) == root
        assert contents(root) == contents(demo)
    else:
        with pytest.raises(ValueError, match="must be missing, empty or a demo set with"):
            make(root, workers=1)
    assert list(tmp_path.iterdir()) == [root]


def test_simultaneous_processes_share_one_set(demo: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    code = (
        "import pathlib, sys; from pipelines.demo_data import make_demo_dataset as make; sys.stdin.read();"
        f"make(pathlib.Path(sys.argv[1]), train_per_class={TRAIN}, val_per_class={VAL}, workers=1)"
    )
    command = [sys.executable, "-c", code, str(root)]
    calls = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) for _ in range(2)]
    for call in calls:
        assert call.stdin is not None
        call.stdin.close()
    assert [call.wait() for call in calls] == [0, 0]
    assert contents(root) == contents(demo)
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize(
    "changes", [{"train_per_class": 0}, {"val_per_class": 0}, {"seed": -1}, {"workers": 0}]
)
def test_numbers_out_of_range_are_rejected(tmp_path: Path, changes: dict[str, int]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make(tmp_path / "set", **changes)
    assert list(tmp_path.iterdir()) == []
