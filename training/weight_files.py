"""The content of a weight file from any source, except the numbers. Needs no PyTorch.

So its faults, and the architecture it names, are known before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipelines.names import shown

from .config import plain
from .inert_pickle import ELEMENTS, CodeError, Placeholder, Stored, items_of, load_pickle, stored_tensor

# The first object in a torch.save file before PyTorch 1.6: the number 0x1950a86a20f9469cfc6c.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# The limit of the safetensors format.
_LONGEST_HEADER = 100_000_000
# Files that may be given by mistake, by their first bytes.
_OTHER_FORMATS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs", "a pointer of Git LFS: git lfs pull brings the file itself"),
)


# What zipfile, pickle and safetensors say about a truncated file.
_TRUNCATION_WORDS = (
    *("not a zip file", "truncated", "no newline found", "not enough data", "remain", "exhausted"),
    *("invalid header length", "incomplete metadata"),
)


class WeightsError(ValueError):
    """A file does not hold usable weights; the message, one line of plain text, names it."""

    def __init__(self, path: Path, reason: str, expected: str = "a file of weights") -> None:
        text = f"--init-weights must be {expected}; {shown(path)} {reason}"
        # Names from a damaged file may contain anything.
        super().__init__("".join(it if it.isprintable() else ascii(it)[1:-1] for it in text))


@dataclass(frozen=True)
class WeightFile:
    """A file of weights.

    Attributes
    ----------
    path : Path
    form : str
        "zip" or "legacy", both from torch.save, or "safetensors".
    content : Any
        Settings and everything else in it, with placeholders.
    groups : dict
        Tensors by name, by place in the file: "" is the top, "a.b" the entry b of its entry a.
    folder : str
        Folder in the archive, for "zip".
    offsets : dict
        Where in the file each storage begins, for "legacy".
    """

    path: Path
    form: str
    content: Any
    groups: dict[str, dict[str, Stored]]
    folder: str = ""
    offsets: dict[str, int] = field(default_factory=dict)


def read_weight_file(path: Path) -> WeightFile:
    """Read the content of a weight file, except the numbers.

    Raises
    ------
    WeightsError
        It holds no weights, or is damaged; one line says what it seems to be.
    """
    if path.is_dir():
        raise WeightsError(path, "is a folder")
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
        if head.startswith(b"PK\3\4"):
            found = _read_zip(path)
        elif head.startswith(_LEGACY):
            found = _read_legacy(path)
        elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
            found = _read_safetensors(path)
        else:
            raise WeightsError(path, f"is {_describe(head)}")
    except FileNotFoundError:
        raise ValueError(f"--init-weights must be a file of weights; there is no file {path}") from None
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror or error}") from error
    if not found.groups:
        raise WeightsError(path, f"holds no named weights; it is {_summary(found.content)}")
    return found


def _describe(head: bytes) -> str:
    """What a file without weights seems to be."""
    if not head:
        return "empty"
    if not head.strip(b"\0"):
        return "full of zeros, like a broken download"
    for start, name in _OTHER_FORMATS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
        return "a pickle that torch.save did not write, or a part of one"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "a web page instead of the download"
    if not re.search(rb"[\x00-\x08\x0e-\x1f]", head):
        return "a text file"
    return "in an unknown format (known: torch.save and safetensors)"


def _summary(content: Any) -> str:
    if isinstance(content, dict) and "_modules" not in items_of(content):
        return f"a dict of {', '.join(sorted(map(str, content))[:5]) or 'nothing'}"
    kind = getattr(content, "full_name", type(content).__name__)
    whole = isinstance(content, Placeholder) and "_modules" in items_of(content)
    return f"{f'a whole model, {kind}; save its state_dict()' if whole else f'of the type {kind}'}"


@contextlib.contextmanager
def _damage_errors(path: Path) -> Iterator[None]:
    """Turn any parser error, except OSError, into a WeightsError."""
    try:
        yield
    except (WeightsError, OSError):
        raise
    except MemoryError:
        raise WeightsError(path, "is damaged: it asks for more memory than this machine has") from None
    except CodeError as error:
        reason = f"asks to call {error}, which no file of weights needs; nothing was called"
        raise WeightsError(path, reason) from None
    except Exception as error:  # a dozen kinds
        cut = isinstance(error, EOFError) or any(words in str(error) for words in _TRUNCATION_WORDS)
        raise WeightsError(path, "is cut off" if cut else f"is damaged: {plain(error)}") from error


def _read_zip(path: Path) -> WeightFile:
    with _damage_errors(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if any("/code/" in name for name in names):
            raise WeightsError(path, "is a TorchScript program; save its state_dict()")
        if len(pickles) != 1:
            raise WeightsError(path, f"is an archive without weights; it holds {', '.join(names[:3])}")
        folder = pickles[0].partition("/")[0]
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise WeightsError(path, "was written on a big-endian machine")
        content, _ = load_pickle(io.BytesIO(archive.read(pickles[0])))
    return WeightFile(path, "zip", content, _groups(content), folder=folder)


def _read_legacy(path: Path) -> WeightFile:
    with _damage_errors(path), path.open("rb") as stream:
        for _ in range(2):
            load_pickle(stream)  # the magic number, the version
        system, _ = load_pickle(stream)
        if not items_of(system).get("little_endian", True):
            raise WeightsError(path, "was written on a big-endian machine")
        content, storages = load_pickle(stream)
        keys, _ = load_pickle(stream)
        place, offsets = stream.tell(), {}
        for key in keys:
            storage = storages[str(key)]
            offsets[storage.key] = place + 8  # after the number of elements
            place += 8 + storage.count * ELEMENTS[storage.kind][1]
        if place > path.stat().st_size:
            raise WeightsError(path, "is cut off")
    return WeightFile(path, "legacy", content, _groups(content), offsets=offsets)


def _read_safetensors(path: Path) -> WeightFile:
    with _damage_errors(path), safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        tensors = {name: Stored(tuple(file.get_slice(name).get_shape())) for name in names}
        content = dict(file.metadata() or {})
    return WeightFile(path, "safetensors", content, {"": tensors} if tensors else {})


def _groups(content: Any, place: str = "", depth: int = 0) -> dict[str, dict[str, Stored]]:
    """Tensors by name, at the top and in entries of entries."""
    items = items_of(content)
    tensors = {str(name): stored for name, value in items.items() if (stored := stored_tensor(value))}
    found = {place: tensors} if tensors else {}
    if depth < 2:
        for name, value in items.items():
            if isinstance(name, str) and stored_tensor(value) is None:
                found |= _groups(value, f"{place}.{name}" if place else name, depth + 1)
    return found
