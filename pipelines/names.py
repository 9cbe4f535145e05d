"""Names of files and classes: how they are compared and shown. Opening takes them as they came."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any


def comparable(name: str) -> str:
    """The form of a name in which names that look the same are equal.

    A Mac writes "é" as two code points (NFD), most other systems as one (NFC). Folders copied from one to
    the other keep the bytes.
    """
    return unicodedata.normalize("NFC", name)


def shown(name: str | os.PathLike[str]) -> str:
    r"""A name for messages, reports and JSON: bytes that are not UTF-8 as ``\xe9``.

    Python keeps such bytes as lone surrogates, which no stream and no JSON parser takes.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def json_text(content: Any, **options: Any) -> str:
    """JSON (``json.dumps``) in which names are as :func:`shown`, so that every parser takes it."""
    text = json.dumps(content, ensure_ascii=False, **options)
    return re.sub("[\udc80-\udcff]", lambda found: rf"\\x{ord(found[0]) - 0xDC00:02x}", text)


def positions(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Where each class stands among the known ones, by names that look the same.

    Parameters
    ----------
    names, known : sequence of str
        Class names. Those of `known` differ from each other in their :func:`comparable` form.

    Returns
    -------
    list of int or None
        For each of `names` its position in `known`; None where it is not there.

    Raises
    ------
    ValueError
        Two of `known` look the same.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(known):
        first = places.setdefault(comparable(name), place)
        if first != place:
            raise ValueError(
                f"class names must differ by more than their Unicode form; got {shown(known[first])} twice"
            )
    return [places.get(comparable(name)) for name in names]
