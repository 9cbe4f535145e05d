"""All options together: every pair of their values in at least one call, on every backend, against NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, types

import dali_msda as msda
from tests import reference
from tests.graph_check import lost_copies, operators, problems
from tests.running import outputs, source

Arrays = np.ndarray[Any, Any]
Row = dict[str, Any]

COUNT, K = 5, 4
SIZE, SMALL = (9, 12), (3, 4)
MEAN, STD = (110.0, 120.0, 130.0), (60.0, 50.0, 40.0)

# Into which the normalisation may change it.
OTHER_LAYOUT = {"HWC": "CHW", "CHW": "HWC", "HW": "CHW", "FHWC": "FCHW", "FCHW": "FHWC", "DHWC": None}
FRAMES = 2
RANGE = {"int16": (-(2**15), 2**15), "uint16": (0, 2**16)}

# The arguments of each normalisation.
NORMALIZE: dict[str, dict[str, Any]] = {
    "per channel": {"mean": MEAN, "std": STD},
    "into the other layout": {"mean": np.array(MEAN), "std": STD},
    "numbers, scale and shift": {"mean": 120.0, "std": 50.0, "scale": 2.0, "shift": -0.5},
    "mirrored": {"mean": MEAN, "std": STD, "mirror": 1},
    "padded float16": {"mean": MEAN, "std": STD, "pad_output": True, "output_dtype": types.FLOAT16},
}

# What may be combined freely. A value of None is the function's default.
OPTIONS: dict[str, Sequence[Any]] = {
    "method": msda.METHODS,
    "layout": tuple(OTHER_LAYOUT),
    "say the layout": (True, False),
    "dtype": ("uint8", "int16", "uint16", "float16", "float32"),
    "labels": ("int32", "int64 [1]", "uint8", "soft", "multi-hot", "none"),
    "output": ("dense", "pair"),
    "label_smoothing": (None, 0.1),
    "correct_lam": (None, False),
    "convention": (None, "paper"),
    "granularity": (None, "batch"),
    "probability": (None, 0.5),
    "draws": ("own", "given", "alpha=0"),
    "allow_self": (None, False),
    "views": (1, 2),
    "partners": ("the batch", "a second source"),
    "normalize": (None, *NORMALIZE),
}


# Refused, each with a test of its own.
REFUSED = {
    (("method", "none"), ("correct_lam", False)),
    (("method", "none"), ("draws", "given")),
    (("method", "none"), ("draws", "alpha=0")),
    (("output", "pair"), ("label_smoothing", 0.1)),
    (("draws", "given"), ("allow_self", False)),
    (("layout", "DHWC"), ("normalize", "into the other layout")),
}


def pairs(row: Row) -> set[Any]:
    """All pairs of (option, value) in a row."""
    return set(itertools.combinations(row.items(), 2))


def all_pairs(options: dict[str, Sequence[Any]]) -> set[Any]:
    """All pairs of (option, value) that are not refused."""
    return {
        ((a, x), (b, y))
        for a, b in itertools.combinations(options, 2)
        for x, y in itertools.product(options[a], options[b])
    } - REFUSED


def pairwise(options: dict[str, Sequence[Any]]) -> list[Row]:
    """Rows that hold every pair of values, chosen greedily."""
    rng = np.random.default_rng(0)

    def draw(**fixed: Any) -> Row:
        while True:
            row = {
                name: fixed.get(name, values[int(rng.integers(len(values)))])
                for name, values in options.items()
            }
            if not pairs(row) & REFUSED:
                return row

    missing = all_pairs(options)
    rows = []
    while missing:
        wanted = dict(sorted(missing, key=repr)[0])
        best = max((draw(**wanted) for _ in range(30)), key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append(best)
    return rows


ROWS = pairwise(OPTIONS)


def test_every_pair_is_there() -> None:
    assert set().union(*map(pairs, ROWS)) == all_pairs(OPTIONS)


class Data:
    """The inputs of a row, as arrays."""

    def __init__(self, row: Row) -> None:
        rng = np.random.default_rng(7)
        self.row = row

        def images(size: tuple[int, int]) -> Arrays:
            depth = (FRAMES,) if len(row["layout"]) == 4 else ()
            channels = () if row["layout"] == "HW" else (3,)
            noise = rng.integers(*RANGE.get(row["dtype"], (0, 256)), (COUNT, *depth, *size, *channels))
            made = noise / 16 if row["dtype"].startswith("float") else noise
            made = made.astype(row["dtype"])
            return np.moveaxis(made, -1, -3).copy() if "CH" in row["layout"] else made

        def labels() -> Arrays | None:
            kind = row["labels"]
            ids = rng.integers(0, K, COUNT)
            if kind == "none":
                return None
            if kind == "soft":
                return rng.dirichlet(np.ones(K), COUNT).astype("float32")
            if kind == "multi-hot":
                return (rng.random((COUNT, K)) < 0.5).astype("float32")
            return ids.astype("int64")[:, None] if kind == "int64 [1]" else ids.astype(kind)

        sizes = (SIZE, SMALL)[: row["views"]]
        self.views = [images(size) for size in sizes]
        self.labels = labels()
        second = row["partners"] != "the batch"
        self.partner_views = [images(size) for size in sizes] if second else self.views
        self.partner_labels = labels() if second else self.labels
        self.lam = rng.random(COUNT).astype("float32")
        self.partner = rng.permutation(COUNT).astype("int32")

    @property
    def normalization(self) -> dict[str, Any]:
        """The arguments of the normalisation, as many numbers as there are channels."""
        one = self.row["layout"] == "HW"
        return {
            name: value[:1] if one and name in ("mean", "std") and np.ndim(value) else value
            for name, value in NORMALIZE.get(self.row["normalize"], {}).items()
        }

    def nodes(self, backend: str, device: str = "cpu") -> list[Any]:
        """The call of the row: mixed views, targets, and what was drawn."""
        row = self.row

        def node(values: Arrays, on: str = "cpu", **known: Any) -> Any:
            dtype = getattr(types, {"float32": "FLOAT"}.get(values.dtype.name, values.dtype.name.upper()))
            made = source(values, dtype=dtype, ndim=values.ndim - 1, **known)
            return made.gpu() if on == "gpu" else made

        options = {
            name: row[name]
            for name in ("label_smoothing", "correct_lam", "convention", "granularity", "probability")
            if row[name] is not None
        }
        if row["allow_self"] is not None:
            options["allow_self"] = row["allow_self"]
        if row["draws"] == "given":
            options |= {"lam": node(self.lam), "partner": node(self.partner)}
        if row["draws"] == "alpha=0":
            options["alpha"] = 0.0
        options |= self.normalization
        if row["normalize"] == "into the other layout":
            options["output_layout"] = OTHER_LAYOUT[row["layout"]]
        if row["partners"] != "the batch":
            options["partner_images"] = [
                node(view, device, layout=row["layout"]) for view in self.partner_views
            ]
            if self.partner_labels is not None:
                options["partner_labels"] = node(self.partner_labels)
        views, *others = msda.mix(
            [node(view, device, layout=row["layout"]) for view in self.views],
            None if self.labels is None else node(self.labels),
            K,
            method=row["method"],
            layout=row["layout"] if row["say the layout"] else None,
            output=row["output"],
            seed=11,
            backend=backend,
            return_params=True,
            **options,
        )
        params = others.pop()
        targets = [value for other in others for value in (other if row["output"] == "pair" else [other])]
        return [*views, *targets, params.lam, params.partner, params.mask]


def own_vectors(labels: Arrays) -> Arrays:
    """The labels as vectors, float64."""
    return labels.astype(float) if labels.dtype == np.float32 else np.eye(K)[labels.reshape(COUNT)]


def frames(images: Arrays, layout: str) -> Arrays:
    """N x F x H x W x C, float64; an image has one frame."""
    if layout == "HW":
        images = images[..., None]
    last = np.moveaxis(images, -3, -1) if "CH" in layout else images
    return (last if last.ndim == 5 else last[:, None]).astype(np.float64)


def check_images(row: Row, view: int, data: Data, mixed: Arrays, partner: Arrays, mask: Arrays) -> None:
    """Mixed images are the blend by the mask, normalised if that was asked for."""
    layout, dtype = row["layout"], row["dtype"]
    own, other = frames(data.views[view], layout), frames(data.partner_views[view], layout)[partner]
    # Every frame of a clip by the same mask.
    exact = np.stack(
        [
            [reference.blend(a, b, m) for a, b in zip(*pair, strict=True)]
            for *pair, m in zip(own, other, mask, strict=True)
        ]
    )
    # Half a level, and the rounding of float32.
    bound = {"float16": 8e-3, "float32": 4e-6}.get(dtype, 0.5 + 2.0**-23 * np.abs(own).max())
    arguments = data.normalization
    if not arguments:
        assert mixed.dtype == dtype
    else:
        made = np.float16 if "output_dtype" in arguments else np.float32
        assert mixed.dtype == made
        factor = arguments.get("scale", 1.0) / np.asarray(arguments["std"])
        exact = factor * (exact - arguments["mean"]) + arguments.get("shift", 0.0)
        bound = np.max(factor) * bound + np.finfo(made).eps * max(1.0, np.abs(exact).max())
        if row["normalize"] == "into the other layout":
            layout = OTHER_LAYOUT[layout]
    found = frames(mixed, layout)
    if arguments.get("pad_output") and own.shape[-1] == 3:
        np.testing.assert_array_equal(found[..., 3:], 0)
        assert found.shape[-1] == 4
        found = found[..., :3]
    if arguments.get("mirror"):
        found = found[..., ::-1, :]
    assert np.abs(found - exact).max() <= bound


def check(row: Row, data: Data, found: list[Arrays]) -> None:
    """Everything that a call returned, against the formulas."""
    views, (*targets, lam, partner, mask) = found[: row["views"]], found[row["views"] :]
    mask = mask.reshape(COUNT, *SIZE).astype(np.float64)
    if row["normalize"] == "mirrored":  # and the mask with the images
        mask = mask[:, :, ::-1]
    assert mask.min() >= 0
    assert mask.max() <= 1
    mixed = np.ones(COUNT, bool) if row["probability"] is None else mask.min(axis=(1, 2)) < 1
    if row["correct_lam"] is None:
        np.testing.assert_allclose(lam, mask.mean(axis=(1, 2)), rtol=0, atol=5e-7)
    elif row["draws"] == "given":
        assert (np.isclose(lam, data.lam, rtol=0, atol=1e-7) | ((lam == 1) & ~mixed)).all()
    assert ((lam >= 0) & (lam <= 1)).all()
    if row["method"] == "none" or row["draws"] == "alpha=0":
        np.testing.assert_array_equal(mask, 1)
    if row["draws"] == "given":
        np.testing.assert_array_equal(partner, data.partner)
    else:
        assert sorted(partner) == list(range(COUNT))
    if row["allow_self"] is False:
        assert (partner != np.arange(COUNT)).all()
    if row["granularity"] == "batch" and row["draws"] != "given":
        np.testing.assert_array_equal(mask, np.broadcast_to(mask[:1], mask.shape))

    check_images(row, 0, data, views[0], partner, mask)
    if data.labels is None or data.partner_labels is None:
        assert targets == []
        return
    own, other = own_vectors(data.labels), own_vectors(data.partner_labels)[partner]
    if row["output"] == "pair":
        ids = data.labels.dtype != np.float32
        assert [target.dtype for target in targets[:2]] == [np.int64 if ids else np.float32] * 2
        for values, expected in zip(targets[:2], (own, other), strict=True):
            np.testing.assert_array_equal(own_vectors(values), expected)
        np.testing.assert_array_equal(targets[2], lam)
    else:
        smoothing, weight = row["label_smoothing"] or 0.0, lam.astype(np.float64)[:, None]
        exact = (1 - smoothing) * (weight * own + (1 - weight) * other) + smoothing / K
        assert targets[0].dtype == np.float32
        np.testing.assert_allclose(targets[0], exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("row", ROWS, ids=map(str, range(len(ROWS))))
def test_every_backend_follows_the_formulas(row: Row) -> None:
    """Kernel, hybrid and graph: each against NumPy, and all with the same draws."""
    data = Data(row)
    backends = ("kernel", "hybrid", "graph")
    (found,) = outputs(lambda: [node for backend in backends for node in data.nodes(backend)], COUNT)
    each = len(found) // len(backends)
    results = [found[start : start + each] for start in range(0, len(found), each)]
    for result in results:
        check(row, data, result)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            # Rounding of masks and images; a level of uint8.
            bound = 1.0 if one.dtype == np.uint8 else 1e-2 if one.dtype == np.float16 else 1.0 / min(STD)
            np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=0, atol=bound)
        # Mask, partner and lam are closer.
        for one, other in zip(results[0][-3:], others[-3:], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("row", ROWS, ids=map(str, range(len(ROWS))))
def test_every_graph_fits_the_gpu(row: Row) -> None:
    for backend in ("hybrid", "graph"):
        with Pipeline(COUNT, 2, 0):
            *on_gpu, lam, partner, mask = Data(row).nodes(backend, "gpu")
            assert problems([*on_gpu, mask]) == []
            assert problems([lam, partner], "cpu") == []
            assert lost_copies(operators([*on_gpu, lam, partner, mask])) == []
