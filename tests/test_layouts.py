"""Layouts: read from the graph as DALI has them at run time; every one mixed, against NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, math, newaxis, pipeline_def, tensors, types
from nvidia.dali.auto_aug import rand_augment

import dali_msda as msda
from dali_msda.layouts import LAYOUTS, static_layout
from tests import reference
from tests.devices import in_every_form, placed
from tests.graph_check import problems
from tests.running import build, outputs, source
from tests.test_dtypes import encoded, photo

Arrays = np.ndarray[Any, Any]
BACKENDS = ["kernel", "hybrid", "graph"]


def zeros(layout: str, **sides: int) -> Any:
    """Zeros of a layout that the graph shows; sides are 5 unless others are given."""
    shape = [sides.get(letter, 3 if letter == "C" else 5) for letter in layout]
    return source([np.zeros(shape, np.uint8)] * 2, layout=layout, dtype=types.UINT8)


def unlabelled(*shape: int) -> Any:
    return source([np.zeros(shape, np.uint8)] * 2, dtype=types.UINT8)


def constant(*numbers: int) -> Any:
    return types.Constant(np.array(numbers, np.int32), device="cpu")


def half(images: Any) -> Any:
    return fn.reshape(fn.cast(images, dtype=types.FLOAT), shape=[5, 5, 3]) * 0.5


def mixed_zeros(backend: Any, layout: str) -> Any:
    return msda.hmix(zeros(layout), None, backend=backend)


# What the graph shows; each of these is compared with DALI's layout at run time.
SEEN: dict[str, Callable[[], Any]] = {
    "decoder": photo,
    "random crop": lambda: fn.decoders.image_random_crop(encoded()),
    "decoded slice": lambda: fn.decoders.image_slice(encoded(), start=[1, 1], shape=[4, 4], axes=[0, 1]),
    "resize": lambda: fn.resize(photo(), size=[8, 8]),
    "resize of planes": lambda: fn.resize(zeros("CHW"), size=[8, 8]),
    "resize of a clip": lambda: fn.resize(zeros("FHWC"), size=[8, 8]),
    "normalised": lambda: fn.crop_mirror_normalize(photo()),
    "normalised, HWC": lambda: fn.crop_mirror_normalize(unlabelled(5, 5, 3), output_layout="HWC"),
    "normalised, as it was": lambda: fn.crop_mirror_normalize(photo(), output_layout=""),
    "a normalised clip": lambda: fn.crop_mirror_normalize(zeros("FHWC"), output_layout="FCHW"),
    "normalize": lambda: fn.normalize(photo()),
    "flip": lambda: fn.flip(zeros("CHW")),
    "rotate": lambda: fn.rotate(photo(), angle=10),
    "crop, pad, erase": lambda: fn.erase(
        fn.pad(fn.crop(photo(), crop=[4, 4]), axes=[0], shape=[9]), anchor=[1, 1], shape=[2, 2]
    ),
    "warp": lambda: fn.warp_affine(zeros("HWC"), matrix=[1, 0, 0, 0, 1, 0]),
    "colours": lambda: fn.color_twist(fn.brightness_contrast(photo()), hue=10.0),
    "grey": lambda: fn.color_space_conversion(photo(), image_type=types.RGB, output_type=types.GRAY),
    "blur, noise": lambda: fn.noise.gaussian(fn.gaussian_blur(photo(), sigma=1.0)),
    "JPEG distortion": lambda: fn.jpeg_compression_distortion(photo(), quality=10),
    "cast, copy": lambda: fn.copy(fn.cast(zeros("CHW"), dtype=types.FLOAT)),
    "cast like": lambda: fn.cast_like(zeros("CHW"), photo()),
    "reinterpreted": lambda: fn.reinterpret(zeros("CHW"), dtype=types.INT8),
    "permuted": lambda: fn.permute_batch(zeros("FHWC"), indices=[1, 0]),
    "sliced": lambda: fn.slice(photo(), 1, 4, axes=[0]),
    "reshaped with a layout": lambda: fn.reshape(zeros("FHW"), layout="CHW"),
    "reshaped to as many sides": lambda: fn.reshape(zeros("CHW"), shape=[5, 3, 5]),
    "reshaped by source": lambda: fn.reshape(zeros("CHW"), src_dims=[0, 1, 2]),
    "a new axis": lambda: fn.expand_dims(zeros("HW"), axes=[2], new_axis_names="C"),
    "two new axes": lambda: fn.expand_dims(zeros("HW"), axes=[3, 0], new_axis_names="CF"),
    "a subscript's new axis": lambda: photo()[newaxis("F")],
    "squeezed": lambda: fn.squeeze(zeros("FHWC", F=1), axes=[0]),
    "squeezed by name": lambda: fn.squeeze(zeros("HWC", C=1), axis_names="C"),
    "transposed": lambda: fn.transpose(photo(), perm=[2, 0, 1]),
    "transposed by default": lambda: fn.transpose(photo()),
    "transposed without its layout": lambda: fn.transpose(photo(), perm=[2, 0, 1], transpose_layout=False),
    "transposed to a layout": lambda: fn.transpose(unlabelled(5, 5, 3), perm=[2, 0, 1], output_layout="CHW"),
    "a frame": lambda: zeros("FCHW")[0],
    "a range": lambda: photo()[1:4, :, 0],
    "an element": lambda: fn.element_extract(zeros("FHWC"), element_map=[0]),
    "cat": lambda: fn.cat(zeros("CHW"), zeros("CHW"), axis=0),
    "stack": lambda: fn.stack(photo(), photo(), axis_name="F"),
    "class planes": lambda: fn.one_hot(zeros("HW"), num_classes=3, axis=0, axis_name="C"),
    "arithmetic": lambda: 2 - zeros("CHW") * 0.5,
    "arithmetic of what is broadcast": lambda: zeros("WC") * zeros("HWC"),
    "arithmetic with unlabelled numbers": lambda: unlabelled(5, 5, 3) * half(zeros("HWC")),
    "comparison": lambda: photo() > 3,
    "mathematics": lambda: math.sqrt(photo() * 1.0),
    "constant": lambda: types.Constant(np.zeros((4, 4, 3), np.uint8), device="cpu", layout="HWC"),
    "one of several": lambda: fn.external_source(
        source=lambda: [[np.zeros((2, 2), np.uint8)] * 2, [np.zeros((2, 2, 2), np.uint8)] * 2],
        num_outputs=2,
        layout=["HW", "CHW"],
    )[1],
    **{
        f"mixed, {backend}, {layout}": functools.partial(mixed_zeros, backend, layout)
        for backend in BACKENDS
        for layout in LAYOUTS
    },
    "mixed and normalised": lambda: msda.hmix(
        photo_like(), None, mean=[0.0] * 3, std=[1.0] * 3, output_layout="CHW"
    ),
}  # fmt: skip
# Where nothing may be guessed, because DALI has no layout or only the data shows it.
NOT_SEEN: dict[str, Callable[[], Any]] = {
    "external": lambda: unlabelled(5, 5, 3),
    "resize of external": lambda: fn.resize(unlabelled(5, 5, 3), size=[8, 8]),
    "reshaped": lambda: fn.reshape(photo(), shape=[-1, 3]),
    "reshaped by a node": lambda: fn.reshape(photo(), constant(-1, 3)),
    "without its layout": lambda: fn.reshape(photo(), layout=""),
    "a new axis without a name": lambda: fn.expand_dims(photo(), axes=[0]),
    "transposed": lambda: fn.transpose(unlabelled(5, 5, 3), perm=[2, 0, 1]),
    "stack without a name": lambda: fn.stack(photo(), photo()),
    "class planes without a name": lambda: fn.one_hot(zeros("HW"), num_classes=3, axis=2),
    "Python": lambda: fn.python_function(photo(), function=np.copy),
}


def photo_like() -> Any:
    return fn.resize(photo(), size=[8, 8])


@pytest.mark.parametrize("name", SEEN)
def test_the_layout_seen_is_the_layout(name: str) -> None:
    nodes: list[Any] = []

    def define() -> Any:
        nodes.append(SEEN[name]())
        return nodes

    pipeline = build(define, 2)
    assert static_layout(nodes[0]) == pipeline.run()[0].layout() != ""


@pytest.mark.parametrize("name", NOT_SEEN)
def test_an_unseen_layout_is_not_guessed(name: str) -> None:
    with Pipeline(2, 1, None):
        assert static_layout(NOT_SEEN[name]()) is None


def augmented() -> Any:
    """With dozens of branches one after the other."""
    images = rand_augment.rand_augment(photo_like(), n=4, m=9, shape=[8, 8])
    if fn.random.coin_flip(dtype=types.BOOL):
        images = fn.flip(images)
    return images


def test_a_layout_behind_conditionals() -> None:
    nodes: list[Any] = []

    @pipeline_def(batch_size=2, num_threads=1, device_id=None, enable_conditionals=True)
    def define() -> Any:
        images = augmented()
        nodes.append(images)
        return images

    define()
    assert static_layout(nodes[0]) == "HWC"


# -- The layout that is used -------------------------------------------------------------------------------


def labelled_at_run_time(layout: str) -> Any:
    """Images whose layout comes with the data."""
    shape = [2, *(3 if letter == "C" else 5 for letter in layout)]
    batch = tensors.TensorListCPU(np.zeros(shape, np.uint8), layout)
    return fn.external_source(source=lambda: batch, dtype=types.UINT8)


def on_gpu(layout: str | None = None) -> Any:
    return fn.external_source(source=lambda: None, device="gpu", layout=layout)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another than the graph's": (
        lambda: msda.hmix(zeros("CHW"), None, layout="HWC"),
        "layout must be 'CHW', which the graph shows for images; got 'HWC'",
    ),
    "another than the graph's, on the GPU": (
        lambda: msda.hmix(on_gpu("CHW"), None, layout="HWC"),
        "layout must be 'CHW', which the graph shows for images; got 'HWC'",
    ),
    "another for the partners": (
        lambda: msda.cutmix(zeros("HWC"), None, partner_images=zeros("CHW")),
        "layout must be 'CHW', which the graph shows for partner_images; got 'HWC'",
    ),
    "none, on the GPU": (
        lambda: msda.hmix(on_gpu(), None),
        "layout must be given for images on the GPU whose layout the graph does not show; got None",
    ),
    "none to draw with, on the GPU": (
        lambda: msda.draw("gmix", on_gpu()),
        "layout must be given for images on the GPU whose layout the graph does not show; got None",
    ),
    "none to blend with, on the GPU": (
        lambda: msda.blend(on_gpu(), constant(1), mask=msda.Separable(0.5), num_classes=2),
        "layout must be given for images on the GPU whose layout the graph does not show; got None",
    ),
    "none that can be mixed": (
        lambda: msda.hmix(zeros("WHC"), None),
        f"layout must be one of {', '.join(map(repr, LAYOUTS))}; got 'WHC'",
    ),
    "an output of another kind": (
        lambda: msda.hmix(zeros("FHWC"), None, mean=0.0, std=1.0, output_layout="CHW"),
        "output_layout must be one of 'FHWC', 'FCHW'; got 'CHW'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    define, words = REFUSED[case]
    with Pipeline(2, 1, 0), pytest.raises(ValueError, match="must be") as caught:
        define()
    assert str(caught.value) == words


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layout_that_only_the_data_shows(backend: Any) -> None:
    """Checked on the CPU at run time."""
    build(lambda: [msda.hmix(labelled_at_run_time("HWC"), None, backend=backend)], 2).run()
    pipeline = build(lambda: [msda.hmix(labelled_at_run_time("CHW"), None, backend=backend)], 2)
    with pytest.raises(RuntimeError) as caught:
        pipeline.run()
    assert msda.explain(caught.value) == "msda.hmix: layout must be the layout of the images"


def test_views_have_their_own_layouts() -> None:
    """The same draws, so the same pixels."""
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), np.uint8)

    def define() -> Any:
        last = source(list(images), layout="HWC", dtype=types.UINT8)
        first = fn.transpose(last, perm=[2, 0, 1])
        return msda.hmix([last, first], None, partner=constant(1, 0)[0:1], seed=1)

    last, first = (np.array(output.as_array()) for output in build(define, 2).run())
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)
    assert (last != images).any()


def test_normalised_images_on_the_gpu() -> None:
    """DALI's own operators come first, as in the tutorials; the mask is one plane of the same layout."""
    with Pipeline(2, 1, 0):
        images = fn.crop_mirror_normalize(fn.decoders.image(encoded(), device="mixed"), mean=[0.0], std=[1.0])
        mixed, params = msda.gmix(images, None, return_params=True)
        assert problems([mixed, params.mask]) == []
        assert [static_layout(node) for node in (mixed, params.mask)] == ["CHW", "CHW"]


