"""Paths for libraries that accept only UTF-8: DALI, TensorBoard."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile


def utf8_path(path: str) -> str:
    """Return `path`, or if it is not UTF-8, another path to the same file that is.

    The other path uses a symbolic link in a temporary folder of this process. DALI 2.4 rejects names that are
    not UTF-8 ("Unsupported argument type"), or raises UnicodeDecodeError when it has to report one.
    """
    if _is_utf8(path):
        return path
    folder, name = os.path.split(path)
    if name and folder and _is_utf8(name):
        return os.path.join(utf8_path(folder), name)
    return _link(os.path.abspath(path))


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.cache
def _link(path: str) -> str:
    link = os.path.join(_folder().name, str(next(_numbers)))
    os.symlink(path, link)
    return link


_numbers = itertools.count()


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dali-msda-names-")
