"""Examines this machine: ``python -m dali_msda.doctor``. Nothing in the library imports this package."""

from .page import main

__all__ = ["main"]