# -- Every layout, against NumPy ---------------------------------------------------------------------------

COUNT, SIDES = 3, {"F": 2, "D": 4, "H": 8, "W": 11, "C": 3}
PARTNER, LAM, CENTER = [1, 2, 0], 0.4, (3, 6)
MEAN, STD = [3.0, 5.0, 7.0], [2.0, 4.0, 8.0]
DRAWN: dict[str, Any] = {"lam": LAM, "center": CENTER}
TYPES = {"uint8": types.UINT8, "float16": types.FLOAT16, "float32": types.FLOAT, "int32": types.INT32}
BOUNDS = {"uint8": 0.5 + 2e-4, "float16": 0.07, "float32": 3e-5}
# All kinds of masks, and of images for the kernel.
MIXES = [("hmix", "uint8"), ("gmix", "float16"), ("mixup", "float32"), ("cutmix", "float32")]


def data(layout: str, dtype: str = "uint8", seed: int = 0, **sides: int) -> Arrays:
    shape = [(SIDES | sides)[letter] for letter in layout]
    return np.random.default_rng(seed).integers(0, 256, (COUNT, *shape)).astype(dtype)


def node_of(values: Arrays, layout: str, device: str = "cpu") -> Any:
    known = {"dtype": TYPES[values.dtype.name], "ndim": values.ndim - 1}
    return placed(source(list(values), layout=layout, **known), device)


