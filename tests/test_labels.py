"""Labels of every kind, and what becomes of them, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, types

import dali_msda as msda
from tests.devices import in_every_form, on_each_device, placed
from tests.running import build, image_source, outputs, random_images, source

COUNT, K = 6, 5
IMAGES = random_images(COUNT, (8, 10))
PARTNER = np.array([3, 0, 2, 1, 5, 4], np.int32)
IDS = np.array([0, 3, 4, 1, 1, 2])
LAM = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.1], np.float32)
Arrays = np.ndarray[Any, Any]

ONE_HOT = np.eye(K, dtype=np.float32)[IDS]
SOFT = np.random.default_rng(0).dirichlet(np.ones(K), COUNT).astype(np.float32)
MULTI_HOT = (np.random.default_rng(1).random((COUNT, K)) < 0.5).astype(np.float32)

_TYPES = {
    np.dtype(name): getattr(types, "FLOAT" if name == "float32" else name.upper())
    for name in (
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "float32", "float64"),
    )
}


def label_source(labels: Arrays, *, typed: bool = True, device: str = "cpu") -> Any:
    known = {"dtype": _TYPES[labels.dtype]} if typed else {}
    return placed(source(list(labels), **known), device)


def mixup(labels: Any, num_classes: int | None = K, *, device: str = "cpu", **arguments: Any) -> Any:
    """Mixup with given lam and partner: targets are known exactly."""
    given = {"lam": source(list(LAM)), "partner": source(list(PARTNER))}
    images = image_source(IMAGES, "HWC", device=device)
    return msda.mixup(images, labels, num_classes, **given, **arguments)


def flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [node for part in value for node in flat(part)]
    return [value]


def run(define: Callable[[], Any], device: str = "cpu") -> list[Arrays]:
    (batch,) = outputs(lambda: flat(define()), COUNT, device=device)
    return batch


def expected(own: Arrays, smoothing: float = 0.0) -> Arrays:
    hot = own.astype(np.float64)
    hot = (1 - smoothing) * hot + smoothing / hot.shape[1]
    lam = LAM[:, None].astype(np.float64)
    mixed: Arrays = lam * hot + (1 - lam) * hot[PARTNER]
    return mixed


def assert_targets(targets: Arrays, exact: Arrays) -> None:
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, exact, rtol=0, atol=1e-6)


@in_every_form
@pytest.mark.parametrize("name", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_class_ids(name: str, backend: Any, device: str) -> None:
    """Scalars and vectors of one."""
    shape = (1,) if name.startswith("u") else ()
    labels = IDS.astype(name).reshape(COUNT, *shape)
    typed = name != "uint8"  # and where the graph does not show the type
    _, targets = run(lambda: mixup(label_source(labels, typed=typed), backend=backend, device=device), device)
    assert_targets(targets, expected(ONE_HOT))


@in_every_form
@pytest.mark.parametrize(
    ("vectors", "dtype", "num_classes", "smoothing"),
    [
        pytest.param(ONE_HOT, "float32", None, 0.0, id="one-hot"),
        pytest.param(SOFT, "float32", K, 0.1, id="soft, smoothed"),
        pytest.param(MULTI_HOT, "float32", None, 0.1, id="multi-hot, smoothed"),
        pytest.param(SOFT, "float16", K, 0.0, id="half"),
        pytest.param(MULTI_HOT, "float64", None, 0.0, id="double"),
    ],
)
def test_vectors(
    vectors: Arrays, dtype: str, num_classes: int | None, smoothing: float, backend: Any, device: str
) -> None:
    labels = vectors.astype(dtype)

    def define() -> Any:
        return mixup(
            label_source(labels), num_classes, label_smoothing=smoothing, backend=backend, device=device
        )

    _, targets = run(define, device)
    assert_targets(targets, expected(labels, smoothing))


def test_an_operator_that_makes_vectors() -> None:
    """The graph shows their type without a dtype."""
    _, targets = run(lambda: mixup(fn.one_hot(label_source(IDS), num_classes=K)))
    assert_targets(targets, expected(ONE_HOT))


@in_every_form
def test_no_labels(backend: Any, device: str) -> None:
    """The images are those of a call with labels, alone or with what was drawn."""
    with_labels = run(lambda: mixup(label_source(IDS), backend=backend, device=device), device)
    (alone,) = run(lambda: mixup(None, None, backend=backend, device=device), device)
    np.testing.assert_array_equal(alone, with_labels[0])
    images, lam, *_ = run(lambda: mixup(None, backend=backend, device=device, return_params=True), device)
    np.testing.assert_array_equal(images, alone)
    np.testing.assert_array_equal(lam, LAM)


@in_every_form
def test_a_pair(backend: Any, device: str) -> None:
    """``lam * loss(own) + (1 - lam) * loss(partner)`` is the loss of the dense targets."""
    _, own, partner, lam = run(
        lambda: mixup(label_source(IDS), output="pair", backend=backend, device=device), device
    )
    assert (own.dtype, partner.dtype, lam.dtype) == (np.int64, np.int64, np.float32)
    assert own.shape == partner.shape == lam.shape == (COUNT,)
    np.testing.assert_array_equal(own, IDS)
    np.testing.assert_array_equal(partner, IDS[PARTNER])
    np.testing.assert_array_equal(lam, LAM)
    _, targets = run(lambda: mixup(label_source(IDS), backend=backend, device=device), device)
    eye = np.eye(K)
    assert_targets(targets, lam[:, None] * eye[own] + (1 - lam[:, None]) * eye[partner])


def test_a_pair_of_any_ids() -> None:
    """Without num_classes they are not limited."""
    _, own, _, _ = run(lambda: mixup(label_source(IDS + 10**6), None, output="pair"))
    np.testing.assert_array_equal(own, IDS + 10**6)


@in_every_form
def test_a_pair_of_vectors(backend: Any, device: str) -> None:
    _, own, partner, _ = run(
        lambda: mixup(label_source(SOFT), None, output="pair", backend=backend, device=device), device
    )
    np.testing.assert_array_equal(own, SOFT)
    np.testing.assert_array_equal(partner, SOFT[PARTNER])


@pytest.mark.gpu
@pytest.mark.parametrize("labels", [IDS, SOFT], ids=["ids", "vectors"])
def test_labels_on_the_gpu(labels: Arrays) -> None:
    _, targets = run(lambda: mixup(label_source(labels, device="gpu"), device="gpu"), "gpu")
    assert_targets(targets, expected(SOFT if labels is SOFT else ONE_HOT))


# -- What stops a pipeline ----------------------------------------------------------------------------------

BAD = {
    "an id above the classes": (np.array([0, 1, 2, 3, 4, 5]), K, "a label must be in"),
    "a negative id": (np.array([0, 1, 2, 3, 4, -1]), K, "a label must be in"),
    "several ids": (np.zeros((COUNT, 2), np.int64), K, "one integer per image"),
    "vectors that are too short": (SOFT[:, :4].copy(), K, "num_classes"),
    "vectors that are too long": (np.zeros((COUNT, 6), np.float32), K, "num_classes"),
    "a float": (np.full(COUNT, 2.7, np.float32), None, "vectors"),
    "a float in a vector": (np.full((COUNT, 1), 2.7, np.float32), None, "vectors"),
    "a float with num_classes": (np.full((COUNT, 1), 2.7, np.float32), K, "num_classes"),
    "a matrix": (np.zeros((COUNT, 2, 3), np.float32), None, "vectors"),
}


@pytest.mark.parametrize("backend", ["kernel", "hybrid", "graph"])
@pytest.mark.parametrize("name", BAD)
def test_bad_labels(name: str, backend: Any) -> None:
    labels, num_classes, words = BAD[name]
    output: Any = "pair" if backend == "graph" else "dense"
    pipeline = build(
        lambda: flat(mixup(label_source(labels), num_classes, output=output, backend=backend)), COUNT
    )
    with pytest.raises(RuntimeError, match=words):
        pipeline.run()


def test_floats_of_a_hidden_type() -> None:
    """What is neither seen to be a vector nor an integer is refused as it comes."""
    pipeline = build(lambda: mixup(label_source(SOFT, typed=False)), COUNT)
    with pytest.raises(RuntimeError, match="labels must be integers"):
        pipeline.run()


REFUSED = {
    "no num_classes": (lambda: mixup(label_source(IDS), None), "num_classes must be given with class ids"),
    "no num_classes for the function": (
        lambda: msda.hmix(image_source(IMAGES, "HWC"), label_source(IDS)),
        "num_classes must be given with class ids",
    ),
    "smoothing of a pair": (
        lambda: mixup(label_source(IDS), output="pair", label_smoothing=0.1),
        "label_smoothing must be 0 with output='pair'",
    ),
    "another form": (
        lambda: mixup(label_source(IDS), output="sparse"),
        "output must be one of 'dense', 'pair'",
    ),
    "labels that are no node": (lambda: mixup([1, 2]), "labels must be a DALI node"),
    "partner_labels alone": (
        lambda: mixup(label_source(IDS), partner_labels=label_source(IDS)),
        "partner_labels must be left out without partner_images",
    ),
}


@pytest.mark.parametrize(("define", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(define: Callable[[], Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        build(lambda: flat(define()), COUNT)


# -- The label weight ---------------------------------------------------------------------------------------


@in_every_form
def test_drawn_lam(backend: Any, device: str) -> None:
    """``correct_lam=False``: the drawn lam, not the mean of a mask that is cut off by the border."""
    given = {
        "lam": source(list(LAM)),
        "partner": source(list(PARTNER)),
        "center": source([np.zeros(2, np.int32)] * COUNT),
    }

    def define(correct: bool) -> Any:
        return msda.cutmix(
            image_source(IMAGES, "HWC", device=device),
            label_source(IDS),
            K,
            backend=backend,
            correct_lam=correct,
            return_params=True,
            **given,
        )

    _, targets, lam, _, mask = run(lambda: define(False), device)
    np.testing.assert_array_equal(lam, LAM)
    assert_targets(targets, expected(ONE_HOT))
    assert np.abs(mask.mean((1, 2, 3)) - LAM).max() > 0.2
    _, _, lam, _, mask = run(lambda: define(True), device)
    np.testing.assert_allclose(lam, mask.mean((1, 2, 3)), atol=1e-6)


def test_drawn_lam_of_stochastic() -> None:
    """That of the method which the coin chose; 1 where a sample is not mixed."""

    def define() -> Any:
        _, targets, params = msda.stochastic(
            image_source(random_images(COUNT, (64, 64)), "HWC"),
            label_source(IDS),
            K,
            correct_lam=False,
            return_params=True,
            probability=0.7,
            seed=5,
        )
        return targets, *params

    seen = set()
    for _, lam, _, mask in outputs(define, COUNT, batches=20):
        for weight, pixels in zip(lam, mask, strict=True):
            if pixels.min() == 1.0:
                assert weight == 1.0 or 1 - weight < 2e-3  # a box of less than two pixels is none
                continue
            cut = pixels.min() == 0.0 and pixels.max() == 1.0
            seen.add(cut)
            if not cut:
                assert weight == pixels.min() == pixels.max()
            else:  # a box with even sides that may be cut off: never larger than what was drawn
                assert 1 - weight >= (1 - pixels.mean()) - 1e-6
    assert seen == {True, False}


@pytest.mark.parametrize("backend", ["kernel", "graph"])
@pytest.mark.parametrize("method", msda.methods.MIXING)
@pytest.mark.parametrize("as_node", [False, True], ids=["number", "node"])
def test_alpha_of_zero_does_not_mix(method: str, backend: Any, as_node: bool) -> None:
    """As in timm and torchvision, where that is how mixing is switched off."""
    images = random_images(COUNT, (9, 11))

    def define() -> Any:
        alpha = source([np.float32(0.0)] * COUNT) if as_node else 0
        return msda.mix(
            image_source(images, "HWC"), label_source(IDS), K, method=method, alpha=alpha, backend=backend
        )

    mixed, targets = run(define)
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(targets, ONE_HOT)


def test_some_alphas_of_zero() -> None:
    """A node decides for each sample; the others draw as before."""
    alphas = np.array([0, 1, 0, 1, 0, 1], np.float32)

    def define(values: Arrays) -> Any:
        *_, params = msda.gmix(
            image_source(IMAGES, "HWC"),
            label_source(IDS),
            K,
            alpha=source(list(values)),
            seed=3,
            return_params=True,
        )
        return list(params)

    (lam, *_), (all_mixed, *_) = run(lambda: define(alphas)), run(lambda: define(np.ones_like(alphas)))
    np.testing.assert_array_equal(lam, np.where(alphas > 0, all_mixed, 1.0))


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alphas_that_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be at least 0; got"):
        build(lambda: msda.hmix(image_source(IMAGES, "HWC"), label_source(IDS), K, alpha=alpha), COUNT)


# -- Partners -----------------------------------------------------------------------------------------------


@on_each_device
def test_nobody_is_their_own_partner(device: str) -> None:
    """Every other sample is as likely as any, by chi-square."""
    size = 4

    def define() -> Any:
        *_, params = msda.mixup(
            image_source(random_images(size, (2, 2)), "HWC", device=device),
            None,
            allow_self=False,
            seed=1,
            return_params=True,
        )
        return [params.partner]

    batches = np.stack([partner for (partner,) in outputs(define, size, batches=2000, device=device)])
    counts = np.stack([np.bincount(batches[:, place], minlength=size) for place in range(size)])
    assert (np.diag(counts) == 0).all()
    others = counts[~np.eye(size, dtype=bool)].reshape(size, size - 1)
    statistic = ((others - 2000 / 3) ** 2 / (2000 / 3)).sum(1)
    assert (statistic < 13.8).all(), others  # 0.1 % with 2 degrees of freedom


@pytest.mark.parametrize("backend", ["kernel", "hybrid", "graph"])
def test_alone_in_a_batch(backend: Any) -> None:
    images = random_images(1, (4, 5))
    mixed, targets = outputs(
        lambda: msda.hmix(
            image_source(images, "HWC"), label_source(IDS[:1]), K, allow_self=False, backend=backend
        ),
        1,
    )[0]
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(targets, ONE_HOT[:1])


def test_a_given_partner_decides() -> None:
    with pytest.raises(ValueError, match="allow_self must be True with partner="):
        build(lambda: mixup(label_source(IDS), allow_self=False), COUNT)
