"""The README and four pages of docs: their Python runs; their commands, options and files exist."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training_runs import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    "README": README,
    **{
        name: (ROOT / "docs" / f"{name}.md").read_text()
        for name in ("methods", "pipelines", "theory", "dynamic")
    },
}
PYTHON: dict[str, str] = {
    f"{page}-{number}": block
    for page, text in PAGES.items()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
}
PROGRAMS = ("make", "python", "torchrun", "pip", "docker")
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
# Options of docker run, listed here because docker is not installed.
DOCKER = {"--rm", "--gpus", "--shm-size", "--user", "--read-only", "--tmpfs", "-v"}

# -- Python -----------------------------------------------------------------------------------------------

# Replacements for a GPU and ImageNet, which the tests do not have.
REPLACEMENTS = {
    "device_id=0": "device_id=None",
    'device="mixed"': 'device="cpu"',
    'device="gpu"': 'device="cpu"',
    '("cuda")': '("cpu")',
    "batch_size=256": "batch_size=4",
    "num_threads=8": "num_threads=1",
    "outputs/.../best.pt": "outputs/run/best.pt",
}
# Checks after a block, found by a phrase in it.
CHECKS = {
    "best.pt": "assert weights and all(torch.is_tensor(value) for value in weights.values())",
    "mixed_pipe =": "assert mixed_pipe().run()[1].as_tensor().shape() == [4, 1000]",
    "DALIClassificationIterator(": "assert loss.isfinite() and 0 <= accuracy <= 1, (loss, accuracy)",
    "def explained(": "assert list(explained([1])) == [1]",
    "DALILoader(": "assert (images.shape, targets.shape) == ((4, 3, 224, 224), (4, 1000))",
    "Mixing(": "pipeline.build()\nassert pipeline.run()[0].as_tensor().shape() == [4, 160, 160, 3]",
    "msda.register(": "assert msda.diamond.__name__ == 'diamond'",
    "msda.draw(": "assert shapes == [(4, 224, 224, 3), (4, 224, 224), (4, 1000)], shapes",
    "msda.blend(": "assert shapes == [(4, 224, 224, 3), (4, 1000)], shapes",
    "regularizers(": "assert found['mixup'].r1 == found['hmix'].r1 and found['mixup'].r2 != found['hmix'].r2",
    "ndd.checkpoint": "assert len(losses) == 6 and torch.tensor(losses).isfinite().all(), losses",
    "msda.hmix(": "assert shapes == [(4, 3, 224, 224), (4, 1000)], shapes",
}


def make_runnable(block: str) -> str:
    """Apply replacements to a block, and add code that runs its pipelines once and checks the results."""
    code = block
    for text, replacement in REPLACEMENTS.items():
        code = code.replace(text, replacement)
    for node in ast.parse(block).body:
        if isinstance(node, ast.FunctionDef) and "pipeline_def" in map(ast.unparse, _called(node)):
            code += f"\npipeline = {node.name}()\npipeline.build()\n"
            code += "shapes = [output.as_tensor().shape() for output in pipeline.run()]\n"
            code += "shapes = [tuple(shape) for shape in shapes]\n"
    return "\n".join([code, *(check for phrase, check in CHECKS.items() if phrase in block)])


def _called(function: ast.FunctionDef) -> list[ast.expr]:
    return [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a data set and the results of a run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "imagenet").symlink_to(photos)
    train(photos, folder / "outputs" / "run", "--max-steps", 1)
    return folder


# Runs each line of its input, a JSON string, as a program in a child process. Importing these two packages
# takes seconds; what else a block needs, it imports itself.
_PROGRAMS = """
import json, os, sys, tempfile
import nvidia.dali, torch
for line in sys.stdin:
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            exec(json.loads(line), {"__name__": "__main__"})
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log.seek(0)
        print(json.dumps([status, log.read().decode()]), flush=True)
"""


Run = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def run_program() -> Iterator[Run]:
    """A function that runs a program in a process of its own; returns its exit status and output."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAMS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def run(code: str) -> tuple[int, str]:
        print(json.dumps(code), file=stdin, flush=True)
        status, said = json.loads(stdout.readline())
        return status, said

    yield run
    stdin.close()
    process.wait(timeout=30)


@pytest.mark.parametrize("block", PYTHON.values(), ids=PYTHON)
def test_python_runs(block: str, folder: Path, run_program: Run) -> None:
    """Each block in a separate process, unchanged except for :data:`REPLACEMENTS`."""
    status, said = run_program(f"import os; os.chdir({str(folder)!r})\n{make_runnable(block)}")
    assert status == 0, said