def partners() -> Any:
    return source([np.int32(i) for i in PARTNER])


def spread(mask: Arrays, layout: str) -> Arrays:
    """A mask HxW that broadcasts over the images."""
    return mask[..., None] if layout.endswith("HWC") else mask


def assert_mixed(mixed: Arrays, own: Arrays, other: Arrays, mask: Arrays, layout: str) -> None:
    weight = spread(mask, layout)
    exact = weight * own.astype(np.float64) + (1 - weight) * other[PARTNER].astype(np.float64)
    assert (mixed.dtype, mixed.shape) == (own.dtype, own.shape)
    assert np.abs(mixed.astype(np.float64) - exact).max() <= BOUNDS[own.dtype.name]


@in_every_form
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("method", "dtype"), MIXES)
def test_every_layout(method: str, dtype: str, layout: str, backend: Any, device: str) -> None:
    """One mask for all frames or slices, from the batch itself and from a second source."""
    own, other = data(layout, dtype), data(layout, dtype, seed=1)

    def define() -> Any:
        found = []
        for source_of in (None, node_of(other, layout, device)):
            mixed, params = msda.mix(
                node_of(own, layout, device), None, method=method, partner=partners(), backend=backend,
                partner_images=source_of, return_params=True, **DRAWN,
            )  # fmt: skip
            found += [mixed, params.mask, params.lam]
        return found

    expected = reference.mask(method, (8, 11), LAM, center=CENTER, ratio=0.75 if method == "hmix" else 1.0)
    mixed, mask, lam, mixed_with_others, *_ = outputs(define, COUNT, device=device)[0]
    assert mask.shape[1:] == {"HW": (8, 11), "CHW": (1, 8, 11), "FCHW": (1, 8, 11)}.get(layout, (8, 11, 1))
    np.testing.assert_allclose(mask.reshape(COUNT, 8, 11), [expected] * COUNT, rtol=0, atol=1e-6)
    np.testing.assert_allclose(lam, expected.mean(), rtol=0, atol=1e-6)
    assert_mixed(mixed, own, own, expected, layout)
    assert_mixed(mixed_with_others, own, other, expected, layout)


