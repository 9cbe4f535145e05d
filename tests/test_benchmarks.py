"""The header of every benchmark result, and the documents' tables of results."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import bench_pack, compare, documents
from benchmarks.common import Record, load, only, save, select, spread
from benchmarks.tables import TABLES
from pipelines.demo_data import make_demo_dataset
from tests.image_sets import photo
from tests.trainer_process import ROOT
from training.machine import describe_code, describe_command

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
HEADER = {"benchmark", "date", "command", "commit", "dirty", "calculated", "machine", "settings", "results"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="an image has no git")
def test_revision(tmp_path: Path) -> None:
    assert describe_code(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert describe_code(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "a.json").touch()
    assert describe_code(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").touch()
    assert describe_code(tmp_path) == {"commit": commit, "dirty": True}


def test_the_command_names_no_folder_of_the_machine() -> None:
    arguments = ["/a/b c.pt", "--data", "/a/data", "--output=/a/o.json", "--seeds=3", "x=/y/z"]
    command = describe_command("experiments.x", arguments=arguments)["command"]
    assert command == "python -m experiments.x b c.pt --data data --output=o.json --seeds=3 z"


def test_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command, but without the machine's paths; with commit, processor and versions."""
    monkeypatch.setattr("sys.argv", ["x", "--data", "/somebody/pictures", "--rounds", "3"])
    settings = {"data": Path("/somebody/pictures"), "rounds": 3}
    record = {"mix": "hmix", "batch_size": 64, "seconds": spread([3.0, 1.0, 2.0])}
    content = load(save("bench_x", settings, [record], tmp_path, packages=["pytest"]))
    assert content["command"] == "python -m benchmarks.bench_x --data pictures --rounds 3"
    assert content["settings"] == {"data": "pictures", "rounds": 3}
    assert content.keys() == HEADER
    assert content["results"][0]["seconds"] == {"median": 2.0, "q1": 1.5, "q3": 2.5, "rounds": 3}
    assert {"torch", "pytest"} < content["machine"]["versions"].keys()


def test_save_never_overwrites_a_file(tmp_path: Path) -> None:
    """Not even one from the same second."""
    paths = {save("bench_x", {"number": number}, [{"ms": 1.0}], tmp_path) for number in range(5)}
    assert len(paths) == 5
    assert sorted(load(path)["settings"]["number"] for path in paths) == [0, 1, 2, 3, 4]


def test_records_are_found_by_their_fields() -> None:
    fields = [("hmix", 1), ("hmix", 2), ("gmix", None)]
    records: list[Record] = [{"mix": mix, "cores": cores} for mix, cores in fields]
    assert select(records, mix="hmix") == records[:2]
    assert only(records, mix="hmix", cores=2) is records[1]
    assert only(records, cores=None) is records[2]
    with pytest.raises(LookupError, match=r"records with \{'mix': 'hmix'\} must be exactly one; got 2"):
        only(records, mix="hmix")
    with pytest.raises(LookupError, match="got 0"):
        only(records, mix="none")


def test_documents_agree_with_their_results() -> None:
    """If not, run python -m benchmarks.documents."""
    stale = [path.name for path in documents.documents() if documents.fill_tables(path) != path.read_text()]
    assert stale == []


def test_every_table_is_in_a_document() -> None:
    """Except those that a benchmark only prints."""
    text = "".join(path.read_text() for path in documents.documents())
    printed = {name for name in documents.TABLES if f"<!-- table: {name} " not in text}
    assert printed == {"mix", "compare"}


