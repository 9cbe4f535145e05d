"""The functions of formulas (:class:`dali_msda.masks.Functions`) for Numba, on float64 numbers and arrays."""

from __future__ import annotations

import math

import numba
import numpy as np

pi = math.pi
sqrt, exp, log, sin, cos = np.sqrt, np.exp, np.log, np.sin, np.cos
floor, ceil, absolute = np.floor, np.ceil, np.abs
minimum, maximum = np.minimum, np.maximum


@numba.njit
def constant(number: float) -> float:
    """The number itself: literals are float64 here."""
    return number
