"""The libraries that DALI opens: the doctor's table against its binaries, packages of the lock, DALI itself.

The binaries name what they open only where it is wanted; their strings are read, with pyelftools.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.metadata
import os
import re
from pathlib import Path
from typing import NamedTuple

import nvidia.dali
import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from nvidia.dali import backend

from dali_msda.doctor import gpu as _gpu
from dali_msda.doctor import libraries as _libraries
from dali_msda.doctor.libraries import Library, open_library, opened_libraries, package_folder
from dali_msda.doctor.report import OK

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
# glibc, the compiler's run time, what every distribution has, and a profiler's, opened if a variable asks.
SYSTEM = {
    "libc", "libm", "libdl", "librt", "libpthread", "ld-linux-x86-64", "libgcc_s", "libstdc++",
    "libnuma", "libcrypto", "libittnotify",
}  # fmt: skip
# cuFile reads past the CPU, for readers that nothing here uses; DALI does not look into its package.
UNUSED = {"libcufile"}
# A string ends with a zero; numbers of a table may come before it.
NAME = re.compile(rb"(lib[\w+-]+\.so(?:\.\d+)*)\0")


class Binary(NamedTuple):
    """The other libraries that an ELF file mentions."""

    needed: list[str]
    """Names that the loader resolves when the file is loaded."""
    named: list[str]
    """Names among its strings: libraries that it may open at run time, and some that it does not."""
    folders: list[Path]
    """Where the loader looks for both, by its RUNPATH."""


@functools.cache
def read_binary(path: Path) -> Binary:
    needed, named, folders = [], [], []
    with path.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, DynamicSection):
                needed += [tag.needed for tag in section.iter_tags("DT_NEEDED")]
                for tag in section.iter_tags("DT_RUNPATH"):
                    folders += [
                        folder.replace("$ORIGIN", str(path.parent)) for folder in tag.runpath.split(":")
                    ]
            elif section.name.startswith((".rodata", ".lrodata", ".data")):
                named += [found[1].decode() for found in NAME.finditer(section.data())]
    return Binary(needed, named, [Path(os.path.normpath(folder)) for folder in folders])


def stem(name: str) -> str:
    return name.partition(".so")[0]


def dali_binaries() -> list[Path]:
    """The binaries of DALI and of nvImageCodec that this Python would load."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    found: list[Path] = []
    for package in ("nvidia.dali", "nvidia.nvimgcodec"):
        folder = package_folder(package)
        assert folder is not None
        for path in sorted(folder.rglob("*.so*")):
            if not re.search(r"\.cpython-|\.abi3\.", path.name) or path.name.endswith(suffix):
                found.append(path)
    return found


@pytest.fixture(scope="module")
def opened() -> dict[str, Library]:
    return {library.stem: library for library in opened_libraries(_gpu.cuda_major(nvidia.dali))}


def test_the_table_agrees_with_the_binaries(opened: dict[str, Library]) -> None:
    """All names except the system's and those of DALI's own files, and the folders where the loader looks."""
    paths = dali_binaries()
    # "libz-6b38d87b.so.1" is the packed copy of "libz.so.1".
    own = {re.sub(r"-[0-9a-f]{8}$", "", stem(path.name)) for path in paths} - {"libnvimgcodec"}
    names: dict[str, set[str]] = {}
    folders: dict[str, set[tuple[Path, ...]]] = {}
    for path in paths:
        binary = read_binary(path)
        for name in binary.named:
            if stem(name) not in own | SYSTEM:
                names.setdefault(stem(name), set()).add(name)
                folders.setdefault(stem(name), set()).add(tuple(dict.fromkeys(binary.folders)))
    assert names == {library.stem: set(library.names) for library in opened.values()}
    for library in opened.values():
        # The driver's are in none of these folders, and many binaries name them.
        if library.package:
            (runpath,) = folders[library.stem]
            assert runpath == library.folders


