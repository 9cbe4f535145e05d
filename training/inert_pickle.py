"""Reads untrusted pickles without running anything in them. Needs no PyTorch.

A pickle may name any class or function, which is called as the pickle is read. Here every name becomes a
:class:`Placeholder` that stores its arguments: settings can be looked up in it, and tensors are read from
where they are in the file (:mod:`.weights`). ``torch.load(weights_only=True)`` would refuse a whole
checkpoint because its settings are in an ``argparse.Namespace``.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

# PyTorch's storages: type and bytes of an element.
ELEMENTS = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
}


# Modules and built-in functions that a pickle names to run code, not to store data.
_RUNS_CODE = {
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "shutil",
    "runpy",
    "pty",
    "socket",
    "importlib",
    "ctypes",
}
_RUNS_CODE |= {
    "webbrowser",
    "code",
    "timeit",
    "commands",
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
}
_RUNS_CODE |= {"builtins.open", "builtins.__import__", "__builtin__.eval", "__builtin__.exec"}


class CodeError(Exception):
    """A pickle names something that runs code; the message is that name."""


class Placeholder(dict[Any, Any]):
    """Stands in for an object of a class that a pickle names, or for the result of a function.

    A dict, because most classes that contain settings are dicts.

    Attributes
    ----------
    full_name : str
        The name in the pickle; a class attribute.
    arguments : tuple
        The arguments of the call.
    state : Any
        The object's state: for most classes, attributes by name.
    """

    full_name = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> Placeholder:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    __hash__ = object.__hash__  # type: ignore[assignment]

    def append(self, item: Any) -> None:
        """Ignore items of special list and set classes, which are not needed."""

    extend = add = append


@dataclass(frozen=True)
class Storage:
    """Elements of tensors.

    Attributes
    ----------
    kind : str
        A key of ELEMENTS, or the name of another class.
    key : str
        Identifies it among the file's storages.
    count : int
        Elements.
    """

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes
    ----------
    shape : tuple of int
    storage : Storage or None
        None if the tensor is found by its name.
    offset : int
        Position of its first element in the storage.
    strides : tuple of int
        In elements.
    """

    shape: tuple[int, ...]
    storage: Storage | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()


def load_pickle(stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Read a pickle; every class and function in it is a kind of :class:`Placeholder`.

    Returns
    -------
    content : Any
    storages : dict
        Those of its tensors, by key.

    Raises
    ------
    CodeError
        It names something that runs code.
    Exception
        One of a dozen kinds: it is damaged.
    """
    # Python fills a table up to any index that a pickle names: one wrong byte could fill the memory.
    start = stream.tell()
    for opcode, argument, place in pickletools.genops(stream):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > (place or 0):
            raise pickle.UnpicklingError(f"it remembers {argument} objects in {place} bytes")
    stream.seek(start)
    reader = _Unpickler(stream)
    return reader.load(), reader.storages


class _Unpickler(pickle.Unpickler):
    """Reads a pickle; every class and function in it is a kind of :class:`Placeholder`.

    Attributes
    ----------
    storages : dict
        The storages found, by key.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        # latin-1 takes any byte: pickles of Python 2 hold strings of bytes.
        super().__init__(stream, encoding="latin-1")
        self.storages: dict[str, Storage] = {}
        self._kinds: dict[str, type[Placeholder]] = {}

    def find_class(self, module: str, name: str, /) -> type[Placeholder]:
        """A kind of placeholder, without an import; CodeError for names that no honest file has."""
        full_name = f"{module}.{name}"
        if module.partition(".")[0] in _RUNS_CODE or full_name in _RUNS_CODE:
            raise CodeError(full_name)
        if full_name not in self._kinds:
            self._kinds[full_name] = type("Placeholder", (Placeholder,), {"full_name": full_name})
        return self._kinds[full_name]

    def persistent_load(self, pid: Any, /) -> Storage:
        """The storage of a tensor, as torch.save writes it."""
        match pid:
            case ("storage", type() as kind, key, _, int() as count, *view) if not any(view):
                name = kind.full_name.rpartition(".")[2] if issubclass(kind, Placeholder) else ""
                return self.storages.setdefault(str(key), Storage(name, str(key), count))
        raise pickle.UnpicklingError("it refers to something that is not the storage of a tensor")


def stored_tensor(value: Any) -> Stored | None:
    """The tensor that an object of a pickle represents; None if it is not a tensor, or a special kind."""
    if not isinstance(value, Placeholder):
        return None
    name, arguments = value.full_name, value.arguments
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return stored_tensor(arguments[0]) if arguments else None
    if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
        match arguments:
            case (type() as function, _, tuple() as inner, *_) if issubclass(function, Placeholder):
                return stored_tensor(function(*inner))
        return None
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        match arguments:
            case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, *_):
                # torch.Size and similar classes are placeholders; only plain integers are allowed here.
                if all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
                    return Stored(shape, storage, offset, strides)
    return None


def items_of(value: Any) -> Mapping[Any, Any]:
    """The items of a dict or the attributes of an object; empty for anything else."""
    if isinstance(value, Placeholder) and not value and isinstance(value.state, dict):
        return value.state
    return value if isinstance(value, dict) else {}
