"""The driver, DALI, PyTorch and the CUDA libraries: what is installed, and whether it works together."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from . import libraries
from .report import NOTE, OK, PROBLEM, Finding, run_probe

# From DALI's installation guide: the oldest driver for each CUDA major version that DALI is built for.
_OLDEST_DRIVER = {12: (525, 60), 13: (580, 0)}
_TIMEOUT = 120

# Runs in its own process: loads the libraries of DALI, then those of PyTorch, and uses both.
_TOGETHER = """
import json, numpy as np
from nvidia.dali import Pipeline, backend, fn, types
import torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.is_available()}
found["npp"], found["cufft"] = backend.GetNppVersion(), backend.GetCufftVersion()
pipeline = Pipeline(1, 1, 0 if found["gpu"] else None)
with pipeline:
    data = types.Constant(np.arange(6, dtype=np.float32), device="cpu")
    pipeline.set_outputs(data.gpu() if found["gpu"] else fn.copy(data))
pipeline.build()
(tensors,) = pipeline.run()
found["sum"] = float(torch.from_dlpack(tensors.as_tensor()).sum())
print(json.dumps(found))
"""


class Device(NamedTuple):
    """A GPU, as reported by the driver."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]


class Driver(NamedTuple):
    """The driver and the GPUs that this process may use."""

    version: str | None
    """The driver's version, like "550.54.15"; None if unknown."""
    unknown: str
    """Why the version is unknown."""
    cuda: tuple[int, int] | None
    """The newest CUDA it can run."""
    devices: tuple[Device, ...]
    error: str
    """Why there are no devices."""


def find_driver() -> Driver:
    """Query the driver through its own libraries, without starting anything on a GPU.

    The version comes from NVML, the GPUs from libcuda, through ctypes: only libcuda knows which of them this
    process may use (CUDA_VISIBLE_DEVICES, parts of a GPU), and why there are none.
    """
    version, unknown = _driver_version()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Driver(version, unknown, None, (), str(error))
    number = ctypes.c_int()
    newest = None
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        newest = (number.value // 1000, number.value % 1000 // 10)
    status = cuda.cuInit(0)
    if status:
        name = ctypes.c_char_p()
        known = cuda.cuGetErrorName(status, ctypes.byref(name)) == 0 and name.value
        error_name = known.decode() if known else f"cuInit returned {status}"
        return Driver(version, unknown, newest, (), error_name)
    cuda.cuDeviceGetCount(ctypes.byref(number))
    devices = tuple(_device(cuda, index) for index in range(number.value))
    return Driver(version, unknown, newest, devices, "")


def _device(cuda: Any, index: int) -> Device:
    handle, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), handle)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        capability.append(value.value)
    return Device(name.value.decode(errors="replace"), size.value, (capability[0], capability[1]))


def _driver_version() -> tuple[str | None, str]:
    """The driver's version, and why it is unknown (empty if it is known)."""
    try:
        import pynvml
    except ImportError:
        return None, "pip install nvidia-ml-py to see it"
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion(), ""
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"


def count_cards() -> int:
    """Count NVIDIA's display and compute devices on the PCI bus, usable by this process or not.

    From /sys, which works without a driver, to tell a missing driver from a missing GPU.
    """
    found = 0
    for folder in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (folder / "vendor").read_text(), (folder / "class").read_text()
        except OSError:
            continue
        found += vendor.strip() == "0x10de" and kind.startswith("0x03")
    return found


def dali_version() -> tuple[str | None, int | None, str]:
    """Version of DALI, CUDA major of its build, and why it cannot be imported (empty if it can)."""
    try:
        from nvidia import dali
    except Exception as error:  # of any type: a missing library raises OSError, a broken one anything
        return None, None, str(error) or repr(error)
    return dali.__version__, cuda_major(dali), ""


def cuda_major(dali: ModuleType) -> int:
    """The CUDA major version that DALI is built for."""
    return int(str(dali.__cuda_version__)[:2])


