"""The coefficients of equation 9: three ways to compute them, compared with each other and with all masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dali_msda as msda
from dali_msda import reference
from dali_msda.masks import Functions, Grid, Value, box_span, chosen, inside
from dali_msda.methods import MIXING, TABLE
from dali_msda.theory import closed_form, coefficients, formula_sampler, monte_carlo, operator_sampler
from dali_msda.theory.closed_forms import CLOSED
from dali_msda.theory.coefficients import from_all_masks
from dali_msda.theory.moments import Kronecker, OverMasks

CONVENTIONS = ["reference", "paper"]
ARGUMENTS: dict[str, dict[str, Any]] = {"hmix": {"ratio": 0.6}, "stochastic": {"switch_probability": 0.3}}
SIZE = (6, 9)
EXACT = 1e-13  # what rounding may add up to


def centers(method: str, lam: float, convention: str) -> Iterator[tuple[int, int]]:
    """Every place of a box or a point; all are equally likely."""
    scale = math.sqrt(1 - lam) * math.sqrt(ARGUMENTS[method]["ratio"] if method == "hmix" else 1)
    sides = [math.floor(n * scale) for n in SIZE]
    rows, columns = (
        range(n)
        if convention == "reference" or method in ("mixup", "gmix")
        else [start + side // 2 for start in range(n - side + 1)]
        for n, side in zip(SIZE, sides, strict=True)
    )
    return itertools.product(rows, columns)


def reference_moments(method: str, lam: float, convention: str) -> tuple[np.ndarray, np.ndarray]:
    """E[1 - M] and the matrix a_jk from a list of all masks, made by the reference."""
    if method == "stochastic":
        q = ARGUMENTS[method]["switch_probability"]
        mixup, cutmix = (reference_moments(name, lam, convention) for name in ("mixup", "cutmix"))
        return q * mixup[0] + (1 - q) * cutmix[0], q * mixup[1] + (1 - q) * cutmix[1]
    ratio = ARGUMENTS.get(method, {}).get("ratio", 1.0)
    shown = [
        1 - reference.mask(method, SIZE, lam, center=center, ratio=ratio, convention=convention).ravel()
        for center in centers(method, lam, convention)
    ]
    flat = np.array(shown)
    return flat.mean(axis=0).reshape(SIZE), flat.T @ flat / len(flat)


@pytest.mark.parametrize("lam", [0.0, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", ["mixup", "cutmix", "stochastic", "hmix", "gmix"])
def test_every_coefficient_is_the_mean_over_all_masks(method: str, convention: str, lam: float) -> None:
    found = coefficients(method, SIZE, lam, convention=convention, **ARGUMENTS.get(method, {}))
    mean, matrix = reference_moments(method, lam, convention)
    np.testing.assert_allclose(found.mean(), mean, rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.matrix(), matrix, rtol=0, atol=EXACT)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", MIXING)
def test_terms_are_the_sum_mask_by_mask(method: str, convention: str) -> None:
    own = ARGUMENTS.get(method, {})
    terms, masks = (
        make(method, SIZE, 0.6, convention=convention, **own) for make in (coefficients, from_all_masks)
    )
    np.testing.assert_allclose(terms.matrix(), masks.matrix(), rtol=0, atol=EXACT)
    np.testing.assert_allclose(terms.by_offset(), masks.by_offset(), rtol=0, atol=EXACT)


def answers_agree(found: Any) -> None:
    """Rows, single entries, products and averages are those of the matrix."""
    height, width = found.size
    matrix, pixels = found.matrix(), list(itertools.product(range(height), range(width)))
    image = np.random.default_rng(0).normal(size=found.size)
    for number, j in enumerate(pixels):
        np.testing.assert_allclose(found.row(j).ravel(), matrix[number], rtol=0, atol=EXACT)
        assert found.between(j, (height - 1, 1)) == pytest.approx(matrix[number, -width + 1], abs=EXACT)
    np.testing.assert_allclose(found.diagonal().ravel(), np.diag(matrix), rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.apply(image).ravel(), matrix @ image.ravel(), rtol=0, atol=1e-12)
    by_offset = found.by_offset()
    assert by_offset.shape == (2 * height - 1, 2 * width - 1)
    for y, x in [(0, 0), (0, 1), (-1, 2), (height - 1, 0), (2, 1 - width), (1 - height, width - 1)]:
        pairs = [
            matrix[number, (j + y) * width + k + x]
            for number, (j, k) in enumerate(pixels)
            if 0 <= j + y < height and 0 <= k + x < width
        ]
        assert by_offset[height - 1 + y, width - 1 + x] == pytest.approx(np.mean(pairs), abs=EXACT)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", MIXING)
def test_answers_are_parts_of_the_matrix(method: str, convention: str) -> None:
    found = coefficients(method, (5, 4), 0.4, convention=convention)
    assert isinstance(found, Kronecker)
    answers_agree(found)
    answers_agree(monte_carlo(formula_sampler(method, (5, 4), 0.4, convention=convention), 9))


CLOSED_CASES = [
    (method, convention)
    for method, where in CLOSED.items()
    for convention in CONVENTIONS
    if where in ("both", convention)
]


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (64, 64)])
@pytest.mark.parametrize(("method", "convention"), CLOSED_CASES)
def test_closed_forms_are_the_sums(method: str, convention: str, size: tuple[int, int]) -> None:
    """Exactly for boxes; for GMix, whose integral replaces a sum, within the bound of its docstring."""
    own = ARGUMENTS.get(method, {})
    for lam in (0.0, 0.2, 0.5, 0.9, 0.99, 1.0):
        summed = coefficients(method, size, lam, convention=convention, **own)
        closed = closed_form(method, size, lam, convention=convention, **own)
        width = 2 * (1 - lam) if convention == "paper" else min(lam, 1 - lam)
        bound = EXACT
        if method == "gmix" and width > 0:
            bound = 1 / (min(size) * math.sqrt(width * math.prod(size)))
        np.testing.assert_allclose(closed.mean(), summed.mean(), rtol=0, atol=bound)
        np.testing.assert_allclose(closed.by_offset(), summed.by_offset(), rtol=0, atol=bound)
        for j in ((0, 0), (5, 7), (size[0] - 1, size[1] // 2)):
            np.testing.assert_allclose(closed.row(j), summed.row(j), rtol=0, atol=bound)


def test_equation_10_with_all_places() -> None:
    """As printed, but with the n - s + 1 places of a box of side s, and h(t) = min(t, n - s + 1)."""
    n, lam = 20, 0.6
    side = int(math.sqrt(1 - lam) * n)
    places = n - side + 1

    def overlap(j: int, k: int) -> int:
        def high(t: int) -> int:
            return min(t, places)

        def low(t: int) -> int:
            return max(t - side, 0)

        return max(min(high(j) - low(k), high(k) - low(j)), 0)

    found = closed_form("cutmix", (n, n), lam, convention="paper")
    for j, k in itertools.product([(1, 1), (3, 8), (10, 11), (20, 1), (13, 20)], repeat=2):
        expected = overlap(j[0], k[0]) * overlap(j[1], k[1]) / places**2
        assert found.between((j[0] - 1, j[1] - 1), (k[0] - 1, k[1] - 1)) == pytest.approx(expected, abs=EXACT)


def test_equation_11_in_the_plane() -> None:
    """The last line of the equation; in the image, a corner has about a quarter of it."""
    n, lam = 64, 0.97
    plane = closed_form("gmix", (n, n), lam, convention="paper", border="plane")
    image = closed_form("gmix", (n, n), lam, convention="paper")
    for j, k in [((32, 32), (32, 32)), ((32, 32), (32, 38)), ((30, 33), (36, 28))]:
        distance = (j[0] - k[0]) ** 2 + (j[1] - k[1]) ** 2
        expected = (1 - lam) * math.exp(-math.pi / ((1 - lam) * n**2) * distance / 4)
        assert plane.between(j, k) == pytest.approx(expected, rel=1e-12)
        assert image.between(j, k) == pytest.approx(expected, rel=1e-6)
    assert image.between((0, 0), (0, 0)) == pytest.approx(plane.between((0, 0), (0, 0)) / 4, rel=0.25)
    assert plane.mean()[0, 0] == pytest.approx(2 * (1 - lam))  # and not 1 - lam, because of the factor 2


@pytest.mark.parametrize("sampler", [formula_sampler, operator_sampler])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", MIXING)
def test_masks_at_random_have_these_coefficients(
    method: str, convention: str, sampler: Callable[..., Any]
) -> None:
    """From the formula and from DALI's operator, within five standard errors (float32: 1e-6) at 140 pairs."""
    size, own = (10, 7), ARGUMENTS.get(method, {})
    form = {"backend": "graph"} if sampler is operator_sampler else {}
    exact = coefficients(method, size, 0.4, convention=convention, **own)
    drawn = monte_carlo(sampler(method, size, 0.4, convention=convention, **own, **form), 4096, seed=5)
    for j in ((0, 0), (5, 3)):
        error = np.abs(drawn.row(j) - exact.row(j)) - 1e-6
        assert (error <= 5 * drawn.standard_error(j)).all()
    assert np.abs(drawn.mean() - exact.mean()).max() <= 0.04


