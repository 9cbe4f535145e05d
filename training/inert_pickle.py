"""Pickles of other people, read without running anything that they ask for. Needs no PyTorch.

A pickle may name any class or function, to be called while it is read. Here every name becomes a
:class:`Placeholder`, which remembers what it was given: settings can be looked up in it, and tensors are
read from where they lie (:mod:`.weights`). ``torch.load(weights_only=True)`` would refuse a whole checkpoint
because its settings are in an ``argparse.Namespace``.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

# What a storage of PyTorch holds: type and bytes of an element.
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


# Modules and built-in functions that a pickle names to do something, not to keep something.
_ACTS = {"os", "posix", "nt", "sys", "subprocess", "shutil", "runpy", "pty", "socket", "importlib", "ctypes"}
_ACTS |= {"webbrowser", "code", "timeit", "commands", "builtins.eval", "builtins.exec", "builtins.compile"}
_ACTS |= {"builtins.open", "builtins.__import__", "__builtin__.eval", "__builtin__.exec"}


class CodeError(Exception):
    """A pickle names what runs code; the message is that name."""


class Placeholder(dict[Any, Any]):
    """Stands in for an object of a class that a pickle names, or for what a function would have returned.

    A dict, because the classes that containers of settings have are mostly such.

    Attributes
    ----------
    full_name : str
        What the pickle names; of the class.
    arguments : tuple
        What it was called with.
    state : Any
        What was put into the object: attributes by name, for most classes.
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
        """Items of a list or set of a class of its own are not needed."""

    extend = add = append


@dataclass(frozen=True)
class Storage:
    """Elements of tensors.

    Attributes
    ----------
    kind : str
        A key of ELEMENTS, or the name of another class.
    key : str
        Which of the file's storages it is.
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
        None: the tensor is found by its name.
    offset : int
        Elements of the storage before it.
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
        It names what runs code.
    Exception
        Of a dozen kinds: it is damaged.
    """
    # Python fills a table up to any place that a pickle names: one wrong byte, and the memory is full.
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
        Those that were met, by key.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        # latin-1 takes any byte: pickles of Python 2 hold strings of bytes.
        super().__init__(stream, encoding="latin-1")
        self.storages: dict[str, Storage] = {}
        self._kinds: dict[str, type[Placeholder]] = {}

    def find_class(self, module: str, name: str, /) -> type[Placeholder]:
        """A kind of placeholder; nothing is imported. CodeError for what no honest file names."""
        full_name = f"{module}.{name}"
        if module.partition(".")[0] in _ACTS or full_name in _ACTS:
            raise CodeError(full_name)
        if full_name not in self._kinds:
            self._kinds[full_name] = type("Placeholder", (Placeholder,), {"full_name": full_name})
        return self._kinds[full_name]

    def persistent_load(self, pid: Any, /) -> Storage:
        """What torch.save writes for the memory of a tensor."""
        match pid:
            case ("storage", type() as kind, key, _, int() as count, *view) if not any(view):
                name = kind.full_name.rpartition(".")[2] if issubclass(kind, Placeholder) else ""
                return self.storages.setdefault(str(key), Storage(name, str(key), count))
        raise pickle.UnpicklingError("it refers to something that is not the storage of a tensor")


def stored_tensor(value: Any) -> Stored | None:
    """The tensor that an object of a pickle stands for; None if it is none, or of a special kind."""
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
                # torch.Size and its like are placeholders; plain integers are all that may be here.
                if all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
                    return Stored(shape, storage, offset, strides)
    return None


def items_of(value: Any) -> Mapping[Any, Any]:
    """The items of a dict, the attributes of an object of some class; empty for anything else."""
    if isinstance(value, Placeholder) and not value and isinstance(value.state, dict):
        return value.state
    return value if isinstance(value, dict) else {}
