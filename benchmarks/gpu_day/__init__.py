"""Everything that must be seen on a GPU, in one command: see :mod:`.__main__`."""