def test_packing_and_its_table(tmp_path: Path) -> None:
    """Sizes and PSNR of photos that were packed."""
    source, target = tmp_path / "set", tmp_path / "packed"
    for folder, side in ((source, 400), (target, 200)):
        (folder / "a").mkdir(parents=True)
        for seed in range(2):
            image = Image.fromarray(photo(300, 400, seed)).resize((side, side * 3 // 4))
            image.save(folder / "a" / f"{seed}.jpg", quality=98)
    settings = bench_pack.Settings(source, workers=1, batch_size=2, batches=1, rounds=2, crops=2)
    psnr = bench_pack.measure_psnr(settings, source, target)
    assert psnr["db"]["rounds"] == 4
    assert 20 < psnr["db"]["median"] < 45
    records = [
        *({"figure": "size", "images": name, "kilobytes_per_image": 9.6} for name in ("original", "packed")),
        {"figure": "packing", "images_per_s": 30.4},
        psnr,
        *(
            {
                "figure": "training",
                "images": name,
                "scaled_decoding": scaled,
                "images_per_s": {"median": 70.0},
            }
            for name, scaled in (("original", "off"), ("original", "auto"), ("packed", "auto"))
        ),
    ]
    rows = TABLES["pack"]({"settings": {"data": "set"}, "results": records})
    assert [row[1] for row in rows[:4]] == ["set", "10", "10", "30"]
    assert rows[4][1].startswith(f"{psnr['db']['median']:.1f} (")
    assert [row[1] for row in rows[5:]] == ["70"] * 3


def document(folder: Path, line: str = "<!-- table: soak soak.json -->") -> Path:
    """A document with one table, and its results beside it."""
    result = next(path for path in RESULTS if path.name.endswith("-soak.json"))
    shutil.copy(result, folder / "soak.json")
    path = folder / "page.md"
    path.write_text(f"Before\n\n{line}\n<!-- end of table -->\n\nAfter\n")
    path.write_text(documents.fill_tables(path))
    return path


def test_a_changed_number_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = document(tmp_path)
    text = page.read_text()
    assert "| faults found " in text
    assert "[soak, 2026-11-26](soak.json), AMD EPYC, 2 cores" in text
    assert (text[:6], text[-6:]) == ("Before", "After\n")
    monkeypatch.setattr(documents, "documents", lambda: [page])
    monkeypatch.setattr("sys.argv", ["documents", "--check"])
    assert documents.main() == 0

    page.write_text(text.replace("| lives ", "| deaths "))
    assert documents.main() == 1
    assert "| deaths " in page.read_text()  # --check writes nothing

    page.write_text(text)
    content = load(tmp_path / "soak.json")
    content["results"][0]["faults"] = 7
    (tmp_path / "soak.json").write_text(json.dumps(content))
    assert documents.main() == 1
    monkeypatch.setattr("sys.argv", ["documents"])
    assert documents.main() == 0
    assert "| 7 " in page.read_text()
    assert documents.linked_results(page, "soak") == [tmp_path / "soak.json"]


def test_compare_measures_a_checkout(tmp_path: Path) -> None:
    """In its own process, and only this checkout."""
    data = make_demo_dataset(tmp_path / "set", train_per_class=1, val_per_class=1)
    settings = compare.Settings(before=ROOT, after=ROOT, batch_size=4, batches=1, mixes=("none", "hmix"))
    speeds = compare.speeds(ROOT, data, settings)
    measures = [("loader", "hmix"), ("mix", "hmix"), ("mix_normalise", "hmix"), ("mix_graph", "hmix")]
    assert list(speeds) == [("loader", "none"), *measures]
    assert min(speeds.values()) > 0
    with pytest.raises(SystemExit, match="failed"):
        compare.speeds(tmp_path, data, settings)


def test_compare_shows_ms_and_ratios() -> None:
    def record(measure: str, before: list[float], after: list[float]) -> Record:
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        speeds = {"before_images_per_s": spread(before), "after_images_per_s": spread(after)}
        return {"measure": measure, "mix": "hmix", "batch_size": 64, **speeds, "ratio": spread(ratios)}

    records = [record("mix", [32e3, 32e3], [16e3, 16e3]), record("loader", [1000, 1000], [900, 1100])]
    _, loader, mix = TABLES["compare"]({"results": records})
    assert loader == ["training pipeline, HMix", "1000 /s", "1000 /s", "1.000 (0.950-1.050)"]
    assert mix == ["mixing, compiled, HMix", "2.00 ms", "4.00 ms", "0.500 (0.500-0.500)"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("<!-- table: soaked soak.json -->", "table must be one of loader, .*; got 'soaked'"),
        ("<!-- table: soak other.json -->", "table soak must name results files; got .*other.json"),
        ("<!-- table: soak -->", "every table must be <!-- table: NAME FILE ... --> and have an end"),
        ("<!-- table: soak soak.json -->\n<!-- table: soak soak.json -->", "and have an end"),
    ],
)
def test_a_wrong_place_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        document(tmp_path, line)
