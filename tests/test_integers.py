"""Images of 16-bit integers are mixed as exactly as uint8; types that float32 does not hold are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, types

import dali_msda as msda
from tests.devices import array, in_every_form
from tests.running import build, image_source, source

COUNT, SIZE = 4, (23, 30)
PARTNER = np.array([2, 3, 1, 0], np.int32)
INTEGERS = [np.int16, np.uint16]
# Half a step of rounding, and float32: the weights, two products of up to 65535 and their sum.
BOUND = 0.51


def random_integers(dtype: Any, seed: int = 0) -> np.ndarray:
    """Images with numbers of the whole range, both ends included."""
    info = np.iinfo(dtype)
    images = np.random.default_rng(seed).integers(info.min, info.max + 1, (COUNT, *SIZE, 3)).astype(dtype)
    images[:, 0], images[:, 1] = info.min, info.max
    return images


def labels() -> Any:
    return source([np.array([0], np.int32)] * COUNT)


def run(define: Callable[[], Any], device: str) -> list[np.ndarray]:
    return [array(output) for output in build(define, COUNT, device=device).run()]


@in_every_form
@pytest.mark.parametrize("dtype", INTEGERS)
def test_mixed_to_the_nearest_integer(dtype: Any, backend: Any, device: str) -> None:
    """Masks with rows and columns, of a box, and the caller's for every pixel; a second source."""
    images, others = random_integers(dtype), random_integers(dtype, 1)
    given = np.random.default_rng(2).random((COUNT, *SIZE)).astype(np.float32)
    given[:, :, 3], given[:, :, 4] = 0, 1

    def define() -> Any:
        own, other = (image_source(values, "HWC", device=device) for values in (images, others))
        partner = source(PARTNER)
        form: dict[str, Any] = {"partner": partner, "backend": backend, "seed": 1}
        hmix, params = msda.hmix(own, None, return_params=True, **form)
        cutmix, box = msda.cutmix(own, None, return_params=True, **form)
        second = msda.hmix(own, None, partner_images=other, **form)
        mask = source(list(given))
        form["seed"] = None
        blended, _ = msda.blend(own, labels(), num_classes=2, mask=mask, **form)
        return hmix, params.mask, cutmix, box.mask, second, blended

    hmix, mask, cutmix, box, second, blended = run(define, device)
    cases = [
        ("hmix", hmix, mask, images),
        ("cutmix", cutmix, box, images),
        ("second source", second, mask, others),
        ("blend", blended, given[..., None], images),
    ]
    for name, mixed, weight, partners in cases:
        assert mixed.dtype == dtype, name
        exact = weight.astype(np.float64) * images
        exact += (1 - weight.astype(np.float64)) * partners[PARTNER]
        assert np.abs(mixed - exact).max() <= BOUND, name
    assert set(np.unique(box)) == {0, 1}
    np.testing.assert_array_equal(cutmix, np.where(box == 1, images, images[PARTNER]))


@in_every_form
@pytest.mark.parametrize("dtype", [np.uint8, *INTEGERS])
def test_rounding_of_halves(dtype: Any, backend: Any, device: str) -> None:
    """On the CPU away from 0 in every form; DALI's operators on a GPU round them to even."""
    steps = np.arange(30, dtype=np.int64).reshape(1, 30, 1)
    signed = np.iinfo(dtype).min < 0
    images = np.stack([0 * steps, steps, -steps if signed else steps, 2 * steps]).astype(dtype)

    def define() -> Any:
        own = image_source(images, "HWC", device=device)
        return (msda.mixup(own, None, lam=0.5, partner=source(PARTNER), backend=backend),)

    (mixed,) = run(define, device)
    exact = (images.astype(np.float64) + images[PARTNER]) / 2
    assert (exact % 1 == 0.5).any()
    away = np.trunc(exact + 0.5 * np.sign(exact))
    np.testing.assert_array_equal(mixed, away if device == "cpu" else np.rint(exact))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_normalised_and_taken_whole(dtype: Any) -> None:
    images = random_integers(dtype)

    def define() -> Any:
        own = image_source(images, "HWC")
        drawn = msda.draw("hmix", own, partner=source(PARTNER), seed=1)
        mean_std: dict[str, Any] = {"mean": [1.0, 2.0, 3.0], "std": 100.0, "output_layout": "CHW"}
        return (
            msda.apply(own, drawn),
            msda.apply(own, drawn, **mean_std),
            msda.apply(own, drawn, nearest=True),
        )

    mixed, normal, nearest = run(define, "cpu")
    exact = ((mixed.astype(np.float64) - [1, 2, 3]) / 100).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normal, exact, rtol=1e-6, atol=1e-6)
    from_own, from_partner = nearest == images, nearest == images[PARTNER]
    assert (from_own | from_partner).all()
    assert not from_own.all()


# Every entry that takes images, with a node of the wrong type.
ENTRIES: dict[str, Callable[[Any, Any], Any]] = {
    "mix": lambda own, wrong: msda.mix(wrong, labels(), 2),
    "mix, none": lambda own, wrong: msda.mix(wrong, labels(), 2, method="none"),
    "one of two views": lambda own, wrong: msda.mix([own, wrong], labels(), 2),
    "blend": lambda own, wrong: msda.blend(wrong, labels(), num_classes=2, mask=(labels(), labels())),
    "apply": lambda own, wrong: msda.apply(wrong, msda.draw("hmix", own)),
    "partner_images": lambda own, wrong: msda.mix(
        own, labels(), 2, partner_images=wrong, partner_labels=labels()
    ),
    "partner_images of apply": lambda own, wrong: msda.apply(
        own, msda.draw("hmix", own), partner_images=wrong
    ),
}
WRONG = ["BOOL", "INT8", "INT32", "UINT32", "INT64", "UINT64", "FLOAT64"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_other_types_are_refused(entry: str) -> None:
    name = entry.partition(" of ")[0] if entry.startswith("partner") else "images"
    for kind in WRONG:
        with Pipeline(COUNT, 1, None):
            own, wrong = (
                source([np.zeros((8, 8, 3))] * COUNT, dtype=dtype, ndim=3, layout="HWC")
                for dtype in (types.UINT8, getattr(types, kind))
            )
            with pytest.raises(TypeError) as caught:
                ENTRIES[entry](own, wrong)
        expected = "uint8, int16, uint16, float16 or float32"
        assert str(caught.value) == f"{name} must be {expected}; got a node of type {kind}"


@in_every_form
def test_a_wider_type_that_the_graph_does_not_show(backend: Any, device: str) -> None:
    """It is mixed as float32, which holds these numbers."""
    images = random_integers(np.int16).astype(np.int32)

    def define() -> Any:
        own = image_source(images, "HWC", typed=False, device=device)
        mixed, params = msda.hmix(own, None, partner=source(PARTNER), return_params=True, backend=backend)
        return mixed, params.mask

    mixed, mask = run(define, device)
    assert mixed.dtype == np.int32
    exact = mask.astype(np.float64) * images + (1 - mask.astype(np.float64)) * images[PARTNER]
    assert np.abs(mixed - exact).max() <= BOUND
