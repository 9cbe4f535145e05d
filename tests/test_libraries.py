"""What DALI's binaries load, read from the binaries, and that the lock brings all of it."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import struct
from pathlib import Path

import pytest
from nvidia.dali import backend

from dali_msda.doctor import libraries as _libraries
from dali_msda.doctor.libraries import Library, open_library, opened_libraries, read_binary

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
# The driver's: no package may bring them.
DRIVER = {"libcuda", "libnvidia-ml", "libnvcuvid"}
# glibc, the compiler's run time, what every distribution has, and a profiler's, opened where a variable asks.
SYSTEM = {
    "libc", "libm", "libdl", "librt", "libpthread", "ld-linux-x86-64", "libgcc_s", "libstdc++",
    "libnuma", "libcrypto", "libittnotify",
}  # fmt: skip
# cuFile reads past the CPU, for readers that nothing here uses; DALI does not look into its package.
UNUSED = {"libcufile"}


def elf(strings: bytes, needed: str, runpath: str, section: str = ".rodata") -> bytes:
    """A 64-bit ELF file with nothing but read-only data and a dynamic section."""
    table = b"\0" + needed.encode() + b"\0" + runpath.encode() + b"\0"
    dynamic = struct.pack("<6Q", 1, 1, 29, 2 + len(needed), 0, 0)
    titles = b"\0" + section.encode() + b"\0.dynstr\0.dynamic\0.shstrtab\0"
    content, headers, offset = b"", struct.pack("<IIQQQQIIQQ", *[0] * 10), 64
    # Title, type (3: strings, 6: dynamic), content, linked section.
    for title, kind, part, link in (
        (section, 1, strings, 0),
        (".dynstr", 3, table, 0),
        (".dynamic", 6, dynamic, 2),
        (".shstrtab", 3, titles, 0),
    ):
        name = titles.index(title.encode() + b"\0")
        headers += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, len(part), link, 0, 1, 0)
        content, offset = content + part, offset + len(part)
    start = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", offset)
    return start.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, 5, 4) + content + headers


def test_names_are_read_from_a_binary(tmp_path: Path) -> None:
    strings = (
        b"\xff\xc3libone.so.11\0libone.so\0/opt/two/lib64/libtwo-x.so.0.9.0\0"
        b"dlopen libthree.so failed!\0/usr/lib/libz.so (ver 1.3)\0libfour.so.1"
    )
    path = tmp_path / "file.so"
    path.write_bytes(elf(strings, "libm.so.6", "$ORIGIN/../npp/lib:${ORIGIN}:/usr/local/cuda/lib64"))
    read = read_binary(path)
    assert read.needed == ("libm.so.6",)
    assert read.named == ("libone.so.11", "libone.so", "libtwo-x.so.0.9.0")
    assert read.folders == (tmp_path.parent / "npp/lib", tmp_path, Path("/usr/local/cuda/lib64"))
    path.write_bytes(elf(strings, "libm.so.6", "", section=".comment"))
    assert read_binary(path).named == ()


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n" * 20, b"\x7fELF\x01\x01" + bytes(100)], ids=["empty", "script", "32 bits"]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.so").write_bytes(content)
    with pytest.raises(ValueError, match="ELF"):
        read_binary(tmp_path / "file.so")


def test_cut_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.so").write_bytes(elf(b"libone.so\0", "libm.so.6", "")[:-100])
    with pytest.raises(ValueError, match="damaged"):
        read_binary(tmp_path / "file.so")


def test_alternatives_are_one_library(tmp_path: Path) -> None:
    """The exact name first; a library of the same folder is none that has to be found."""
    for name, strings in (("liba.so", b"libb.so\0libc9.so\0libc9.so.12\0"), ("libb.so", b"libc9.so.12\0")):
        (tmp_path / name).write_bytes(elf(strings, "libm.so.6", f"$ORIGIN/{name}"))
    paths = [tmp_path / "liba.so", tmp_path / "libb.so"]
    assert opened_libraries(paths) == [
        Library(
            "libc9", ("libc9.so.12", "libc9.so"), (tmp_path / "liba.so", tmp_path / "libb.so"), tuple(paths)
        )
    ]


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LD_LIBRARY_PATH before the binary's own folders; a file that is no library is passed over."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "libx9.so.1").write_text("no library")
    library = Library("libx9", ("libx9.so.1", "libx9.so"), (second,), ())
    assert list(_libraries.candidates(library)) == [second / "libx9.so.1"]
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{first}:")
    assert list(_libraries.candidates(library)) == [first / "libx9.so.1", second / "libx9.so.1"]
    found, reason = open_library(library)
    assert found is None
    assert "libx9" in reason


@pytest.fixture(scope="module")
def opened() -> dict[str, Library]:
    return {library.stem: library for library in opened_libraries()}


def locked(lock: str) -> dict[str, str]:
    """Names and versions of the lock's packages."""
    found = re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE)
    return dict(found)


