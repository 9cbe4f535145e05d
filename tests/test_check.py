"""The data set check finds the files that DALI cannot decode, and no others."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvidia.dali
import pytest
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

import train_imagenet
from pipelines import _decoding, check, examine
from pipelines.crops import decoder_arguments
from pipelines.folders import check_dataset, list_images
from pipelines.imagenet import train_pipeline
from pipelines.loader import DALILoader
from pipelines.names import shown
from pipelines.records import Output
from tests import fake_decoders
from tests.checking import BAD, KINDS, images, run, state
from tests.damage import Kind, write_kinds
from tests.devices import device_id, with_device
from tests.image_sets import TRAIN_COUNTS, VAL_COUNTS, plain

ROOT = Path(check.__file__).resolve().parent.parent


# DALI itself


def file_pipeline(path: Path, whole: bool = True, device: str = "cpu") -> Pipeline:
    """One file through the reader and the decoder of the validation (whole) or the training pipeline."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=device_id(device), prefetch_queue_depth=1)
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(file_root=str(path.parent), files=[path.name])
        decode = fn.decoders.image if whole else fn.decoders.image_random_crop
        return decode(encoded, device="mixed" if device == "gpu" else "cpu", output_type=types.RGB)

    return pipeline()


@with_device(
    "kind",
    [kind for kind in KINDS.values() if kind.outcome != "kills"],
    [kind for kind in KINDS.values() if kind.outcome == "decodes"],
)
def test_outcome_of_each_kind(
    kind: Kind, device: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a GPU: files that decode on the CPU decode there too."""
    path = tmp_path / kind.name
    path.write_bytes(kind.data)
    if kind.outcome == "raises":
        with pytest.raises(RuntimeError):
            file_pipeline(path).run()
        return
    file_pipeline(path, device=device).run()
    assert device == "gpu" or bool(capfd.readouterr().err) == (kind.outcome == "complains")
    # A file that decodes in full decodes in part: checking whole images is enough for training.
    crops = file_pipeline(path, whole=False, device=device)
    for _ in range(5):
        crops.run()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.outcome == "kills"], ids=lambda k: k.name
)
def test_kinds_that_crash_dali(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / kind.name).write_bytes(kind.data)
    script = (
        "import sys, pathlib\n"
        "from tests.test_check import file_pipeline\n"
        "print('ready', flush=True)\n"
        "file_pipeline(pathlib.Path(sys.argv[1])).run()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / kind.name)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.stdout == "ready\n"
    assert process.returncode == -signal.SIGFPE


def test_the_check_decodes_as_the_pipelines_do() -> None:
    assert decoder_arguments("cpu", 0.65) == _decoding.DECODER


# Every kind at once


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int, dict[str, Any]]:
    """A data set with every kind of file and odd entries: its folder, the output, exit status and report."""
    root = tmp_path_factory.mktemp("everything")
    data, output = root / "set", root / "out"
    write_kinds(data / "train" / "ant colony")
    for split, name in (("train", "bee"), ("val", "ant colony"), ("val", "bee")):
        (data / split / name).mkdir(parents=True)
    bee = data / "train" / "bee"
    plain(1).save(bee / "two  spaces .png")
    plain(2).save(bee / "copy.png")
    plain(3).save(os.fsencode(bee) + b"/caf\xe9.png", "PNG")
    plain(4).save(bee / "line\nbreak.png")
    plain(5).save(bee / ".hidden.png")
    (bee / "as empty.JPEG").touch()  # the same content as another bad file
    (bee / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(bee / "pipe.JPEG")
    (bee / "notes.TXT").touch()
    (bee / "unreadable.jpg").symlink_to("/proc/self/mem")  # opens; reading it is an error
    plain(6).save(data / "val" / "bee" / "own.png")
    shutil.copy(data / "val" / "bee" / "own.png", data / "val" / "bee" / "own again.png")
    shutil.copy(bee / "copy.png", data / "val" / "bee" / "same as in train.png")
    shutil.copy(bee / "copy.png", data / "train" / "ant colony" / "other class.png")
    (data / "val" / "ant colony" / "own.JPEG").write_bytes(KINDS["whole.JPEG"].data + b"own")
    status = check.main([str(data), "--output", str(output), "--workers", "2"])
    return data, output, status, json.loads((output / "report.json").read_text())


def test_finds_every_bad_kind_and_no_other(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    _, _, status, report = everything
    assert status == 1
    expected = {f"ant colony/{name}" for name in BAD}
    expected |= {
        "bee/as empty.JPEG",
        "bee/gone.jpg",
        "bee/pipe.JPEG",
        "bee/unreadable.jpg",
        "bee/line\nbreak.png",
    }
    assert report["unusable"]["train"].keys() == expected
    assert report["unusable"]["val"] == {}


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("ant colony/cut at half.JPEG", r"JPEG: .*Premature end of JPEG data. Stopped at line 30/90"),
        ("ant colony/empty.JPEG", "empty file"),
        ("ant colony/gif inside.JPEG", "GIF, which DALI does not read: .*"),
        ("ant colony/html.JPEG", "HTML or XML, which DALI does not read: .*"),
        ("ant colony/git lfs.JPEG", "Git LFS pointer, which DALI does not read: .*"),
        ("ant colony/too many Huffman codes.JPEG", "JPEG: Bogus Huffman table definition"),
        ("ant colony/one wrong byte.png", "PNG: libpng error: IDAT: incorrect data check"),
        ("ant colony/tiles of width 0.jp2", f"JPEG 2000: {_decoding.BAD_HEADER}"),
        ("ant colony/zeros.JPEG", r"unknown content, b'(\\x00){8}': .*"),
        ("ant colony/12 bit by its header.JPEG", "JPEG: DALI cannot decode it and does not say why"),
        ("bee/gone.jpg", "broken link"),
        ("bee/pipe.JPEG", "not a regular file"),
        ("bee/unreadable.jpg", "cannot be read: Input/output error"),
        ("bee/line\nbreak.png", "line break in the name, .*"),
    ],
)  # fmt: skip
def test_reasons(file: str, reason: str, everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    assert re.fullmatch(reason, everything[3]["unusable"]["train"][file])


def test_reasons_are_the_same_in_every_run(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    """No colours, times or source locations: the same damage gives the same words."""
    for reason in everything[3]["unusable"]["train"].values():
        assert re.search(r"\x1b|\n|@\d|/src/|\.cpp|Traceback|no longer valid", reason) is None, reason


def test_warnings(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    warnings = everything[3]["warnings"]["train"]
    complaints = {file for file, messages in warnings.items() if messages[0].startswith("the decoder says: ")}
    assert complaints == {f"ant colony/{name}" for name, kind in KINDS.items() if kind.outcome == "complains"}
    assert warnings["ant colony/cut, but with an end marker.JPEG"] == [
        "the decoder says: Corrupt JPEG data: premature end of data segment"
    ]
    assert {file: messages for file, messages in warnings.items() if file not in complaints} == {
        "ant colony/png inside.JPEG": ["PNG by its content"],
        "ant colony/one pixel.png": ["only 1 x 1 pixels"],
        "ant colony/strip.JPEG": ["only 5000 x 2 pixels"],
    }


def test_duplicates(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    report = everything[3]
    copies = ["ant colony/other class.png", "bee/copy.png"]
    assert report["in_train_and_val"] == [{"train": copies, "val": ["bee/same as in train.png"]}]
    assert report["duplicates_within"] == {
        "train": {"groups": 1, "files": 1},
        "val": {"groups": 1, "files": 1},
    }
    assert report["same_content_other_class"] == [
        ["train/ant colony/other class.png", "train/bee/copy.png", "val/bee/same as in train.png"]
    ]


def test_counts(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    report = everything[3]
    ants = {"files": len(KINDS) + 1, "decoded": len(KINDS) - len(BAD) + 1}
    assert report["classes"] == {
        "train": {"ant colony": ants, "bee": {"files": 5, "decoded": 3}},
        "val": {"ant colony": {"files": 1, "decoded": 1}, "bee": {"files": 3, "decoded": 3}},
    }
    assert report["files"] == {"train": ants["files"] + 5, "val": 4}
    assert report["decoded"] == {"train": ants["decoded"] + 3, "val": 4}
    assert report["found"] == len(BAD) + 5 + 1
    assert report["left_out"] == {"train": {"broken link": 1, "special file": 1, ".txt": 1}, "val": {}}


def test_lists_have_the_files_that_decode(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    data, output, _, report = everything
    for split in ("train", "val"):
        good = [file for file in list_images(data / split).files if file not in report["unusable"][split]]
        lines = os.fsdecode((output / f"{split}.txt").read_bytes()).splitlines()
        assert lines == [f"{file} {int(file.startswith('bee'))}" for file in good]
        assert not any(name in file for name in BAD for file in good)


def test_dali_reads_the_lists(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    """DALI's own reader finds the files, even with spaces in their names, and the labels."""
    data, output, _, report = everything

    @pipeline_def(batch_size=64, num_threads=1, device_id=None)
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(
            file_root=str(data / "train"),
            file_list=str(output / "train.txt"),
            pad_last_batch=True,
            name="Reader",
        )
        return fn.decoders.image(encoded, device="cpu"), labels

    reader = pipeline()
    reader.build()
    count = reader.epoch_size("Reader")
    assert count == report["decoded"]["train"]
    decoded, labels = reader.run()
    listed = list_images(data / "train", output / "train.txt")
    named = [i for i in range(count) if shown(listed.files[i]) == listed.files[i]]
    assert len(named) == count - 1  # DALI reads it, but cannot return its name
    assert [decoded[i].source_info() for i in named] == [listed.files[i] for i in named]
    assert labels.as_array().ravel()[:count].tolist() == listed.labels


def test_pipelines_accept_the_lists(everything: tuple[Path, Path, int, dict[str, Any]]) -> None:
    """Two epochs of a set that would stop the pipeline without the list."""
    data, output, _, report = everything
    train, _ = check_dataset(data, output)
    loader = DALILoader(
        train_pipeline(
            train,
            mix="hmix",
            num_classes=2,
            output=Output(image_size=16),
            batch_size=8,
            num_threads=1,
            seed=0,
        )
    )
    for _ in range(2):
        assert sum(len(batch) for batch, _ in loader) == report["decoded"]["train"]


def test_trainer_accepts_the_lists(
    everything: tuple[Path, Path, int, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output, _, report = everything
    settings = ["--arch", "shufflenet_v2_x0_5", "--image-size", "32", "--batch-size", "4", "--device", "cpu"]
    settings += ["--amp", "none", "--max-steps", "1", "--epochs", "1", "--data", str(data)]
    lists = ["--file-list", str(output), "--output", str(tmp_path / "run")]
    assert train_imagenet.main([*settings, *lists]) == 0
    counts = report["decoded"]
    assert f"on {counts['train']} training and {counts['val']} validation images" in capsys.readouterr().out

    lists = ["--file-list", str(tmp_path), "--output", str(tmp_path / "other")]
    assert train_imagenet.main([*settings, *lists]) == 2
    assert "--file-list must be a folder with train.txt and val.txt" in capsys.readouterr().err


# Which file of a batch


@pytest.mark.parametrize(
    "bad",
    [{0}, {69}, {0, 69}, {5, 6, 7, 33, 40}, set(range(70))],
    ids=["first", "last", "both", "several", "all"],
)
def test_bad_files_among_others(bad: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = run(images(tmp_path / "set", 70, bad), tmp_path / "out")
    assert status == 1
    assert report["unusable"] == {"set": report["unusable"]["set"]}
    assert list(report["unusable"]["set"]) == [f"a/{index:03d}.png" for index in sorted(bad)]
    good = [f"a/{index:03d}.png 0" for index in range(70) if index not in bad]
    assert (tmp_path / "out" / "set.txt").read_text().splitlines() == good
    assert report["empty_classes"] == {"set": ["a"] if len(bad) == 70 else []}
    out = capsys.readouterr().out
    assert f"{len(bad)} cannot be used" in out
    assert ("and 60 more" in out) == (len(bad) == 70)


def test_every_file_is_decoded_at_most_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are bad: the time of a check is bounded."""
    decoder = _decoding._Decoder()
    decoded: list[int] = []
    original = _decoding._Decoder.__call__

    def counting(self: Any, encoded: Any) -> Any:
        decoded.append(len(encoded))
        return original(self, encoded)

    monkeypatch.setattr(_decoding._Decoder, "__call__", counting)
    folder = images(tmp_path / "set", 60, set(range(0, 60, 2)))
    with (tmp_path / "log").open("w+b") as log:
        results = _decoding._check_files(
            [str(path) for path in sorted((folder / "a").iterdir())], decoder, log.fileno()
        )
    assert [result.error is None for result in results] == [False, True] * 30
    assert sum(decoded) <= 2 * 60


def test_messages_belong_to_the_file_that_causes_them(tmp_path: Path) -> None:
    """Even if every file of the batch decodes."""
    data = images(tmp_path / "set", 5)
    (data / "a" / "002x.JPEG").write_bytes(KINDS["height too large.JPEG"].data)
    status, report = run(data, tmp_path / "out")
    assert (status, report["decoded"]) == (0, {"set": 6})
    assert list(report["warnings"]["set"]) == ["a/002x.JPEG"]


@pytest.mark.parametrize("error", [RuntimeError, IndexError, ValueError, MemoryError])
def test_any_error_of_dali_is_about_the_files(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pipeline that raised is not used again."""
    decoder = _decoding._Decoder()
    data = images(tmp_path / "set", 3)
    used: list[Pipeline] = []
    original = Pipeline.run

    def fail_first(self: Pipeline) -> Any:
        used.append(self)
        if len(used) == 1:
            raise error("some words")
        return original(self)

    monkeypatch.setattr(Pipeline, "run", fail_first)
    paths = [str(path) for path in sorted((data / "a").iterdir())]
    with (tmp_path / "log").open("w+b") as log:
        (result,) = _decoding._check_files(paths[:1], decoder, log.fileno())
        assert result.error == "PNG: some words"
        assert [result.error for result in _decoding._check_files(paths, decoder, log.fileno())] == [None] * 3
    assert used[0] is not used[1]


def test_nothing_found(coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = run(coded / "train", tmp_path / "out")
    expected = list_images(coded / "train")
    assert (status, report["found"], report["unusable"]) == (0, 0, {"train": {}})
    assert report["classes"]["train"] == {
        name: {"files": count, "decoded": count}
        for name, count in zip(expected.classes, TRAIN_COUNTS, strict=True)
    }
    assert list_images(coded / "train", tmp_path / "out" / "train.txt") == expected
    assert (
        "23 images in 3 classes, 0 cannot be used, 0 with warnings, 0 duplicates" in capsys.readouterr().out
    )


def test_shared_images_are_the_only_finding(coded: Path, tmp_path: Path) -> None:
    """Same content in train and val is found by content, whatever the names."""
    status, report = run(coded, tmp_path / "out")
    contents = {split: {} for split in ("train", "val")}  # type: dict[str, dict[bytes, list[str]]]
    for split in contents:
        for file in list_images(coded / split).files:
            contents[split].setdefault((coded / split / file).read_bytes(), []).append(file)
    both = contents["train"].keys() & contents["val"].keys()
    assert (status, report["found"]) == (1, len(both))
    assert sorted(group["train"] for group in report["in_train_and_val"]) == sorted(
        contents["train"][data] for data in both
    )
    assert len(both) == sum(VAL_COUNTS)  # images of the same index are the same
    assert check_dataset(coded, tmp_path / "out") == check_dataset(coded)


def test_classes_that_are_missing_or_empty(tmp_path: Path) -> None:
    for place, index in (("train/a", 1), ("train/b", 2), ("val/a", 3), ("val/c", 4)):
        (tmp_path / "set" / place).mkdir(parents=True)
        plain(index).save(tmp_path / "set" / place / "1.png")
    (tmp_path / "set" / "train" / "c").mkdir()
    status, report = run(tmp_path / "set", tmp_path / "out")
    assert status == 1
    assert report["missing_classes"] == {"train": [], "val": ["b"]}
    assert report["empty_classes"] == {"train": ["c"], "val": []}
    assert report["found"] == 2


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (fake_decoders.dies_at_start, r"did not start: .*exit status 3"),
        (fake_decoders.has_a_bug, "failed:\nKeyError: 'no such thing'"),
    ],
)
def test_faults_of_the_check_are_not_blamed_on_files(
    fake: Callable[..., None], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(examine, "serve", fake)
    assert check.main([str(images(tmp_path / "set", 3)), "--output", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "report.json").exists()


def test_files_that_need_too_much_time_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found among the others of the batch, and tried again by the next check: perhaps it was the machine."""
    data, output = images(tmp_path / "set", 4), tmp_path / "out"
    shutil.copy(data / "a" / "000.png", data / "a" / "slow.png")
    shutil.copy(data / "a" / "000.png", data / "a" / "large.png")
    shutil.copy(data / "a" / "000.png", data / "a" / "fatal.png")
    monkeypatch.setattr(examine, "serve", fake_decoders.dislikes_some)
    status, report = run(data, output, "--timeout", "1.5")
    assert status == 1
    reasons = report["unusable"]["set"]
    assert [reasons[f"a/{index:03d}.png"] for index in range(4)] == ["empty file"] * 4
    assert reasons["a/slow.png"] == "not decoded within 1.5 s"
    assert reasons["a/large.png"] == ("the decoding process was killed (SIGKILL), perhaps out of memory")
    assert reasons["a/fatal.png"] == "the decoder crashed its process (SIGFPE)"
    monkeypatch.undo()
    status, report = run(data, output)
    assert list(report["unusable"]["set"]) == [*(f"a/{index:03d}.png" for index in range(4)), "a/fatal.png"]
    assert [record["file"] for record in state(output)[7:]] == ["a/large.png", "a/slow.png"]


# Bad input


@pytest.mark.parametrize(
    ("folder", "extra", "message"),
    [
        ("nowhere", [], "DIR must be an existing folder; got {0}/nowhere"),
        ("file", [], "DIR must be an existing folder; got {0}/file"),
        ("half", [], "DIR must have both train/ and val/, or class folders; got {0}/half without val/ (to"
         " check one of them, give {0}/half/train)"),
        ("empty", [], "{0}/empty must have one folder per class; got no folders"),
        ("hollow", [], "DIR must have images in its class folders; got none in {0}/hollow"),
        ("set", ["--workers", "0"], "--workers must be at least 1; got 0"),
        ("set", ["--timeout", "0"], "--timeout must be above 0; got 0"),
        ("set", ["--timeout", "nan"], "--timeout must be above 0; got nan"),
        ("set", ["--output", "{0}/file"], "--output must be a folder; got the file {0}/file"),
        ("set", ["--output", "{0}/used"], "--output must be new or from a check of {0}/set; got"
         " {0}/used/state.jsonl, from a check of /elsewhere"),
        ("set", ["--output", "{0}/busy"], "--output must not be in use; got {0}/busy/state.jsonl, which"
         " another check is writing"),
    ],
)  # fmt: skip
def test_bad_input(
    folder: str, extra: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    images(tmp_path / "set", 1)
    images(tmp_path / "half" / "train", 1)
    for name in ("used", "busy"):
        (tmp_path / name).mkdir()
    header = {"version": 1, "dali": nvidia.dali.__version__, "folder": "/elsewhere"}
    (tmp_path / "used" / "state.jsonl").write_text(json.dumps(header) + "\n")
    with (tmp_path / "busy" / "state.jsonl").open("a") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        options = [text.format(tmp_path) for text in extra] or ["--output", str(tmp_path / "out")]
        assert check.main([str(tmp_path / folder), *options]) == 2
    error = capsys.readouterr().err
    assert error.strip().splitlines() == [f"pipelines.check: error: {message.format(tmp_path)}"]
    assert not (tmp_path / "out").exists()


def test_command(tmp_path: Path) -> None:
    """The module as a command; the output goes to checks/NAME."""
    data = images(tmp_path / "a set", 2, {1})
    process = subprocess.run(
        [sys.executable, "-m", "pipelines.check", str(data), "--workers", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert (tmp_path / "checks" / "a set" / "a set.txt").read_text() == "a/000.png 0\n"
    # The decoders' standard error reaches the terminal only through the report.
    assert "libjpeg" not in process.stderr
    assert "Premature end of JPEG data" in process.stdout
