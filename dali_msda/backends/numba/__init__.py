"""Compiled operators for the CPU. Numba is imported with the modules of this package, and nowhere else."""
