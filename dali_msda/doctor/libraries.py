"""The shared libraries that DALI opens by name, and where the loader finds them.

DALI links to hardly any CUDA library: it opens NPP, cuFFT, nvJPEG and the driver by name when it first needs
them, and only then reports a missing one. The table of names and folders is for DALI 2.4 and nvImageCodec
0.9, its decoder; tests/test_libraries.py compares it with the installed binaries. Does not import DALI.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .report import NOTE, OK, PROBLEM


class Library(NamedTuple):
    """A library that DALI or nvImageCodec opens by name."""

    stem: str
    """The name up to ``.so``."""
    names: tuple[str, ...]
    """The names to try, the most exact first."""
    folders: tuple[Path, ...]
    """Where the loader looks, by the RUNPATH of the binaries that open it."""
    package: str | None
    """The PyPI package that has it; None: only the driver does. The NVIDIA runtime adds it to containers."""
    missing: str
    """The status of a GPU machine without it; `OK`: nothing here needs it."""
    use: str
    """What it is for."""


# Folders of the RUNPATHs, below "nvidia" of site-packages.
_DALI = (
    *("dali", "dali/.libs", "cufft/lib", "npp/lib", "nvjpeg/lib", "nvimgcodec", "libnvcomp/lib64"),
    *("/usr/local/cuda/lib64", "cu{major}/lib"),
)
_NVIMGCODEC = (
    *(
        "nvimgcodec/extensions",
        "nvimgcodec",
        "nvimgcodec/.libs",
        "{nvjpeg}/lib",
        "nvjpeg2k/lib",
        "nvtiff/lib",
    ),
    *("nvcomp", "libnvcomp/lib64", "/usr/local/cuda/lib64"),
)
# Stem, versions, folders, package, status if it is missing, use. {cu} is the suffix in the package names of
# CUDA's own libraries: "-cu12" for CUDA 12, none from CUDA 13 on.
_TABLE = (
    ("libcuda", ("1",), _DALI, None, PROBLEM, "the driver itself"),
    ("libcufft", ("{cufft}",), _DALI, "nvidia-cufft{cu}", NOTE,
     "GPU audio operators of DALI, which nothing here uses"),
    ("libcufile", ("0",), _DALI, "nvidia-cufile{cu}", OK, "reading past the CPU (GPUDirect Storage)"),
    ("libnppc", ("{major}",), _DALI, "nvidia-npp{cu}", PROBLEM, "GPU image operators of DALI"),
    ("libnppicc", ("{major}",), _DALI, "nvidia-npp{cu}", PROBLEM, "GPU image operators of DALI"),
    ("libnppig", ("{major}",), _DALI, "nvidia-npp{cu}", PROBLEM, "GPU image operators of DALI"),
    ("libnvcomp", ("5",), _DALI, "nvidia-libnvcomp-cu{major}", OK, "compressed data on the GPU"),
    ("libnvcuvid", ("1",), _DALI, None, PROBLEM, "the driver: video, and the hardware JPEG decoder"),
    ("libnvidia-ml", ("1",), _DALI, None, PROBLEM, "the driver: its version, threads near the GPU"),
    ("libnvimgcodec", ("0.9.0", "0"), _DALI, "nvidia-nvimgcodec-cu{major}", PROBLEM, "DALI's image decoders"),
    ("libnvjpeg", ("{major}",), _NVIMGCODEC, "nvidia-nvjpeg{cu}", PROBLEM, "decodes JPEGs on the GPU"),
    ("libnvjpeg2k", ("0",), _NVIMGCODEC, "nvidia-nvjpeg2k-cu{major}", OK, "JPEG 2000 on the GPU"),
    ("libnvtiff", ("0",), _NVIMGCODEC, "nvidia-nvtiff-cu{major}", OK, "TIFF on the GPU"),
)  # fmt: skip


def opened_libraries(cuda_major: int) -> list[Library]:
    """The driver and CUDA libraries that DALI opens by name when it is built for that CUDA major version."""
    dali = package_folder("nvidia.dali")
    site = dali.parent if dali else Path()
    values = {
        "major": cuda_major,
        "cufft": cuda_major - 1,
        "cu": f"-cu{cuda_major}" if cuda_major < 13 else "",
        "nvjpeg": "nvjpeg" if cuda_major < 13 else f"cu{cuda_major}",
    }
    return [
        Library(
            stem,
            (*(f"{stem}.so.{version.format(**values)}" for version in versions), f"{stem}.so"),
            tuple(site / folder.format(**values) for folder in folders),
            package and package.format(**values),
            missing,
            use,
        )
        for stem, versions, folders, package, missing, use in _TABLE
    ]


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, without importing it (its parents are imported)."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def find_candidates(library: Library) -> Iterator[Path]:
    """Files that the loader would try for a library, in its order, without the system's.

    Our own code, because a RUNPATH only applies to the binary that has it, not to this process.
    """
    preset = [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    for name in library.names:
        for folder in (*preset, *library.folders):
            if (folder / name).is_file():
                yield folder / name


def open_library(library: Library) -> tuple[str | None, str]:
    """Open a library as DALI would.

    Returns
    -------
    found : str or None
        Its file, or only its name for a system library; None if it cannot be opened.
    reason : str
        The loader's last error, empty if the library was opened.
    """
    reason = "no file of that name in the loader's folders"
    # A name without a folder is looked up in the system's cache, or is already loaded because another
    # library of this process (PyTorch's, say) needed it.
    for target in [*map(str, find_candidates(library)), *library.names]:
        try:
            ctypes.CDLL(target)
        except OSError as error:
            reason = str(error)
        else:
            return target, ""
    return None, reason
