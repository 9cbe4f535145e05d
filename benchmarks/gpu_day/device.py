"""The GPU of a report: name, driver, clocks and power limit from NVML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def facts() -> dict[str, Any] | None:
    """What NVML reports about the first GPU; None without a GPU.

    Clocks are in MHz, power in W, memory in MiB.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, driver or GPU: several error types that mean the same
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        found: dict[str, Any] = {"driver": pynvml.nvmlSystemGetDriverVersion()}
        readings: dict[str, Callable[[], Any]] = {
            "name": lambda: pynvml.nvmlDeviceGetName(handle),
            "memory_MiB": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20,
            "power_limit_W": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
            "power_W": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "sm_clock_MHz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_clock_MHz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "max_sm_clock_MHz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "temperature_C": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        }
        for key, reading in readings.items():
            try:
                found[key] = reading()
            except pynvml.NVMLError as error:
                found[key] = f"not given: {error}"
        return found
    finally:
        pynvml.nvmlShutdown()
