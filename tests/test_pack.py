"""Packing copies a data set with smaller images, completely, and never over other files."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import _packing, pack
from pipelines._packing import Packed, Task
from pipelines._packing_parts import find_parts
from pipelines.folders import check_dataset, list_images
from pipelines.shrinking import shrink
from tests import fake_decoders
from tests.checking import BAD
from tests.damage import write_kinds
from tests.image_sets import photo

ROOT = Path(pack.__file__).resolve().parent.parent
SIDE = 64


def contents(folder: Path) -> dict[str, bytes]:
    """The images below a folder, without what packing adds."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "packing.json" and ".packing" not in path.parts
    }


def run(source: Path, target: Path, *extra: str) -> tuple[int, dict[str, Any]]:
    """Pack with one process; returns exit status and report."""
    status = pack.main([str(source), str(target), "--max-side", str(SIDE), "--workers", "1", *extra])
    return status, json.loads((target / "packing.json").read_text())


def write_photos(folder: Path, count: int, form: str = "JPEG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image = Image.fromarray(photo(90, 120, seed))
        image.save(folder / f"{seed:02d}.{form}", quality=95)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with images of every kind, links, odd names and other entries."""
    root = tmp_path_factory.mktemp("pack")
    data = root / "set"
    write_kinds(data / "train" / "ant colony")
    write_photos(data / "train" / "bee", 30)
    write_photos(root / "elsewhere", 3)
    (data / "train" / "cat").symlink_to(root / "elsewhere")
    (data / "train" / "dog").mkdir()
    bee = data / "train" / "bee"
    Image.fromarray(photo(20, 30, 0)).save(bee / "small.png")
    Image.fromarray(photo(70, 50, 0)).save(bee / "two  spaces .png")
    shutil.copy(os.fsencode(bee / "00.JPEG"), os.fsencode(bee) + b"/caf\xe9.JPEG")
    shutil.copy(bee / "00.JPEG", bee / "line\nbreak.JPEG")
    shutil.copy(bee / "00.JPEG", bee / ".hidden.JPEG")
    (bee / "deeper" / "still").mkdir(parents=True)
    (bee / "deeper" / "still" / "link.JPEG").symlink_to(bee / "01.JPEG")
    (bee / "gone.jpg").symlink_to("nowhere")
    (bee / "unreadable.jpg").symlink_to("/proc/self/mem")
    (bee / "notes.txt").touch()
    write_photos(data / "val", 4)  # no class folders, with labels elsewhere
    (data / "labels.csv").touch()
    (data / "devkit").mkdir()
    return data


@pytest.fixture(scope="module")
def packed(source: Path) -> tuple[Path, int, dict[str, Any]]:
    """The set packed by two processes: the folder, exit status and report."""
    target = source.parent / "new" / "packed"
    status = pack.main([str(source), str(target), "--max-side", str(SIDE), "--workers", "2"])
    return target, status, json.loads((target / "packing.json").read_text())


Done = tuple[Path, int, dict[str, Any]]


def test_every_name_is_kept(source: Path, packed: Done) -> None:
    target = packed[0]
    lists = [(list_images(data / "train", allow_empty_classes=True)) for data in (source, target)]
    expected = [file for file in lists[0].files if file != "bee/unreadable.jpg"]
    assert lists[1].files == expected
    assert lists[1].classes == lists[0].classes == ("ant colony", "bee", "cat", "dog")
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert sorted(path.name for path in target.iterdir()) == [".packing", "packing.json", "train", "val"]
    assert sorted(path.name for path in (target / ".packing").iterdir()) == ["state.jsonl"]
    assert sorted(path.name for path in (target / "val").iterdir()) == [f"0{i}.JPEG" for i in range(4)]


def test_each_image_is_shrunk_or_copied(source: Path, packed: Done) -> None:
    """By this function alone, and what it does is tested elsewhere."""
    target, _, report = packed
    shrunk = 0
    for name, content in contents(target).items():
        before = (source / name).read_bytes()
        bad = name in report["unusable"] or name in report["large_but_copied"]
        smaller = None if bad else shrink(before, SIDE, 90)
        assert content == (before if smaller is None else smaller), name
        shrunk += smaller is not None
        if smaller is not None:
            assert max(Image.open(io.BytesIO(content)).size) == SIDE
    assert shrunk == sum(part["shrunk"] for part in report["parts"].values())
    assert shrunk > 50


def test_the_report_has_what_is_bad_and_no_other(packed: Done) -> None:
    _, status, report = packed
    assert status == 1
    kinds = {f"train/ant colony/{name}" for name in BAD}
    assert report["unusable"].keys() == kinds | {"train/bee/gone.jpg", "train/bee/unreadable.jpg"}
    reasons = report["unusable"]
    assert "Premature end of JPEG data. Stopped at line 30/90" in reasons["train/ant colony/cut at half.JPEG"]
    assert reasons["train/ant colony/empty.JPEG"] == "empty file"
    assert reasons["train/bee/gone.jpg"] == "broken link"
    assert reasons["train/bee/unreadable.jpg"] == "cannot be read: Input/output error"
    assert report["large_but_copied"].keys() == {
        f"train/ant colony/{name}"
        for name in (
            *("floating point.tiff", "whole.jp2", "zeros from the middle.jp2", "noise in the middle.JPEG"),
        )
    }
    assert report["not_copied"] == ["devkit", "labels.csv"]
    assert report["parts"]["train"]["left_out"] == {"broken link": 1, ".txt": 1}
    assert report["parts"]["val"]["images"] == report["parts"]["val"]["shrunk"] == 4
    sizes = report["parts"]["val"]
    assert sizes["bytes_after"] == sum(path.stat().st_size for path in (packed[0] / "val").iterdir())
    assert sizes["bytes_before"] > 2 * sizes["bytes_after"]


# -- Interruptions ---------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pipelines import pack

place, left = pack._note, 3
def note_and_die(journal, part, positions, results):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)  # the files are in place, and the state does not know it
    place(journal, part, positions, results)
pack._note = note_and_die
if __name__ == "__main__":
    sys.exit(pack.main(sys.argv[1:]))
"""


def test_resumes_after_interruptions(
    source: Path,
    packed: Done,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL, then SIGTERM; the result is that of other processes without an interruption."""
    target, script = tmp_path / "packed", tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(source), str(target), "--max-side", str(SIDE)]
    process = subprocess.run(
        [*command, "--workers", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    state = target / ".packing" / "state.jsonl"
    noted = state.read_bytes()
    lines = noted.count(b"\n")
    assert lines > 8
    state.write_bytes(noted + b'{"file": "train/be')  # killed in the middle of a line
    placed = {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.suffix == ".JPEG"}
    assert len(contents(target)) >= lines

    note = pack._note

    def note_and_stop(*arguments: Any) -> None:
        note(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pack, "_note", note_and_stop)
    arguments = [str(source), str(target), "--max-side", str(SIDE), "--workers", "1"]
    assert pack.main(arguments) == 128 + signal.SIGTERM
    assert "files done; the same command resumes packing." in capsys.readouterr().out
    assert not (target / "packing.json").exists()
    monkeypatch.setattr(pack, "_note", note)
    assert run(source, target) == packed[1:]
    assert "files were already packed" in capsys.readouterr().out
    assert contents(target) == contents(packed[0])
    assert state.read_bytes().startswith(noted)
    assert {path: path.stat().st_mtime_ns for path in placed} == placed
    files = [json.loads(line)["file"] for line in state.read_text().splitlines()[1:]]
    assert len(files) == len(set(files))


def test_only_what_changed_is_packed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, target = tmp_path / "set", tmp_path / "packed"
    write_photos(data / "a", 6)
    assert run(data, target)[0] == 0
    first = contents(target)
    changed = target / "a" / "01.JPEG"
    changed.write_bytes(b"")  # as after a power failure
    (target / "a" / "02.JPEG").unlink()
    shutil.copy(data / "a" / "05.JPEG", data / "a" / "03.JPEG")
    (data / "a" / "04.JPEG").unlink()
    status, report = run(data, target)
    assert "2 of 5 files were already packed" in capsys.readouterr().out
    first["a/03.JPEG"] = first["a/05.JPEG"]
    assert contents(target) == first
    assert (status, report["no_longer_in_source"]) == (1, ["a/04.JPEG"])


# -- Bad input -------------------------------------------------------------------------------------------


def make_refused(case: str, folder: Path) -> tuple[Path, Path]:
    """SRC and DST."""
    data, target = folder / "set", folder / "packed"
    write_photos(data / "a", 1)
    if case == "target has files":
        write_photos(target / "a", 1)
    elif case == "target is a file":
        target.write_text("mine")
    elif case == "inside":
        target = data / "packed"
    elif case == "inside a link":
        (data / "b").symlink_to(folder / "other")
        (folder / "other").mkdir()
        target = folder / "other" / "packed"
    elif case == "the same":
        (folder / "packed").symlink_to(data)
    elif case == "one part":
        (data / "a").rename(data / "train")
    elif case == "no images":
        (data / "a" / "00.JPEG").unlink()
    elif case == "no folder":
        data = folder / "absent"
    elif case == "cifar":
        (data / "batches.meta.txt").write_text("")
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            (data / name).write_bytes(bytes(3073))
    return data, target


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("target has files", "DST must be new or empty, or from an earlier run; got {}/packed with a"),
        ("target is a file", "DST must be a folder; got the file {}/packed"),
        ("inside", "DST must be outside SRC; got {0}/set/packed, which is in {0}/set"),
        ("inside a link", "DST must be outside SRC; got {0}/other/packed, which is in {0}/set/b"),
        ("the same", "DST must be outside SRC; got {0}/packed, which is in {0}/set"),
        (
            "one part",
            "SRC must have both train/ and val/, or class folders; got {0}/set without val/ (to pack one of"
            " them, give {0}/set/train)",
        ),
        ("no images", "SRC must have images; got none in {}/set"),
        ("no folder", "SRC must be an existing folder; got {}/absent"),
        ("cifar", "SRC must have image files; got {}/set with CIFAR's binary files"),
    ],
)
def test_refused(case: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, target = make_refused(case, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert pack.main([str(data), str(target)]) == 2
    assert capsys.readouterr().err == f"pipelines.pack: error: {message.format(tmp_path)}\n"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--max-side", "0"), "--max-side must be at least 1; got 0"),
        (("--quality", "0"), "--quality must be at least 1; got 0"),
        (("--quality", "101"), "--quality must be at most 100; got 101"),
        (("--workers", "0"), "--workers must be at least 1; got 0"),
        (("--timeout", "0"), "--timeout must be above 0; got 0"),
    ],
)
def test_bad_options(
    option: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack.main([str(tmp_path), str(tmp_path / "packed"), *option]) == 2
    assert capsys.readouterr().err == f"pipelines.pack: error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_another_command_for_the_same_target(
    source: Path, packed: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    target = packed[0]
    before = contents(target)
    for arguments, said in (
        ([str(source), str(target)], f"--max-side {SIDE}, now 512"),
        ([str(source), str(target), "--max-side", str(SIDE), "--quality", "80"], "--quality 90, now 80"),
        ([str(source / "val"), str(target), "--max-side", str(SIDE)], f"SRC {source}, now {source / 'val'}"),
    ):
        assert pack.main(arguments) == 2
        assert capsys.readouterr().err == (
            "pipelines.pack: error: DST must be new or from the same command; got"
            f" {target}, packed with {said}\n"
        )
    journal = pack._open_state(pack.Options(source, target))
    assert pack.main([str(source), str(target), "--max-side", str(SIDE)]) == 2
    assert "DST must not be in use; got" in capsys.readouterr().err
    journal.close()
    assert contents(target) == before


# -- Faults ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packer(tmp_path_factory: pytest.TempPathFactory) -> _packing._Packer:
    return _packing._Packer(SIDE, 90, tmp_path_factory.mktemp("incomplete"))


def test_nothing_is_written_over_files_of_others(packer: _packing._Packer, tmp_path: Path) -> None:
    write_photos(tmp_path / "a", 1)
    target = tmp_path / "packed" / "00.JPEG"
    task = Task(str(tmp_path / "a" / "00.JPEG"), str(target), False)
    with (tmp_path / "log").open("w+b") as log:
        (first,) = packer.pack([task], log.fileno())
        made = target.read_bytes()
        assert (first.packed_size, first.shrunk, first.error) == (len(made), True, None)
        assert packer.pack([task], log.fileno()) == [first]  # the same content: it was placed before a kill
        for mine in (b"mine", b""):
            target.write_bytes(mine)
            with pytest.raises(FileExistsError, match=rf"^DST must not have files of others; got {target},"):
                packer.pack([task], log.fileno())
            assert target.read_bytes() == mine
        assert packer.pack([task._replace(replace=True)], log.fileno()) == [first]
        assert target.read_bytes() == made
        target.unlink()
        target.symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            packer.pack([task], log.fileno())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    """And leaves no incomplete file where images are expected."""
    write_photos(tmp_path / "a", 1)
    scratch = tmp_path / "incomplete"
    scratch.mkdir()
    (scratch / f"{os.getpid()}-0").symlink_to("/dev/full")
    task = Task(str(tmp_path / "a" / "00.JPEG"), str(tmp_path / "packed" / "00.JPEG"), False)
    full = _packing._Packer(SIDE, 90, scratch)
    with (tmp_path / "log").open("w+b") as log, pytest.raises(OSError, match="No space left") as error:
        full.pack([task], log.fileno())
    assert error.value.errno == errno.ENOSPC
    assert not (tmp_path / "packed").exists()


def test_what_is_read_back_must_be_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit changes on the disk after the file was written, and before it is read."""
    write_photos(tmp_path / "a", 1)
    (tmp_path / "incomplete").mkdir()
    packer = _packing._Packer(SIDE, 90, tmp_path / "incomplete")
    check = packer._check

    def change_and_check(paths: list[Any], log: int) -> list[Any]:
        content = bytearray(Path(paths[0]).read_bytes())
        content[-100] ^= 1
        Path(paths[0]).write_bytes(content)
        return check(paths, log)

    monkeypatch.setattr(packer, "_check", change_and_check)
    task = Task(str(tmp_path / "a" / "00.JPEG"), str(tmp_path / "packed" / "00.JPEG"), False)
    with (
        (tmp_path / "log").open("w+b") as log,
        pytest.raises(OSError, match="not what was written; check the"),
    ):
        packer.pack([task], log.fileno())
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(("each", "files"), [(10**12, 10**6), (0, 10**15)], ids=["bytes", "last blocks"])
def test_too_little_space(each: int, files: int, tmp_path: Path) -> None:
    space = pack._Space(tmp_path, files, 2)
    assert space.add([Packed(10**7, 0, each, True)]) is None
    with pytest.raises(OSError, match=r"^DST must have enough space: .* files need about .* are free\.$"):
        space.add([Packed(10**7, 0, each, True)])


def test_enough_space_is_said_once(tmp_path: Path) -> None:
    space = pack._Space(tmp_path, 1000, 4)
    said = [space.add([Packed(2_000_000, 0, 1000, True)] * 3) for _ in range(4)]
    assert [line is not None for line in said] == [False, True, False, False]
    assert said[1] is not None
    assert said[1].startswith("The other 994 files need about ")
    assert "(now 1.99 GB)" in said[1]


def test_the_sample_is_from_everywhere(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(400):
            (tmp_path / "set" / name / f"{index}.png").touch()
    parts = find_parts(tmp_path / "set", tmp_path / "packed")
    order, sample = pack._order(parts)
    assert 60 <= sample <= 68
    batches = list(pack._batches(order))
    first = [(part.name, i) for part, positions in batches[:9] for i in positions][:sample]
    assert {name for name, _ in first} == {"train", "val"}
    assert max(i for name, i in first if name == "train") > 700
    every = [(part.name, i) for part, positions in batches for i in positions]
    assert sorted(every) == [("train", i) for i in range(800)] + [("val", i) for i in range(400)]


def test_files_that_end_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are copied and listed; those that may have had bad luck are tried again."""
    data, target = tmp_path / "set", tmp_path / "packed"
    (data / "a").mkdir(parents=True)
    for name in ("1", "2 fatal", "3 large", "4 slow", "5"):
        (data / "a" / f"{name}.png").write_text(name)
    monkeypatch.setattr(pack, "packing", lambda *_: fake_decoders.copies_some)
    status, report = run(data, target, "--timeout", "2")
    assert status == 1
    assert report["unusable"] == {
        "a/2 fatal.png": "the decoder crashed its process (SIGFPE)",
        "a/3 large.png": "the decoding process was killed (SIGKILL), perhaps out of memory",
        "a/4 slow.png": "not decoded within 2 s",
    }
    assert contents(target) == contents(data)
    capsys.readouterr()
    assert run(data, target, "--timeout", "2") == (status, report)
    assert "3 of 5 files were already packed" in capsys.readouterr().out


def test_the_result_is_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same classes, labels and file lists; and JPEG in .png files is said."""
    data, target = tmp_path / "set", tmp_path / "packed"
    for split, form in (("train", "JPEG"), ("val", "png")):
        for name in ("b", "a"):
            write_photos(data / split / name, 2, form)
    assert run(data, target)[0] == 0
    (tmp_path / "lists").mkdir()
    for split in ("train", "val"):
        files = list_images(data / split).files[::2]
        lines = "".join(f"{file} {int(file[0] == 'b')}\n" for file in files)
        (tmp_path / "lists" / f"{split}.txt").write_text(lines)
    for lists in (None, tmp_path / "lists"):
        before, after = check_dataset(data, lists), check_dataset(target, lists)
        assert [part.digest() for part in before] == [part.digest() for part in after]
    sizes = [np.asarray(Image.open(io.BytesIO(content))).shape for content in contents(target).values()]
    assert sizes == [(48, 64, 3)] * 8
    assert "4 files with names of other formats are JPEG now" in capsys.readouterr().out
    assert Image.open(target / "val" / "a" / "00.png").format == "JPEG"