def test_the_mean_mask() -> None:
    """The authors' HMix keeps the drawn lam whatever the border cuts off; CutMix in "reference" does not."""
    assert coefficients("hmix", SIZE, 0.3).mean().mean() == pytest.approx(0.7, abs=EXACT)
    assert coefficients("cutmix", SIZE, 0.3).mean().mean() < 0.6


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_hmix_goes_from_mixup_to_cutmix(convention: str) -> None:
    for ratio, method in ((0.0, "mixup"), (1.0, "cutmix")):
        if (method, convention) == ("cutmix", "reference"):
            continue  # outside a box that is cut at the border, HMix has a level below 1
        ends = coefficients("hmix", SIZE, 0.3, convention=convention, ratio=ratio)
        expected = coefficients(method, SIZE, 0.3, convention=convention).matrix()
        np.testing.assert_allclose(ends.matrix(), expected, rtol=0, atol=EXACT)


# Methods of a user's own.


def _diamond(f: Functions, grid: Grid, lam: Value) -> msda.Dense:
    """0 where the distances to a point, in rows and in columns, add up to little; exceeds 1 far away."""
    row = f.floor(grid.rows.place * grid.rows.size)
    column = f.floor(grid.columns.place * grid.columns.size)
    return msda.Dense(lam * (f.absolute(grid.rows.pixels - row) + f.absolute(grid.columns.pixels - column)))


