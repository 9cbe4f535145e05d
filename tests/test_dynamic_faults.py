"""Dynamic mode: its names and arguments are those of a pipeline, and errors name the argument."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import pytest

import dali_msda as pipeline_msda
from dali_msda import dynamic as msda
from dali_msda import methods
from dali_msda.masks import Dense, Separable
from dali_msda.methods import MIXING, Argument, Method
from tests.dynamic import batch, data, numpy_of


def test_registered_methods_have_a_function() -> None:
    method = Method(
        name="veil",
        title="Veil",
        summary="`level`",
        arguments=(Argument(name="level", default=0.25, fraction=True, help="The level."),),
        mask=lambda f, grid, level: Separable(f.minimum(2.0 * f.sqrt(f.constant(0.25)) * level, 1.0)),
    )
    ramp = Method(
        name="ramp",
        title="Ramp",
        summary="from the top down",
        mask=lambda f, grid: Dense(
            (grid.rows.pixels + 0.0 * grid.columns.pixels) / f.maximum(grid.rows.size - 1.0, 1.0)
        ),
    )
    for one in (method, ramp):
        pipeline_msda.register(one)
    try:
        own, partner = data("HWC", "float32"), [1, 2, 0]
        weight = (np.arange(8) / 7).astype(np.float32)[:, None, None]
        for backend in ("kernel", "hybrid", "graph"):
            common = {"partner": np.array(partner), "backend": backend}
            found = numpy_of(msda.veil(batch(own), None, level=0.5, **common))
            np.testing.assert_array_equal(found, 0.5 * own + 0.5 * own[partner])
            images, targets = msda.ramp(batch(own), np.arange(3), 3, **common)
            np.testing.assert_allclose(
                numpy_of(images), weight * own + (1 - weight) * own[partner], rtol=0, atol=6e-5
            )
            np.testing.assert_allclose(numpy_of(targets), (np.eye(3) + np.eye(3)[partner]) / 2, atol=1e-6)
        assert "Veil" in msda.veil.__doc__
        assert "level : float, Batch or Beta" in msda.veil.__doc__
    finally:
        del methods.TABLE["veil"], methods.TABLE["ramp"]
    with pytest.raises(AttributeError, match=r"module 'dali_msda.dynamic' has no attribute 'veil'"):
        _ = msda.veil


@pytest.mark.parametrize("name", ["mix", "draw", "apply", "mix_labels", *MIXING])
def test_arguments_are_those_of_the_pipeline(name: str) -> None:
    """With `rng` in place of `seed`, and without `name`, which is for the graph."""
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (msda, pipeline_msda))
    assert set(ours) - {"rng"} == set(theirs) - {"seed", "name"}
    defaults = {key: value.default for key, value in ours.items() if key != "rng"}
    assert defaults == {key: theirs[key].default for key in defaults}


HWC = data("HWC")
BATCH = batch(HWC)
RAGGED = ndd.as_batch([HWC[0], HWC[1, :4].copy(), HWC[2]], layout="HWC")
LABELS = np.array([4, 0, 4], np.int32)
SOFT = np.random.default_rng(0).uniform(size=(3, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": HWC}, r"images must be a Batch of dynamic mode \(ndd.as_batch .*\); got 'ndarray'"),
        ({"images": []}, "images must be a Batch or a sequence of them; got 'an empty one'"),
        ({"images": [BATCH, batch(HWC[:2])]}, "images must be of 3 samples, like images; got 2"),
        ({"images": batch(HWC.astype(np.int32))}, "images must be uint8, .*; got 'a batch of INT32'"),
        ({"images": RAGGED, "partner": np.array([1, 0, 2])},
         r"images must be of one size within a batch, \(8, 11, 3\); got \(4, 11, 3\)"),
        ({"layout": "CHW"}, "layout must be 'HWC', which the batch shows for images; got 'CHW'"),
        ({"images": ndd.as_batch(HWC), "layout": "FHWC"}, "layout must be one letter for each of the 3"),
        ({"labels": np.array([0, 5, 1])}, r"labels must be in \[0, 5\); got '5 in sample 1'"),
        ({"labels": np.array([0, 1, -1])}, r"labels must be in \[0, 5\); got '-1 in sample 2'"),
        ({"labels": np.array([0, 1])}, "labels must be of 3 samples, as images are; got 2"),
        ({"labels": np.array([0.5, 1, 2])}, "labels must be class ids or vectors of 5 floats; got"),
        ({"labels": SOFT[:, :4]}, "labels must be class ids or vectors of 5 floats; got"),
        ({"labels": "cat"}, "labels must be a Batch of dynamic mode or an array, .*; got 'str'"),
        ({"num_classes": None}, "num_classes must be given with class ids, as the targets' length; got None"),
        ({"num_classes": 0}, "num_classes must be at least 1; got 0"),
        ({"rng": 1}, "rng must be an ndd.random.RNG or None; got 1"),
        ({"seed": 1}, "hmix has no argument 'seed'; .*rng"),
        ({"name": "x"}, "hmix has no argument 'name'"),
        ({"ration": 0.5}, "hmix has no argument 'ration'; did you mean ratio"),
        ({"ratio": np.array([0.5, 1.5, 0.2])}, r"ratio must be in \[0, 1\]; got 1.5"),
        ({"ratio": np.array([0.5, 1.0])}, r"ratio must be one value per sample, \[3\]; got"),
        ({"alpha": -1.0}, "alpha must be at least 0; got -1.0"),
        ({"alpha": np.array([1.0, -1.0, 1.0])}, "alpha must be at least 0; got -1.0"),
        ({"lam": 2.0}, r"lam must be in \[0, 1\]; got 2.0"),
        ({"lam": np.array([0.0, 1.0, np.nan])}, r"lam must be in \[0, 1\]; got nan"),
        ({"lam": "a"}, r"lam must be a number in \[0, 1\]; got 'a'"),
        ({"probability": np.array([0.0, 1.0, 1.5])}, r"probability must be in \[0, 1\]; got 1.5"),
        ({"center": np.array([[0, 0], [1, -1], [2, 2]])}, r"center must be .* at least 0; got .*sample 1"),
        ({"center": (0.5, 1)}, "center row must be a pixel index of at least 0; got 0.5"),
        ({"partner": 3}, r"partner must be in \[0, 3\), an index within the batch; got 3"),
        ({"partner": np.array([0, 1, 3])}, r"partner must be in \[0, 3\); got '3 in sample 2'"),
        ({"partner": np.array([0.0, 1, 2])}, "partner must be"),
        ({"allow_self": False, "partner": 0}, "allow_self must be True with partner=, which decides"),
        ({"partner_images": BATCH}, "partner_labels must be given with partner_images"),
        ({"partner_labels": LABELS}, "partner_labels must be left out without partner_images; got"),
        ({"partner_images": batch(HWC[:2]), "partner_labels": LABELS}, "partner_images must be of 3 samples"),
        ({"partner_images": batch(HWC.astype(np.float32)), "partner_labels": LABELS},
         "partner_images must be of type UINT8, as images are; got 'FLOAT'"),
        ({"partner_images": BATCH, "partner_labels": SOFT}, "partner_labels must be of the kind and length"),
        ({"mean": [1.0, 2.0], "std": 1.0}, r"mean must be .* each of the 3 channels; got \(1.0, 2.0\)"),
        ({"mean": 1.0}, "mean and std must be given together; got"),
        ({"mirror": np.array([0, 1, 2])}, "mirror must be 0 or 1 for every sample; got"),
        ({"scale": 2.0}, r"scale must be left out without mean= and std=; got 2.0"),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'kernel', 'hybrid', 'graph'; got 'cuda'"),
        ({"return_params": 1}, "return_params must be True or False; got 1"),
        ({"granularity": "image"}, "granularity must be one of"),
        ({"output": "pair", "label_smoothing": 0.1}, "label_smoothing must be 0 with output='pair'"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"images": BATCH, "labels": LABELS, "num_classes": 5, "rng": None, **arguments}
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as caught:
        msda.hmix(given.pop("images"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


def test_errors_of_the_steps() -> None:
    drawn = msda.draw("cutmix", BATCH)
    with pytest.raises(TypeError, match=r"^drawn must be what dynamic.draw returns; got 1"):
        msda.apply(BATCH, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^drawn must be what dynamic.draw returns; got 1"):
        msda.mix_labels(LABELS, 1, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^mean must be left out with nearest=True; got 1.0"):
        msda.apply(BATCH, drawn, nearest=True, mean=1.0, std=1.0)
    with pytest.raises(ValueError, match=r"^images must be of 3 samples, like images; got 2"):
        msda.apply(batch(HWC[:2]), drawn)
    with pytest.raises(
        ValueError, match=r"^correct_lam must be True with 'none', which draws no lam; got False"
    ):
        msda.mix(BATCH, LABELS, 5, method="none", correct_lam=False)
