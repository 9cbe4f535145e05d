"""Mixing in dynamic mode: the bits of a pipeline, memory without copies, both devices, several inputs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import pytest
from nvidia.dali import types

import dali_msda as pipeline_msda
from dali_msda import dynamic as msda
from dali_msda import methods
from dali_msda.dynamic.batches import view
from dali_msda.dynamic.images import thread_limit
from dali_msda.methods import MIXING
from dali_msda.processors import allowed_processors
from tests.devices import on_each_device
from tests.dynamic import COUNT, Arrays, batch, data, flat, numpy_of
from tests.running import outputs, source

PARTNER, LAM, CENTER = [1, 2, 0], [0.4, 0.9, 0.0], [(3, 6), (0, 10), (7, 0)]
LABELS = np.array([4, 0, 4], np.int32)
DTYPES = {
    "uint8": types.UINT8,
    "int16": types.INT16,
    "uint16": types.UINT16,
    "float16": types.FLOAT16,
    "float32": types.FLOAT,
}
NORM = {"mean": [3.0, 5.0, 7.0], "std": [2.0, 4.0, 8.0], "scale": 2.0, "shift": 0.5}


def given(node: Callable[[Any], Any]) -> dict[str, Any]:
    """Given draws, as the argument of a pipeline or of dynamic mode."""
    return {
        "lam": node(np.array(LAM, np.float32)),
        "center": node(np.array(CENTER, np.int32)),
        "partner": node(np.array(PARTNER, np.int32)),
    }


def from_pipeline(layout: str, dtype: str, calls: list[dict[str, Any]]) -> list[Arrays]:
    """All results of some calls in one pipeline."""
    own, other = data(layout, dtype), data(layout, dtype, seed=1)

    def image_node(values: Arrays) -> Any:
        return source(list(values), layout=layout, dtype=DTYPES[dtype], ndim=len(layout))

    def define() -> list[Any]:
        found: list[Any] = []
        for call in calls:
            call = dict(call)
            labels = source(list(call.pop("labels", LABELS)), dtype=call.pop("labels_type", types.INT32))
            if call.pop("second", False):
                call |= {"partner_images": image_node(other), "partner_labels": labels}
            call["mirror"] = source(list(call["mirror"])) if "mirror" in call else 0
            draws = given(lambda values: source(list(values)))
            mixed, *others = pipeline_msda.mix(image_node(own), labels, backend="kernel", **draws, **call)
            found += [
                mixed,
                *(node for group in others for node in (group if isinstance(group, tuple) else [group])),
            ]
        return found

    (arrays,) = outputs(define, COUNT)
    return arrays


def from_dynamic(layout: str, dtype: str, calls: list[dict[str, Any]]) -> list[Arrays]:
    own, other = (batch(data(layout, dtype, seed), layout) for seed in (0, 1))
    found: list[Arrays] = []
    for call in calls:
        call = dict(call)
        call.pop("labels_type", None)
        labels = ndd.as_batch(call.pop("labels", LABELS))
        if call.pop("second", False):
            call |= {"partner_images": other, "partner_labels": labels}
        if "mirror" in call:
            call["mirror"] = ndd.as_batch(call["mirror"])
        found += flat(msda.mix(own, labels, **given(ndd.as_batch), **call))
    return found


SOFT = np.random.default_rng(0).uniform(size=(COUNT, 5)).astype(np.float32)
FORMS: list[dict[str, Any]] = [
    *({"method": m, "num_classes": 5, "return_params": True} for m in ("none", *MIXING) if m != "stochastic"),
    {"method": "stochastic", "num_classes": 5, "switch_probability": 0.0},
    {"method": "stochastic", "num_classes": 5, "switch_probability": 1.0},
    {"method": "hmix", "num_classes": 5, "convention": "paper", "ratio": 0.5, "label_smoothing": 0.1},
    {"method": "gmix", "num_classes": 5, "convention": "paper", "second": True, "correct_lam": False},
    {"method": "cutmix", "labels": SOFT, "labels_type": types.FLOAT, "label_smoothing": 0.1},
    {"method": "hmix", "output": "pair"},
]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        *(("HWC", "uint8"), ("HWC", "float16"), ("HWC", "int16"), ("CHW", "float32"), ("CHW", "uint16")),
        *(("HW", "uint8"), ("FHWC", "uint8"), ("FCHW", "float32"), ("DHWC", "float16")),
    ],
)
def test_given_draws_give_the_bits_of_a_pipeline(layout: str, dtype: str) -> None:
    """Images, targets, masks and label weights of every method, by the compiled kernels."""
    calls = FORMS if layout == "HWC" else FORMS[2:6:3]
    expected, found = from_pipeline(layout, dtype, calls), from_dynamic(layout, dtype, calls)
    assert len(found) == len(expected) > 0
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{place}")
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW", "FHWC", "DHWC"])
def test_normalised_bits_are_those_of_a_pipeline(layout: str) -> None:
    """Fused into the mixing, or by DALI's operator behind it."""
    norm = {**NORM, "mean": 3.0, "std": 2.0} if layout == "HW" else NORM
    common = {"method": "hmix", "num_classes": 5, **norm}
    calls = [{**common}, {**common, "mirror": np.array([1, 0, 1], np.int32), "return_params": True}]
    if layout == "HWC":
        calls += [
            {**common, "output_layout": "CHW"},
            {**common, "output_layout": "CHW", "output_dtype": types.FLOAT16},
            {**common, "pad_output": True, "output_dtype": types.INT8},
            {**common, "mean": 3.0, "std": 2.0},
        ]
    for ours, theirs in zip(
        from_dynamic(layout, "uint8", calls), from_pipeline(layout, "uint8", calls), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"probability": 0.5, "convention": "paper", "label_smoothing": 0.1},
]
# Largest difference between operators and the kernel: integers may be rounded to the other side.
BOUNDS = {"uint8": 1, "float16": 0.13, "float32": 6e-5, "int16": 1}


