"""The doctor: its page, its exit status, and that every check can fail."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import carray  # type: ignore[attr-defined]
from nvidia.dali import fn, types

from benchmarks.loaders import Settings as Loading
from dali_msda import masks, methods, processors
from dali_msda.backends import blending as _blending
from dali_msda.backends.numba import entry_points as _entry_points
from dali_msda.backends.numba import mix as _backend_kernel
from dali_msda.backends.numba.compiled import data_of, shape1
from dali_msda.backends.numba.kernels import write_targets
from dali_msda.doctor import gpu as _gpu
from dali_msda.doctor import jpeg as _jpeg
from dali_msda.doctor import machine as _machine
from dali_msda.doctor import page as doctor
from dali_msda.doctor import selfcheck as _selfcheck
from dali_msda.doctor.gpu import Driver
from dali_msda.doctor.report import NOTE, OK, PROBLEM, Finding, lines, run_probe
from dali_msda.methods import METHODS
from pipelines.check import Options
from training.config import Config, resolve
from training.ranks import Ranks

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = Driver(None, "", None, (), "libcuda.so.1: cannot open shared object file")
TORCH = {"torch": "2.10.0", "cuda": "12.8", "gpu": True, "sum": 15.0}


def run_doctor(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dali_msda.doctor", *options],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def beside_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not load PyTorch, which takes seconds each time."""
    monkeypatch.setattr(_gpu, "load_together", lambda: (TORCH | {"gpu": False}, ""))


def test_json_and_exit_status() -> None:
    """The whole doctor as a user runs it, with PyTorch beside DALI."""
    run = run_doctor("--json", "--quick")
    report = json.loads(run.stdout)
    assert run.returncode == int(report["problems"] > 0), run.stdout
    machine, installed, check, *rest = report["sections"].values()
    assert set(machine) == {"Python", "processors", "memory", "shared memory", "disk", "Numba"}
    assert installed["DALI"]["status"] == OK
    assert installed["DALI"]["cuda_major"] == int(installed["PyTorch"]["cuda"].split(".")[0])
    assert installed["PyTorch"]["together"] is True
    assert installed["CUDA libraries"]["libraries"]["libnppc"]["file"].endswith("libnppc.so.12")
    for form in ("CPU kernel", "CPU graph"):
        assert check[form]["status"] == OK
        for method in METHODS:
            errors = check[form]["methods"][method]["errors"]
            assert set(errors) == {"reference", "paper"}
            for found in errors.values():
                assert found["image"] <= 0.5001
                assert found["mask"] <= 2e-7
                assert found["targets"] <= 1e-6
        # Not 0: float32 is not float64.
        assert check[form]["methods"]["gmix"]["errors"]["paper"]["mask"] > 0
    if not installed["GPU"]["devices"]:
        assert rest
        assert {entry["status"] for entry in rest[0].values()} == {NOTE}
        assert set(rest[0]) == {"GPU graph", "GPU decoding", "driver"}


def test_wrong_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--fast"])
    assert stopped.value.code == 2
    assert "--fast" in capsys.readouterr().err


def test_page_is_one_page(
    beside_torch: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_selfcheck, "_ROUND_SECONDS", 0.0)
    monkeypatch.setattr(_selfcheck, "BATCH", 4)
    status = doctor.main([])
    page = capsys.readouterr().out
    assert status == int(" PROBLEM " in page)
    assert len(page.splitlines()) <= 60
    assert max(map(len, page.splitlines())) <= 100
    for part in ("images/s: mixup ", "CPU decoding: whole JPEGs", "built for CUDA 12", "halves go up"):
        assert part in page
    assert page.splitlines()[-1].endswith(("note.", "notes."))


# The self-check finds wrong formulas and kernels.


def checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any]]:
    """Exit status and the self-check's section, on a machine without a GPU."""
    monkeypatch.setattr(_gpu, "find_driver", lambda: NO_GPU)
    monkeypatch.setattr(_gpu, "findings", lambda driver: [])
    monkeypatch.setattr(_machine, "findings", lambda gpus: [])
    status = doctor.main(["--json", "--quick"])
    sections = json.loads(capsys.readouterr().out)["sections"]
    return status, next(section for title, section in sections.items() if title.startswith("Self-check"))


