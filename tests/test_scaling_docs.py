"""docs/scaling.md and its files: existing options, a valid manifest, a script that saves and requeues."""

from __future__ import annotations

import copy
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError
from torch.distributed.run import get_args_parser

import training.options
from training import config
from training.config import Config
from training.options import parse, settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT, SCRIPT, MANIFEST = DOCS / "scaling.md", DOCS / "slurm.sbatch", DOCS / "trainjob.yaml"
TRAINER = {config.option(found.name) for found in training.options.options()}
TORCHRUN = {option for action in get_args_parser()._actions for option in action.option_strings}
# Options of sbatch and srun, listed here because the programs are not installed.
SLURM = {
    *("--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time"),
    *("--signal", "--requeue", "--open-mode", "--output", "--export"),
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def options(text: str) -> set[str]:
    """The long options in a text."""
    return set(OPTION.findall(text))


def commands(text: str) -> list[str]:
    """The commands in a text that start the trainer, each on one line, without comments."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [line.strip() for line in joined.splitlines()]
    return [line for line in lines if re.search(r"\btorchrun .*train_imagenet\.py", line) and line[0] != "#"]


# -- Options --------------------------------------------------------------------------------------------


def test_options_of_the_text() -> None:
    found = options(TEXT.read_text())
    assert found <= {*TRAINER, *TORCHRUN, *SLURM}
    assert {"--batch-size", "--lr", "--sync-bn", "--resume", "--output", "--bad-files"} <= found


@pytest.mark.parametrize("path", [TEXT, SCRIPT], ids=lambda path: path.name)
def test_options_of_the_commands(path: Path) -> None:
    """torchrun's before the name of the script, the trainer's after it."""
    found = commands(path.read_text())
    assert found
    for command in found:
        launcher, trainer = command.split("train_imagenet.py", 1)
        assert options(launcher.split("torchrun", 1)[1]) <= TORCHRUN, command
        assert options(trainer) <= TRAINER, command
        assert "--resume" in options(trainer)


def test_unknown_options_are_found() -> None:
    assert options("`--batch-sise 8` and --lr=0.1, 1--2, a--b") == {"--batch-sise", "--lr"}
    (command,) = commands(
        "# torchrun x train_imagenet.py --no\n  torchrun --nnodes 2 \\\n  train_imagenet.py --a\n"
    )
    assert options(command) == {"--nnodes", "--a"}


# -- Slurm ----------------------------------------------------------------------------------------------


def test_script_is_bash() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def directives(script: str) -> dict[str, str]:
    """Slurm's options in a script: the comment lines before the first command."""
    found = {}
    for line in script.splitlines()[1:]:
        if not line.startswith("#"):
            break
        if "SBATCH" not in line:
            continue
        match = re.fullmatch(r"#SBATCH (--[a-z-]+)(?:=(\S+))?", line)
        if match is None:
            raise ValueError(f"not a directive: {line}")
        found[match[1]] = match[2] or ""
    return found


def test_directives() -> None:
    script = SCRIPT.read_text()
    assert script.startswith("#!")
    found = directives(script)
    assert len(found) == script.count("\n#SBATCH"), "a directive after a command, where Slurm ignores it"
    assert set(found) <= SLURM
    for name in ("--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task"):
        assert int(found[name]) >= 1
    assert found["--ntasks-per-node"] == "1"  # one torchrun per machine
    assert re.fullmatch(r"\d+:\d\d:\d\d", found["--time"])
    assert re.fullmatch(r"B:USR1@\d+", found["--signal"])
    assert found["--requeue"] == ""
    assert found["--open-mode"] == "append"  # a requeued job keeps its log
    (command,) = commands(script)
    batch_size = int(re.search(r"--batch-size=(\d+)", command)[1])  # type: ignore[index]
    assert batch_size % (int(found["--nodes"]) * int(found["--gpus-per-node"])) == 0


@pytest.mark.parametrize(
    "line", ["#SBATCH -N 2", "#SBATCH --nodes 2", "# SBATCH --nodes=2", "#SBATCH--nodes=2"]
)
def test_invalid_directives(line: str) -> None:
    with pytest.raises(ValueError, match="not a directive"):
        directives(f"#!/bin/bash\n{line}\n")


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts the script with fake Slurm commands; `srun` exits with the given status."""
    programs = tmp_path / "bin"
    programs.mkdir()
    fakes = {
        "scontrol": 'echo "$*" >>scontrol.log; [[ $1 != show ]] || printf "gpu-07\\ngpu-08\\n"',
        # Exits at once with status 0; otherwise waits for the signal, then pretends to write a checkpoint.
        "srun": 'echo "$*" >srun.log; trap "sleep 0.3; echo signal >>srun.log; exit $STATUS" USR1\n'
        "touch ready; [[ $STATUS == 0 ]] || while :; do sleep 0.05; done",
    }
    for name, body in fakes.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    running = []

    def start(status: int) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "STATUS": str(status),
            "DATA": "/shared/image net",
            "OUTPUT": "/shared/run",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "gpu-[07-08]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "64",
        }
        process = subprocess.Popen(
            ["bash", SCRIPT, "--mix", "gmix"],
            cwd=tmp_path,
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_script_saves_and_requeues(slurm: Callable[[int], subprocess.Popen[str]], tmp_path: Path) -> None:
    """The script forwards the signal to the step, waits for it, and requeues the job."""
    process = slurm(1)
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (1, "")
    command, *rest = (tmp_path / "srun.log").read_text().splitlines()
    assert rest == ["signal"]
    assert (tmp_path / "scontrol.log").read_text().splitlines()[1:] == ["requeue 123456"]
    assert "--nnodes=2 --nproc-per-node=8 " in command
    assert "--rdzv-endpoint=gpu-07:23456 --rdzv-id=123456-0 " in command
    assert "--data=/shared/image net --output=/shared/run --resume=auto " in command
    assert command.endswith(" --mix gmix")


def test_script_does_not_requeue_a_complete_run(
    slurm: Callable[[int], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = slurm(0)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "")
    assert "requeue" not in (tmp_path / "scontrol.log").read_text()


# -- Kubernetes -----------------------------------------------------------------------------------------


def faults(manifest: dict[str, Any]) -> str:
    """The errors of a manifest by the schema of TrainJob; empty for a valid one.

    The generated models silently drop unknown fields and add some missing ones, so their output is compared
    with the input.
    """
    # Its import takes a second.
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob  # type: ignore[import-untyped]

    try:
        understood = TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(manifest)).to_dict()
    except (ValidationError, ValueError, TypeError, AttributeError) as error:
        return str(error)
    return "; ".join(_compare(manifest, understood, "manifest"))


def _compare(given: Any, understood: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(understood, dict):
        for name, value in given.items():
            if name in understood:
                yield from _compare(value, understood[name], f"{path}.{name}")
            else:
                yield f"{path}.{name} is not in the schema"
        yield from (f"{path}.{name} is missing" for name in understood if name not in given)
    elif isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        for index, (value, other) in enumerate(zip(given, understood, strict=True)):
            yield from _compare(value, other, f"{path}[{index}]")
    elif given != understood:
        yield f"{path} is {given!r}, understood as {understood!r}"


@pytest.fixture
def manifest() -> dict[str, Any]:
    content = yaml.safe_load(MANIFEST.read_text())
    assert isinstance(content, dict)
    return content


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of the manifest for pods."""
    (patch,) = manifest["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == "node"  # the name in the runtime torch-distributed
    found: dict[str, Any] = job["template"]["spec"]["template"]["spec"]
    return found


def test_manifest_fits_the_schema(manifest: dict[str, Any]) -> None:
    assert faults(manifest) == ""
    assert manifest["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert manifest["kind"] == "TrainJob"


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "misspelt at the top": (lambda m: m.update(specs={}), r"manifest\.specs is not in the schema"),
    "misspelt": (lambda m: m["spec"]["trainer"].update(numNode=2), r"trainer\.numNode is not in the schema"),
    "of an older version": (
        lambda m: m["spec"].update(podTemplateOverrides=[]),
        "podTemplateOverrides is not",
    ),
    "misspelt, deep": (
        lambda m: pod(m)["volumes"][2]["emptyDir"].update(size="1Gi"),
        r"emptyDir\.size is not",
    ),
    "text for a number": (lambda m: m["spec"]["trainer"].update(numNodes="2"), "numNodes"),
    "a number for a text": (lambda m: m["spec"]["trainer"]["args"].append(8), "args"),
    "a text for a list": (lambda m: m["spec"]["trainer"].update(args="train_imagenet.py"), "args"),
    "a text for a yes": (
        lambda m: pod(m)["volumes"][0]["persistentVolumeClaim"].update(readOnly="no"),
        "readOnly",
    ),
    "missing": (lambda m: m["spec"]["runtimeRef"].pop("name"), "name"),
    "missing, deep": (
        lambda m: pod(m)["containers"][0]["volumeMounts"][0].pop("mountPath"),
        "mountPath is missing",
    ),
    "nothing": (lambda m: m["spec"].update(trainer=None), r"spec\.trainer is not"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_manifests_are_caught(name: str, manifest: dict[str, Any]) -> None:
    break_it, message = WRONG[name]
    break_it(manifest)
    assert re.search(message, faults(manifest))


def test_manifest_starts_the_trainer(manifest: dict[str, Any]) -> None:
    """torchrun's options do not repeat what the runtime sets in PET_ variables."""
    trainer = manifest["spec"]["trainer"]
    assert trainer["command"] == ["torchrun"]
    at = trainer["args"].index("train_imagenet.py")
    launcher, given = trainer["args"][:at], trainer["args"][at + 1 :]
    parsed = vars(get_args_parser().parse_args([*launcher, "train_imagenet.py"]))
    assert parsed["rdzv_endpoint"] == parsed["rdzv_id"].replace("none", "") == ""
    assert {"--nnodes", "--nproc-per-node", "--node-rank", "--master-addr"}.isdisjoint(
        options(shlex.join(launcher))
    )
    pairs = dict(argument.split("=", 1) for argument in given)
    assert set(pairs) <= TRAINER
    processes = trainer["numNodes"] * trainer["numProcPerNode"]
    assert int(pairs["--batch-size"]) % processes == 0
    resources = trainer["resourcesPerNode"]
    gpus = str(trainer["numProcPerNode"])
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == gpus


def test_manifest_mounts_its_folders(manifest: dict[str, Any]) -> None:
    spec, arguments = pod(manifest), manifest["spec"]["trainer"]["args"]
    (container,) = spec["containers"]
    assert container["name"] == "node"
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    for option, folder in (("--data=", "/data"), ("--output=", "/output")):
        (path,) = (
            Path(argument.removeprefix(option)) for argument in arguments if argument.startswith(option)
        )
        assert Path(folder) in (path, *path.parents)
    assert not mounts["/output"].get("readOnly", False)
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"


def test_trainer_accepts_the_manifests_settings(manifest: dict[str, Any]) -> None:
    """They are parsed with the same values."""
    arguments = manifest["spec"]["trainer"]["args"]
    given = arguments[arguments.index("train_imagenet.py") + 1 :]
    read = {f"{config.option(name)}={value}" for name, value in settings(parse(given, Config())).items()}
    assert set(given) <= read