@functools.cache
def provided(lock: str) -> dict[str, Path]:
    """Shared libraries by file name that installed packages of the lock bring, at the lock's version."""
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
    """Stems of libraries that are neither the system's nor the driver's nor in a package of the lock."""
    files = provided(lock)
    return {
        library.stem
        for library in libraries
        if library.stem not in SYSTEM | DRIVER and not any(name in files for name in library.names)
    }


def test_every_library_is_in_a_package_of_the_lock(opened: dict[str, Library]) -> None:
    assert unprovided(LOCK.read_text(), list(opened.values())) == set()
    # What is known to be opened is seen; a reader that finds nothing would pass otherwise.
    known = {"libnppc", "libnppicc", "libnppig", "libcufft", "libnvjpeg", "libnvimgcodec", "libnvcomp"}
    assert known | DRIVER <= set(opened)
    assert opened["libnppc"].names == ("libnppc.so.12", "libnppc.so")


def test_missing_package_is_noticed(opened: dict[str, Library]) -> None:
    without = re.sub(r"^nvidia-npp-cu12==", "nvidia-other==", LOCK.read_text(), flags=re.MULTILINE)
    invented = Library("libnvinvented", ("libnvinvented.so.12", "libnvinvented.so"), (), ())
    found = unprovided(without, [*opened.values(), invented])
    assert found == {"libnppc", "libnppicc", "libnppig", "libnvinvented"}
    # The driver's are no package's; should one ever bring them, this has to be thought over.
    assert not any(name in provided(without) for stem in DRIVER for name in opened[stem].names)


def test_libraries_of_libraries_are_in_the_lock(opened: dict[str, Library]) -> None:
    """And what those load in turn, cuFFT its compiler and nvTIFF nvCOMP, down to the driver."""
    files = provided(LOCK.read_text())
    used = [library for stem, library in opened.items() if stem not in UNUSED]
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
            groups.setdefault(other.partition(".so")[0], []).append(other)
        for stem, names in groups.items():
            if stem in SYSTEM | DRIVER or name in names:
                continue
            there = [other for other in names if other in files]
            assert there, f"{name} loads {names}, which no package of the lock brings"
            waiting += there
    assert {"libnppc.so.12", "libnvJitLink.so.12"} <= seen


def test_dali_finds_them(opened: dict[str, Library]) -> None:
    """In the folders that its binaries name, without LD_LIBRARY_PATH, and they load."""
    files = set(provided(LOCK.read_text()).values())
    for stem in set(opened) - SYSTEM - DRIVER - UNUSED:
        found, reason = open_library(opened[stem])
        assert found is not None, f"{stem}: {reason}"
        assert Path(found) in files or Path(found).resolve() in {file.resolve() for file in files}, found


def test_dali_says_so_too() -> None:
    """DALI's own loader, asked for the versions of what it opened."""
    assert backend.GetNppVersion() > 0
    assert backend.GetCufftVersion() > 0


def test_the_hardware_decoder_needs_the_video_library(opened: dict[str, Library]) -> None:
    """Why containers need the driver capability "video": nvJPEG opens the video library."""
    found, _ = open_library(opened["libnvjpeg"])
    assert found is not None
    assert "libnvcuvid.so.1" in read_binary(Path(found)).named