@on_each_device
@pytest.mark.parametrize("backend", ["graph", "hybrid"])
def test_operators_give_what_the_kernel_gives(backend: str, device: str) -> None:
    """The formulas and the arithmetic of a GPU, on both devices; masks and targets within float32."""
    rng = ndd.random.RNG(seed=5)
    cases = [
        *((m, "uint8", "HWC") for m in methods.METHODS),
        ("hmix", "float16", "CHW"),
        ("cutmix", "float32", "HW"),
    ]
    cases += [("gmix", "int16", "HWC"), ("hmix", "uint8", "FHWC"), ("cutmix", "uint8", "DHWC")]
    for method, dtype, layout in cases:
        for more in VARIANTS:
            own = data(layout, dtype)
            results = []
            for form, at in (("kernel", "cpu"), (backend, device)):
                one = rng.clone()
                result = msda.mix(
                    batch(own, layout, at),
                    LABELS,
                    5,
                    method=method,
                    rng=one,
                    backend=form,
                    return_params=True,
                    **more,
                )
                assert result[0].device.device_type == result[1].device.device_type == at
                assert (result[0].layout, result[0].dtype.type_id) == (layout, DTYPES[dtype])
                results.append((*flat(result), one()))
            kernel, operators = results
            assert np.abs(kernel[0].astype(float) - operators[0].astype(float)).max() <= BOUNDS[dtype]
            for ours, theirs in zip(kernel[1:], operators[1:], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6, err_msg=method)
        rng()


def test_auto_is_what_the_device_does_best() -> None:
    own = batch(data("HWC", "float32"))
    auto, kernel = (
        numpy_of(msda.gmix(own, None, rng=ndd.random.RNG(seed=2), backend=backend))
        for backend in ("auto", "kernel")
    )
    np.testing.assert_array_equal(auto, kernel)


def test_views_share_memory_with_the_batch() -> None:
    """Of a batch of one array, of arrays in different places, and of what an operator made."""
    whole = data("HWC")
    assert np.shares_memory(view(ndd.as_batch(whole, layout="HWC")), whole)
    apart = [np.array(image) for image in whole]
    for seen, image in zip(view(ndd.as_batch(apart, layout="HWC")), apart, strict=True):
        assert np.shares_memory(seen, image)
    flipped = ndd.flip(ndd.as_batch(whole, layout="HWC"), horizontal=1)
    (first, *_), tensor = view(flipped), np.asarray(flipped.tensors[0])
    assert np.shares_memory(first, tensor)
    whole[:] = 9
    mixed = msda.mixup(ndd.as_batch(whole, layout="HWC"), None, rng=ndd.random.RNG(seed=1))
    assert (numpy_of(mixed) == 9).all()
    assert np.shares_memory(np.asarray(mixed.tensors[1]), np.asarray(ndd.as_tensor(mixed)))
    tensor = mixed.torch(copy=False)
    del mixed
    gc.collect()
    filler = [np.zeros_like(whole) for _ in range(50)]
    assert (tensor == 9).all()
    del filler


