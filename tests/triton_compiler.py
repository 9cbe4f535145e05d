"""The Triton kernel, compiled for a GPU that is not there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from dali_msda.torch import triton_kernel  # noqa: E402


class Compiled(NamedTuple):
    """A kernel compiled for a GPU."""

    ptx: str
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread in local memory: where registers are spilled to."""
    shared: int
    threads: int

    def count(self, pattern: str) -> int:
        """How many instructions begin with a pattern."""
        return len(re.findall(rf"^\s+(?:@!?%p\d+ )?{pattern}", self.ptx, re.MULTILINE))


class _Launcher:
    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        """Launch nothing."""


def compile_for(capability: int, cache: Path, *arguments: Any, **options: Any) -> Compiled:
    """What ``mix_images(*arguments, **options)`` would run on a GPU with that compute capability, times 10.

    Triton meets a driver that names the GPU, and launches nothing.
    """
    utils = SimpleNamespace(
        get_device_properties=lambda _: {"max_shared_mem": 101376},
        load_binary=lambda *_: (None, None, 0, 0, 1024),
    )
    absent = SimpleNamespace(
        get_current_device=lambda: capability,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        launcher_cls=_Launcher,
        utils=utils,
    )
    kernels = triton_kernel._mix.device_caches
    kernels.pop(capability, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", absent)
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        triton_kernel.mix_images(*arguments, **options)
    (kernel,) = kernels.pop(capability)[0].values()
    cubin = cache / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    usage = subprocess.run(
        [tools / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    numbers = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", usage)}
    return Compiled(
        kernel.asm["ptx"],
        numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"],
        numbers["SHARED"],
        32 * kernel.metadata.num_warps,
    )
