"""Bad input: one clear error with the argument, what it must be and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, types

import dali_msda as msda
from tests.running import ONE_MASK, build, image_source, random_images, run_mix, source
from tests.test_layouts import labelled_at_run_time

IMAGES = random_images(4, (8, 8))
NORM: dict[str, Any] = {"mean": 0.0, "std": 1.0}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "hmixx"}, ValueError, ["method", "'hmixx'", "'none', 'mixup', 'cutmix'", "'gmix'"]),
        ({"convention": "papers"}, ValueError, ["convention", "'papers'", "'reference', 'paper'"]),
        ({"granularity": "pair"}, ValueError, ["granularity", "'pair'", "'sample', 'batch'"]),
        ({"layout": "NHWC"}, ValueError, ["layout", "'NHWC'", "'HWC', 'CHW', 'HW', 'FHWC', 'FCHW', 'DHWC'"]),
        ({"backend": "numba"}, ValueError, ["backend", "'numba'", "'auto', 'kernel', 'hybrid', 'graph'"]),
        ({"alpha": -0.1}, ValueError, ["alpha", "at least 0", "got -0.1"]),
        ({"alpha": -1.5}, ValueError, ["alpha", "at least 0", "-1.5"]),
        ({"alpha": float("nan")}, ValueError, ["alpha", "at least 0", "nan"]),
        ({"alpha": "1"}, TypeError, ["alpha", "number of at least 0", "'1'"]),
        ({"method": "none", "alpha": -1}, ValueError, ["alpha", "at least 0", "-1"]),
        ({"ratio": 1.01}, ValueError, ["ratio", "[0, 1]", "1.01"]),
        ({"ratio": True}, TypeError, ["ratio", "[0, 1]", "True"]),
        ({"probability": -0.1}, ValueError, ["probability", "[0, 1]", "-0.1"]),
        ({"label_smoothing": 2}, ValueError, ["label_smoothing", "[0, 1]", "2"]),
        ({"lam": 1.5}, ValueError, ["lam", "[0, 1]", "1.5"]),
        ({"center": 3}, TypeError, ["center", "(row, column)", "3"]),
        ({"center": (1, -2)}, ValueError, ["center column", "pixel index", "-2"]),
        ({"center": (1.5, 2)}, ValueError, ["center row", "pixel index", "1.5"]),
        ({"partner": -1}, ValueError, ["partner", "at least 0", "-1"]),
        ({"partner": 1.0}, TypeError, ["partner", "integer", "1.0"]),
        ({"seed": -3}, ValueError, ["seed", "at least 0", "-3"]),
        ({"num_classes": 0}, ValueError, ["num_classes", "at least 1", "0"]),
        ({"num_classes": 10.0}, TypeError, ["num_classes", "integer", "10.0"]),
        ({"return_params": "yes"}, TypeError, ["return_params", "True or False", "'yes'"]),
        ({"method": "mixup", "ratio": 0.5}, TypeError, ["ratio", "'mixup'", "alpha", "0.5"]),
        ({"method": "gmix", "switch_probability": 0.5}, TypeError, ["switch_probability", "'gmix'"]),
        ({"method": "stochastic", "mixup_alpha": -1}, ValueError, ["mixup_alpha", "at least 0", "-1"]),
        ({"method": "stochastic", "cutmix_alpha": -1}, ValueError, ["cutmix_alpha", "at least 0", "-1"]),
        (
            {"method": "stochastic", "switch_probability": 7},
            ValueError,
            ["switch_probability", "[0, 1]", "7"],
        ),
        ({"mean": [1.0]}, ValueError, ["mean and std", "together", "[1.0]", "None"]),
        ({"std": [1.0]}, ValueError, ["mean and std", "together"]),
        ({"mean": "1.0", "std": 1.0}, TypeError, ["mean", "one number per channel", "'1.0'"]),
        ({"mean": float("nan"), "std": 1.0}, ValueError, ["mean", "finite", "nan"]),
        ({"mean": np.ones((3, 1, 1)), "std": 1.0}, TypeError, ["mean", "one number per channel", "array"]),
        ({"mean": 0.0, "std": -1.0}, ValueError, ["std", "above 0", "-1.0"]),
        ({"mean": [], "std": []}, TypeError, ["mean", "one number per channel", "[]"]),
        ({"mean": [1.0, "2"], "std": [1.0, 1.0]}, TypeError, ["mean", "one number per channel", "'2'"]),
        ({"mean": [1.0, 2.0], "std": [1.0, 0.0]}, ValueError, ["std", "above 0", "0.0"]),
        ({"mean": [1.0, 2.0], "std": [1.0]}, ValueError, ["same length", "2 and 1"]),
        ({"mean": [1.0, 2.0], "std": np.ones(3)}, ValueError, ["same length", "2 and 3"]),
        ({**NORM, "scale": 0}, ValueError, ["scale", "not 0", "got 0"]),
        ({**NORM, "shift": float("inf")}, ValueError, ["shift", "finite", "inf"]),
        ({**NORM, "shift": "1"}, TypeError, ["shift", "a number", "'1'"]),
        ({**NORM, "mirror": 2}, ValueError, ["mirror", "0, 1 or a DALI node", "2"]),
        ({**NORM, "mirror": "yes"}, ValueError, ["mirror", "0, 1 or a DALI node", "'yes'"]),
        ({**NORM, "output_dtype": types.INT16}, ValueError, ["output_dtype", "types.FLOAT16", "INT16"]),
        ({**NORM, "output_dtype": "float16"}, ValueError, ["output_dtype", "types.FLOAT16", "'float16'"]),
        ({**NORM, "pad_output": 4}, TypeError, ["pad_output", "True or False", "4"]),
        ({"scale": 2.0}, ValueError, ["scale", "mean=", "2.0"]),
        ({"shift": 1.0}, ValueError, ["shift", "mean=", "1.0"]),
        ({"mirror": 1}, ValueError, ["mirror", "mean=", "1"]),
        ({"output_dtype": types.FLOAT16}, ValueError, ["output_dtype", "mean=", "FLOAT16"]),
        ({"pad_output": True}, ValueError, ["pad_output", "mean=", "True"]),
        ({"output_layout": "CHW"}, ValueError, ["output_layout", "mean=", "'CHW'"]),
        (
            {"mean": [1.0], "std": [1.0], "output_layout": "NCHW"},
            ValueError,
            ["output_layout", "'HWC', 'CHW'", "'NCHW'"],
        ),
        ({"smoothing": 0.1}, TypeError, ["hmix", "'smoothing'", "label_smoothing", "convention"]),
    ],
    ids=str,
)
def test_bad_argument(arguments: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with Pipeline(4, 1, None):
        data, labels = image_source(IMAGES, "HWC"), source([np.array([0], np.int32)] * 4)
        with pytest.raises(error) as caught:
            msda.mix(data, labels, **{"num_classes": 10, "method": "hmix", **arguments})
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_inputs_that_are_no_nodes() -> None:
    with Pipeline(4, 1, None):
        data, labels = image_source(IMAGES, "HWC"), source([np.array([0], np.int32)] * 4)
        with pytest.raises(TypeError, match=r"images must be a DALI node.*ndarray"):
            msda.hmix(IMAGES, labels, num_classes=10)
        with pytest.raises(TypeError, match=r"labels must be a DALI node.*list"):
            msda.hmix(data, [1, 2], num_classes=10)


def test_wrong_devices() -> None:
    with Pipeline(4, 1, 0):
        data, labels = image_source(IMAGES, "HWC"), source([np.array([0], np.int32)] * 4)
        with pytest.raises(ValueError, match="images must be on the CPU with backend='kernel'"):
            msda.hmix(data.gpu(), labels, num_classes=10, backend="kernel")
        with pytest.raises(ValueError, match="lam must be a CPU node"):
            msda.hmix(data, labels, num_classes=10, lam=fn.random.uniform(range=[0.0, 1.0]).gpu())


BACKENDS = ["kernel", "hybrid", "graph"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", msda.METHODS)
@pytest.mark.parametrize("label", [10, -1, 2**31 + 3])
def test_label_out_of_range(label: int, method: str, backend: Any) -> None:
    labels = [np.array([value], np.int64) for value in (0, 1, label, 9)]
    pipeline = build(
        lambda: msda.mix(
            image_source(IMAGES, "HWC"), source(labels), method=method, num_classes=10, backend=backend
        ),
        4,
    )
    with pytest.raises(RuntimeError, match=r"a label must be in \[0, num_classes\)"):
        pipeline.run()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ONE_MASK)
@pytest.mark.parametrize(
    ("sizes", "partner"),
    [
        ([(8, 8), (8, 9)], None),
        ([(8, 8), (4, 16)], None),  # the same number of pixels
        ([(8, 8), (1, 1)], 1),  # a partner that would broadcast
        ([(8, 8), (4, 4)], 1),
        ([(500, 500), (2, 2)], 1),
    ],
)
def test_sizes_that_differ(
    sizes: list[tuple[int, int]], partner: int | None, method: str, backend: Any
) -> None:
    images = [random_images(1, size)[0] for size in sizes] * 3
    # With this seed the permutation does not only swap images of equal size.
    with pytest.raises(RuntimeError, match="images differ in size") as caught:
        run_mix(method, images, partner=partner, backend=backend, seed=0)
    assert "slice_anchor={1}" in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8, 3)])
def test_images_that_are_not_three_dimensional(shape: tuple[int, ...], backend: Any) -> None:
    data = [np.zeros(shape, np.uint8)] * 2
    pipeline = build(
        lambda: msda.hmix(
            source(data, dtype=types.UINT8),
            source([np.array([0], np.int32)] * 2),
            num_classes=2,
            backend=backend,
        ),
        2,
    )
    with pytest.raises(RuntimeError) as caught:
        pipeline.run()
    words = "msda.hmix: layout must have a letter for each dimension of the images; got 3 for "
    assert msda.explain(caught.value) == f"{words}{len(shape)} dimensions"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("layout", "told"), [("CHW", "HWC"), ("HWC", "CHW")])
def test_layout_that_is_not_the_images(layout: str, told: Any, backend: Any) -> None:
    pipeline = build(
        lambda: msda.hmix(
            labelled_at_run_time(layout),
            source([np.array([0], np.int32)] * 2),
            num_classes=2,
            layout=told,
            backend=backend,
        ),
        2,
    )
    with pytest.raises(RuntimeError, match="wrong layout=") as caught:
        pipeline.run()
    assert "slice_anchor={2}" in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_partner_out_of_range(backend: Any) -> None:
    with pytest.raises(RuntimeError, match=r"out of range|index"):
        run_mix("mixup", IMAGES, partner=4, backend=backend)
