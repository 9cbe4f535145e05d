"""The shared libraries that DALI opens by name, and where the loader finds them.

DALI links to hardly any library of CUDA: it opens NPP, cuFFT, nvJPEG and the driver by name when it first
needs them, and says so only then. The names and folders are a table for DALI 2.4 and the nvImageCodec 0.9
that it decodes with; tests/test_libraries.py reads the installed binaries and compares. Nothing of DALI is
imported.
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
    """The names that are tried, the most exact first."""
    folders: tuple[Path, ...]
    """Where the RUNPATH of the binaries that name it sends the loader."""
    package: str | None
    """The package of PyPI that brings it; None: it comes with the driver, and never with a package. In a
    container the NVIDIA runtime puts it there."""
    missing: str
    """The status of a GPU machine without it; `OK`: nothing here misses it."""
    use: str
    """What it is good for."""


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
# Stem, versions, folders, package, what it means if it is missing, use. Packages of CUDA's own libraries end
# in "-cu12" for CUDA 12 and in nothing from CUDA 13 on, which is {cu}.
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
    """The libraries of the driver and of CUDA that DALI's build for a major version of CUDA opens by name."""
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
    """Folder of a package that is installed, which is not imported (its parents are)."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def candidates(library: Library) -> Iterator[Path]:
    """Files that the loader would take for a library, in its order, those of the system left out.

    By hand, because a RUNPATH counts for the binary alone that has it, and not for this process.
    """
    preset = [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    for name in library.names:
        for folder in (*preset, *library.folders):
            if (folder / name).is_file():
                yield folder / name


def open_library(library: Library) -> tuple[str | None, str]:
    """Open a library as DALI would: the file (or the name, for one of the system), and what went wrong.

    Returns
    -------
    found : str or None
        None where it cannot be opened.
    reason : str
        What the loader said last, empty if the library is open.
    """
    reason = "no file of that name in the loader's folders"
    # A name without a folder is looked up in the system's cache, and is there already if another library
    # of this process (PyTorch's, say) has brought it.
    for target in [*map(str, candidates(library)), *library.names]:
        try:
            ctypes.CDLL(target)
        except OSError as error:
            reason = str(error)
        else:
            return target, ""
    return None, reason
