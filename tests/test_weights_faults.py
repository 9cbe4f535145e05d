"""Classes and checkpoints as users have them: which weights are accepted or refused, and the messages.

The weights here rank the classes the same way for every image, so that the accuracy shows which copy of the
weights was used, and which class each output was taken for.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train_imagenet
from tests.trainer_process import plain_classifier
from tests.training_runs import SMALL, train
from tests.weight_files import ANT, AVERAGE, BEE, FORMS, NAMES, RAW, REFUSED, TAKEN, averaged, ranking
from training import checkpoints, export
from training.model import build_model
from training.weight_files import read_weight_file
from training.weight_settings import About
from training.weights import load_weights


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch, plain_model: None) -> None:
    """Use the small model for the evaluation too."""
    monkeypatch.setattr("training.commands.build_model", plain_classifier)


def evaluate(
    data: Path, weights: Path, *extra: object, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run --eval-only; return its exit status and lines."""
    before = set(Path.cwd().iterdir())
    arguments = ["--data", data, *SMALL, "--eval-only", "--init-weights", weights, "--image-size", 16, *extra]
    status = train_imagenet.main([str(argument) for argument in arguments])
    assert set(Path.cwd().iterdir()) == before
    return status, *capsys.readouterr()


def top1(said: str) -> float:
    found = re.search(r": top-1 ([\d.]+) %", said)
    assert found is not None, said
    return float(found[1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the weights, also the working directory; nothing else may appear in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", TAKEN)
def test_weights_of_others(name: str, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected, words = TAKEN[name]
    torch.save(content, folder / "w.pt")
    status, said, error = evaluate(coded, folder / "w.pt", capsys=capsys)
    assert (status, error) == (0, "")
    assert top1(said) == pytest.approx(expected, abs=0.01)
    assert not [word for word in words if word not in said], said


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(form: str, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FORMS[form](folder / "weights")
    status, said, _ = evaluate(coded, folder / "weights", capsys=capsys)
    assert status == 0
    assert top1(said) == pytest.approx(ANT, abs=0.01)


def test_another_entry(coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": RAW, "model_ema": averaged(AVERAGE)}, folder / "w.pt")
    status, said, _ = evaluate(coded, folder / "w.pt", "--init-entry", "model", capsys=capsys)
    assert status == 0
    assert top1(said) == pytest.approx(ANT, abs=0.01)
    assert "not loaded: model_ema" in said
    status, _, error = evaluate(coded, folder / "w.pt", "--init-entry", "nets", capsys=capsys)
    assert status == 2
    assert error.endswith(
        f"--init-entry must be an entry of {folder / 'w.pt'}: model_ema.module, model; got nets\n"
    )


@pytest.mark.parametrize(
    ("arch", "old"),
    [("mnasnet0_5", ("", "")), ("densenet121", (r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3"))],
)
def test_models_with_a_history(arch: str, old: tuple[str, str], folder: Path) -> None:
    """One needs the version of its layers; another's layers had other names when it was published."""
    weights = {re.sub(*old, name): it for name, it in build_model(arch, 3).state_dict().items()}
    torch.save(weights, folder / "w.pt")
    model = build_model(arch, 3)
    load_weights(model, read_weight_file(folder / "w.pt"), arch)
    found = {re.sub(*old, name): it for name, it in model.state_dict().items()}
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], it) for name, it in weights.items())


def test_batch_counts_may_be_missing(folder: Path) -> None:
    """Files from before PyTorch 0.4.1 have none; heads used only in training are left out."""
    model = build_model("resnet18", 3)
    weights = {name: it for name, it in model.state_dict().items() if "num_batches" not in name}
    torch.save(weights | {"aux1.fc.weight": torch.ones(2)}, folder / "w.pt")
    taken = load_weights(build_model("resnet18", 3), read_weight_file(folder / "w.pt"), "resnet18")
    assert taken.left.startswith("not loaded: aux1.fc.weight; missing and left as they were: bn1.num_bat")


# -- Refused files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and one line of plain text with the file's name; nothing is run or written."""
    make, words = REFUSED[name]
    weights = folder / "w.pt"
    make(weights)
    status, said, error = evaluate(coded, weights, "--output", folder / "out", capsys=capsys)
    assert (status, said) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("train_imagenet.py: error: --init-weights ")
    assert str(weights) in line
    assert words in line
    assert line.isprintable()
    assert {path.name for path in folder.iterdir()} == {"w.pt"}


# -- Classes ---------------------------------------------------------------------------------------------


def saved(folder: Path, weights: dict[str, Tensor], classes: list[str] | None) -> Path:
    torch.save({"model": weights, "classes": classes}, folder / "w.pt")
    return folder / "w.pt"


@pytest.fixture
def val(coded: Path, folder: Path) -> Callable[..., Path]:
    """Copy val/ with other class names; classes without a name are left out."""

    def make(**names: str) -> Path:
        for name, other in names.items():
            shutil.copytree(coded / "val" / name, folder / "data" / "val" / other)
        return folder / "data"

    return make


ALL = {name: name for name in NAMES}
NFD = unicodedata.normalize("NFD", "bée")
# Names of the weights' outputs, names in val/, options, top-1 and words; or only the words of an error.
CLASSES: dict[str, tuple[list[str] | None, dict[str, str], list[str], float | None, str]] = {
    "all": (NAMES, ALL, [], ANT, "17 images of 16 pixels and of 3 classes"),
    "in another order": (["bee", "cat", "ant"], ALL, [], BEE, "3 classes"),
    "as a Mac writes them": (["bée", "ant", "cat"], {"ant": "ant", "bee": NFD, "cat": "cat"}, [], BEE, ""),
    "some": (
        *(["dog", "ant", "cat"], {"ant": "ant", "cat": "cat"}, [], 0.0),
        "9 images of 16 pixels and of 2 of 3 classes, the logits of the others kept",
    ),
    "some, kept": (["dog", "ant"], {"ant": "ant"}, ["--absent-classes", "keep"], 0.0, "1 of 2 classes"),
    "some, masked": (
        *(["dog", "ant", "cat"], {"ant": "ant", "cat": "cat"}, ["--absent-classes", "mask"], 100 * 6 / 9),
        "2 of 3 classes, the logits of the others masked",
    ),
    "others": (
        *(NAMES, {"ant": "x", "bee": "y"}, [], None),
        "val/ must hold classes of w.pt, which are ant, bee, cat; got x, y",
    ),
    "one other": (
        *(NAMES, {"ant": "ant", "bee": "dog"}, [], None),
        "val/ must hold classes of w.pt, which are ant, bee, cat; got dog beside 1 of those",
    ),
    "named twice": (["ant", "ant", "cat"], {"ant": "ant"}, [], None, "got ant twice"),
    "too many names": (
        *([*NAMES, "dog"], {"ant": "ant"}, [], None),
        "has a classifier 4 for 3 classes; here are 4 names of classes in it",
    ),
    "no names, some": (None, {"ant": "ant"}, [], None, "--class-names says which they are"),
    "names in a text": (None, {"bee": "bee"}, ["--class-names", "names.txt"], 100.0, "1 of 3 classes"),
    "names of folders": (None, {"cat": "cat"}, ["--class-names", "folders"], 0.0, "1 of 3 classes"),
    "no file of names": (None, {"ant": "ant"}, ["--class-names", "x"], None, "x: No such file or directory"),
    "names that are none": (None, {"ant": "ant"}, ["--class-names", "empty"], None, "empty is empty"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_by_name(
    name: str, val: Callable[..., Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first output wins, then the second."""
    classes, names, extra, expected, words = CLASSES[name]
    data = val(**names)
    saved(folder, ranking(*range(2 if classes == ["dog", "ant"] else 3)), classes)
    (folder / "names.txt").write_text("bee\nant\ncat\n", encoding="utf-8-sig")
    (folder / "empty").touch()
    for each in NAMES:
        (folder / "folders" / each).mkdir(parents=True)
    status, said, error = evaluate(data, Path("w.pt"), *extra, capsys=capsys)
    if expected is None:
        assert (status, said) == (2, "")
        (line,) = error.splitlines()
        assert words in line
    else:
        assert (status, error) == (0, "")
        assert words in said
        assert top1(said) == pytest.approx(expected, abs=0.01)


def test_a_class_without_images_is_absent(
    val: Callable[..., Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder does not affect the result, even if its name is unknown."""
    data = val(bee="bee", cat="cat")
    for name in ("ant", "unknown"):
        (data / "val" / name).mkdir()
    weights = saved(folder, ranking(0, 1, 2), NAMES)
    options = ["--allow-empty-classes", "--absent-classes", "mask"]
    status, said, _ = evaluate(data, weights, *options, capsys=capsys)
    assert status == 0
    assert "on 11 images of 16 pixels and of 2 of 3 classes, the logits of the others masked" in said
    assert top1(said) == pytest.approx(100 * 8 / 11, abs=0.01)


# -- Trainings -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps at 16 pixels."""
    output = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.learner.build_model", plain_classifier)
        train(coded, output, "--image-size", 16, "--epochs", 1)
    return output


def run(*arguments: object) -> int:
    return train_imagenet.main([str(argument) for argument in (*SMALL, *arguments)])


def test_classes_are_kept(trained: Path) -> None:
    assert json.loads((trained / "config.json").read_text())["classes"] == NAMES

    files = list(trained.rglob("*.pt"))
    assert len(files) == 3
    for path in files:
        assert torch.load(path, weights_only=True)["run"]["classes"] == NAMES


def test_size_and_architecture_of_the_checkpoint(
    trained: Path, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They need not be repeated; if they differ, a line says so."""
    common = ["--data", coded, "--eval-only", "--init-weights", trained / "last.pt", "--device", "cpu"]
    assert train_imagenet.main([str(argument) for argument in common]) == 0
    said = capsys.readouterr().out
    assert "the file says --arch shufflenet_v2_x0_5, --image-size 16, --val-image-size 16; not loaded" in said
    assert "on 17 images of 16 pixels" in said
    assert train_imagenet.main([str(argument) for argument in (*common, "--image-size", 24)]) == 0
    said = capsys.readouterr().out
    assert "--val-image-size 16; here: --image-size 24, --val-image-size 24;" in said
    assert "on 17 images of 24 pixels" in said


def test_exported_weights(
    trained: Path, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They give the checkpoint's numbers, and hold classes, architecture and size; never overwritten."""
    exported = folder / "weights.safetensors"
    assert export.main([str(trained / "last.pt"), str(exported)]) == 0
    assert "model of" in capsys.readouterr().out
    about = About.of(read_weight_file(exported).content)
    assert about == About("shufflenet_v2_x0_5", None, 16, 16, tuple(NAMES))
    results = []
    for weights in (trained / "last.pt", exported):
        status, said, _ = evaluate(coded, weights, capsys=capsys)
        assert status == 0
        results.append(said.splitlines()[-1].partition(": top-1 ")[2])
    assert results[0] == results[1] != ""
    written = exported.read_bytes()
    assert export.main([str(trained / "last.pt"), str(exported)]) == 2
    assert f"must be a new file; {exported} exists already" in capsys.readouterr().err
    assert exported.read_bytes() == written
    assert export.main([str(exported), str(folder / "other")]) == 2
    assert "weights.safetensors is damaged: File is not a zip file" in capsys.readouterr().err
    assert export.main([str(trained / "last.pt"), str(folder / "other"), "--entry", "ema"]) == 2
    assert "--entry must be an entry of" in capsys.readouterr().err
    assert not (folder / "other").exists()


def as_version(version: int, content: dict[str, Any]) -> dict[str, Any]:
    assert version == 2
    settings = {name: it for name, it in content["run"].items() if name != "classes"}
    ranks = [{name: it for name, it in rank.items() if name != "window"} for rank in content["ranks"]]
    return content | {"version": 2, "run": settings | {"num_classes": 3}, "ranks": ranks}


def test_older_checkpoints(
    trained: Path, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Version 2 has no class names: it is still evaluated and resumed, and a line says so."""
    shutil.copytree(trained, folder / "run")
    content = checkpoints.unpack((trained / "last.pt").read_bytes())
    for path in (folder / "run").rglob("*.pt"):
        path.write_bytes(checkpoints.pack(as_version(2, content)))
    status, said, _ = evaluate(coded, folder / "run" / "last.pt", capsys=capsys)
    assert status == 0
    assert "it names no classes: using those of val/, in their order" in said
    again = ["--data", coded, "--image-size", 16, "--epochs", 2, "--output", folder / "run"]
    assert run(*again, "--resume", "auto") == 0
    assert "from an earlier version and names no classes" in capsys.readouterr().out
    found = checkpoints.unpack((folder / "run" / "last.pt").read_bytes())
    assert (found["version"], found["run"]["classes"]) == (4, NAMES)


def renamed(coded: Path, folder: Path, splits: tuple[str, ...], **names: str) -> Path:
    data = Path(shutil.copytree(coded, folder / "data"))
    for split in splits:
        for name, other in names.items():
            (data / split / name).rename(data / split / other)
    return data


def test_resume_with_other_classes(
    trained: Path, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = renamed(coded, folder, ("train", "val"), cat="dog")
    options = ["--data", data, "--image-size", 16, "--epochs", 2, "--output", folder / "new"]
    assert run(*options, "--resume", trained / "last.pt") == 2
    error = capsys.readouterr().err
    assert error.endswith("needs a checkpoint of these classes; train/ lacks cat and it does not know dog\n")

    assert not (folder / "new").exists()


# What --resume refuses, and the message.
NO_CHECKPOINTS = {
    "text": "is damaged: File is not a zip file",
    "JPEG": "is damaged: File is not a zip file",
    "cut": "is damaged: File is not a zip file",
    "a bit": "is damaged: Bad CRC-32",
    "code": "not a checkpoint of this trainer: it holds posix.system, which is neither tensor",
    "whole model": "not a checkpoint of this trainer: it holds tests.weight_files.Net,"
    " which is neither tensor",
    "no weights": "is not a checkpoint of this trainer",
    "folder": "--resume must be auto or a checkpoint; there is no file",
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_resume_from_something_else(
    name: str, coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here, too, one line of plain text."""
    REFUSED[name][0](folder / "w.pt")
    options = ["--data", coded, "--image-size", 16, "--output", folder / "out"]
    assert run(*options, "--resume", folder / "w.pt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder / "w.pt") in line
    assert NO_CHECKPOINTS[name] in line
    assert line.isprintable()
    assert {path.name for path in folder.iterdir()} == {"w.pt"}


def test_first_weights_of_other_classes(
    coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other names or another number: refused, except with a new classifier; another order: sorted."""
    still = ["--data", coded, "--image-size", 16, "--lr", 0, "--weight-decay", 0, "--max-steps", 1]
    still += ["--output", folder / "out"]
    weights = saved(folder, ranking(0, 1, 2), ["ant", "bee", "dog"])
    assert run(*still, "--init-weights", weights) == 2
    error = capsys.readouterr().err
    assert "(--new-classifier starts a new one)" in error
    assert error.endswith("train/ lacks dog and it does not know cat\n")
    saved(folder, ranking(*range(5)), None)
    assert run(*still, "--init-weights", weights) == 2
    assert "for 5 classes; here are 3; --new-classifier starts a new one" in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert run(*still, "--init-weights", weights, "--new-classifier") == 0
    assert "except the classifier 4, which is new" in capsys.readouterr().out
    shutil.rmtree(folder / "out")
    saved(folder, ranking(0, 1, 2), ["cat", "ant", "bee"])
    assert run(*still, "--init-weights", weights) == 0
    found = torch.load(folder / "out" / "last.pt", weights_only=True)["model"]
    assert found["4.bias"].tolist() == [-1, -2, 0]


def test_training_with_some_classes_in_val(
    coded: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Usually a folder is missing by mistake; if on purpose, labels are still those of train/."""
    data = Path(shutil.copytree(coded, folder / "data"))
    shutil.rmtree(data / "val" / "ant")
    weights = saved(folder, ranking(1, 0, 2), None)
    options = ["--data", data, "--image-size", 16, "--lr", 0, "--weight-decay", 0, "--max-steps", 1]
    options += ["--init-weights", weights, "--output", folder / "out"]
    assert run(*options) == 2
    assert "(--absent-classes allows fewer in val/)" in capsys.readouterr().err
    assert run(*options, "--absent-classes", "keep") == 0
    said = capsys.readouterr().out
    assert "(val/: 2 of 3 classes, the logits of the others kept)" in said
    assert f"epoch 1: top-1 {100 * 8 / 11:.1f} %" in said  # it always answers bee
