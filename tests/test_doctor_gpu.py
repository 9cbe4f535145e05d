"""What the doctor reports about drivers, GPUs, PyTorch and libraries, on made-up machines."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from dali_msda.doctor import gpu as _gpu
from dali_msda.doctor import libraries as _libraries
from dali_msda.doctor import page as doctor
from dali_msda.doctor import selfcheck as _selfcheck
from dali_msda.doctor.gpu import Device, Driver
from dali_msda.doctor.libraries import opened_libraries
from dali_msda.doctor.report import NOTE, OK, PROBLEM
from dali_msda.methods import METHODS
from tests.devices import on_each_device

ROOT = Path(__file__).resolve().parent.parent
DEVICE = Device("Some GPU", 80 << 30, (9, 0))
GPU = Driver("550.54.15", "", (12, 4), (DEVICE,), "")
NO_GPU = Driver(None, "NVML: not found", None, (), "libcuda.so.1: cannot open shared object file")
TORCH = {"torch": "2.10.0", "cuda": "12.8", "gpu": True, "sum": 15.0}


class FakeCuda:
    """The parts of the driver's library that are called: results are written through the pointers."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12040
        return 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuGetErrorName(self, status: int, name: Any) -> int:
        name._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0 if status == 100 else 1

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index + 40
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        assert size == 128
        name.value = f"GPU {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = (device.value + 40) << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


@pytest.fixture
def driver_libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Libraries that can be opened, by name; NVML works."""
    found: dict[str, Any] = {"libcuda.so.1": FakeCuda()}

    def load(name: str) -> Any:
        if name not in found:
            raise OSError(f"{name}: cannot open shared object file")
        return found[name]

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "550.54.15")
    return found


def test_driver(driver_libraries: dict[str, Any]) -> None:
    devices = (Device("GPU 40", 80 << 30, (9, 0)), Device("GPU 41", 81 << 30, (9, 0)))
    assert _gpu.find_driver() == Driver("550.54.15", "", (12, 4), devices, "")
    driver_libraries["libcuda.so.1"] = FakeCuda(status=100)
    assert _gpu.find_driver() == Driver("550.54.15", "", (12, 4), (), "CUDA_ERROR_NO_DEVICE")
    driver_libraries["libcuda.so.1"] = FakeCuda(status=7)
    assert _gpu.find_driver().error == "cuInit returned 7"


def test_no_driver(driver_libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's package is installed and reports that it finds no library."""
    driver_libraries.clear()
    monkeypatch.undo()
    monkeypatch.setattr(ctypes, "CDLL", raising(OSError("cannot open shared object file")))
    monkeypatch.setattr(pynvml, "CDLL", ctypes.CDLL)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    found = _gpu.find_driver()
    assert found == Driver(
        None, "NVML: NVML Shared Library Not Found", None, (), "cannot open shared object file"
    )


def raising(error: Exception) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse


