"""The wheel: what it holds, and what importing it brings in."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What a checkout holds of its own; the build sees a copy, so that it leaves nothing in the checkout
# and nothing that an earlier build left there gets in.
SOURCES = (
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "train_imagenet.py",
    "dali_msda",
    "pipelines",
    "training",
    "configs",
    "experiments",
    "benchmarks",
    "tests",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout without the network."""
    source = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    output = tmp_path_factory.mktemp("dist")
    build = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, source],
        cwd=output,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (built,) = output.glob("*.whl")
    return built


def test_wheel_holds_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (license_name,) = (name for name in names if name.endswith("/LICENSE"))
        license_text = archive.read(license_name)
    library = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dali_msda").rglob("*.py")}
    assert library == modules | {"dali_msda/py.typed"}
    assert license_text == (ROOT / "LICENSE").read_bytes()


def test_importing_the_wheel_imports_neither_torch_nor_numba(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import sys, dali_msda\n"
        "print(dali_msda.__file__)\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('torch', 'numba')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    imported_from, heavy = run.stdout.split("\n")[:2]
    assert Path(imported_from).is_relative_to(tmp_path / "site")
    assert heavy == ""
