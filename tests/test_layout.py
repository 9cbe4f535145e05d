"""Rooms and what they may know of each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer_process import ROOT

# From the top floor down: each folder imports those that follow it, never one before it.
FLOORS = ["train_imagenet", "configs", "training", "pipelines", "dali_msda"]
BESIDE = ["benchmarks", "experiments"]  # import any of them, and nobody imports these


def modules(folder: str) -> Iterator[Path]:
    path = ROOT / folder
    yield from path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Absolute imports anywhere in a source: module and name ("" for the module itself)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def is_private(module: str, name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in (*module.split("."), name))


@pytest.mark.parametrize("folder", FLOORS + BESIDE)
def test_arrows_point_down_and_meet_public_names(folder: str) -> None:
    below = FLOORS if folder in BESIDE else FLOORS[FLOORS.index(folder) :]
    for path in modules(folder):
        for module, name in imports(path.read_text()):
            room = module.split(".")[0]
            if room in (*FLOORS, *BESIDE) and room != folder:
                assert room in below, f"{path} imports {module}"
                assert not is_private(module, name), f"{path} imports {module}.{name}"


def test_nothing_imports_the_doctor() -> None:
    """It looks at the library, never the other way round."""
    for path in (ROOT / "dali_msda").rglob("*.py"):
        if path.parent.name != "doctor":
            found = re.search(r"^\s*(from|import) .*\bdoctor\b", path.read_text(), re.MULTILINE)
            assert found is None, f"{path}: {found}"


def test_private_names_of_dali_are_in_one_file() -> None:
    users = [path.name for path in (ROOT / "dali_msda").rglob("*.py") if "plugin.numba" in path.read_text()]
    assert users == ["compat.py"]
    sources = (path for path in (ROOT / "dali_msda").glob("*.py") if path.name != "compat.py")
    assert [path.name for path in sources if re.search(r"pipeline\._\w", path.read_text())] == []


def knows_folders(source: str) -> bool:
    """Whether a source uses what a class folder has beyond the contract of a source, or names it."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ("files", "root"))
        or (isinstance(node, ast.Name) and node.id == "ImageFolder")
        for node in ast.walk(ast.parse(source))
    )


def test_what_is_about_folders_is_in_few_files() -> None:
    """All else knows the contract only: another format needs no change there."""
    paths = [path for folder in ("pipelines", "training", "train_imagenet") for path in modules(folder)]
    users = {str(path.relative_to(ROOT)) for path in paths if knows_folders(path.read_text())}
    assert users == {"pipelines/folders.py", "pipelines/check.py", "pipelines/_findings.py"}


@pytest.mark.parametrize(
    "module",
    [
        *(
            "training.config",
            "training.options",
            "training.report",
            "training.inputs",
            "pipelines.sources",
            "configs",
        ),
        *("pipelines.records", "dali_msda.methods", "dali_msda.mixing"),
    ],
)
def test_light_modules(module: str) -> None:
    """They are read before, or without, anything that takes seconds to import."""
    script = f"import sys, {module}\nprint(*{{'nvidia', 'numba', 'torch'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_what_is_to_be_found_is_found() -> None:
    source = "import a._b\nfrom c import d, _e\nfrom . import _f\nfrom __future__ import g\n"
    private = [pair for pair in imports(source) if is_private(*pair)]
    assert private == [("a._b", ""), ("c", "_e")]
