"""Passes the draws to a compiled operator: in parts, each an input of its own."""

from __future__ import annotations

from typing import NamedTuple

from nvidia.dali import types
from nvidia.dali.pipeline import DataNode

from ...draws import Draws, byte_constant
from ...methods import Method
from .builders import order
from .kernels import inputs_of

# The limit of DALI's plugin.
_MAX_INPUTS = 6


class Part(NamedTuple):
    """An input of an operator."""

    node: DataNode
    """One-dimensional, CPU."""
    dtype: types.DALIDataType
    """float64, or uint8 for the bytes of float64 numbers."""


def parts_of(draws: Draws, method: Method) -> list[Part]:
    """The parts of the draws, few enough for an operator with one other input.

    The last is bytes, and ends with what :func:`.builders.numbers_of` needs to find each number.
    """
    parts = list(draws.parts)
    if not isinstance(parts[-1], bytes):
        parts.append(b"")
    if len(parts) >= _MAX_INPUTS:
        parts = [draws.numbers, b""]
    widths = [8 if isinstance(part, bytes) else 1 for part in parts]
    parts[-1] += order(widths, [draws.slots[name] for name in inputs_of(method)])
    return [
        Part(byte_constant(part), types.UINT8) if isinstance(part, bytes) else Part(part, types.FLOAT64)
        for part in parts
    ]