def test_brighter_kernel_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = _entry_points.mix_pixels

    def brighter(*arguments: Any, **more: Any) -> tuple[Any, ...]:
        mixed, *rest = right(*arguments, **more)
        return fn.cast(mixed | 1, dtype=types.UINT8), *rest

    monkeypatch.setattr(_backend_kernel, "mix_pixels", brighter)
    status, section = checked(monkeypatch, capsys)
    assert status == 1
    assert section["CPU kernel"]["status"] == PROBLEM
    assert "cutmix: paper convention: a pixel is off by 1 " in section["CPU kernel"]["text"]
    assert "delete the folder of compiled code" in section["CPU kernel"]["todo"]
    assert section["CPU graph"]["status"] == OK


def _larger_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = masks.box_span
    monkeypatch.setattr(
        methods, "box_span", lambda f, grid, axis, scale: right(f, grid, axis, scale + 2.0 / axis.size)
    )


def _darker_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    right = methods.TABLE["hmix"]

    def wrong(f: Any, grid: Any, lam: Any, ratio: Any) -> Any:
        mask: Any = right.mask(f, grid, lam, ratio)
        return mask._replace(base=mask.base * 0.999, scale=mask.scale * 0.999)

    monkeypatch.setitem(methods.TABLE, "hmix", dataclasses.replace(right, mask=wrong))


def _larger_pi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blending.Functions, "pi", np.pi * 1.0001)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (_larger_boxes, {"cutmix", "stochastic", "hmix"}),
        (_darker_outside, {"hmix"}),
        (_larger_pi, {"gmix"}),
    ],
)
def test_wrong_formula_is_found(
    wrong: Callable[[pytest.MonkeyPatch], None], found: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch)
    results = list(_selfcheck.check_methods(("CPU graph",), 1, timed=False))
    assert {result["method"] for result in results if result["error"]} == found
    assert doctor._report_methods("CPU graph", results).status == PROBLEM


def _swapped_targets(version: int) -> Callable[..., None]:
    """The library's function with the labels of a sample and of its partner swapped."""

    def run(out, out_shapes, out_ndims, outs, data, shapes, ndims, ins):  # type: ignore[no-untyped-def]
        _source = version
        write_targets(
            carray(data_of(out, 0), shape1(out_shapes, 0), np.float32),
            carray(data_of(data, 3), shape1(shapes, 3), np.float32),
            carray(data_of(data, 2), shape1(shapes, 2), np.int32),
            carray(data_of(data, 1), shape1(shapes, 1), np.int32),
            carray(data_of(data, 0), shape1(shapes, 0), np.float32)[-1],
        )

    return run


def test_wrong_compiled_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_entry_points, "build_targets", _swapped_targets)
    found = _selfcheck.measure_errors("cutmix", "reference", "CPU kernel")
    assert found.targets > 0.5
    assert found.image <= 0.5
    assert not found.within_bounds()


def test_an_exception_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*nodes: Any, **arguments: Any) -> Any:
        raise RuntimeError("Assert failed\n  in a line of C++")

    monkeypatch.setattr(_selfcheck, "mix", broken)
    results = list(_selfcheck.check_methods(("CPU graph",), 1, timed=False))
    assert len(results) == 6
    assert {result["error"] for result in results} == {"RuntimeError: Assert failed in a line of C++"}


def test_halves() -> None:
    exact, masks = np.array([[[[0.5], [1.5], [2.25]]]]), np.full((1, 1, 3), 0.5)
    for mixed, said in (([1, 2, 2], "up"), ([0, 1, 2], "down"), ([0, 2, 2], "to even"), ([1, 1, 2], "mixed")):
        image = np.array(mixed, np.uint8).reshape(exact.shape)
        assert _selfcheck._find_rounding(image, exact, masks) == said
    # A weight that float32 cannot represent shows nothing.
    assert _selfcheck._find_rounding(image, exact, masks * 0.6001) == ""


