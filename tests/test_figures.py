"""What the paper's figures share: the list, their files, their claims, and runs that are resumed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import optimize

from dali_msda.theory.prescribed import sample_mask
from experiments import __main__ as command
from experiments import figure1, figure2
from experiments.figures import Claim, ClaimError, Options, compute_cells, forget_cells, parse, save

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def test_every_figure_is_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert sorted(command.FIGURES) == sorted(path.stem for path in EXPERIMENTS.glob("figure[0-9].py"))
    for name, figure in command.FIGURES.items():
        assert f"{name} " in printed
        assert figure.title in printed
        assert callable(importlib.import_module(f"experiments.{name}").main)


def test_an_unknown_figure_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["figure3", "figure9"])
    assert "FIGURE must be one of " in capsys.readouterr().err


def test_a_figure_is_saved_with_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(tmp_path / "new" / "a.png", quick=True, dpi=30)
    good = Claim("less than 1", "0.5", holds=True)
    save(Figure(), {"lam": [0.5]}, [good], options)
    assert sorted(path.name for path in options.output.parent.iterdir()) == ["a.json", "a.png"]
    claim = {"text": "less than 1", "seen": "0.5", "holds": True}
    assert json.loads(options.data.read_text()) == {"quick": True, "claims": [claim], "lam": [0.5]}
    assert "holds: less than 1: 0.5" in capsys.readouterr().out
    with pytest.raises(ClaimError, match=r"^less than 1; got 2$"):
        save(Figure(), {"lam": [2.0]}, [good, Claim("less than 1", "2", holds=False)], options)
    assert json.loads(options.data.read_text())["lam"] == [2.0]  # to look at


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["a.json"], "output must be a picture; got a.json"), (["--dpi=0"], "--dpi must be positive; got 0")],
)
def test_options_are_checked(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("figure1", None, arguments)
    assert message in capsys.readouterr().err


def test_an_interrupted_figure_is_resumed(tmp_path: Path) -> None:
    options = Options(tmp_path / "a.png", quick=False, dpi=300)
    computed = []

    def compute(key: str) -> list[str]:
        if key == "c" and "c" not in computed:
            computed.append(key)
            raise KeyboardInterrupt
        computed.append(key)
        return [key]

    keys = ["a", "b", "c", "d"]
    with pytest.raises(KeyboardInterrupt):
        compute_cells(options, keys, {"steps": 2}, compute)
    kept = tmp_path / "a.cells.jsonl"
    kept.write_text(kept.read_text() + '{"d": ["cut')
    assert compute_cells(options, keys, {"steps": 2}, compute) == {key: [key] for key in keys}
    assert computed == ["a", "b", "c", "c", "d"]
    # The cut line is gone: those after it are found.
    compute_cells(options, keys, {"steps": 2}, compute)
    assert computed == ["a", "b", "c", "c", "d"]
    # Other settings: nothing is taken over.
    compute_cells(options, ["a"], {"steps": 3}, compute)
    assert computed[5:] == ["a"]
    forget_cells(options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", figure1.METHODS)
@pytest.mark.parametrize("kind", [figure1.Original, figure1.Approximate])
def test_figure_1_trains_with_gradients(kind: type[figure1.Original], method: str) -> None:
    inputs, targets = figure1.make_moons(seed=0, count=20)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, rtol=0, atol=1e-12)
    loss = kind(inputs, targets, method)
    parameters = np.array([0.7, -1.2, 0.3])
    assert optimize.check_grad(loss, loss.gradient, parameters) < 1e-6
    steps = figure1.train(loss, 20)
    assert loss(steps[-1]) < loss(steps[10]) < loss(steps[0])


def test_figure_2_mixes_by_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure2, "LAMS", (-0.5, 0.25))
    own, partner = np.ones((figure2.SIZE, figure2.SIZE, 3)), np.zeros((figure2.SIZE, figure2.SIZE, 3))
    panels = figure2.mix(own, partner, draws=300)
    for lam, panel in panels.items():
        np.testing.assert_array_equal(panel.mixup, lam)
        np.testing.assert_array_equal(panel.mixed, np.broadcast_to(panel.mask[..., None], own.shape))
        assert panel.deviation < figure2.ERRORS
    assert panels[-0.5].clipped[0] == 1.0
    assert panels[0.25].clipped[0] == 0.0
    assert all(claim.holds for claim in figure2.check(panels))
    # Masks of another lam are noticed.
    rng = np.random.default_rng(0)
    masks = sample_mask(figure2.prescribed(0.5), 0.5, rng, 300)
    assert figure2.deviation(masks, figure2.prescribed(0.0), 0.0, rng) > figure2.ERRORS