@in_every_form
@pytest.mark.parametrize("layout", ["HW", "FHWC", "FCHW", "DHWC"])
def test_masks_of_the_caller_and_maps(layout: str, backend: Any, device: str) -> None:
    """A dense mask, rows and columns, and the owner of each pixel of a map of ids."""
    own, ids = data(layout), data(layout, "int32", seed=2)
    rows, columns = np.linspace(0, 1, 8, dtype=np.float32), np.linspace(1, 0.2, 11, dtype=np.float32)
    mask = rows[:, None] * columns

    def define() -> Any:
        images = node_of(own, layout, device)
        labels = source([np.array([i], np.int32) for i in range(COUNT)])
        forms: list[Any] = [
            source([mask] * COUNT), (source([rows] * COUNT), source([columns] * COUNT))
        ]  # fmt: skip
        blended = [
            msda.blend(
                images, labels, mask=form, num_classes=COUNT, partner=partners(), backend=backend
            )[0]
            for form in forms
        ]  # fmt: skip
        drawn = msda.draw("gmix", images, partner=partners(), backend=backend, **DRAWN)
        return *blended, msda.apply(node_of(ids, layout, device), drawn, nearest=True)

    dense, separable, owners = outputs(define, COUNT, device=device)[0]
    assert_mixed(dense, own, own, mask.astype(np.float64), layout)
    assert_mixed(separable, own, own, mask.astype(np.float64), layout)
    weight = spread(reference.mask("gmix", (8, 11), LAM, center=CENTER), layout)
    np.testing.assert_array_equal(owners, np.where(weight >= 0.5, ids, ids[PARTNER]))