def test_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_selfcheck, "BATCH", 3)
    monkeypatch.setattr(_selfcheck, "_ROUND_SECONDS", 0.0)
    (right,) = _selfcheck.check_decoders(False, 1)
    assert right["error"] == ""
    assert right["images_per_second"] > 0

    monkeypatch.setattr(_jpeg, "TILE_MEAN", (117.3, 117.7, 127.55))
    (off,) = _selfcheck.check_decoders(False, 1)
    assert off["error"].startswith("colours off by 10.0,")
    tiled = _jpeg.repeat_tile
    monkeypatch.setattr(_jpeg, "repeat_tile", lambda rows, columns: tiled(rows, columns + 1))
    (larger,) = _selfcheck.check_decoders(False, 1)
    assert larger["error"] == "a decoded image has the shape (384, 576, 3)"
    monkeypatch.setattr(_jpeg, "repeat_tile", lambda rows, columns: b"\xff\xd8\xff no JPEG" * 9)
    (broken,) = _selfcheck.check_decoders(False, 1)
    assert "RuntimeError" in broken["error"]
    assert doctor._report_decoding("CPU decoding", [broken]).status == PROBLEM


# The machine.


class Case(NamedTuple):
    """What a probe finds on a made-up machine, and what it must report."""

    patch: Callable[[pytest.MonkeyPatch, Path], None]
    probe: Callable[[], Finding]
    status: str
    says: str
    todo: str


def _space(size: int, free: int) -> Callable[[pytest.MonkeyPatch, Path], None]:
    return lambda patch, _: patch.setattr(_machine, "_size_and_free", lambda path: (size, free))


