"""Names of classes and files: compared as they look, shown legibly."""

from __future__ import annotations

import json
import os

import pytest

from pipelines.names import comparable, positions, shown

NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_names_that_look_the_same_are_equal() -> None:
    assert NFC != NFD
    assert comparable(NFC) == comparable(NFD)
    assert comparable("ant") != comparable("Ant")  # two folders on most file systems
    assert comparable("\ufb01sh") != comparable("fish")  # a ligature is to be seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"ant.png", "ant.png"),
        ("é.png".encode(), "é.png"),
        ("é.png".encode("latin1"), r"\xe9.png"),
        (b"a\xff\xc3\xa9", r"a\xffé"),
    ],
)
def test_shown(name: bytes, expected: str) -> None:
    text = shown(os.fsdecode(name))
    assert text == expected
    assert json.loads(json.dumps(text, ensure_ascii=False).encode()) == expected


def test_positions() -> None:
    assert positions([NFD, "bee", "ant"], ["ant", "bee", NFC]) == [2, 1, 0]
    assert positions([NFC, "cat"], [NFD]) == [0, None]
    assert positions([], ["ant"]) == []
    # Bytes that are not UTF-8 are a name like any other.
    assert positions(["\udce9"], ["é", "\udce9"]) == [1]


def test_known_names_that_look_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="must differ by more than their Unicode form; got café twice"):
        positions(["ant"], [NFC, "ant", NFD])