def test_replacements_and_checks_are_used() -> None:
    assert [text for text in (*REPLACEMENTS, *CHECKS) if text not in "".join(PYTHON.values())] == []


# -- Commands ---------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """The words of each command in console blocks (after "$"), indented blocks and inline code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    console = "".join(re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    found = re.findall(r"^\$ (.*)", console, re.MULTILINE)
    found += re.findall(r"^ {4}(\S.*)", re.sub(r"\\\n\s*", " ", prose), re.MULTILINE)
    inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))
    found += [code for code in inline if code.split()[0] in PROGRAMS]
    return [shlex.split(command, comments=True) for command in found]


def options(words: list[str]) -> set[str]:
    return {option for word in words for option in OPTION.findall(word.partition("=")[0])}


Options = Callable[[str], set[str]]


@pytest.fixture(scope="module")
def options_of(run_program: Run) -> Options:
    """A function that finds the options in the help of a module."""

    @functools.cache
    def find(module: str) -> set[str]:
        status, said = run_program(
            f"import runpy, sys; sys.argv = [{module!r}, '--help']\n"
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        )
        assert status == 0, said
        return set(OPTION.findall(said))

    return find


def faults(words: list[str], options_of: Options) -> set[str]:
    """The parts of a command that do not exist."""
    if words[0] == "make":
        target, arguments = words[1], [a for word in words[2:] for a in shlex.split(word.partition("=")[2])]
        known = options_of("train_imagenet" if target == "train" else "pytest")
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return ({target} - set(targets)) | (options(arguments) - known) | _missing_files(arguments)
    if "train_imagenet.py" in words:
        at = words.index("train_imagenet.py")
        launchers = {"torchrun": options_of("torch.distributed.run"), "docker": DOCKER, "python": set()}
        return (options(words[:at]) - launchers[words[0]]) | (
            options(words[at:]) - options_of("train_imagenet")
        )
    if words[:2] == ["python", "-m"]:
        if importlib.util.find_spec(words[2]) is None:
            return {words[2]}
        return options(words[3:]) - options_of(words[2]) if options(words[3:]) else set()
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"[\w-]+(?=[,\]])", " ".join(words[2:]))
        return set(extras) - set(project["optional-dependencies"])
    return _missing_files(words[:1])


def _missing_files(words: list[str]) -> set[str]:
    return {word for word in words if "/" in word and word[0] != "/" and not (ROOT / word).exists()}


def test_commands_exist(options_of: Options) -> None:
    found = commands(README)
    assert {words[0] for words in found} == {*PROGRAMS, "docker/build.sh"}
    for words in found:
        assert faults(words, options_of) == set(), shlex.join(words)


def test_options_exist(options_of: Options) -> None:
    """Also options outside commands."""
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    programs = ("train_imagenet", "torch.distributed.run", "dali_msda.doctor", "pytest", "benchmarks.gpu_day")
    known = DOCKER.union(*map(options_of, programs))
    assert found - known == set()


WRONG = """
    torchrun --nproc-per-nod 8 train_imagenet.py --mx hmix
    docker run --gpu all dali-msda train_imagenet.py --data /data
    docker/built.sh
```console
$ make tests
$ make train ARGS="--mx hmix"     # a comment
```
`python -m pipelines.checks DIR`, `python -m
dali_msda.doctor --jason`, `pip install '.[cuda11]'`, `make test ARGS="tests/test_nothing.py"`
"""


def test_wrong_commands_are_found(options_of: Options) -> None:
    assert [sorted(faults(words, options_of)) for words in commands(WRONG)] == [
        ["tests"],
        ["--mx"],
        ["--mx", "--nproc-per-nod"],
        ["--gpu"],
        ["docker/built.sh"],
        ["pipelines.checks"],
        ["--jason"],
        ["cuda11"],
        ["tests/test_nothing.py"],
    ]


def test_files_exist() -> None:
    """The link targets of all pages, and the files in the map."""
    linked = {
        page.parent / path
        for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md"))
        for path in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text())
    }
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    start = contributing.index("## Map")
    map_ = contributing[start : contributing.index("\n## ", start)]
    listed = {ROOT / path for path in re.findall(r"^ {4}(\S+)", map_, re.MULTILINE)}
    assert ROOT / "docs/training.md" in linked
    assert ROOT / "pipelines/" in listed
    assert [path for path in (*linked, *listed) if not path.exists()] == []
