"""Names of classes and files: compared in any Unicode form, shown in any encoding."""

from __future__ import annotations

import json
import os

import pytest

from pipelines.names import match_classes, normalize_unicode, shown

NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_names_that_look_the_same_are_equal() -> None:
    assert NFC != NFD
    assert normalize_unicode(NFC) == normalize_unicode(NFD)
    assert normalize_unicode("ant") != normalize_unicode("Ant")  # two folders on most file systems
    assert normalize_unicode("\ufb01sh") != normalize_unicode("fish")  # a ligature is visible


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


def test_match_classes() -> None:
    assert match_classes([NFD, "bee", "ant"], ["ant", "bee", NFC]) == [2, 1, 0]
    assert match_classes([NFC, "cat"], [NFD]) == [0, None]
    assert match_classes([], ["ant"]) == []
    # Bytes that are not UTF-8 are an ordinary name.
    assert match_classes(["\udce9"], ["é", "\udce9"]) == [1]


def test_known_names_must_not_look_the_same() -> None:
    with pytest.raises(ValueError, match="must differ by more than their Unicode form; got café twice"):
        match_classes(["ant"], [NFC, "ant", NFD])
