"""A disk that a soak can fill."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.soak_lives import ROOT

_SHIM = ROOT / "tests" / "storage_shim.c"


class Disk:
    """A folder that can be full: a file system of its own (tmpfs), or calls that fail as on a full disk.

    Mounting needs privileges. Without them a library is loaded before the C library (`tests/storage_shim.c`),
    in all processes that are started afterwards, which needs a C compiler.

    Parameters
    ----------
    folder : Path
        Where it lies; it is made.
    mounted : bool, optional
        Which of the two. Default: what works here.
    """

    def __init__(self, folder: Path, *, mounted: bool | None = None) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "none", str(folder)]
        self.mounted = mounted is not False and subprocess.run(mount, capture_output=True).returncode == 0
        if self.mounted:
            return
        if mounted or (compiler := shutil.which("cc")) is None:
            raise SystemExit("a disk to fill needs the right to mount one (tmpfs), or a C compiler")
        shim, self._rules = folder / "shim.so", folder / "rules"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, _SHIM, "-ldl"], check=True)
        self._environment = {"LD_PRELOAD": str(shim), "SHIM_RULES": str(self._rules)}
        os.environ |= self._environment

    @contextmanager
    def full(self) -> Iterator[None]:
        """No room is left within the block."""
        filler = self.folder / "filler"
        if not self.mounted:
            aside = self._rules.with_suffix(".new")
            aside.write_text(f"write {errno.ENOSPC} {self.folder}/run\n")
            aside.replace(self._rules)
        try:
            if self.mounted:
                _fill(filler)
            yield
        finally:
            (filler if self.mounted else self._rules).unlink(missing_ok=True)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *error: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
        else:
            for name in self._environment:
                del os.environ[name]


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