def _fade(f: Functions, grid: Grid, lam: Value, phase: Value) -> msda.Separable:
    """Waves from left to right: a draw that the formula uses smoothly."""
    turns = 2.0 * grid.columns.pixels / grid.columns.size + phase
    waves = 0.5 + 0.5 * f.cos(2.0 * f.pi * turns)
    return msda.Separable(1.0, lam - 1.0, 1.0 + 0.0 * grid.rows.pixels, waves)


def _two_boxes(f: Functions, grid: Grid, lam: Value, coin: Value) -> msda.Separable:
    """One of two boxes, whose numbers of places differ."""
    scale = chosen(0.9, 0.4, coin, lam)
    top, bottom = box_span(f, grid, grid.rows, scale)
    left, right = box_span(f, grid, grid.columns, scale)
    return msda.Separable(1.0, -1.0, inside(grid.rows, top, bottom), inside(grid.columns, left, right))


def _slope(f: Functions, grid: Grid, lam: Value) -> msda.Separable:
    """Rows and columns that a centre between the pixels moves."""
    row, column = grid.rows.place * grid.rows.size, grid.columns.place * grid.columns.size
    return msda.Separable(
        1.0,
        lam - 1.0,
        f.exp(-f.absolute(grid.rows.pixels - row)),
        f.exp(-f.absolute(grid.columns.pixels - column)),
    )


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def add(mask: Callable[..., Any], *uniforms: str) -> None:
        own = msda.Argument(name="alpha", default=1.0, zero=True, help="lam ~ Beta(alpha, alpha).")
        draws: dict[str, Any] = {"lam": msda.Beta("alpha"), **dict.fromkeys(uniforms, msda.Uniform())}
        method = msda.Method(name="own", title="Own", summary="", arguments=(own,), draws=draws, mask=mask)
        monkeypatch.setitem(TABLE, "own", method)

    return add


def test_a_dense_mask(register: Callable[..., None]) -> None:
    register(_diamond)
    found = coefficients("own", (5, 4), 0.4)
    assert isinstance(found, OverMasks)
    rows, columns = np.indices((5, 4))
    away = [abs(rows - y) + abs(columns - x) for y, x in itertools.product(range(5), range(4))]
    flat = 1 - np.minimum(0.4 * np.array(away), 1).reshape(20, 20)
    np.testing.assert_allclose(found.matrix(), flat.T @ flat / 20, rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.mean().ravel(), flat.mean(axis=0), rtol=0, atol=EXACT)
    answers_agree(found)


