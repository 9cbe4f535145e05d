"""The device, precision and decoder of a run, as PyTorch and DALI find them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch

from pipelines.records import ScaledDecoding
from pipelines.scaled_decoding import is_on

from .config import Config, as_options, check_device, cpu_precision, require
from .distributed import Processes
from .options import saved_settings
from .random_states import choose_algorithms


def choose_hardware(config: Config, processes: Processes) -> Config:
    """Replace what is still "auto" in resolved settings.

    Raises
    ------
    ValueError
        PyTorch finds no such GPU, or the device cannot do what the settings ask for.
    """
    if config.device == "auto":
        config = dataclasses.replace(config, device="cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda":
        require(config, torch.cuda.is_available(), "device", "cpu: PyTorch finds no GPU")
        require(
            config,
            processes.local_rank < torch.cuda.device_count(),
            "device",
            f"cpu, or torchrun's --nproc-per-node at most the number of GPUs ({torch.cuda.device_count()})",
        )
    if config.amp == "auto":
        config = dataclasses.replace(
            config, amp=_gpu_precision() if config.device == "cuda" else cpu_precision()
        )
    check_device(config)
    return config


def choose_decoding(config: Config, processes: Processes, saved: Mapping[str, Any] | None) -> Config:
    """Replace ``--scaled-decoding auto``; the device must have been chosen.

    Parameters
    ----------
    config : Config
    processes : Processes
        The main one decides for all.
    saved : mapping or None
        The settings in the checkpoint to resume; the run continues as it began.

    Raises
    ------
    ValueError
        "on", and something that it needs is missing.
    """
    if saved is not None and config.scaled_decoding == "auto":
        return dataclasses.replace(config, scaled_decoding=saved_settings(saved)["scaled_decoding"])

    def choose() -> ScaledDecoding:
        with as_options():
            on = is_on(config.scaled_decoding, "gpu" if config.device == "cuda" else "cpu")
        return "on" if on else "off"

    return dataclasses.replace(config, scaled_decoding=processes.from_main(choose))


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The precision of forward passes, a context."""
    dtype = torch.float16 if config.amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=config.amp != "none")


def start_device(config: Config, processes: Processes) -> torch.device:
    """Choose the algorithms, connect to the other processes, and return the device."""
    choose_algorithms(deterministic=config.deterministic)
    device = torch.device(config.device, processes.local_rank if config.device == "cuda" else 0)
    processes.start(device, config.storage_patience)
    return device


def _gpu_precision() -> Literal["bf16", "fp16"]:
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
