"""Everything to check on a GPU, in one command: see :mod:`.__main__`."""