def test_a_smooth_draw(register: Callable[..., None]) -> None:
    """Gauss-Legendre nodes, exact for waves; the terms of all nodes become few."""
    register(_fade, "phase")
    found = coefficients("own", (3, 12), 0.4)
    assert isinstance(found, Kronecker)
    assert len(found.terms) <= 4
    apart = np.subtract.outer(np.arange(12), np.arange(12))
    row = 0.6**2 * (0.25 + 0.125 * np.cos(2 * np.pi * 2 * apart / 12))
    np.testing.assert_allclose(found.matrix(), np.tile(row, (3, 3)), rtol=0, atol=EXACT)


def test_places_that_depend_on_a_coin(register: Callable[..., None]) -> None:
    register(_two_boxes, "coin")
    found = coefficients("own", SIZE, 0.3, convention="paper").matrix()
    large, small = (
        coefficients("cutmix", SIZE, 1 - scale**2 + 1e-9, convention="paper").matrix() for scale in (0.9, 0.4)
    )
    np.testing.assert_allclose(found, 0.3 * large + 0.7 * small, rtol=0, atol=EXACT)


def test_a_centre_between_pixels(register: Callable[..., None]) -> None:
    register(_slope)
    found = coefficients("own", SIZE, 0.4, nodes=400)
    drawn = monte_carlo(formula_sampler("own", SIZE, 0.4), 4096, seed=1)
    for j in ((0, 0), (3, 5)):
        assert (np.abs(drawn.row(j) - found.row(j)) <= 5 * drawn.standard_error(j)).all()


def test_large_images_need_no_matrix() -> None:
    found = coefficients("hmix", (224, 224), 0.5)
    assert isinstance(found, Kronecker)
    assert sum(part.nbytes for term in found.terms for part in term) < 2**25
    assert found.by_offset()[223, 223] == pytest.approx(found.diagonal().mean())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: coefficients("mixcut", SIZE, 0.5), ValueError, "method must be one of 'none', .*'mixcut'"),
        (lambda: coefficients("mixup", 224, 0.5), TypeError, r"size must be \(height, width\); got 224"),  # type: ignore[arg-type]
        (lambda: coefficients("mixup", (0, 4), 0.5), ValueError, "size must be at least 1; got 0"),
        (lambda: coefficients("mixup", SIZE, 1.5), ValueError, r"lam must be in \[0, 1\]; got 1.5"),
        (lambda: coefficients("mixup", SIZE, 0.5, nodes=0), ValueError, "nodes must be at least 1; got 0"),
        (lambda: coefficients("mixup", SIZE, 0.5, convention="x"), ValueError, "convention must be one of"),
        (
            lambda: coefficients("mixup", SIZE, 0.5, ratio=0.5),
            TypeError,
            "ratio must be left out with 'mixup'",
        ),
        (lambda: coefficients("hmix", SIZE, 0.5, ratio=2), ValueError, r"ratio must be in \[0, 1\]; got 2"),
        (
            lambda: coefficients("mixup", (224, 224), 0.5).matrix(),
            ValueError,
            r"size must be at most 4096 pixels for a matrix .*; got \(224, 224\)",
        ),
        (
            lambda: coefficients("mixup", SIZE, 0.5).row((6, 0)),
            ValueError,
            r"j must be a pixel of a 6 x 9 image; got \(6, 0\)",
        ),
        (lambda: coefficients("mixup", SIZE, 0.5).row(3), TypeError, r"j must be \(row, column\); got 3"),  # type: ignore[arg-type]
        (
            lambda: coefficients("mixup", SIZE, 0.5).apply(np.ones(54)),
            ValueError,
            r"image must be of shape \(6, 9\); got \(54,\)",
        ),
        (
            lambda: closed_form("hmix", SIZE, 0.5),
            ValueError,
            r"method must be one with a closed form: .*hmix \(only 'paper'\).*got \"hmix \('reference'\)\"",
        ),
        (
            lambda: closed_form("cutmix", SIZE, 0.5, border="plane"),
            ValueError,
            "border must be 'image' for cutmix; got 'plane'",
        ),
        (
            lambda: monte_carlo(lambda rng, count: rng.random((count, 3)), 5),
            ValueError,
            r"sampler must be a function that returns \[5, H, W\]; got \(5, 3\)",
        ),
        (lambda: monte_carlo(formula_sampler("mixup", SIZE, 0.5), 1), ValueError, "count must be at least 2"),
    ],
)
def test_bad_input_gets_one_clear_error(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
