"""The files for the image, without building it; docker/verify.sh builds it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
SCRIPTS = ("build.sh", "verify.sh")


def instructions(text: str) -> list[tuple[str, str]]:
    """Name and arguments of each instruction, without comments and line breaks."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest) for name, rest in pairs]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions by name of the stage; "" has those before the first stage."""
    result: dict[str, list[tuple[str, str]]] = {"": []}
    current = ""
    for name, rest in instructions(DOCKERFILE.read_text()):
        if name == "FROM":
            match = re.fullmatch(r"(\S+)(?: AS (\w+))?", rest)
            assert match is not None, rest
            current = match[2] or "default"
            result[current] = []
        result[current].append((name, rest))
    return result


def arguments(stage: str, name: str) -> list[str]:
    return [rest for instruction, rest in stages()[stage] if instruction == name]


def lock(path: Path) -> dict[str, set[str]]:
    """The hashes of each `name==version ; marker` of a lock."""
    entries: dict[str, set[str]] = {}
    for entry in re.sub(r"\\\n\s*", " ", path.read_text()).splitlines():
        if entry and not entry.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", entry)
            entries[requirement.strip()] = set(hashes)
    return entries


# -- The Dockerfile -------------------------------------------------------------------------------------


def test_python_is_process_one_and_gets_the_signals() -> None:
    """Not a shell, which would not forward SIGTERM as process 1."""
    (entry,) = arguments("final", "ENTRYPOINT")
    assert json.loads(entry) == ["/opt/venv/bin/python"]
    assert arguments("final", "STOPSIGNAL") == ["SIGTERM"]


def test_help_without_arguments() -> None:
    (command,) = arguments("final", "CMD")
    assert json.loads(command) == ["train_imagenet.py", "--help"]
    assert (ROOT / "train_imagenet.py").is_file()


@pytest.mark.parametrize("stage", ["final", "test"])
def test_user_is_a_number_and_not_root(stage: str) -> None:
    """Kubernetes' runAsNonRoot accepts only numbers."""
    user = arguments(stage, "USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), user


def test_the_last_stage_is_the_image() -> None:
    assert list(stages())[-1] == "default"
    assert stages()["default"] == [("FROM", "final")]


def test_base_is_an_argument() -> None:
    assert [rest.split("=")[0] for rest in arguments("", "ARG")] == ["BASE"]
    for stage in ("build", "source", "final"):
        assert stages()[stage][0] == ("FROM", f"${{BASE}} AS {stage}")


def test_final_stage_runs_nothing() -> None:
    """A stage that only copies contains no caches, package lists or tools."""
    assert arguments("final", "RUN") == []
    assert all(rest.startswith("--from=") for rest in arguments("final", "COPY"))


@pytest.mark.parametrize(
    ("stage", "file"), [("build", "docker/requirements.lock"), ("test", "/tmp/requirements.lock")]
)
def test_packages_come_from_the_lock_by_hash(stage: str, file: str) -> None:
    (install,) = (run for run in arguments(stage, "RUN") if " install " in run)
    for option in ("--require-hashes", "--only-binary :all:", f"-r {file}", "--mount=type=cache"):
        assert option in install
    assert "apt" not in DOCKERFILE.read_text().replace("captur", "")


def test_caches_are_where_any_user_can_write() -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(arguments("final", "ENV"))))
    assert environment["HOME"] == "/tmp"
    assert environment["NUMBA_CACHE_DIR"].startswith("/tmp/")
    assert environment["USER"]  # getpass.getuser() needs it if /etc/passwd does not have the user


def test_driver_libraries() -> None:
    """nvJPEG's hardware decoder opens libnvcuvid, which containers get only with `video`."""
    (found,) = re.findall(r"NVIDIA_DRIVER_CAPABILITIES=(\S+)", " ".join(arguments("final", "ENV")))
    assert found.split(",") == ["compute", "utility", "video"]
    assert f"NVIDIA_DRIVER_CAPABILITIES={found}`" in (ROOT / "docs" / "gpu.md").read_text()


