"""The kernels on arrays in memory: the bits of the pipeline's kernel backend, threads, forks, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, types

import dali_msda as msda
from dali_msda import methods
from dali_msda.backends.numba import arrays
from dali_msda.factors import fold_factors
from dali_msda.masks import Dense
from dali_msda.methods import METHODS, TABLE, Argument, Method
from tests.running import image_source, outputs, random_images, source
from tests.trainer_process import ROOT

SIZE, COUNT, SEED = (13, 22), 5, 7
NORM = {"mean": (120.0, 110.0, 100.0), "std": (60.0, 58.0, 57.0)}

FAN = Method(
    name="fan",
    title="Fan",
    summary="a ramp along the diagonal",
    arguments=(Argument(name="slope", default=1.5, help="Its slope, beyond [0, 1] too."),),
    mask=lambda f, grid, slope: Dense(
        (grid.rows.pixels + grid.columns.pixels) * slope / (grid.rows.size + grid.columns.size)
    ),
)


@pytest.fixture(autouse=True, scope="module")
def dense_method() -> Iterator[None]:
    """No method of the table has a mask with a weight for every pixel."""
    msda.register(FAN)
    yield
    del methods.TABLE["fan"]


def from_pipeline(names: Any, images: np.ndarray, others: np.ndarray | None, layout: str, **norm: Any) -> Any:
    """For each method: mixed images, label weights, partners, and the numbers that were drawn."""
    slots = []

    def define() -> list[Any]:
        own = image_source(images, layout)
        second = {} if others is None else {"partner_images": image_source(others, layout)}
        labels = source([np.array([i], np.int32) for i in range(COUNT)], dtype=types.INT32)
        if second:
            second["partner_labels"] = labels
        found = []
        for i, method in enumerate(names):
            more: dict[str, Any] = {
                "probability": 0.7,
                "seed": SEED + i,
                "convention": ("reference", "paper")[i % 2],
            }
            mixed, targets, params = msda.mix(
                own, labels, 9, method=method, return_params=True, backend="kernel", **more, **norm, **second
            )
            drawn = msda.draw(method, own, **more)
            assert drawn.draws is not None
            slots.append(drawn.draws.slots)
            numbers = fn.reshape(drawn.draws.numbers, shape=[-1])
            found += [mixed, params.lam, params.partner, numbers, targets]
        return found

    (flat,) = outputs(define, COUNT)
    return [(*flat[5 * i : 5 * i + 5], slots[i]) for i in range(len(names))]


def images_of(kind: Any, layout: str, seed: int = 0) -> np.ndarray:
    images = random_images(COUNT, SIZE, seed=seed, dtype=np.uint8)
    images = images if kind == np.uint8 else ((images - 117.0 * (kind != np.uint16)) * 93.7).astype(kind)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if layout == "CHW" else images


@pytest.mark.parametrize(
    ("kind", "layout", "second"),
    [
        (np.uint8, "HWC", False),
        (np.uint8, "HWC", True),
        (np.float32, "CHW", False),
        (np.float32, "CHW", True),
        (np.int16, "HWC", True),
        (np.uint16, "CHW", False),
    ],
)
def test_the_bits_are_those_of_the_pipeline(kind: Any, layout: str, second: bool) -> None:
    """Every method of the table and a dense one; images, label weights and targets."""
    own, others = images_of(kind, layout), images_of(kind, layout, seed=1) if second else None
    names = [*METHODS, *(["fan"] if kind in (np.uint8, np.float32) else [])]
    for name, (mixed, lam, partner, numbers, targets, slots) in zip(
        names, from_pipeline(names, own, others, layout), strict=True
    ):
        masks = arrays.write_masks(TABLE[name], numbers, slots, SIZE)
        out = np.full_like(own, 3)
        found = arrays.mix_batch(own, partner, masks, out, source=others, channels_first=layout == "CHW")
        np.testing.assert_array_equal(out, mixed, err_msg=name)
        np.testing.assert_array_equal(found, lam, err_msg=name)
        ids = np.arange(COUNT, dtype=np.int32)
        np.testing.assert_array_equal(arrays.mix_targets(ids, ids[partner], found, 9), targets, err_msg=name)


@pytest.mark.parametrize("to", ["HWC", "CHW"])
def test_normalised_bits_are_those_of_the_pipeline(to: str) -> None:
    own, names = images_of(np.uint8, "HWC"), ["hmix", "gmix", "fan"]
    norm: dict[str, Any] = {**NORM, "scale": 2.0, "shift": 0.5}
    for name, (mixed, lam, partner, numbers, _, slots) in zip(
        names, from_pipeline(names, own, None, "HWC", **norm, output_layout=to), strict=True
    ):
        masks = arrays.write_masks(TABLE[name], numbers, slots, SIZE)
        out = np.zeros((COUNT, 3, *SIZE) if to == "CHW" else (COUNT, *SIZE, 3), np.float32)
        factors = fold_factors(**norm)
        found = arrays.mix_batch(own, partner, masks, out, channels_first=to == "CHW", normalization=factors)
        np.testing.assert_array_equal(out, mixed, err_msg=name)
        np.testing.assert_array_equal(found, lam, err_msg=name)


def numbers_for(method: str, count: int) -> tuple[np.ndarray, dict[str, int]]:
    names = [*TABLE[method].values, "_row", "_column", "_coin", "_probability", "_paper", "_given"]
    slots = {name: place for place, name in enumerate(names)}
    numbers = np.random.default_rng(3).uniform(size=(count, len(names)))
    numbers[:, slots["_probability"]], numbers[:, slots["_paper"]], numbers[:, slots["_given"]] = 1, 0, 0
    return numbers, slots


def mixed_by_threads(own: Any, threads: int | None, method: str = "gmix") -> np.ndarray:
    count, sizes = len(own), tuple(own[0].shape[:2])
    masks = arrays.write_masks(TABLE[method], *numbers_for(method, count), sizes, threads=threads)
    out = np.zeros((count, *own[0].shape), own[0].dtype)
    arrays.mix_batch(own, np.arange(count)[::-1], masks, out, channels_first=False, threads=threads)
    return out


@pytest.mark.parametrize("threads", [1, 2, 3, 64, None])
def test_threads_do_not_change_bits(threads: int | None) -> None:
    own = random_images(7, (40, 60))
    np.testing.assert_array_equal(mixed_by_threads(own, threads), mixed_by_threads(own, 1))


def test_lists_of_views_and_ragged_sizes() -> None:
    """Each image is a view of other memory; sizes differ between pairs of partners."""
    sizes = np.array([(5, 9), (5, 9), (8, 4), (8, 4)], np.int64)
    memory = random_images(1, (1, 4096), channels=1).reshape(-1)
    own = [memory[64 * i : 64 * i + 3 * h * w].reshape(h, w, 3) for i, (h, w) in enumerate(sizes)]
    partner = np.array([1, 0, 3, 2], np.int32)
    for method in ("hmix", "fan"):
        numbers, slots = numbers_for(method, 4)
        masks = arrays.write_masks(TABLE[method], numbers, slots, sizes)
        out = [np.zeros_like(image) for image in own]
        lam = arrays.mix_batch(own, partner, masks, out, channels_first=False)
        for i in range(4):
            one = arrays.write_masks(TABLE[method], numbers[i : i + 1], slots, tuple(sizes[i].tolist()))
            alone = np.zeros_like(out[i : i + 1][0])[None]
            weight = arrays.mix_batch(
                own[i][None], np.zeros(1, int), one, alone, source=own[partner[i]][None], channels_first=False
            )
            np.testing.assert_array_equal(out[i], alone[0])
            assert lam[i] == weight[0]


def test_given_masks_are_clipped_and_averaged() -> None:
    own, rows, columns = random_images(2, (4, 6)), np.linspace(-1, 2, 4), np.linspace(0, 1, 6)
    masks = arrays.join_masks(
        [0.0, 0.5], [1.0, 9.0], [rows.astype(np.float32)] * 2, [columns.astype(np.float32)] * 2
    )
    out = np.zeros_like(own)
    lam = arrays.mix_batch(own, np.array([1, 0]), masks, out, channels_first=False)
    plane = np.clip(rows, 0, 1)[:, None] * columns
    np.testing.assert_allclose(lam, [plane.mean(), 0.5 + 0.5 * plane.mean()], rtol=1e-6)
    exact = plane[..., None] * own[0] + (1 - plane[..., None]) * own[1]
    assert np.abs(out[0] - exact).max() <= 0.5 + 1e-4


def test_a_fork_has_its_own_threads() -> None:
    """The parent's threads do not exist in the child, which must not wait for them."""
    own = random_images(6, (90, 90))
    expected = mixed_by_threads(own, 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(mixed_by_threads(own, 2), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_second_process_does_not_compile() -> None:
    """It imports no DALI, and reads the code that the process before it wrote."""
    script = (
        "import sys, numpy as np, numba\n"
        "from dali_msda.backends.numba import arrays\n"
        "from dali_msda.backends.numba.builders import build_mix\n"
        "from dali_msda.backends.numba.compiled import RUN, compiled\n"
        "from dali_msda.methods import TABLE\n"
        "own = np.zeros((2, 8, 8, 3), np.uint8)\n"
        "names = [*TABLE['hmix'].values, '_row', '_column', '_coin', '_probability', '_paper', '_given']\n"
        "slots = {name: place for place, name in enumerate(names)}\n"
        "masks = arrays.write_masks(TABLE['hmix'], np.full((2, len(names)), 0.5), slots, (8, 8))\n"
        "arrays.mix_batch(own, np.array([1, 0]), masks, own.copy(), channels_first=False)\n"
        "found = [compiled(build_mix, RUN, np.uint8, False, True)]\n"
        "print(*(one.cache_hits for one in found), *({'nvidia', 'torch'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[1].stdout.split() == ["1"]


OWN, PARTNERS = random_images(3, (4, 5)), np.array([1, 2, 0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"own": OWN.astype(np.float64)}, "own must be arrays of one type, .* float32; got 'float64'"),
        ({"own": OWN[0]}, r"own must be an array \[N, A, B, C\] or a sequence of arrays \[A, B, C\]; got"),
        ({"own": OWN[:, :, ::2]}, "own must be C-contiguous images; got"),
        ({"source": OWN.astype(np.float32)}, "source must be uint8, as own is; got 'float32'"),
        ({"source": OWN[:, :3]}, r"partners must be .* \(4, 5, 3\) for sample 0; got \(3, 5, 3\)"),
        ({"out": np.zeros((3, 4, 4, 3), np.uint8)}, "out must be arrays of the shapes of own; got"),
        ({"out": np.zeros((2, 4, 5, 3), np.uint8)}, "out must be arrays of the shapes of own; got"),
        ({"out": np.zeros(OWN.shape, np.float32)}, "out must be arrays of uint8; got 'float32'"),
        ({"out": np.broadcast_to(OWN[:1], OWN.shape)}, "out must be writable; got"),
        ({"partners": np.array([0, 1])}, "partners must be 3 integers; got"),
        ({"partners": np.array([0.0, 1, 2])}, "partners must be 3 integers; got"),
        ({"partners": np.array([0, 1, 3])}, r"partners must be in \[0, 3\); got '0 to 3'"),
        ({"partners": np.array([0, 1, -1])}, r"partners must be in \[0, 3\); got '-1 to 1'"),
        ({"size": (5, 4)}, r"masks must be of the size of the images, \(4, 5, 3\), for sample 0; got"),
        ({"count": 2}, "masks must be 3, one per image; got 2"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
        ({"normalization": np.ones((2, 4))}, r"normalization must be .*\(2, 3\) for sample 0; got \(2, 4\)"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(changed: dict[str, Any], message: str) -> None:
    given = {"own": OWN, "partners": PARTNERS, "channels_first": False, **changed}
    size, count = given.pop("size", (4, 5)), given.pop("count", 3)
    numbers, slots = numbers_for("hmix", count)
    given["masks"] = arrays.write_masks(TABLE["hmix"], numbers, slots, size)
    kind = np.float32 if "normalization" in given else np.uint8
    given.setdefault("out", np.zeros(OWN.shape, kind))
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        arrays.mix_batch(**given)
