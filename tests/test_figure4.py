"""Figure 4: the averages that it draws, its claims, and a method of a user's own in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dali_msda.methods import MIXING, TABLE
from experiments import figure4, figures
from tests.own_method import STRIPE


def test_rings() -> None:
    steps = np.arange(-4, 5)
    distance = np.rint(np.hypot(steps[:, None], steps))
    np.testing.assert_allclose(figures.average_rings(distance), np.arange(5))
    # The ring of distance 1: four neighbours at 1, four at the root of 2.
    peak = np.zeros((5, 5))
    peak[2, 3] = 8.0
    np.testing.assert_allclose(figures.average_rings(peak), [0, 1, 0])


def test_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture with its data; a registered method is in it."""
    monkeypatch.setitem(TABLE, "stripe", STRIPE)
    figure4.main([str(tmp_path / "a.png"), "--quick", "--dpi=30"])
    found = json.loads((tmp_path / "a.json").read_text())
    assert len(found["claims"]) == 7
    assert (tmp_path / "a.png").stat().st_size > 5000
    for row in found["methods"].values():
        assert [*row] == [*MIXING, "stripe"]
        assert np.shape(row["hmix"]["by_offset"]) == (32, 63)
        np.testing.assert_allclose(row["stripe"]["by_distance"], 0.75**2)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "stochastic", "hmix", "gmix"])
def test_a_wrong_method_fails_a_claim(name: str) -> None:
    """Another method's coefficients in the place of each one."""
    panels = figure4.compute(16)
    panels["paper"][name] = panels["paper"]["mixup" if name != "mixup" else "cutmix"]
    failed = [claim.text for claim in figure4.check(panels) if not claim.holds]
    assert any(text.startswith(f"{TABLE[name].title} is ") for text in failed)