def findings(driver: Driver) -> list[Finding]:
    """All findings of this module."""
    version, major, error = dali_version()
    has_gpu = bool(driver.devices)
    return [
        run_probe("GPU", lambda: check_gpus(driver, major)),
        check_dali(version, major, error),
        *check_cuda_libraries(major, has_gpu),
        run_probe("PyTorch", lambda: check_torch(major, has_gpu)),
    ]


def check_gpus(driver: Driver, cuda_major: int | None) -> Finding:
    """Driver and GPUs, and whether the driver is new enough for DALI."""
    cards = count_cards()
    data: dict[str, Any] = {
        "driver": driver.version,
        "cuda_of_driver": driver.cuda and list(driver.cuda),
        "devices": [device._asdict() for device in driver.devices],
        "cards": cards,
    }
    about = f"driver {driver.version or f'of unknown version ({driver.unknown})'}"
    if driver.cuda:
        about += f" for CUDA up to {driver.cuda[0]}.{driver.cuda[1]}"
    oldest = _OLDEST_DRIVER.get(cuda_major or 0)
    if driver.version and oldest and _numbers(driver.version) < oldest:
        wanted = ".".join(map(str, oldest))
        todo = f"DALI for CUDA {cuda_major} needs driver {wanted} or newer: update the driver on the host"
        return Finding(PROBLEM, "GPU", f"{about}, too old", todo, data)
    if driver.devices:
        names = "\n".join(
            f"{device.name}, {device.memory_bytes / 2**30:.0f} GiB, compute capability"
            f" {'.'.join(map(str, device.compute_capability))}"
            for device in driver.devices
        )
        return Finding(OK, "GPU", f"{about}\n{names}", data=data)
    if cards or driver.version or driver.cuda:
        todo = "docker run --gpus all; without a container: install the driver and check nvidia-smi"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            todo += "; CUDA_VISIBLE_DEVICES is set and may hide GPUs"
        text = f"{cards} in the machine, none usable ({driver.error or 'none visible'}); {about}"
        return Finding(PROBLEM, "GPU", text, todo, data)
    return Finding(OK, "GPU", "none in this machine: everything runs on the CPU", data=data)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def check_dali(version: str | None, cuda_major: int | None, error: str) -> Finding:
    """DALI itself."""
    data = {"version": version, "cuda_major": cuda_major}
    if version is None:
        todo = (
            "pip install nvidia-dali-cuda120 (or -cuda130): only one of them, the build for the driver's CUDA"
        )
        return Finding(PROBLEM, "DALI", f"cannot be imported: {error}", todo, data)
    return Finding(OK, "DALI", f"{version}, built for CUDA {cuda_major}", data=data)


def check_cuda_libraries(cuda_major: int | None, has_gpu: bool) -> list[Finding]:
    """Open the libraries that DALI opens by name, the same way."""
    if cuda_major is None:
        text, todo = "not checked: which ones are needed depends on DALI's build", "install DALI, as above"
        return [Finding(NOTE, "CUDA libraries", text, todo)]
    entries: dict[str, dict[str, str | None]] = {}
    missing: dict[str, list[libraries.Library]] = {}
    unused, driver = [], []
    for library in libraries.opened_libraries(cuda_major):
        place, reason = libraries.open_library(library)
        entries[library.stem] = {"file": place, "reason": reason}
        if library.package is None:
            driver.append(library.stem)
        if place is not None or (library.package is None and not has_gpu):
            continue
        if library.missing == OK:
            unused.append(library.stem)
        else:
            missing.setdefault(library.package or library.stem, []).append(library)
    there = [stem for stem, entry in entries.items() if entry["file"]]
    text = f"of those that DALI opens by name, {len(there)} are found: {', '.join(there) or 'none'}"
    if unused:
        text += f"; not found, but not used here: {', '.join(unused)}"
    if not has_gpu:
        text += f"; not checked, because they belong to the driver: {', '.join(driver)}"
    finding = Finding(OK, "CUDA libraries", text, data={"libraries": entries})
    return [finding, *(_report_missing(group, has_gpu) for group in missing.values())]


