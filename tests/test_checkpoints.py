"""Checkpoint files: complete or absent, checksummed, rotated; and what remains when a write fails."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.checkpoints import VERSION, Checkpoints, DamagedError, SaveError, pack, unpack
from training.random_states import RandomStates, seed_all

CPU = torch.device("cpu")


def content(step: int, size: int = 1000) -> dict[str, Any]:
    model = {"weight": torch.full((size,), float(step))}
    return {"version": VERSION, "model": model, "step": step, "bytes": b"\0\xff"}


@pytest.fixture
def three(tmp_path: Path) -> Checkpoints:
    """Checkpoints of steps 10, 20 (the best) and 30."""
    checkpoints = Checkpoints(tmp_path / "run", keep=3)
    checkpoints.start()
    for step in (10, 20, 30):
        checkpoints.save(step, content(step), is_best=step == 20)
    return checkpoints


def files(checkpoints: Checkpoints) -> dict[str, bytes]:
    return {
        str(path.relative_to(checkpoints.folder)): path.read_bytes()
        for path in checkpoints.folder.rglob("*")
        if path.is_file()
    }


def test_round_trip() -> None:
    found = unpack(pack(content(3)))
    assert found["step"] == 3
    assert found["bytes"] == b"\0\xff"
    assert torch.equal(found["model"]["weight"], torch.full((1000,), 3.0))


def test_plain_torch_load_reads_the_files(three: Checkpoints) -> None:
    for name, step in (("last.pt", 30), ("best.pt", 20), ("checkpoints/step-00000010.pt", 10)):
        assert torch.load(three.folder / name, weights_only=True)["step"] == step


def damaged(data: bytes) -> Iterator[bytes]:
    """The file with each bit or byte changed, truncated anywhere, or with bytes appended."""
    for position, byte in enumerate(data):
        for other in (*(byte ^ 1 << bit for bit in range(8)), 0, 255, byte ^ 255):
            if other != byte:
                yield data[:position] + bytes([other]) + data[position + 1 :]
    yield from (data[:length] for length in range(len(data)))
    yield from (data + more for more in (b"\0", data, b"PK\5\6"))


def same(found: Any, wanted: Any) -> bool:
    """Whether two checkpoints have the same content, bit for bit."""
    if isinstance(wanted, dict):
        return list(found) == list(wanted) and all(same(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    return type(found) is type(wanted) and bool(found == wanted)


def test_every_kind_of_damage_is_noticed_or_changes_nothing() -> None:
    """ZIP has no checksum for times, attributes and padding: changes there have no effect."""
    wanted = content(1, size=20) | {"other": torch.arange(5)}
    data = pack(wanted)
    noticed = harmless = 0
    for damage in damaged(data):
        try:
            found = unpack(damage, "file.pt")
        except DamagedError as error:
            assert str(error).startswith("file.pt is damaged")  # noqa: PT017
            noticed += 1
        else:
            assert same(found, wanted)
            harmless += 1
    assert noticed > harmless > 0


def test_damage_of_what_is_stored_is_noticed() -> None:
    """Every bit of every member, which is what PyTorch reads."""
    data = pack(content(1, size=20))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [archive.read(name) for name in archive.namelist()]
    for member in members:
        start = data.index(member)
        for position in range(start, start + len(member)):
            for bit in range(8):
                damage = bytearray(data)
                damage[position] ^= 1 << bit
                with pytest.raises(DamagedError, match=r"file\.pt is damaged"):
                    unpack(bytes(damage), "file.pt")


def test_other_files_are_not_taken() -> None:
    """Files of torch.save that are not checkpoints, or in its old format."""
    for other in ({"weight": torch.zeros(3)}, [1, 2], {"version": "1.0"}, {"version": None}):
        with pytest.raises(DamagedError, match=r"other\.pt is not a checkpoint of this trainer"):
            unpack(pack(other), "other.pt")  # type: ignore[arg-type]
    buffer = io.BytesIO()
    torch.save(content(1), buffer, _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedError, match=r"other\.pt is damaged: File is not a zip file"):
        unpack(buffer.getvalue(), "other.pt")


def test_a_newer_version_is_refused_by_its_number(three: Checkpoints) -> None:
    """Not skipped as damaged: the run would then resume from an older one."""
    three.path(30).write_bytes(pack(content(30) | {"version": VERSION + 1}))
    with pytest.raises(
        ValueError, match=rf"step-00000030\.pt has checkpoint version {VERSION + 1};"
    ) as caught:
        three.newest()
    assert not isinstance(caught.value, DamagedError)


class Code:
    """What a pickle must not be able to do."""

    def __reduce__(self) -> Any:
        return os.abort, ()


def test_code_in_a_checkpoint_is_not_run() -> None:
    data = pack({"model": Code()})
    with pytest.raises(DamagedError, match=r"it holds posix\.abort, which is neither"):
        unpack(data)


def test_rotation_keeps_the_newest_and_the_best(three: Checkpoints) -> None:
    three.keep = 2
    for step in (40, 50):
        three.save(step, content(step), is_best=False)
    assert list(three.numbered()) == [40, 50]
    assert torch.load(three.folder / "best.pt", weights_only=True)["step"] == 20
    assert torch.load(three.folder / "last.pt", weights_only=True)["step"] == 50
    assert (three.folder / "last.pt").samefile(three.path(50))
    assert {name for name in files(three) if "tmp" in name} == set()


def test_newest_passes_over_the_damaged(three: Checkpoints) -> None:
    path, data, damaged = three.newest()
    assert (path, data, damaged) == (three.path(30), three.path(30).read_bytes(), [])
    with three.path(30).open("r+b") as file:
        file.seek(500)
        file.write(b"XXXX")
    three.path(20).write_bytes(three.path(20).read_bytes()[:700])
    path, data, damaged = three.newest()
    assert path == three.path(10)
    assert unpack(data)["step"] == 10
    assert [str(error).split(" is ")[0] for error in damaged] == [str(three.path(n)) for n in (30, 20)]
    three.prepare_resume(10, data, is_best=False, source=three.folder)
    # Exempt from the rotation, and kept for inspection.
    assert list(three.numbered()) == [10]
    assert {"checkpoints/step-00000030.pt.damaged", "checkpoints/step-00000020.pt.damaged"} <= set(
        files(three)
    )
    assert (three.folder / "last.pt").samefile(three.path(10))


def test_the_best_one_is_a_last_resort(three: Checkpoints) -> None:
    three.keep = 1
    three.save(40, content(40), is_best=False)
    three.path(40).write_bytes(b"nothing")
    path, data, damaged = three.newest()
    assert path == three.folder / "best.pt"
    assert len(damaged) == 1
    three.prepare_resume(20, data, is_best=True, source=three.folder)
    assert list(three.numbered()) == [20]


def test_nothing_there(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", 3).newest() == (None, b"", [])


def test_killed_between_two_files(three: Checkpoints) -> None:
    """The numbered file exists, its other names do not yet; temporary files are left."""
    three.save(40, content(40), is_best=True)
    for name, before in (("last.pt", 30), ("best.pt", 20)):
        (three.folder / name).unlink()
        (three.folder / name).hardlink_to(three.path(before))
    for unfinished in (three.folder / ".last.pt.tmp", three.folder / "checkpoints" / ".step-00000050.pt.tmp"):
        unfinished.write_bytes(b"half")
    three.prepare_resume(40, three.path(40).read_bytes(), is_best=True, source=three.folder)
    for name in ("last.pt", "best.pt"):
        assert torch.load(three.folder / name, weights_only=True)["step"] == 40
    assert {name for name in files(three) if "tmp" in name} == set()


def test_into_another_folder(three: Checkpoints, tmp_path: Path) -> None:
    """The checkpoint and the best one are copied; the source does not change."""
    before = files(three)
    other = Checkpoints(tmp_path / "other", keep=3)
    other.prepare_resume(30, three.path(30).read_bytes(), is_best=False, source=three.folder)
    assert files(three) == before
    assert list(other.numbered()) == [30]
    assert torch.load(other.folder / "best.pt", weights_only=True)["step"] == 20


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file can grow beyond `free` bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(three: Checkpoints) -> None:
    before = files(three)
    with full_disk(2000), pytest.raises(SaveError) as caught:
        three.save(40, content(40), is_best=True)
    assert caught.value.errno == errno.EFBIG
    assert str(three.path(40)) in str(caught.value)
    assert f"the newest good checkpoint is {three.path(30)}" in str(caught.value)
    assert files(three) == before


def test_first_checkpoint_fails(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.start()
    with full_disk(2000), pytest.raises(SaveError, match="there is no checkpoint yet"):
        checkpoints.save(1, content(1), is_best=False)
    assert files(checkpoints) == {}


def test_read_only_folder(three: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's error for a file system that turned read-only; root can write to any other folder."""
    before = files(three)
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SaveError, match="Read-only file system"):
        three.save(40, content(40), is_best=False)
    monkeypatch.undo()
    assert files(three) == before


def test_folder_removed(three: Checkpoints) -> None:
    shutil.rmtree(three.folder)
    with pytest.raises(SaveError, match="No such file or directory"):
        three.save(40, content(40), is_best=False)
    assert not three.folder.exists()


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_system_without_links(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.start()
    for step in (10, 20):
        checkpoints.save(step, content(step), is_best=step == 10)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 10
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 20


def test_random_states() -> None:
    def draws() -> list[float]:
        numpy = (np.random.random(), np.random.normal())  # noqa: NPY002
        return [random.random(), random.gauss(0, 1), *numpy, float(torch.rand(1))]

    seed_all(3)
    first = draws()
    generators = RandomStates(CPU)
    states = unpack(pack({"version": VERSION, **generators.state_dict()}))
    second = draws()
    assert first != second
    generators.load_state_dict(states)
    assert draws() == second
    seed_all(3)
    assert draws() == first
    seed_all(3, rank=1)
    assert not set(draws()) & set(first)