def test_labels() -> None:
    (labels,) = arguments("final", "LABEL")
    names = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", labels))
    assert {"source", "version", "revision", "licenses", "base.name"} <= names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'licenses="{project["license"]}"' in labels
    assert f"VERSION={project['version']}" in arguments("final", "ARG")


def test_config_json_gets_commit_and_image() -> None:
    environment = " ".join(arguments("final", "ENV"))
    source = "".join((ROOT / "training" / name).read_text() for name in ("output.py", "revision.py"))
    build = (ROOT / "docker" / "build.sh").read_text()
    for variable, argument in (("DALI_MSDA_COMMIT", "COMMIT"), ("DALI_MSDA_IMAGE", "IMAGE_ID")):
        assert f"{variable}=${{{argument}}}" in environment
        assert f'os.environ.get("{variable}")' in source
        assert f"--build-arg {argument}=" in build


def test_removed_files_exist_and_are_not_imported() -> None:
    """The files removed from the image are in the repository, and training imports none of them."""
    (clean,) = (run for run in arguments("source", "RUN") if run.startswith("rm "))
    left_out = clean.split("&&")[0].split()[2:]
    assert "tests" in left_out
    assert [name for name in left_out if not (ROOT / name).exists()] == []
    kept = [ROOT / "train_imagenet.py"]
    for package in ("dali_msda", "pipelines", "training", "configs"):
        assert package not in left_out
        kept += (ROOT / package).rglob("*.py")
    imported = "|".join(name for name in left_out if name.isidentifier())
    for path in kept:
        assert not re.search(rf"^\s*(from|import) ({imported})\b", path.read_text(), re.MULTILINE), path


# -- .dockerignore, compose.yaml, scripts -----------------------------------------------------------------


