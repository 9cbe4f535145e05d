"""The wheel: its contents, and what importing it imports."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_readme import PYTHON

ROOT = Path(__file__).resolve().parent.parent
# The contents of a checkout. The build gets a copy, so that it writes nothing to the checkout and does not
# see files of earlier builds.
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


# The installed packages.
PACKAGES = ("dali_msda", "pipelines")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout, offline."""
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


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_contains_library_and_pipelines(site: Path) -> None:
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    (license_file,) = (name for name in files if name.endswith("/LICENSE"))
    sources = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    expected |= {f"{folder}/py.typed" for folder in PACKAGES}
    assert {name for name in files if not name.split("/")[0].endswith(".dist-info")} == expected
    assert (site / license_file).read_bytes() == (ROOT / "LICENSE").read_bytes()


def run_from_wheel(site: Path, script: str) -> list[str]:
    """Run a script that finds the project only in the wheel; returns the printed lines."""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_importing_the_wheel_imports_neither_torch_nor_numba(site: Path) -> None:
    imported_from, heavy = run_from_wheel(
        site,
        "import sys, dali_msda\n"
        "print(dali_msda.__file__)\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('torch', 'numba')))",
    )
    assert Path(imported_from).is_relative_to(site)
    assert heavy == ""


def test_the_wheel_has_what_the_readme_imports(site: Path) -> None:
    nodes = [node for block in PYTHON.values() for node in ast.walk(ast.parse(block))]
    imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "from pipelines.loader import DALILoader" in imports
    show = f"print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in {PACKAGES}), sep='\\n')"
    files = run_from_wheel(site, "\n".join(["import sys", *imports, show]))
    assert {str(site / "dali_msda/__init__.py"), str(site / "pipelines/loader.py")} <= set(files)
    assert [file for file in files if not Path(file).is_relative_to(site)] == []


def find_required(requirements: list[Requirement], extra: str) -> set[str]:
    """Names of the packages that an extra requires, nested extras included."""
    wanted = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
    names = {r.name for r in wanted if r.name != "dali-msda"}
    return names.union(*(find_required(requirements, other) for r in wanted for other in r.extras))


NEED_TORCH = {"pipelines/loader.py", "dali_msda/theory/from_torch.py"}


@pytest.mark.parametrize("extra", ["cuda12", "torch-cuda12"])
def test_an_extra_installs_what_the_wheel_imports(extra: str, site: Path) -> None:
    """Every module of the library and the pipelines; with PyTorch, those that need it as well."""
    (metadata,) = site.glob("*.dist-info/METADATA")
    lines = re.findall(r"^Requires-Dist: (.*)", metadata.read_text(), re.MULTILINE)
    installed = find_required([Requirement(line) for line in lines], extra)
    packages = importlib.metadata.packages_distributions()
    for path in (path for folder in PACKAGES for path in (site / folder).rglob("*.py")):
        missing = {
            root
            for node in ast.walk(ast.parse(path.read_text()))
            for root in imported(node) - set(sys.stdlib_module_names) - set(PACKAGES)
            if installed.isdisjoint(packages[root])
        }
        place = path.relative_to(site)
        if place.is_relative_to("dali_msda/torch"):  # Triton comes with PyTorch
            expected = {"torch", "triton"} if extra == "cuda12" else {"triton"}
            if place.stem in ("timm", "torchvision"):  # a drop-in needs what it replaces
                expected |= {place.stem}
            assert missing <= expected, path
            continue
        expected = {"torch"} if place.as_posix() in NEED_TORCH and extra == "cuda12" else set()
        if place.as_posix() == "dali_msda/jax.py":
            expected = {"jax"}
        assert missing == expected, path


def imported(node: ast.AST) -> set[str]:
    """The top-level names that a statement imports, except relative imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {str(node.module).partition(".")[0]}
    return set()


def run_with(folder: Path, files: dict[str, str], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with modules that take precedence over the installed ones."""
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
def test_an_old_dali_is_rejected_in_one_line(script: str, tmp_path: Path) -> None:
    files = {"sitecustomize.py": "import nvidia.dali\nnvidia.dali.__version__ = '1.53.0'\n"}
    run = run_with(tmp_path, files, script)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ImportError: DALI must be 2.4 (tested); got 1.53.0: pip install --upgrade 'dali-msda[cuda12]'"
    )


def test_only_the_loader_needs_torch(tmp_path: Path) -> None:
    files = {"torch/__init__.py": "raise ModuleNotFoundError('No module named torch')"}
    modules = sorted(path.stem for path in (ROOT / "pipelines").glob("*.py"))
    others = "\n".join(f"import pipelines.{name}" for name in modules if name != "loader")
    assert run_with(tmp_path, files, others).stderr == ""
    run = run_with(tmp_path, files, "import pipelines.loader")
    assert run.stderr.splitlines()[-1] == (
        "ImportError: pipelines.loader needs PyTorch, which cannot be imported. To install the build for"
        " DALI's CUDA: pip install 'dali-msda[torch-cuda12]'"
    )


def test_the_theory_needs_only_numpy_and_scipy(tmp_path: Path) -> None:
    blocked = ("nvidia", "numba", "torch")
    files = {f"{name}/__init__.py": f"raise ModuleNotFoundError('no {name}')" for name in blocked}
    modules = sorted(path.stem for path in (ROOT / "dali_msda" / "theory").glob("*.py"))
    names = ["dali_msda.theory", *(f"dali_msda.theory.{name}" for name in modules if name != "__init__")]
    assert run_with(tmp_path, files, "\n".join(f"import {name}" for name in names)).stderr == ""
    # The modules are really blocked.
    run = run_with(tmp_path, files, "import dali_msda\ndali_msda.hmix")
    assert run.stderr.splitlines()[-1].startswith("ImportError: dali_msda needs NVIDIA DALI")


WITHOUT_NUMBA = """
import warnings
import numpy as np
from nvidia.dali import Pipeline, fn
import dali_msda as msda
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.records import Output

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
    common = dict(batch_size=4, num_threads=1, output=Output(image_size=16))
    for pipeline in (train_pipeline(DATA, num_classes=3, **common), val_pipeline(DATA, **common)):
        pipeline.build()
        print(*(output.as_array().shape for output in pipeline.run()))
print(len([warning for warning in caught if "dali_msda runs without" in str(warning.message)]))
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
    """In the graph form, after one warning; backend="kernel" raises the error."""
    run = run_with(tmp_path, {file: text}, f"DATA = {str(coded)!r}\n{WITHOUT_NUMBA}")
    assert run.returncode == 0, run.stderr
    train, val, warnings, error = run.stdout.splitlines()
    assert (train, val) == ("(4, 3, 16, 16) (4, 3)", "(4, 3, 16, 16) (4,)")
    assert warnings == "1"
    assert reason in error
