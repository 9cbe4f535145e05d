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
from tests.graph_check import problems
from tests.running import build, source
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
        "layout must be one of 'HWC', 'CHW', 'HW'; got 'WHC'",
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