def ignored(path: str) -> bool:
    """Whether .dockerignore excludes `path`; supports the patterns NAME and **/NAME."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    parts = path.split("/")
    for pattern in patterns:
        assert pattern[0] != "!"
        if pattern.startswith("**/"):
            if any(fnmatch.fnmatch(part, pattern[3:]) for part in parts):
                return True
        elif fnmatch.fnmatch(parts[0], pattern) or path == pattern:
            return True
    return False


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "build/verify.log",
        "data/demo/demo.json",
        "dist/x.whl",
        "outputs/run/last.pt",
        "pipelines/__pycache__/check.cpython-311.pyc",
        "dali_msda.egg-info/PKG-INFO",
    ],
)
def test_context_has_no_build_products(path: str) -> None:
    assert ignored(path)


def test_context_has_all_sources() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("only a checkout knows which files are sources")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [path for path in listed.stdout.splitlines() if ignored(path)] == []


def test_compose() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"cpu", "gpu"}
    for service in services.values():
        build = service["build"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert {volume.rsplit("}:")[1] for volume in service["volumes"]} == {"/data:ro", "/outputs"}
        assert "entrypoint" not in service
    assert services["gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert "deploy" not in services["cpu"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str) -> None:
    path = ROOT / "docker" / name
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("image", ["dali-msda", "another"])
def test_build_sets_one_tag(image: str) -> None:
    """With a second tag, the test image would replace the image."""
    environment = {**os.environ, "ENGINE": "echo", "IMAGE": image if image == "another" else ""}
    run = subprocess.run(
        [ROOT / "docker" / "build.sh", "--target", "test"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words = run.stdout.split()
    assert [words[i + 1] for i, word in enumerate(words) if word in ("-t", "--tag")] == [image]
    assert words[0] == "build"
    assert words[-3:] == ["--target", "test", "."]


def test_verify_rejects_an_unknown_stage() -> None:
    run = subprocess.run(
        [ROOT / "docker" / "verify.sh", "build", "trian"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "STAGE must be one of build doctor train stop reproducible tests; got trian" in run.stderr


def test_verify_stops_when_a_build_fails(tmp_path: Path) -> None:
    """Otherwise it would test an older image of that name, or none."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    engine = tmp_path / "engine"
    engine.write_text('echo "$1" >>"$0.calls"; test "$1" != build\n')
    (tmp_path / "pip.conf").touch()
    environment = os.environ | {"ENGINE": f"bash {engine}", "BASE": "base", "IMAGE": "image"}
    environment |= {"PIP_CONF": str(tmp_path / "pip.conf"), "CA": str(tmp_path / "pip.conf")}
    run = subprocess.run(
        [tmp_path / "docker" / "verify.sh", "reproducible"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout
    assert "verify: FAILED: the second build" in run.stdout
    assert "run" not in (tmp_path / "engine.calls").read_text().split()


@pytest.mark.parametrize(
    ("steps", "then", "said"),
    [
        (75, "exec sleep 600", "verify: FAILED: exit status 1, not 143 (128 + SIGTERM)"),
        (
            3,
            "exec sleep 600",
            'verify: FAILED: no "step": 70, in run/metrics.jsonl: nothing has changed for 2 s',
        ),
        (
            3,
            "echo out of memory",
            'verify: FAILED: no "step": 70, in run/metrics.jsonl: the container has left',
        ),
    ],
    ids=["slow", "stuck", "gone"],
)
def test_verify_waits_for_progress(steps: int, then: str, said: str, tmp_path: Path) -> None:
    """A slow container is waited for beyond the time limit; one that does nothing, or has left, is not."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    engine, run_folder = tmp_path / "engine", tmp_path / "build" / "verify" / "stop" / "run"
    engine.write_text(f"""
        case $1 in
        run)
            mkdir -p {run_folder}
            (
                echo Training
                for ((step = 1; step <= {steps}; step++)); do
                    sleep 0.04
                    echo "{{\\"step\\": $step, " >>{run_folder}/metrics.jsonl
                done
                {then}
            ) >$0.log 2>&1 </dev/null &
            echo $! >$0.pid ;;
        ps) ! kill -0 $(<$0.pid) 2>/dev/null || echo found ;;
        logs) cat $0.log ;;
        stop) kill $(<$0.pid) ;;
        inspect) echo 1 ;;
        rm) [[ ! -e $0.pid ]] || kill $(<$0.pid) 2>/dev/null ;;
        esac
    """)
    run = subprocess.run(
        [tmp_path / "docker" / "verify.sh", "stop"],
        env=os.environ | {"ENGINE": f"bash {engine}", "PATIENCE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout
    assert run.stdout.rstrip().splitlines()[-1] == said, run.stdout
    assert ("out of memory" in run.stdout) == ("memory" in then)


# -- The locks ------------------------------------------------------------------------------------------


def test_image_has_versions_and_hashes_of_the_lock() -> None:
    whole, image = lock(ROOT / "requirements.lock"), lock(ROOT / "docker" / "requirements.lock")
    # Markers may be narrower if only development packages need a requirement on other Pythons.
    locked = {entry.split(" ;")[0]: hashes for entry, hashes in whole.items()}
    wanted = {entry.split(" ;")[0]: hashes for entry, hashes in image.items()}
    assert wanted
    assert {entry: locked.get(entry) for entry in wanted} == wanted
    assert all(wanted.values())


def test_image_has_exactly_what_training_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {Requirement(entry).name for entry in lock(ROOT / "docker" / "requirements.lock")}
    train = [*project["project"]["dependencies"], *project["dependency-groups"]["train"]]
    assert {Requirement(entry).name for entry in train} <= names
    assert not names & {"pytest", "mypy", "ruff", "timm", "kornia", "matplotlib", "pip"}


def test_one_cuda_major() -> None:
    """CUDA 12 libraries of torch and DALI, including those that DALI loads at run time."""
    names = {Requirement(entry).name for entry in lock(ROOT / "docker" / "requirements.lock")}
    libraries = {name for name in names if re.search(r"-cu\d+$", name)}
    assert {"nvidia-npp-cu12", "nvidia-cufft-cu12", "nvidia-cudnn-cu12"} <= libraries
    assert {name.rsplit("-", 1)[1] for name in libraries} == {"cu12"}
    assert "nvidia-dali-cuda120" in names