def test_names_for_the_other_cuda() -> None:
    """As read once from nvidia-dali-cuda130 2.4.0 and nvidia-nvimgcodec-cu13 0.9.0."""
    opened = {library.stem: library for library in opened_libraries(13)}
    assert opened["libnppc"].names == ("libnppc.so.13", "libnppc.so")
    assert opened["libcufft"].names == ("libcufft.so.12", "libcufft.so")
    assert opened["libnvjpeg"].names == ("libnvjpeg.so.13", "libnvjpeg.so")
    site = opened["libnppc"].folders[0].parent
    assert opened["libnppc"].folders[-1] == opened["libnvjpeg"].folders[3] == site / "cu13/lib"


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LD_LIBRARY_PATH before the binary's own folders; a file that is not a library is skipped."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "libx9.so.1").write_text("no library")
    library = Library("libx9", ("libx9.so.1", "libx9.so"), (second,), None, OK, "")
    assert list(_libraries.find_candidates(library)) == [second / "libx9.so.1"]
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{first}:")
    assert list(_libraries.find_candidates(library)) == [first / "libx9.so.1", second / "libx9.so.1"]
    found, reason = open_library(library)
    assert found is None
    assert "libx9" in reason


def locked(lock: str) -> dict[str, str]:
    """Names and versions of the locked packages."""
    found = re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE)
    return dict(found)


@functools.cache
def provided(lock: str) -> dict[str, Path]:
    """Shared libraries of the installed packages that have their locked version, by file name."""
    versions, files = locked(lock), {}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        if versions.get(name) != package.version:
            continue
        for file in package.files or []:
            if ".so" in file.name:
                files[file.name] = Path(str(package.locate_file(file)))
    return files


def unprovided(lock: str, libraries: list[Library]) -> set[str]:
    """Stems of libraries that are neither the driver's nor in a locked package."""
    files = provided(lock)
    return {
        library.stem
        for library in libraries
        if library.package and not any(name in files for name in library.names)
    }


def test_every_library_is_in_a_package_of_the_lock(opened: dict[str, Library]) -> None:
    lock = LOCK.read_text()
    assert unprovided(lock, list(opened.values())) == set()
    # And in the package that the doctor recommends.
    assert {library.package for library in opened.values() if library.package} <= set(locked(lock))


def test_missing_package_is_noticed(opened: dict[str, Library]) -> None:
    without = re.sub(r"^nvidia-npp-cu12==", "nvidia-other==", LOCK.read_text(), flags=re.MULTILINE)
    invented = opened["libnppc"]._replace(stem="libnvinvented", names=("libnvinvented.so.12",))
    found = unprovided(without, [*opened.values(), invented])
    assert found == {"libnppc", "libnppicc", "libnppig", "libnvinvented"}
    # No package has the driver's libraries; if one ever does, reconsider this.
    driver = [library for library in opened.values() if library.package is None]
    assert {library.stem for library in driver} == {"libcuda", "libnvidia-ml", "libnvcuvid"}
    assert not any(name in provided(without) for library in driver for name in library.names)


def test_libraries_of_libraries_are_in_the_lock(opened: dict[str, Library]) -> None:
    """And the libraries that those load in turn (cuFFT its compiler, nvTIFF nvCOMP), down to the driver."""
    files = provided(LOCK.read_text())
    driver = {library.stem for library in opened.values() if library.package is None}
    used = [library for library in opened.values() if library.stem not in UNUSED]
    waiting = [name for library in used for name in library.names if name in files]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        binary = read_binary(files[name])
        groups: dict[str, list[str]] = {}
        for other in (*binary.needed, *binary.named):
            groups.setdefault(stem(other), []).append(other)
        for group, names in groups.items():
            if group in SYSTEM | driver or name in names:
                continue
            there = [other for other in names if other in files]
            assert there, f"{name} loads {names}, which is in no locked package"
            waiting += there
    assert {"libnppc.so.12", "libnvJitLink.so.12"} <= seen


def test_dali_finds_them(opened: dict[str, Library]) -> None:
    """In the folders of its binaries' RUNPATH, without LD_LIBRARY_PATH, and they load."""
    files = set(provided(LOCK.read_text()).values())
    for library in opened.values():
        if library.package is None or library.stem in UNUSED:
            continue
        found, reason = open_library(library)
        assert found is not None, f"{library.stem}: {reason}"
        assert Path(found) in files or Path(found).resolve() in {file.resolve() for file in files}, found


def test_dali_opens_them() -> None:
    """DALI reports the versions of the libraries that its own loader opened."""
    assert backend.GetNppVersion() > 0
    assert backend.GetCufftVersion() > 0


def test_the_hardware_decoder_needs_the_video_library(opened: dict[str, Library]) -> None:
    """Containers need the driver capability "video" because nvJPEG opens the video library."""
    found, _ = open_library(opened["libnvjpeg"])
    assert found is not None
    assert "libnvcuvid.so.1" in read_binary(Path(found)).named
