"""What config.json says about a run's software."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.output import describe_software
from training.revision import installed_versions


def test_image_is_named_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DALI_MSDA_IMAGE", raising=False)
    assert describe_software(tmp_path)["image"] is None
    monkeypatch.setenv("DALI_MSDA_IMAGE", "")  # an image built without a name
    assert describe_software(tmp_path)["image"] is None
    monkeypatch.setenv("DALI_MSDA_IMAGE", "0.1.0-0123456789ab")
    assert describe_software(tmp_path)["image"] == "0.1.0-0123456789ab"


@pytest.mark.parametrize("git", [True, False])
def test_commit_of_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, git: bool) -> None:
    """A Docker image has neither repository nor git: the commit comes from its build."""
    if not git:
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DALI_MSDA_COMMIT", raising=False)
    assert describe_software(tmp_path)["commit"] is None
    monkeypatch.setenv("DALI_MSDA_COMMIT", "0" * 40)
    assert describe_software(tmp_path)["commit"] == "0" * 40


def test_commit_of_a_checkout_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "git"
    program.write_text("#!/bin/sh\necho abc\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("DALI_MSDA_COMMIT", "0" * 40)
    assert describe_software(tmp_path)["commit"] == "abc"


def test_only_what_is_installed_has_a_version() -> None:
    """DALI is installed as one of its builds; config.json is written with either."""
    assert installed_versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}
