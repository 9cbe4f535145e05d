"""Compiled operators for the CPU. Only the modules of this package import Numba."""
