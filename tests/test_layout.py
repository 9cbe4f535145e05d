"""The folders, and what they may import from each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer_process import ROOT

# Each folder imports only those after it.
LAYERS = ["train_imagenet", "configs", "training", "pipelines", "dali_msda"]
TOOLS = ["experiments", "benchmarks"]  # import any layer, and the first the second; none imports these


def modules(folder: str) -> Iterator[Path]:
    path = ROOT / folder
    yield from path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Absolute imports anywhere in a source file: module and name ("" for the module itself)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def is_private(module: str, name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in (*module.split("."), name))


@pytest.mark.parametrize("folder", LAYERS + TOOLS)
def test_imports_point_down_and_use_public_names(folder: str) -> None:
    order = [*TOOLS, *LAYERS]
    below = order[order.index(folder) :]
    for path in modules(folder):
        for module, name in imports(path.read_text()):
            room = module.split(".")[0]
            if room in (*LAYERS, *TOOLS) and room != folder:
                assert room in below, f"{path} imports {module}"
                assert not is_private(module, name), f"{path} imports {module}.{name}"


def test_nothing_imports_the_doctor() -> None:
    """It imports the library, never the other way round."""
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
    """Whether a module uses attributes of a class folder that other sources do not have, or names it."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ("files", "root"))
        or (isinstance(node, ast.Name) and node.id == "ImageFolder")
        for node in ast.walk(ast.parse(source))
    )


def test_few_files_know_folders() -> None:
    """The others know only the protocol of a source, so another format needs no change there."""
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
        *("pipelines.records", "dali_msda.methods", "dali_msda.mixing", "dali_msda.theory"),
    ],
)
def test_light_modules(module: str) -> None:
    """They are imported before, or without, anything that takes seconds."""
    script = f"import sys, {module}\nprint(*{{'nvidia', 'numba', 'torch'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_private_imports_are_found() -> None:
    source = "import a._b\nfrom c import d, _e\nfrom . import _f\nfrom __future__ import g\n"
    private = [pair for pair in imports(source) if is_private(*pair)]
    assert private == [("a._b", ""), ("c", "_e")]
