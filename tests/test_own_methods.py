"""A user's own method: registered once, it works wherever the library's methods do."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dali_msda as msda
from dali_msda.backends.numba.formulas import fingerprint
from dali_msda.backends.numba.kernels import mask_writer
from dali_msda.masks import Functions, Grid, Value, drawn_center
from dali_msda.methods import TABLE, methods_with
from experiments import figure3
from pipelines.imagenet import train_pipeline
from tests import reference
from tests.graph_check import problems
from tests.kernels import mask_weights
from tests.running import random_images, run_mix
from tests.test_gpu_graph import trace, values
from tests.trainer_process import ROOT

BACKENDS = ["kernel", "hybrid", "graph"]
SIZE = (23, 31)


def distance(f: Functions, grid: Grid) -> Value:
    """A function that a formula calls."""
    down = f.absolute(grid.rows.pixels - drawn_center(f, grid, grid.rows, 1.0))
    return down + f.absolute(grid.columns.pixels - drawn_center(f, grid, grid.columns, 1.0))


def diamond(f: Functions, grid: Grid, lam: Value) -> msda.Dense:
    """0 in a diamond with the share 1 - lam of the image, if all of it is inside."""
    radius = f.sqrt((1.0 - lam) * grid.rows.size * grid.columns.size / 2.0)
    return msda.Dense(1.0 * (distance(f, grid) >= radius))


def fade(f: Functions, grid: Grid, phase: Value, lam: Value, depth: Value, waves: Value) -> msda.Separable:
    """Waves from left to right, between 1 and 1 - depth (1 - lam): arguments and two kinds of draws."""
    turns = waves * grid.columns.pixels / grid.columns.size + phase
    half = f.constant(0.1) * 5.0
    columns = half + half * f.cos(2.0 * f.pi * turns)
    return msda.Separable(1.0, -depth * (1.0 - lam), 1.0 + 0.0 * grid.rows.pixels, columns)


def wave(f: Functions, grid: Grid, lam: Value) -> msda.Separable:
    """Rows and columns are negative in places; the mask stays in range."""
    return msda.Separable(0.5, 0.5 * lam, f.cos(grid.rows.pixels), f.cos(grid.columns.pixels))


def steep(f: Functions, grid: Grid, lam: Value) -> msda.Dense:
    """Exceeds [0, 1] and is clipped."""
    return msda.Dense(3.0 * lam * grid.columns.pixels / grid.columns.size - 0.5 + 0.0 * grid.rows.pixels)


ALPHA = msda.Argument(name="alpha", default=1.0, help="lam ~ Beta(alpha, alpha).")
DIAMOND = msda.Method(
    name="diamond",
    title="Diamond",
    summary="0 in a diamond, 1 outside",
    arguments=(ALPHA,),
    draws={"lam": msda.Beta("alpha")},
    mask=diamond,
)
FADE = msda.Method(
    name="fade",
    title="Fade",
    summary="waves",
    arguments=(
        ALPHA,
        msda.Argument(name="depth", default=0.5, fraction=True, help="How deep the waves are."),
        msda.Argument(name="waves", default=2.0, help="How many there are."),
    ),
    draws={"lam": msda.Beta("alpha"), "phase": msda.Uniform()},
    mask=fade,
)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    assert msda.register(DIAMOND) is DIAMOND
    msda.register(FADE)
    yield
    for name in ("diamond", "fade"):
        TABLE.pop(name, None)


def diamond_mask(lam: float, center: tuple[int, int]) -> np.ndarray[Any, Any]:
    rows, columns = np.indices(SIZE)
    away = np.abs(rows - center[0]) + np.abs(columns - center[1])
    outside: np.ndarray[Any, Any] = away >= np.sqrt((1 - lam) * SIZE[0] * SIZE[1] / 2)
    return outside.astype(np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_follow_the_formula(backend: str) -> None:
    images = random_images(5, SIZE)
    lam, center = np.array([0.0, 0.3, 0.5, 0.77, 1.0]), np.array([[3, 30], [22, 0], [11, 15], [5, 5], [0, 0]])
    partner = np.array([1, 2, 3, 4, 0], np.int32)
    result = run_mix("diamond", images, lam=lam, center=center, partner=partner, backend=backend)
    for i in range(5):
        expected = diamond_mask(lam[i], tuple(center[i]))
        np.testing.assert_array_equal(result.mask[i, :, :, 0], expected)
        np.testing.assert_allclose(result.lam[i], expected.mean(), rtol=0, atol=1e-6)
        exact = reference.blend(images[i], images[partner[i]], expected)
        np.testing.assert_array_equal(result.images[i], exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_and_additional_draws_reach_the_formula(backend: str) -> None:
    images = random_images(400, (4, 12), 1)
    result = run_mix("fade", images, lam=0.2, depth=0.25, waves=3.0, seed=8, backend=backend)
    pixels = np.arange(12) / 12
    phases = []
    for mask in result.mask[..., 0]:
        np.testing.assert_array_equal(mask, mask[:1].repeat(4, axis=0))
        wave = (1 - mask[0]) / (0.25 * 0.8) * 2 - 1  # cos(2 pi (3 x + phase))
        angle = np.angle(np.sum(wave * np.exp(-2j * np.pi * 3 * pixels)))
        np.testing.assert_allclose(wave, np.cos(2 * np.pi * 3 * pixels + angle), atol=2e-5)
        phases.append(angle / (2 * np.pi) % 1)
    counts = np.histogram(phases, bins=10, range=(0, 1))[0]
    assert (np.abs(counts - 40) < 4 * np.sqrt(40)).all()


@pytest.mark.parametrize("method", ["diamond", "fade"])
def test_all_backends_draw_and_mix_the_same(method: str) -> None:
    images = random_images(32, SIZE)
    kernel, *others = (run_mix(method, images, seed=4, backend=b, probability=0.7) for b in BACKENDS)
    for other in others:
        np.testing.assert_array_equal(kernel.partner, other.partner)
        np.testing.assert_allclose(kernel.mask, other.mask, rtol=0, atol=1.2e-7)
        np.testing.assert_allclose(kernel.lam, other.lam, rtol=0, atol=1e-6)
        assert np.abs(kernel.images.astype(int) - other.images).max() <= (0 if method == "diamond" else 1)
    assert 0 < (kernel.lam == 1).sum() < 32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("formula", [wave, steep])
def test_images_and_labels_follow_the_mask(formula: Any, backend: str) -> None:
    """Whatever a formula returns, image, mask and label weight are those of one mask in [0, 1]."""
    name = formula.__name__
    msda.register(dataclasses.replace(DIAMOND, name=name, mask=formula))
    try:
        images = random_images(3, SIZE)
        result = run_mix(name, images, lam=0.9, partner=0, backend=backend)
    finally:
        TABLE.pop(name)
    rows, columns = np.indices(SIZE).astype(float)
    exact = 0.5 + 0.45 * np.cos(rows) * np.cos(columns) if name == "wave" else 2.7 * columns / SIZE[1] - 0.5
    for i in range(3):
        np.testing.assert_allclose(result.mask[i, :, :, 0], exact.clip(0, 1), rtol=0, atol=5e-7)
        np.testing.assert_allclose(result.lam[i], exact.clip(0, 1).mean(), rtol=0, atol=5e-7)
        mixed = reference.blend(images[i], images[0], exact.clip(0, 1))
        assert np.abs(result.images[i] - mixed).max() <= 0.5 + 1e-3


def test_it_has_a_function() -> None:
    assert "diamond" in msda.METHODS
    assert "diamond" in dir(msda)
    assert msda.diamond.__name__ == "diamond"
    shown = inspect.signature(msda.fade).parameters
    assert {name: shown[name].default for name in FADE.defaults} == FADE.defaults
    assert "How deep the waves are. By default 0.5." in str(inspect.getdoc(msda.fade))
    with pytest.raises(TypeError, match="fade has no argument 'width'; it takes alpha, depth, waves, prob"):
        msda.fade(None, None, num_classes=3, width=1)
    assert methods_with("depth") == ("fade",)


@pytest.mark.parametrize("method", ["diamond", "fade"])
def test_the_graph_for_a_gpu(method: str) -> None:
    def define() -> Any:
        return getattr(msda, method)(values("gpu", layout="HWC"), values(), num_classes=3, return_params=True)

    mixed, targets, params = trace(define)
    assert problems([mixed, targets, params.mask]) == []
    assert problems([params.lam, params.partner], "cpu") == []


def test_the_training_pipeline_takes_it(coded: Path) -> None:
    common: dict[str, Any] = {"num_classes": 3, "batch_size": 4, "num_threads": 1, "seed": 1}
    for mix in ("diamond", msda.Mixing("fade", depth=1.0)):
        pipeline = train_pipeline(coded, mix=mix, return_masks=True, **common)
        pipeline.build()
        *_, masks = (np.array(output.as_array()) for output in pipeline.run())
        assert (masks < 1).any()


def test_the_figure_shows_it(coded: Path) -> None:
    own, partner = sorted((coded / "train").rglob("*.*"))[:2]
    panels = figure3.mix_two(own, partner)
    image, mask, lam = panels["Diamond"]
    assert mask is not None
    assert (image.shape[:2], set(np.unique(mask))) == (mask.shape, {0, 1})
    assert lam == pytest.approx(mask.mean(), abs=1e-6)
    assert "Fade" not in panels  # it has a draw that the figure does not fix


SCRIPT = """
import sys
import dali_msda as msda
import train_imagenet
from tests.test_own_methods import DIAMOND
msda.register(DIAMOND)
sys.exit(train_imagenet.main(sys.argv[1:]))
"""


def test_the_trainer_takes_it(coded: Path, tmp_path: Path) -> None:
    """A script that registers it and calls the trainer."""
    options = ["--arch", "shufflenet_v2_x0_5", "--image-size", "32", "--batch-size", "8", "--max-steps", "1"]
    options += ["--device", "cpu", "--amp", "none", "--workers", "1"]
    options += ["--data", str(coded), "--output", str(tmp_path / "run"), "--mix", "diamond"]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "--mix diamond" in run.stdout
    assert '"mix": "diamond"' in (tmp_path / "run" / "config.json").read_text()
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "hmix,gmix,diamond" in shown.replace("\n", "").replace(" ", "").replace("│", "").replace("|", ",")


def another(f: Functions, grid: Grid, lam: Value) -> msda.Separable:
    return msda.Separable(lam * 0.5)


def test_another_formula_of_the_same_name_is_compiled_again() -> None:
    """The cache key on disk depends on what the formula computes."""
    TABLE.pop("diamond")
    msda.register(dataclasses.replace(DIAMOND, mask=another))
    assert run_mix("diamond", random_images(2, SIZE), lam=0.5).lam.tolist() == [0.25, 0.25]


def test_code_compiled_by_several_processes_is_not_confused() -> None:
    """A process may load kernels of all methods, compiled by others: their names distinguish them."""
    names = [mask_writer(method).py_func for method in TABLE.values()]
    assert len({function.__qualname__ for function in names}) == len(TABLE)
    assert len({fingerprint(method.mask) for method in TABLE.values()}) == len(TABLE)


def with_closure(factor: float) -> Any:
    def scaled(f: Functions, grid: Grid, lam: Value) -> msda.Separable:
        return msda.Separable(lam * factor)

    return scaled


def test_closed_over_values_are_part_of_a_formula() -> None:
    assert fingerprint(with_closure(0.5)) != fingerprint(with_closure(0.25))
    assert fingerprint(with_closure(0.5)) == fingerprint(with_closure(0.5))
    for number, factor in enumerate((0.5, 0.25)):
        name = f"scaled{number}"
        msda.register(dataclasses.replace(DIAMOND, name=name, mask=with_closure(factor)))
        try:
            assert mask_weights(name, (2, 3), lam=0.5)[1] == 0.5 * factor
        finally:
            TABLE.pop(name)


def method_with(**fields: Any) -> msda.Method:
    common: dict[str, Any] = {"name": "own", "title": "", "summary": ""}
    return msda.Method(**common | {"mask": lambda f, grid: msda.Separable(1.0)} | fields)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"name": "hmix"}, ValueError, ["name must be none of", "hmix, gmix", "'hmix'"]),
        ({"name": "h mix"}, ValueError, ["name must be a Python name", "'h mix'"]),
        ({"name": "blend"}, ValueError, ["name must be a Python name that the library", "'blend'"]),
        ({"name": "_own"}, ValueError, ["name must be a Python name", "'_own'"]),
        ({"mask": lambda f, grid, lam: msda.Separable(lam)}, ValueError, ["mask of own", "f, grid", "'lam'"]),
        ({"mask": lambda f, grid: 1.0}, TypeError, ["must return Separable or Dense", "float"]),
        ({"draws": {"lam": msda.Beta("alpha")}}, ValueError, ["draws of own", "'alpha' for 'lam'"]),
        (
            {"arguments": (msda.Argument(name="ratio", default=1.0, help=""),)},
            ValueError,
            ["arguments of own", "'ratio', above 0"],
        ),
        (
            {"arguments": (msda.Argument(name="layout", default=1.0, help=""),)},
            ValueError,
            ["arguments of own", "unused names", "'layout'"],
        ),
        (
            {"arguments": (ALPHA,), "draws": {"alpha": msda.Uniform()}},
            ValueError,
            ["draws of own", "name of an argument", "'alpha'"],
        ),
    ],
)
def test_bad_methods_are_refused(fields: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        msda.register(method_with(**fields))
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert "own" not in TABLE


def test_register_takes_only_methods() -> None:
    with pytest.raises(TypeError, match="method must be a Method; got 'diamond'"):
        msda.register("diamond")  # type: ignore[arg-type]


def test_names_that_arguments_must_not_have() -> None:
    """The arguments of the library's functions."""
    from dali_msda import dynamic
    from dali_msda.methods import COMMON

    taken = set().union(*(inspect.signature(one).parameters for one in (msda.mix, msda.blend, dynamic.mix)))
    assert taken - {"alpha", "arguments"} == COMMON
