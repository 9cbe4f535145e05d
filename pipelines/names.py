"""Names of files and classes: how to compare and show them. To open a file, use its original name."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any


def normalize_unicode(name: str) -> str:
    """Normalise a name to NFC, so that names that look the same are equal.

    macOS writes "é" as two code points (NFD), most other systems as one (NFC), and copied folders keep their
    bytes.
    """
    return unicodedata.normalize("NFC", name)


def shown(name: str | os.PathLike[str]) -> str:
    r"""Format a name for messages, reports and JSON, with ``\xe9`` for bytes that are not UTF-8.

    Python represents such bytes as lone surrogates, which streams and JSON parsers reject.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def json_text(content: Any, **options: Any) -> str:
    """Like ``json.dumps``, with names formatted as by :func:`shown`, so that every parser accepts it."""
    text = json.dumps(content, ensure_ascii=False, **options)
    return re.sub("[\udc80-\udcff]", lambda found: rf"\\x{ord(found[0]) - 0xDC00:02x}", text)


def match_classes(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Find the position of each class among the known ones, in any Unicode form.

    Parameters
    ----------
    names, known : sequence of str
        Class names. Those of `known` must differ by more than their Unicode form.

    Returns
    -------
    list of int or None
        The position of each name in `known`; None if it is not in `known`.

    Raises
    ------
    ValueError
        Two names in `known` look the same.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(known):
        first = places.setdefault(normalize_unicode(name), place)
        if first != place:
            raise ValueError(
                f"class names must differ by more than their Unicode form; got {shown(known[first])} twice"
            )
    return [places.get(normalize_unicode(name)) for name in names]