def test_memory_is_used_again_only_when_nothing_shares_it() -> None:
    """Neither a batch, nor an array or a tensor of PyTorch made from one, changes by later calls."""
    own = ndd.as_batch(np.full((4, 600, 600, 3), 7, np.uint8), layout="HWC")
    rng = ndd.random.RNG(seed=1)
    other = ndd.as_batch(np.full((4, 600, 600, 3), 9, np.uint8), layout="HWC")
    holders = [msda.mixup(own, None, rng=rng), msda.mixup(own, None, rng=rng).torch()]
    holders += [np.asarray(ndd.as_tensor(msda.mixup(own, None, rng=rng)))]
    for _ in range(6):
        assert (numpy_of(msda.mixup(other, None, rng=rng)) == 9).all()
    assert (numpy_of(holders[0]) == 7).all()
    assert all((holder == 7).all() for holder in holders[1:])
    addresses = {view(msda.mixup(other, None, rng=rng)).__array_interface__["data"] for _ in range(5)}  # type: ignore[union-attr]
    assert len(addresses) == 1


def test_threads_are_those_that_dynamic_mode_may_use() -> None:
    own = ndd.as_batch(np.random.default_rng(0).integers(0, 256, (6, 200, 200, 3), np.uint8), layout="HWC")
    several = numpy_of(msda.gmix(own, None, rng=ndd.random.RNG(seed=1)))
    with ndd.EvalContext(num_threads=1):
        assert thread_limit() == (1 if allowed_processors() > 1 else None)
        one = numpy_of(msda.gmix(own, None, rng=ndd.random.RNG(seed=1)))
    np.testing.assert_array_equal(one, several)


def test_images_apart_in_memory_give_the_same_bits() -> None:
    whole = data("HWC")
    results = [
        numpy_of(msda.hmix(ndd.as_batch(values, layout="HWC"), None, rng=ndd.random.RNG(seed=1)))
        for values in (whole, [np.array(image) for image in whole])
    ]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("mode", ["deferred", "eager", "sync_full"])
def test_evaluation_modes_do_not_change_bits(mode: str) -> None:
    def run() -> Arrays:
        images = ndd.flip(batch(data("HWC")), horizontal=1)
        return numpy_of(msda.hmix(ndd.flip(images, vertical=1), None, rng=ndd.random.RNG(seed=3)))

    with ndd.EvalMode[mode]:
        found = run()
    np.testing.assert_array_equal(found, run())


# -- Several inputs, and steps ----------------------------------------------------------------------------


def test_views_and_steps_share_their_draws() -> None:
    """One call for two views is draw, apply and mix_labels; a pipeline gives the same of given draws."""
    large, small = data("HWC"), data("HWC")[:, ::2, ::2].copy()
    rng = ndd.random.RNG(seed=4)
    center: dict[str, Any] = {"center": (3, 6)}
    (one, two), targets = msda.hmix([batch(large), batch(small)], LABELS, 5, rng=rng.clone(), **center)
    drawn = msda.draw("hmix", batch(large), rng=rng.clone(), **center)
    np.testing.assert_array_equal(numpy_of(one), numpy_of(msda.apply(batch(large), drawn)))
    np.testing.assert_array_equal(numpy_of(two), numpy_of(msda.apply(batch(small), drawn)))
    np.testing.assert_array_equal(numpy_of(targets), numpy_of(msda.mix_labels(LABELS, drawn, 5)))

    def define() -> list[Any]:
        nodes = [source(list(values), layout="HWC", dtype=types.UINT8, ndim=3) for values in (large, small)]
        partner = source(list(numpy_of(drawn.partner)))
        lam = source(list(drawn.draws.column("lam")))
        mixed = pipeline_msda.hmix(nodes, None, lam=lam, partner=partner, backend="kernel", **center)
        return list(mixed)

    (theirs,) = outputs(define, COUNT)
    np.testing.assert_array_equal(numpy_of(one), theirs[0])
    np.testing.assert_array_equal(numpy_of(two), theirs[1])


@on_each_device
def test_maps_take_the_heavier_pixel(device: str) -> None:
    ids = np.arange(COUNT * 8 * 11, dtype=np.int32).reshape(COUNT, 8, 11)
    drawn = msda.draw(
        "hmix", batch(data("HWC"), device=device), rng=ndd.random.RNG(seed=6), **given(np.asarray)
    )
    maps = numpy_of(msda.apply(batch(ids, "HW", device), drawn, nearest=True))
    *_, params = msda.hmix(batch(data("HWC")), None, return_params=True, **given(np.asarray))
    mask = numpy_of(params.mask)[..., 0]
    np.testing.assert_array_equal(maps, np.where(mask < 0.5, ids[PARTNER], ids))


def test_a_single_image_comes_back_as_it_is() -> None:
    own = (data("HWC", "float32")[:1] + 0.1).astype(np.float32)
    for backend in ("kernel", "graph"):
        for method in MIXING:
            mixed = msda.mix(batch(own), None, method=method, backend=backend, allow_self=False)
            np.testing.assert_array_equal(numpy_of(mixed), own)