def _report_missing(group: list[libraries.Library], has_gpu: bool) -> Finding:
    """The missing libraries of one package."""
    stem, package, elsewhere = group[0].stem, group[0].package, _installed_elsewhere(group[0])
    if package is None:
        todo = (
            "part of the driver; in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video, or"
            " docker run --gpus 'all,\"capabilities=compute,utility,video\"'"
        )
    elif elsewhere:
        todo = f"it is in {elsewhere}, where DALI does not look: add that folder to LD_LIBRARY_PATH"
    else:
        todo = f"pip install {package}, or install the CUDA toolkit of DALI's major version"
    names = ", ".join(library.names[0] for library in group)
    status = group[0].missing if has_gpu else NOTE
    if not has_gpu:
        todo = f"nothing to do for the CPU; before a GPU is used: {todo}"
    return Finding(status, stem, f"{names} not found: {group[0].use}", todo, {"package": package})


def _installed_elsewhere(library: libraries.Library) -> Path | None:
    """A folder of another NVIDIA package, outside DALI's search path, that has the library."""
    dali_folder = libraries.package_folder("nvidia.dali")
    if dali_folder is None:
        return None
    for name in library.names:
        for path in sorted(dali_folder.parent.glob(f"*/lib*/{name}")):
            return path.parent
    return None


def check_torch(cuda_major: int | None, has_gpu: bool) -> Finding:
    """PyTorch, loaded together with DALI in its own process."""
    if importlib.util.find_spec("torch") is None:
        text = "not installed: the trainer and pipelines.loader need it, the library does not"
        return Finding(OK, "PyTorch", text, data={"version": None})
    found, error = load_together()
    data: dict[str, Any] = {"version": found.get("torch"), "cuda": found.get("cuda"), "together": not error}
    if error:
        todo = (
            "install both for the same CUDA major version, as in requirements.lock; see the end of the error"
        )
        return Finding(PROBLEM, "PyTorch", f"does not work in one process with DALI: {error}", todo, data)
    text = f"{found['torch']}, built for {'CUDA ' + found['cuda'] if found['cuda'] else 'the CPU'}"
    if not found["cuda"]:
        if has_gpu:
            todo = f"install a build for CUDA {cuda_major}: this one only trains on the CPU"
            return Finding(PROBLEM, "PyTorch", text, todo, data)
        return Finding(OK, "PyTorch", f"{text}; shares a process with DALI", data=data)
    if cuda_major is not None and int(found["cuda"].split(".")[0]) != cuda_major:
        todo = (
            "use DALI and PyTorch for the same CUDA major version"
            f" (nvidia-dali-cuda{found['cuda'].split('.')[0]}0, or PyTorch for CUDA {cuda_major}): two sets"
            " of CUDA libraries in one process are not tested"
        )
        status = PROBLEM if has_gpu else NOTE
        return Finding(status, "PyTorch", f"{text}, DALI for CUDA {cuda_major}", todo, data)
    if has_gpu and not found["gpu"]:
        todo = "for the reason, run python -c 'import torch; torch.cuda.init()'"
        return Finding(PROBLEM, "PyTorch", f"{text}, sees no GPU although the driver does", todo, data)
    shared = "on the GPU" if found["gpu"] else "on the CPU"
    return Finding(OK, "PyTorch", f"{text}; takes DALI's tensors {shared}, in one process", data=data)


def load_together() -> tuple[dict[str, Any], str]:
    """Load DALI and PyTorch in one process; return their versions and the like, or the error."""
    try:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _TOGETHER],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {}, str(error)
    if run.returncode != 0:
        messages = [line for line in run.stderr.splitlines() if line.strip()]
        return {}, f"{messages[-1].strip() if messages else 'no message'} (exit status {run.returncode})"
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return (found, "") if found["sum"] == 15.0 else (found, f"0 + ... + 5 gave {found['sum']}")