@in_every_form
@pytest.mark.parametrize(
    ("layout", "output_layout"),
    [("HW", None), ("HW", "CHW"), ("FHWC", None), ("FHWC", "FCHW"), ("FCHW", "FHWC"), ("DHWC", None)],
)
def test_normalised(layout: str, output_layout: Any, backend: Any, device: str) -> None:
    """As fn.crop_mirror_normalize would do behind the mixing, to the bit."""
    own = data(layout)
    mean, std = (MEAN[:1], STD[:1]) if layout == "HW" else (MEAN, STD)

    def define() -> Any:
        images = node_of(own, layout, device)
        common: dict[str, Any] = {"partner": partners(), "backend": backend, **DRAWN}
        found = msda.hmix(images, None, mean=mean, std=std, output_layout=output_layout, **common)
        assert static_layout(found) == (output_layout or layout)
        return msda.hmix(images, None, **common), found

    mixed, normalized = outputs(define, COUNT, device=device)[0]
    planes = mixed[..., None] if layout == "HW" else mixed
    channel = planes.ndim - 1 if layout != "FCHW" else 2
    last = np.moveaxis(planes, channel, -1).astype(np.float32)
    exact = (last - np.asarray(mean, np.float32)) * (1 / np.asarray(std)).astype(np.float32)
    to = output_layout or layout
    exact = exact[..., 0] if to == "HW" else np.moveaxis(exact, -1, -3) if to.endswith("CHW") else exact
    np.testing.assert_array_equal(normalized, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_with_its_frames_and_maps(backend: Any) -> None:
    """Views of one draw: the clip and each of its frames come out the same; a small map has its own mask."""
    own = data("FHWC", F=3)
    small = np.random.default_rng(5).random((COUNT, 4, 11)).astype(np.float32)

    def define() -> Any:
        clip = node_of(own, "FHWC")
        views = [clip, *(fn.copy(clip[i]) for i in range(3)), fn.transpose(clip, perm=[0, 3, 1, 2])]
        seeded: dict[str, Any] = {"seed": 4, "allow_self": False, "backend": backend}
        drawn = msda.draw("gmix", clip, **seeded)
        one = node_of(small, "HW")
        return (
            *msda.gmix(views, None, **seeded),
            msda.apply(clip, drawn),
            msda.apply(one, drawn),
            msda.apply(one, msda.draw("gmix", one, **seeded)),
        )

    clip, *frames, planes, applied, map_of_clip, map_alone = outputs(define, COUNT)[0]
    np.testing.assert_array_equal(np.stack(frames, axis=1), clip)
    np.testing.assert_array_equal(planes.transpose(0, 1, 3, 4, 2), clip)
    np.testing.assert_array_equal(applied, clip)
    np.testing.assert_array_equal(map_of_clip, map_alone)
    assert (clip != own).any()


def mixed_with(layout: Any, values: Any, backend: Any, **arguments: Any) -> Any:
    return build(lambda: [msda.hmix(values(), None, backend=backend, layout=layout, **arguments)], COUNT)


def clips_of(*shapes: tuple[int, ...], layout: str | None = None) -> Any:
    batch = [np.zeros(shape, np.uint8) for shape in shapes]
    return lambda: fn.external_source(source=lambda: batch, layout=layout, dtype=types.UINT8)


DIFFER = "msda.hmix: images must have one size within a batch: resize or crop them before"
LETTERS = "msda.hmix: layout must have a letter for each dimension of the images; got"
FAULTS: dict[str, tuple[str, Any, str]] = {
    "other numbers of frames": ("FHWC", clips_of(*[(2, 8, 8, 3)] * 2, (3, 8, 8, 3)), DIFFER),
    "as many rows in all": ("FHWC", clips_of(*[(2, 8, 8, 3)] * 2, (4, 4, 8, 3)), DIFFER),
    "as many planes in all": ("FCHW", clips_of(*[(2, 6, 8, 8)] * 2, (4, 3, 8, 8)), DIFFER),
    "images told to be clips": ("FHWC", clips_of(*[(8, 8, 3)] * 3), f"{LETTERS} 4 for 3 dimensions"),
    "clips told to be planes": ("HW", clips_of(*[(2, 8, 8, 3)] * 3), f"{LETTERS} 2 for 4 dimensions"),
    "clips told to be images": ("HWC", clips_of(*[(2, 8, 8, 3)] * 3), f"{LETTERS} 3 for 4 dimensions"),
    "channels first": (
        "FHWC",
        lambda: labelled_at_run_time("FCHW"),
        "msda.hmix: layout must be the layout of the images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, backend: Any) -> None:
    layout, values, words = FAULTS[fault]
    pipeline = mixed_with(layout, values, backend, partner=0)
    with pytest.raises(RuntimeError) as caught:
        pipeline.run()
    assert msda.explain(caught.value) == words


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("height", [4, 16])
@pytest.mark.parametrize("form", ["dense", "rows and columns"])
def test_a_mask_that_would_fit_joined_frames(form: str, height: int, backend: Any) -> None:
    """Of half and twice the height, for clips of two frames."""
    mask = np.ones((height, 11), np.float32)

    def define() -> Any:
        labels = source([np.array([0], np.int32)] * COUNT)
        given: Any = source([mask] * COUNT)
        if form != "dense":
            given = source([mask[:, 0].copy()] * COUNT), source([mask[0]] * COUNT)
        images = node_of(data("FHWC"), "FHWC")
        return msda.blend(images, labels, mask=given, num_classes=1, backend=backend)

    with pytest.raises(RuntimeError) as caught:
        build(define, COUNT).run()
    assert msda.explain(caught.value) == "msda.blend: mask must have the height and width of its image"
