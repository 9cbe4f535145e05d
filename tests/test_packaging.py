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


def run_with(folder: Path, files: dict[str, str], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with modules in front of the installed ones."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "script",
    ["import dali_msda\ndali_msda.hmix", "import pipelines.imagenet", "import pipelines.check"],
    ids=["library", "pipelines", "check"],
)
def test_an_old_dali_is_refused_in_one_line(script: str, tmp_path: Path) -> None:
    files = {"sitecustomize.py": "import nvidia.dali\nnvidia.dali.__version__ = '1.53.0'\n"}
    run = run_with(tmp_path, files, script)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ImportError: dali_msda works with DALI 2.4 (tested), found 1.53.0: pip install --upgrade"
        " 'dali-msda[cuda12]'"
    )


WITHOUT_NUMBA = """
import warnings
import numpy as np
from nvidia.dali import Pipeline, fn
import dali_msda as msda
from pipelines.imagenet import train_pipeline, val_pipeline

def mixed(**arguments):
    pipeline = Pipeline(4, 1, None, seed=1)
    with pipeline:
        pixels = [np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)]
        images = fn.external_source(source=lambda: pixels, layout="HWC")
        labels = fn.external_source(source=lambda: [np.array([i], np.int32) for i in range(4)])
        pipeline.set_outputs(*msda.hmix(images, labels, num_classes=4, seed=3, **arguments))
    pipeline.build()
    return [np.array(output.as_array()) for output in pipeline.run()]

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    auto, graph = mixed(), mixed(backend="graph")
    assert all((a == b).all() for a, b in zip(auto, graph))
    common = dict(batch_size=4, num_threads=1, image_size=16)
    for pipeline in (train_pipeline(DATA, num_classes=3, **common), val_pipeline(DATA, **common)):
        pipeline.build()
        print(*(output.as_array().shape for output in pipeline.run()))
print(len([warning for warning in caught if "dali_msda works without" in str(warning.message)]))
try:
    mixed(backend="kernel")
except ImportError as error:
    print(error)
"""


NO_HOOK = "import nvidia.dali.plugin.numba as plugin\ndel plugin.NumbaFunction._get_run_fn_cpu\n"


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("numba/__init__.py", "raise ImportError('another NumPy')\n", "another NumPy"),
        ("sitecustomize.py", NO_HOOK, "_get_run_fn_cpu"),
    ],
    ids=["no Numba", "no hook"],
)
def test_everything_works_without_the_kernels(
    file: str, text: str, reason: str, coded: Path, tmp_path: Path
) -> None:
    """In the graph form, after one warning; who asks for the kernel gets the error."""
    run = run_with(tmp_path, {file: text}, f"DATA = {str(coded)!r}\n{WITHOUT_NUMBA}")
    assert run.returncode == 0, run.stderr
    train, val, warned, refused = run.stdout.splitlines()
    assert (train, val) == ("(4, 3, 16, 16) (4, 3)", "(4, 3, 16, 16) (4,)")
    assert warned == "1"
    assert reason in refused
