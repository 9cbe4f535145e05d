"""Which shared libraries do DALI's binaries load, and where would the loader find them?

DALI links to hardly any library of CUDA: it opens NPP, cuFFT, nvJPEG and the driver by name when it first
needs them, and says so only then. The names are in its binaries, as entries of the dynamic section and as
strings, and both are read here from the ELF files themselves. Nothing of DALI is imported.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

_Item = TypeVar("_Item")

# The driver's: they come with it, never with a package. In a container the NVIDIA runtime puts them there.
DRIVER = ("libcuda", "libnvidia-ml", "libnvcuvid")
# Of a profiler (Intel's), opened by code that DALI compiled in, only where a variable names it.
PROFILER = ("libittnotify",)
# What a library of CUDA is good for in this project; the rest of what DALI opens is for other operators.
USES = {
    "libnvjpeg": "decodes JPEGs on the GPU",
    "libnvimgcodec": "DALI's image decoders",
    "libnppc": "GPU image operators of DALI",
    "libnppicc": "GPU image operators of DALI",
    "libnppig": "GPU image operators of DALI",
    "libcufft": "GPU audio operators of DALI, which nothing here uses",
    "libcufile": "reading past the CPU (GPUDirect Storage), which nothing here uses",
    "libnvjpeg2k": "JPEG 2000 on the GPU",
    "libnvtiff": "TIFF on the GPU",
    "libnvcomp": "compressed data on the GPU",
    "libcuda": "the driver itself",
    "libnvidia-ml": "the driver: its version, threads near the GPU",
    "libnvcuvid": "the driver: video, and the hardware JPEG decoder",
}

# What ends a string is a zero; what stands before it may be a table of numbers.
_NAME = re.compile(rb"(lib[\w+-]+\.so(?:\.\d+)*)\0")
_SECTIONS = (".rodata", ".lrodata", ".data")
_DT_NEEDED, _DT_RPATH, _DT_RUNPATH = 1, 15, 29


class Binary(NamedTuple):
    """What an ELF file says about other libraries."""

    path: Path
    needed: tuple[str, ...]
    """Names that the loader resolves when the file is loaded."""
    named: tuple[str, ...]
    """Names among its strings: what it may open while it runs, and some that it does not."""
    folders: tuple[Path, ...]
    """Where its RUNPATH sends the loader, for both."""


class Library(NamedTuple):
    """A library that binaries open by name, under any of several names."""

    stem: str
    """The name up to ``.so``."""
    names: tuple[str, ...]
    """The names to try, the most exact first, which is the order in which DALI tries them."""
    folders: tuple[Path, ...]
    """Where the RUNPATH of the binaries that name it sends the loader."""
    binaries: tuple[Path, ...]
    """The binaries that name it."""


def read_binary(path: Path) -> Binary:
    """Read a 64-bit little-endian ELF file.

    Raises
    ------
    ValueError
        Another kind of file.
    OSError
        It cannot be read.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 64:
            raise ValueError(f"not an ELF file: {path}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:6] != b"\x7fELF\x02\x01":
                raise ValueError(f"not a 64-bit little-endian ELF file: {path}")
            try:
                return _parse(path, data)
            except (struct.error, IndexError, KeyError) as error:
                raise ValueError(f"damaged ELF file: {path} ({error!r})") from error


def _parse(path: Path, data: mmap.mmap) -> Binary:
    (section_table,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    # Name, type, address, offset, size and linked section of each.
    sections = [
        struct.unpack_from("<IIQQQQI", data, section_table + i * entry_size)[:2]
        + struct.unpack_from("<QQI", data, section_table + i * entry_size + 0x18)
        for i in range(count)
    ]
    titles = sections[names_index][2]
    needed, folders, named = [], [], []
    for title, kind, offset, size, link in sections:
        if kind == 6:  # SHT_DYNAMIC: pairs of tag and value, values of these tags lie in the linked section
            strings = sections[link][2]
            for tag, value in struct.iter_unpack("<QQ", data[offset : offset + size]):
                if tag == _DT_NEEDED:
                    needed.append(_string(data, strings + value))
                elif tag in (_DT_RPATH, _DT_RUNPATH):
                    folders += _string(data, strings + value).split(":")
        elif _string(data, titles + title).startswith(_SECTIONS):
            named += [found[1].decode() for found in _NAME.finditer(data[offset : offset + size])]
    origin = str(path.resolve().parent)
    expanded = [Path(os.path.normpath(re.sub(r"\$\{?ORIGIN\}?", origin, folder))) for folder in folders]
    return Binary(path, _unique(needed), _unique(named), _unique(expanded))


def _string(data: mmap.mmap, offset: int) -> str:
    return data[offset : data.find(b"\0", offset)].decode()


def _unique(items: Iterable[_Item]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys(items))


def package_folder(name: str) -> Path | None:
    """Folder of a package that is installed, which is not imported (its parents are)."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def dali_binaries() -> list[Path]:
    """The binaries of DALI, and of nvImageCodec, which decodes for it, that this Python would load."""
    found: list[Path] = []
    other_python = re.compile(r"\.cpython-|\.abi3\.")
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    for package in ("nvidia.dali", "nvidia.nvimgcodec"):
        folder = package_folder(package)
        if folder is None:
            continue
        for path in sorted(folder.rglob("*.so*")):
            if not other_python.search(path.name) or path.name.endswith(suffix):
                found.append(path)
    return found


def opened_libraries(binaries: Iterable[Path] | None = None) -> list[Library]:
    """Libraries that binaries open by name, apart from their own, by stem.

    Parameters
    ----------
    binaries : iterable of Path, optional
        :func:`dali_binaries` by default.
    """
    paths = dali_binaries() if binaries is None else list(binaries)
    # "libz-6b38d87b.so.1" is the packed copy of "libz.so.1".
    own = {re.sub(r"-[0-9a-f]{8}$", "", _stem(path.name)) for path in paths}
    read = [read_binary(path) for path in paths]
    by_stem: dict[str, list[tuple[str, Binary]]] = {}
    for binary in read:
        for name in binary.named:
            if _stem(name) not in own or _stem(name) == "libnvimgcodec":
                by_stem.setdefault(_stem(name), []).append((name, binary))
    return [
        Library(
            stem,
            # Longer names carry more of the version.
            tuple(sorted({name for name, _ in found}, key=lambda name: (-len(name), name))),
            _unique(folder for _, binary in found for folder in binary.folders),
            _unique(binary.path for _, binary in found),
        )
        for stem, found in sorted(by_stem.items())
    ]


def _stem(name: str) -> str:
    return name.partition(".so")[0]


def candidates(library: Library) -> Iterator[Path]:
    """Files that the loader would take for a library, in its order, those of the system left out."""
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