def test_only_the_version_is_unknown_without_nvmls_package(
    driver_libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPUs are found, and the page says what to install."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = _gpu.check_gpus(_gpu.find_driver(), 12)
    assert (found.status, found.data["driver"]) == (OK, None)
    assert "driver of unknown version (pip install nvidia-ml-py to see it) for CUDA up to 12.4" in found.text
    assert "GPU 40, 80 GiB" in found.text


@pytest.mark.parametrize(
    ("driver", "cards", "status", "says", "todo"),
    [
        (NO_GPU, 0, OK, "none in this machine", ""),
        (GPU, 1, OK, "driver 550.54.15 for CUDA up to 12.4\nSome GPU, 80 GiB, compute capability 9.0", ""),
        (NO_GPU, 2, PROBLEM, "2 in the machine, none usable", "--gpus all"),
        (GPU._replace(devices=(), error="CUDA_ERROR_NO_DEVICE"), 1, PROBLEM, "NO_DEVICE", "nvidia-smi"),
        (GPU._replace(version="525.20.1"), 1, PROBLEM, "too old", "525.60 or newer"),
        (GPU._replace(version="525.60.13"), 1, OK, "525.60.13", ""),
    ],
    ids=["no GPU", "a GPU", "cards, no driver", "driver, no device", "old driver", "oldest driver"],
)
def test_gpus(
    driver: Driver, cards: int, status: str, says: str, todo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gpu, "count_cards", lambda: cards)
    found = _gpu.check_gpus(driver, 12)
    assert found.status == status
    assert says in found.text
    assert todo in found.todo
    json.dumps(found.data)


def test_hidden_devices_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "count_cards", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in _gpu.check_gpus(NO_GPU, 12).todo
    assert "580.0 or newer" in _gpu.check_gpus(GPU, 13).todo  # 550 is too old for the build for CUDA 13


def with_libraries(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """All CUDA libraries are found, except these."""
    monkeypatch.setattr(
        _libraries,
        "open_library",
        lambda library: (None, "no such file") if library.stem in missing else (f"/{library.stem}", ""),
    )
    monkeypatch.setattr(_gpu, "_installed_elsewhere", lambda library: None)


@pytest.mark.parametrize(
    ("missing", "cuda", "status", "says", "todo"),
    [
        (["libnppc", "libnppicc", "libnppig"], 12, PROBLEM, "libnppicc.so.12", "pip install nvidia-npp-cu12"),
        (["libnppig"], 13, PROBLEM, "libnppig.so.13", "pip install nvidia-npp,"),
        (["libnvjpeg"], 12, PROBLEM, "decodes JPEGs", "pip install nvidia-nvjpeg-cu12"),
        (["libnvimgcodec"], 13, PROBLEM, "image decoders", "pip install nvidia-nvimgcodec-cu13"),
        (["libnvcuvid"], 12, PROBLEM, "hardware JPEG decoder", "compute,utility,video"),
        (["libcufft"], 12, NOTE, "audio", "pip install nvidia-cufft-cu12"),
    ],
    ids=str,
)
def test_missing_libraries(
    missing: list[str], cuda: int, status: str, says: str, todo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_libraries(monkeypatch, *missing)
    _, found = _gpu.check_cuda_libraries(cuda, True)
    assert found.status == status
    assert says in found.text
    assert todo in found.todo
    # Without a GPU it works, and the driver's libraries are not checked.
    without = _gpu.check_cuda_libraries(cuda, False)[1:]
    assert [finding.status for finding in without] == [NOTE] * (missing != ["libnvcuvid"])
    assert all("before a GPU is used" in finding.todo for finding in without)


def test_all_libraries_or_unused_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch)
    (found,) = _gpu.check_cuda_libraries(12, True)
    assert found.status == OK
    assert f"{len(opened_libraries(12))} are found" in found.text
    with_libraries(monkeypatch, "libcufile")
    (found,) = _gpu.check_cuda_libraries(12, True)
    assert "not used here: libcufile" in found.text


def test_library_off_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Installed, but in a folder outside DALI's search path."""
    (tmp_path / "dali").mkdir()
    (tmp_path / "npp" / "lib").mkdir(parents=True)
    (tmp_path / "npp" / "lib" / "libnppc.so.12").write_text("")
    monkeypatch.setattr(_libraries, "open_library", lambda library: (None, "no such file"))
    monkeypatch.setattr(_libraries, "package_folder", lambda name: tmp_path / "dali")
    found = {finding.name: finding for finding in _gpu.check_cuda_libraries(12, True)}
    assert found["libnppc"].todo.endswith(
        "npp/lib, where DALI does not look: add that folder to LD_LIBRARY_PATH"
    )
    assert found["libnvjpeg"].todo.startswith("pip install nvidia-nvjpeg-cu12")


def test_libraries_without_dali() -> None:
    """Which libraries DALI would open depends on its build."""
    (found,) = _gpu.check_cuda_libraries(None, True)
    assert (found.status, found.todo) == (NOTE, "install DALI, as above")


CPU_TORCH = TORCH | {"cuda": None, "gpu": False}


@pytest.mark.parametrize(
    ("found", "error", "gpu", "status", "says", "todo"),
    [
        (TORCH, "", True, OK, "on the GPU", ""),
        (TORCH | {"gpu": False}, "", False, OK, "on the CPU", ""),
        (TORCH | {"gpu": False}, "", True, PROBLEM, "sees no GPU", "torch.cuda.init"),
        (TORCH | {"cuda": "13.0"}, "", True, PROBLEM, "CUDA 13.0, DALI for CUDA 12", "nvidia-dali-cuda130"),
        (TORCH | {"cuda": "13.0"}, "", False, NOTE, "CUDA 13.0, DALI for CUDA 12", "nvidia-dali-cuda130"),
        (CPU_TORCH, "", True, PROBLEM, "built for the CPU", "a build for CUDA 12"),
        (CPU_TORCH, "", False, OK, "shares a process", ""),
        ({}, "undefined symbol: x (exit status 1)", False, PROBLEM, "undefined symbol", "same CUDA major"),
    ],
    ids=["GPU", "no GPU", "blind", "majors, GPU", "majors", "CPU build, GPU", "CPU build", "broken"],
)
def test_torch(
    found: dict[str, Any],
    error: str,
    gpu: bool,
    status: str,
    says: str,
    todo: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_gpu, "load_together", lambda: (found, error))
    finding = _gpu.check_torch(12, gpu)
    assert finding.status == status
    assert says in finding.text
    assert todo in finding.todo


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = _gpu.check_torch(12, True)
    assert (found.status, found.data["version"]) == (OK, None)
    assert "the trainer and pipelines.loader need it" in found.text


def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the last line of PyTorch's process, or a signal."""
    monkeypatch.setattr(_gpu, "_TOGETHER", "import os\nos.kill(os.getpid(), 11)")
    assert _gpu.load_together() == ({}, "no message (exit status -11)")
    monkeypatch.setattr(_gpu, "_TOGETHER", "raise ImportError('libtorch.so: undefined symbol')")
    assert _gpu.load_together() == ({}, "ImportError: libtorch.so: undefined symbol (exit status 1)")
    monkeypatch.setattr(_gpu, "_TOGETHER", "print('{\"sum\": 14.0}')")
    assert _gpu.load_together()[1] == "0 + ... + 5 gave 14.0"
    monkeypatch.setattr(_gpu, "_TOGETHER", "import time\ntime.sleep(60)")
    monkeypatch.setattr(_gpu, "_TIMEOUT", 0.1)
    assert "timed out" in _gpu.load_together()[1]


# An installed library, first on the path, that raises when it is imported.
BROKEN = "raise ImportError('libbroken.so.1: cannot open shared object file')"


@pytest.mark.parametrize(
    ("package", "parts", "finding"),
    [("nvidia/dali", ["nvidia", "nvidia/dali"], "DALI"), ("numba", ["numba"], "Numba")],
    ids=["DALI", "Numba"],
)
def test_broken_installation(package: str, parts: list[str], finding: str, tmp_path: Path) -> None:
    """The doctor reports it on its page, while importing the library raises."""
    for part in parts:
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").write_text("")
    (tmp_path / package / "__init__.py").write_text(BROKEN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    # Numba is imported where a kernel is made.
    plain = run("-c", "import dali_msda, dali_msda.operators, dali_msda.backends.numba.mix")
    assert plain.returncode == 1
    assert "ImportError" in plain.stderr
    doctored = run("-m", "dali_msda.doctor", "--json", "--quick")
    assert doctored.returncode == 1, doctored.stderr
    sections = json.loads(doctored.stdout)["sections"].values()
    found = {name: entry for section in sections for name, entry in section.items()}
    assert found[finding]["status"] == PROBLEM
    assert "libbroken" in found[finding]["text"]
    assert "pip install" in found[finding]["todo"]
    if finding == "DALI":
        assert found["self-check"]["status"] == PROBLEM
    else:
        assert [found[f"CPU {form}"]["status"] for form in ("kernel", "graph")] == [PROBLEM, OK]


# The check in its own process.


def errors(halves: str) -> dict[str, Any]:
    one = {"image": 0.5, "mask": 1e-8, "targets": 1e-8, "levels": 1, "halves": halves}
    return {"reference": one, "paper": one}


def answer(error: str = "", engines: int | None = 5) -> str:
    methods = [
        {"method": method, "form": "GPU graph", "error": error, "errors": errors("to even")}
        | {"images_per_second": 1e5}
        for method in ("mixup", "hmix")
    ]
    decoders = [
        {"hw_decoder_load": load, "error": "", "images_per_second": 1000 * (1 + load)} for load in (0.0, 0.65)
    ]
    hardware = {"engines": engines, "error": "" if engines is not None else "nvjpegCreateSimple returned 6"}
    return json.dumps({"methods": methods, "decoders": decoders, "hardware_decoder": hardware})


def process(status: int, stdout: str, stderr: str = "") -> Callable[..., Any]:
    return lambda *_, **__: SimpleNamespace(returncode=status, stdout=stdout, stderr=stderr)


def test_gpu_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", process(0, "a line of DALI's\n" + answer()))
    graph, hardware, decoding = doctor._gpu_check(4, timed=True)
    assert {finding.status for finding in (graph, hardware, decoding)} == {OK}
    assert "halves go to even" in graph.text
    assert "mixup 100000" in graph.text
    assert "5 engines" in hardware.text
    assert "1000 (hw_decoder_load=0), 1650 (hw_decoder_load=0.65)" in decoding.text
    assert len(doctor._gpu_check(4, timed=False)) == 2

    monkeypatch.setattr(subprocess, "run", process(0, answer("RuntimeError: CUDA error", engines=None)))
    graph, hardware, _ = doctor._gpu_check(4, timed=True)
    assert graph.status == PROBLEM
    assert graph.text == "mixup, hmix: RuntimeError: CUDA error"
    assert hardware.status == NOTE
    assert "video" in hardware.todo
    monkeypatch.setattr(subprocess, "run", process(0, answer(engines=0)))
    assert "has none" in doctor._gpu_check(4, timed=True)[1].text


def late(*_: Any, **__: Any) -> Any:
    raise subprocess.TimeoutExpired("python", 300)


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (process(-11, "", "\nFatal Python error: Segmentation fault\n"), "status -11: Fatal Python error"),
        (process(1, ""), "status 1: no message"),
        (process(0, ""), "could not be checked"),
        (process(0, "no JSON"), "could not be checked"),
        (late, "timed out after 300"),
    ],
    ids=["crash", "silent", "empty", "no JSON", "hangs"],
)
def test_gpu_check_that_fails(ended: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", ended)
    (found,) = doctor._gpu_check(4, timed=True)
    assert found.status == PROBLEM
    assert says in found.text


@on_each_device
def test_gpu_process(device: str) -> None:
    """The process itself; without a GPU every check in it fails with an error, and it still exits with 0."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    run = subprocess.run(
        [sys.executable, "-m", "dali_msda.doctor.selfcheck", "gpu", "1", "quick"],
        cwd=ROOT,
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert [result["method"] for result in found["methods"]] == list(METHODS)
    if device == "cpu":
        assert all("RuntimeError" in result["error"] for result in found["methods"])
        assert found["hardware_decoder"]["engines"] is None
        return
    assert not [result for result in found["methods"] if result["error"]]
    assert all(set(result["errors"]) == {"reference", "paper"} for result in found["methods"])
    assert (found["hardware_decoder"]["engines"] is None) == bool(found["hardware_decoder"]["error"])


class FakeNvjpeg:
    """nvJPEG's answers: a status for each call, and five engines of one core."""

    def __init__(self, created: int = 0, told: int = 0) -> None:
        self.created, self.told, self.destroyed = created, told, 0

    def nvjpegCreateSimple(self, handle: Any) -> int:
        handle._obj.value = 1234
        return self.created

    def nvjpegGetHardwareDecoderInfo(self, handle: Any, engines: Any, cores: Any) -> int:
        assert handle.value == 1234
        engines._obj.value, cores._obj.value = 5, 1
        return self.told

    def nvjpegDestroy(self, handle: Any) -> int:
        self.destroyed += 1
        return 0


def test_hardware_decoder() -> None:
    nvjpeg = FakeNvjpeg()
    assert _selfcheck._ask_nvjpeg(nvjpeg) == {"engines": 5, "cores_per_engine": 1, "error": ""}
    assert nvjpeg.destroyed == 1
    assert _selfcheck._ask_nvjpeg(FakeNvjpeg(created=6))["error"] == "nvjpegCreateSimple returned 6"
    refused = FakeNvjpeg(told=7)
    assert _selfcheck._ask_nvjpeg(refused)["engines"] is None
    assert refused.destroyed == 1