def _files(**contents: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    """Files of /proc and /sys; "__" means a slash."""
    paths = {name.replace("__", "/").replace("_dot_", "."): text for name, text in contents.items()}

    def patch(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
        for module in (_machine, processors):
            monkeypatch.setattr(module, "read_text", lambda path: paths.get(path.lstrip("/")))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
        monkeypatch.setattr(os, "cpu_count", lambda: 16)

    return patch


def _no_shm(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr(_machine, "_size_and_free", lambda path: None)


def _no_numba(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setitem(sys.modules, "numba", None)


def _no_cache(patch: pytest.MonkeyPatch, folder: Path) -> None:
    import numba

    def njit(**options: Any) -> Any:
        raise RuntimeError("cannot cache function '_gib': no locator available")

    patch.setattr(numba, "njit", njit)


def _no_jit(patch: pytest.MonkeyPatch, _: Path) -> None:
    import numba

    patch.setattr(numba.config, "DISABLE_JIT", 1, raising=False)


def _no_temporary(patch: pytest.MonkeyPatch, _: Path) -> None:
    def gettempdir() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    patch.setattr(tempfile, "gettempdir", gettempdir)


GROUPS_2 = {"proc__self__cgroup": "0::/kubepods/pod1\n"}
GROUPS_1 = {"proc__self__cgroup": "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n"}
MACHINE = {
    "quota, version 2": Case(
        _files(**GROUPS_2, sys__fs__cgroup__kubepods__cpu_dot_max="250000 100000\n"),
        lambda: _machine.check_processors(0), NOTE, "2 of 16", "num_threads=2",
    ),
    "no quota, version 2": Case(
        _files(**GROUPS_2, sys__fs__cgroup__cpu_dot_max="max 100000\n"),
        lambda: _machine.check_processors(0), OK, "16 of 16", "",
    ),
    "quota, version 1": Case(
        _files(
            **GROUPS_1,
            sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="300000\n",
            sys__fs__cgroup__cpu__cpu_dot_cfs_period_us="100000\n",
        ),
        lambda: _machine.check_processors(0), NOTE, "3 of 16", "--workers 3",
    ),
    "no quota, version 1": Case(
        _files(
            **GROUPS_1,
            sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="-1\n",
            sys__fs__cgroup__cpu__cpu_dot_cfs_period_us="100000\n",
        ),
        lambda: _machine.check_processors(0), OK, "16 of 16", "",
    ),
    "few processors for the GPUs": Case(
        _files(), lambda: _machine.check_processors(8), NOTE, "for 8 GPUs", "docs/gpu.md"
    ),
    "little memory": Case(
        _files(**GROUPS_2, sys__fs__cgroup__kubepods__pod1__memory_dot_max="2147483648\n"),
        lambda: _machine.check_memory(), NOTE, "allows 2.0 GiB", "small batches",
    ),
    "Docker's shared memory, one process": Case(
        _space(64 << 20, 64 << 20), lambda: _machine.check_shared_memory(1), NOTE, "0.1 GiB", "--shm-size"
    ),
    "Docker's shared memory, two GPUs": Case(
        _space(64 << 20, 64 << 20), lambda: _machine.check_shared_memory(2), PROBLEM, "0.1 GiB", "--shm-size"
    ),
    "full shared memory": Case(
        _space(64 << 30, 1 << 20), lambda: _machine.check_shared_memory(2),
        PROBLEM, "0.0 GiB free", "--shm-size",
    ),
    "no shared memory": Case(_no_shm, lambda: _machine.check_shared_memory(0), NOTE, "no /dev/shm", "tmpfs"),
    "little disk": Case(_space(9 << 40, 2 << 30), _machine.check_disk, NOTE, "2.0 GiB free", "checkpoint"),
    "full disk": Case(_space(9 << 40, 1 << 20), _machine.check_disk, PROBLEM, "0.0 GiB free", "TMPDIR"),
    "no temporary folder": Case(_no_temporary, _machine.check_disk, PROBLEM, "no temporary folder", "TMPDIR"),
    "Numba missing": Case(_no_numba, _machine.check_numba, PROBLEM, "cannot be imported", "pip install"),
    "Numba off": Case(_no_jit, _machine.check_numba, PROBLEM, "switched off", "NUMBA_DISABLE_JIT"),
    "cache cannot be written": Case(_no_cache, _machine.check_numba, NOTE, "no locator", "NUMBA_CACHE_DIR"),
    "old Python": Case(
        lambda patch, _: patch.setattr(sys, "version_info", (3, 10, 1)),
        _machine.check_python, NOTE, "CPython", "3.11",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINE)
def test_machine(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = MACHINE[name]
    with monkeypatch.context() as patch:
        case.patch(patch, tmp_path)
        found = case.probe()
    assert found.status == case.status, found
    assert case.says in found.text
    assert case.todo in found.todo
    assert bool(found.todo) == bool(case.todo)


def test_unwritable_cache_for_real(tmp_path: Path) -> None:
    """Numba itself, without a writable folder."""
    file = tmp_path / "file"
    file.write_text("")
    script = "from dali_msda.doctor import machine; print(machine.check_numba().data['cache'])"
    places = [subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
    ).stdout.strip() for folder in (tmp_path / "cache", file / "cache")]  # fmt: skip
    assert Path(places[0]).is_relative_to(tmp_path / "cache")
    assert not places[1].startswith(str(file))


def test_probes_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in /proc and /sys, no shared memory, no driver: the page is still printed."""
    for module in (_machine, processors):
        monkeypatch.setattr(module, "read_text", lambda path: None)
    monkeypatch.setattr(_machine, "_size_and_free", lambda path: None)
    monkeypatch.delattr(os, "sched_getaffinity")

    def sysconf(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", sysconf)
    found = {finding.name: finding for finding in _machine.findings(0)}
    assert found["memory"].text == "unknown"
    assert found["processors"].status == OK
    nothing: dict[str, str] = {}
    failed = run_probe("this", lambda: Finding(OK, "this", nothing["key"]))
    assert failed.status == NOTE
    assert "KeyError('key')" in failed.text


def test_every_problem_has_a_remedy() -> None:
    with pytest.raises(ValueError, match="todo"):
        Finding(PROBLEM, "name", "text")
    with pytest.raises(ValueError, match="status"):
        Finding("bad", "name", "text", "todo")
    assert lines(Finding(PROBLEM, "name", "text", "do this")) == [
        "  PROBLEM name: text",
        "          -> do this",
    ]


def test_every_default_of_workers_respects_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer, check and benchmarks, where a container gets 2.5 of 16 processors; a rank of two gets half."""
    _files(**GROUPS_2, sys__fs__cgroup__kubepods__cpu_dot_max="250000 100000\n")(monkeypatch, Path())
    assert resolve(Config(device="cpu")).workers == 2
    assert resolve(Config(device="cpu"), Ranks(size=2, local_size=2)).workers == 1
    assert Options(Path("anywhere")).workers == 2
    assert Loading(data=Path("anywhere")).workers == 2
