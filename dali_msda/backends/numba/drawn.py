"""Passes the draws to a compiled operator: in parts, each an input of its own."""

from __future__ import annotations

from typing import NamedTuple

from nvidia.dali import types
from nvidia.dali.pipeline import DataNode

from ...draws import Draws, byte_constant

# The limit of DALI's plugin.
_MAX_INPUTS = 6


class Part(NamedTuple):
    """An input of an operator."""

    node: DataNode
    """One-dimensional, CPU."""
    dtype: types.DALIDataType
    """float64, or uint8 for the bytes of float64 numbers."""
    width: int
    """Elements per number."""


def parts_of(draws: Draws) -> list[Part]:
    """The parts of the draws, few enough for an operator with one other input."""
    parts = draws.parts if len(draws.parts) < _MAX_INPUTS else [draws.numbers]
    return [
        Part(byte_constant(part), types.UINT8, 8) if isinstance(part, bytes) else Part(part, types.FLOAT64, 1)
        for part in parts
    ]
