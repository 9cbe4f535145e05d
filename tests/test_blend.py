"""A caller's own masks: `msda.blend` compared with the NumPy reference, in all backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, types

import dali_msda as msda
from tests import reference
from tests.devices import array, in_every_form, on_each_device, placed
from tests.graph_check import problems
from tests.running import build, image_source, random_images, source
from tests.test_gpu_graph import trace, values

COUNT, SIZE = 6, (13, 18)
PARTNER = np.array([3, 0, 2, 1, 5, 4], np.int32)
LABELS = [np.array([i % 4], np.int32) for i in range(COUNT)]
Arrays = np.ndarray[Any, Any]


def weights(seed: int = 0) -> Arrays:
    """A mask per sample, in multiples of 1/8, so that many uint8 pixels are halfway between two integers."""
    return np.random.default_rng(seed).integers(0, 9, (COUNT, *SIZE)).astype(np.float32) / 8


def profiles(masks: Arrays) -> tuple[Arrays, Arrays]:
    """The first column of each mask as its rows, and the first row as its columns."""
    return np.ascontiguousarray(masks[:, :, 0]), np.ascontiguousarray(masks[:, 0, :])


def blend_nodes(
    images: Arrays,
    mask: Callable[[], Any],
    *,
    layout: str = "HWC",
    typed: bool = True,
    device: str = "cpu",
    **arguments: Any,
) -> tuple[Any, ...]:
    """images, targets, lam, partner and mask."""
    mixed, targets, params = msda.blend(
        image_source(images, layout, typed=typed, device=device),
        source(LABELS),
        mask=mask(),
        num_classes=4,
        layout=layout,
        return_params=True,
        **{"partner": source(PARTNER), **arguments},
    )
    return mixed, targets, *params


def run_blend(
    images: Arrays, mask: Callable[[], Any], *, device: str = "cpu", **arguments: Any
) -> list[Arrays]:
    """Run a batch of :func:`blend_nodes`."""

    def define() -> Any:
        return blend_nodes(images, mask, device=device, **arguments)

    return [array(tensors) for tensors in build(define, COUNT, device=device).run()]


def assert_blended(result: list[Arrays], images: Arrays, masks: Arrays, layout: str = "HWC") -> None:
    mixed, targets, lam, partner, mask = result
    bound = {"uint8": 0.5 + 1e-4, "float16": 2e-3, "float32": 1e-6}[images.dtype.name]
    np.testing.assert_array_equal(partner, PARTNER)
    assert mixed.dtype == images.dtype
    for i, j in enumerate(PARTNER):
        np.testing.assert_allclose(mask[i].reshape(SIZE), masks[i], rtol=0, atol=2e-7)
        np.testing.assert_allclose(lam[i], masks[i].mean(), rtol=0, atol=2e-7)
        exact = reference.blend(images[i], images[j], masks[i].astype(np.float64), layout)
        assert np.abs(mixed[i].astype(np.float64) - exact).max() <= bound
        expected = reference.targets(i % 4, j % 4, float(masks[i].mean()), 4)
        np.testing.assert_allclose(targets[i], expected, rtol=0, atol=1e-6)


@in_every_form
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_a_weight_for_every_pixel(layout: str, dtype: Any, typed: bool, backend: str, device: str) -> None:
    masks = weights()
    batches = [random_images(COUNT, SIZE, channels, dtype=dtype) for channels in (1, 3, 4)]
    if layout == "CHW":
        batches = [images.transpose(0, 3, 1, 2).copy() for images in batches]

    def define() -> list[Any]:
        form: dict[str, Any] = {"layout": layout, "typed": typed, "backend": backend, "device": device}
        return [node for images in batches for node in blend_nodes(images, lambda: source(masks), **form)]

    found = [array(tensors) for tensors in build(define, COUNT, device=device).run()]
    for images, start in zip(batches, range(0, len(found), 5), strict=True):
        result = found[start : start + 5]
        assert_blended(result, images, masks, layout)
        assert result[4].shape[1:] == ((*SIZE, 1) if layout == "HWC" else (1, *SIZE))


@pytest.mark.parametrize("beside", [False, True], ids=["CPU", "beside"])
@in_every_form
@pytest.mark.parametrize("form", ["HxWx1", "1xHxW", "float64", "bool"])
def test_forms_of_a_mask(form: str, backend: str, device: str, beside: bool) -> None:
    """On the CPU, and on the device of the images."""
    layout = "CHW" if form == "1xHxW" else "HWC"
    images = random_images(COUNT, SIZE)
    images = images.transpose(0, 3, 1, 2).copy() if layout == "CHW" else images
    masks = (weights() > 0.5).astype(np.float32) if form == "bool" else weights()
    given = {
        "HxWx1": masks[..., None],
        "1xHxW": masks[:, None],
        "float64": masks.astype(np.float64),
        "bool": masks.astype(bool),
    }[form]

    def mask() -> Any:
        return placed(source(given), device if beside else "cpu")

    result = run_blend(images, mask, layout=layout, backend=backend, device=device)
    assert_blended(result, images, masks, layout)


@in_every_form
def test_rows_and_columns(backend: str, device: str) -> None:
    images = random_images(COUNT, SIZE)
    rng = np.random.default_rng(1)
    rows: Arrays = rng.uniform(size=(COUNT, SIZE[0])).astype(np.float32)
    columns: Arrays = rng.uniform(size=(COUNT, SIZE[1])).astype(np.float32)
    masks: Arrays = rows[:, :, None] * columns[:, None]
    result = run_blend(images, lambda: (source(rows), source(columns)), backend=backend, device=device)
    assert_blended(result, images, masks)
    scale = -rng.uniform(0, 0.75, (COUNT, 1)).astype(np.float32)
    result = run_blend(
        images,
        lambda: msda.Separable(0.75, source(scale), source(rows), source(columns[..., None])),
        backend=backend,
        device=device,
    )
    assert_blended(result, images, scale[..., None] * masks + np.float32(0.75))


@on_each_device
@pytest.mark.parametrize("backend", ["hybrid", "graph"])
@pytest.mark.parametrize("form", ["dense", "separable", "cut"])
def test_backends_agree_to_the_bit(form: str, backend: str, device: str) -> None:
    """uint8: the same weights give the same pixels, halves too; a GPU may round halves otherwise."""
    images = random_images(COUNT, SIZE)
    masks = weights()
    rows, columns = profiles(masks)
    if form == "cut":
        rows, columns = (rows > 0.5).astype(np.float32), (columns > 0.5).astype(np.float32)

    def mask() -> Any:
        return source(masks) if form == "dense" else (source(rows), source(columns))

    kernel = run_blend(images, mask, backend="kernel")
    other = run_blend(images, mask, backend=backend, device=device)
    for name, ours, theirs in zip(msda.MixParams._fields, kernel[2:], other[2:], strict=True):
        # lam is a sum, whose terms may be added in another order.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 if name == "lam" else 0)
    if device == "gpu":
        exact = np.stack(
            [reference.blend(images[i], images[j], other[4][i].reshape(SIZE)) for i, j in enumerate(PARTNER)]
        )
        halves = exact % 1 == 0.5
        assert (halves.sum() > 100) == (form != "cut")
        np.testing.assert_array_equal(np.abs(other[0][halves] - exact[halves]), 0.5)
        kernel[0][halves] = other[0][halves]
    np.testing.assert_array_equal(kernel[0], other[0])
    np.testing.assert_allclose(kernel[1], other[1], rtol=0, atol=2e-7)
    halves = (masks[:, :, :, None] * images * 8).astype(int) % 8 == 4
    assert halves.any()  # they would show other rounding


@in_every_form
def test_weights_outside_are_clipped(backend: str, device: str) -> None:
    images, masks = random_images(COUNT, SIZE), weights()
    wide = masks * 3 - 1
    result = run_blend(images, lambda: source(wide), backend=backend, device=device)
    assert_blended(result, images, wide.clip(0, 1))
    rows, columns = profiles(wide)
    result = run_blend(
        images,
        lambda: msda.Separable(0.5, 2.0, source(rows), source(columns)),
        backend=backend,
        device=device,
    )
    clipped = rows.clip(0, 1)[:, :, None] * columns.clip(0, 1)[:, None]
    assert_blended(result, images, np.float32(0.5) + np.float32(0.5) * clipped)


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "separable"])
@pytest.mark.parametrize("output_layout", ["HWC", "CHW"])
def test_normalised_in_the_same_pass(output_layout: str, dense: bool) -> None:
    """The kernel that mixes and normalises, compared with mixing and then normalising."""
    images, masks = random_images(COUNT, SIZE), weights()
    mean, std = [10.0, 120.0, 70.0], [50.0, 60.0, 7.0]

    def mask() -> Any:
        return source(masks) if dense else tuple(map(source, profiles(masks)))

    arguments: dict[str, Any] = {"mean": mean, "std": std, "output_layout": output_layout}
    found = run_blend(images, mask, backend="kernel", **arguments)[0]
    mixed = run_blend(images, mask, backend="kernel")[0]
    exact = (mixed.astype(np.float64) - mean) / std
    if output_layout == "CHW":
        exact = exact.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=2e-6)


@in_every_form
def test_partners_are_drawn(backend: str, device: str) -> None:
    images, masks = random_images(COUNT, SIZE), weights()
    partners = [
        run_blend(images, lambda: source(masks), backend=backend, device=device, partner=None, seed=seed)[3]
        for seed in (1, 1, 2)
    ]
    assert sorted(partners[0]) == list(range(COUNT))
    np.testing.assert_array_equal(partners[0], partners[1])
    assert (partners[0] != partners[2]).any()


@in_every_form
@pytest.mark.parametrize("form", ["low", "narrow", "transposed", "rows", "columns", "rows for columns"])
def test_a_mask_of_another_size_stops_the_pipeline(form: str, backend: str, device: str) -> None:
    images, masks = random_images(COUNT, SIZE), weights()
    is_turned, is_narrow = form in ("transposed", "rows for columns"), form in ("narrow", "columns")
    masks = masks.transpose(0, 2, 1) if is_turned else masks[:, :, :-1] if is_narrow else masks[:, :-1]
    masks = masks.copy()

    def mask() -> Any:
        return tuple(map(source, profiles(masks))) if "rows" in form or form == "columns" else source(masks)

    with pytest.raises(RuntimeError, match="4: mask") as caught:
        run_blend(images, mask, backend=backend, device=device)
    assert "slice_anchor={4}" in str(caught.value)


def test_a_mask_with_channels_is_refused() -> None:
    images, masks = random_images(COUNT, SIZE), weights()
    with pytest.raises(RuntimeError, match="mask must be HxW, or HxWx1"):
        run_blend(images, lambda: source(np.repeat(masks[..., None], 3, axis=3)))


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (lambda: 0.5, TypeError, ["mask must be a DALI node", "0.5"]),
        (lambda: weights(), TypeError, ["mask must be a DALI node"]),
        (lambda: (source(weights()),), TypeError, ["mask must be", "two nodes (rows, columns)"]),
        (lambda: (1.0, source(weights())), TypeError, ["rows of the mask", "1.0"]),
        (lambda: msda.Dense(3), TypeError, ["mask must be", "Dense(int)"]),
        (lambda: msda.Separable(0.5), TypeError, ["rows of the mask", "None"]),
        (
            lambda: msda.Separable(1.5, 1.0, source(weights()), source(weights())),
            ValueError,
            ["base of the mask", "[0, 1]", "1.5"],
        ),
        (
            lambda: msda.Separable(0.5, "1", source(weights()), source(weights())),
            TypeError,
            ["scale of the mask", "number", "'1'"],
        ),
        (lambda: source(weights()).gpu(), ValueError, ["mask must be on the CPU", "GPU node"]),
    ],
)
def test_bad_masks(mask: Callable[[], Any], error: type[Exception], words: list[str]) -> None:
    with Pipeline(COUNT, 1, 0):
        data, labels = image_source(random_images(COUNT, SIZE), "HWC"), source(LABELS)
        with pytest.raises(error) as caught:
            msda.blend(data, labels, mask=mask(), num_classes=4)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize("form", ["cpu", "gpu", "rows and columns"])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_the_graph_for_a_gpu(layout: str, form: str) -> None:
    def define() -> Any:
        mask: Any = (values(), values()) if form == "rows and columns" else values(form)
        images = values("gpu", layout=layout, dtype=types.UINT8, ndim=3)
        return msda.blend(
            images, values(), mask=mask, num_classes=5, layout=layout, return_params=True, partner=values()
        )

    mixed, targets, params = trace(define)
    assert problems([mixed, targets, params.mask]) == []
    assert problems([params.partner], "cpu") == []
    assert params.lam.device == ("gpu" if form == "gpu" else "cpu")
