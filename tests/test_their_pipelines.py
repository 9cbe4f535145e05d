"""One line around pipelines written the way public projects write them.

Each is built twice with one seed, without and with mixing. The mixed images and targets are compared with
NumPy's mix of the unmixed outputs; all other outputs must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn, ops, pipeline_def, types
from nvidia.dali.auto_aug import auto_augment, rand_augment, trivial_augment

import dali_msda as msda
from dali_msda import reference
from dali_msda.compat import outputs_of
from tests.devices import array
from tests.graph_check import problems
from tests.image_sets import photo
from tests.their_data import BATCH, SIDE, clip, jpeg, sample, write_coco, write_records

CLASSES = 3
LAM, CENTER, PARTNER = 0.4, (9, 15), 1
DRAWN: dict[str, Any] = {"lam": LAM, "center": CENTER, "partner": PARTNER}
STANDARD = {"batch_size": BATCH, "num_threads": 2, "device_id": None, "seed": 12}
MEAN = [0.485 * 255, 0.456 * 255, 0.406 * 255]
STD = [0.229 * 255, 0.224 * 255, 0.225 * 255]


def run(pipeline: Any, batches: int = 3) -> list[list[Any]]:
    """Batches of a pipeline; outputs that cannot be stacked become lists."""
    found = []
    for _ in range(batches):
        found.append(
            [
                array(output)
                if output.as_cpu().is_dense_tensor()
                else [np.array(output.as_cpu().at(i)) for i in range(len(output))]
                for output in pipeline.run()
            ]
        )
    return found


def assert_mixed(
    plain: Any,
    mixed: Any,
    *,
    images: int = 0,
    labels: int = 1,
    layout: str = "HWC",
    method: str = "hmix",
    num_classes: int = CLASSES,
) -> None:
    """Two pipelines with one seed: the second mixes the outputs of the first, and changes nothing else."""
    for batch, found in zip(run(plain), run(mixed), strict=True):
        assert len(found) == len(batch)
        ids = np.asarray(batch[labels]).reshape(BATCH).astype(int)
        assert set(ids) <= set(range(num_classes))
        ratio = 0.75 if method == "hmix" else 1.0
        expected, targets, _ = reference.mix(
            batch[images],
            ids,
            [PARTNER] * BATCH,
            [LAM] * BATCH,
            [CENTER] * BATCH,
            [ratio] * BATCH,
            method,
            num_classes=num_classes,
            layout=layout,
        )
        assert found[images].dtype == batch[images].dtype
        tolerance = 0 if expected.dtype == np.uint8 else 1e-5
        np.testing.assert_allclose(found[images].astype(float), expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found[labels], targets, rtol=0, atol=1e-6)
        assert np.abs(found[images].astype(float) - batch[images]).max() > 1  # it is not the same image
        for position, (ours, theirs) in enumerate(zip(found, batch, strict=True)):
            if position not in (images, labels):
                assert type(ours) is type(theirs)
                assert len(ours) == len(theirs)
                for a, b in zip(ours, theirs, strict=True):
                    np.testing.assert_array_equal(a, b)


# -- DALI's tutorial for ResNet-50 -------------------------------------------------------------------------


@pipeline_def(exec_dynamic=True)
def tutorial(data_dir, crop, size, shard_id, num_shards, dali_cpu=False, is_training=True):  # type: ignore[no-untyped-def]
    images, labels = fn.readers.file(
        file_root=data_dir,
        shard_id=shard_id,
        num_shards=num_shards,
        random_shuffle=is_training,
        pad_last_batch=True,
        name="Reader",
    )
    dali_device = "cpu" if dali_cpu else "gpu"
    decoder_device = "cpu" if dali_cpu else "mixed"
    if is_training:
        images = fn.decoders.image_random_crop(
            images,
            device=decoder_device,
            output_type=types.RGB,
            random_aspect_ratio=[0.8, 1.25],
            random_area=[0.1, 1.0],
            num_attempts=100,
        )
        images = fn.resize(
            images, device=dali_device, resize_x=crop, resize_y=crop, interp_type=types.INTERP_TRIANGULAR
        )
        mirror = fn.random.coin_flip(probability=0.5)
    else:
        images = fn.decoders.image(images, device=decoder_device, output_type=types.RGB)
        images = fn.resize(images, device=dali_device, size=size, mode="not_smaller")
        mirror = False
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        crop=(crop, crop),
        mean=MEAN,
        std=STD,
        mirror=mirror,
    )
    if not dali_cpu:
        labels = labels.gpu()
    return images, labels


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("backend", ["auto", "hybrid", "graph"])
def test_dali_tutorial(photos: Path, backend: str, is_training: bool) -> None:
    arguments = dict(
        STANDARD,
        data_dir=str(photos / "train"),
        crop=SIDE,
        size=SIDE + 4,
        dali_cpu=True,
        shard_id=0,
        num_shards=1,
        is_training=is_training,
    )
    mixed = msda.with_mixing(tutorial, "hmix", num_classes=CLASSES, backend=backend, **DRAWN)
    assert_mixed(tutorial(**arguments), mixed(**arguments), layout="CHW")


# -- NVIDIA's ConvNets: an augmentation chosen by name, with conditionals ----------------------------------


@pipeline_def(enable_conditionals=True)
def convnets(data_dir, image_size, dali_device, output_layout, automatic_augmentation, rank=0, world_size=1):  # type: ignore[no-untyped-def]
    rng = fn.random.coin_flip(probability=0.5)
    jpegs, labels = fn.readers.file(
        name="Reader",
        file_root=data_dir,
        shard_id=rank,
        num_shards=world_size,
        random_shuffle=True,
        pad_last_batch=True,
    )
    images = fn.decoders.image_random_crop(
        jpegs, device="mixed" if dali_device == "gpu" else "cpu", output_type=types.RGB
    )
    images = fn.resize(images, size=[image_size, image_size], antialias=False)
    images = fn.flip(images, horizontal=rng)
    if automatic_augmentation == "autoaugment":
        images = auto_augment.auto_augment_image_net(images, shape=[image_size, image_size])
    elif automatic_augmentation == "trivialaugment":
        images = trivial_augment.trivial_augment_wide(images, shape=[image_size, image_size])
    elif automatic_augmentation == "randaugment":
        images = rand_augment.rand_augment(images, n=2, m=9, shape=[image_size, image_size])
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout=output_layout,
        crop=(image_size, image_size),
        mean=MEAN,
        std=STD,
    )
    return images, labels


@pytest.mark.parametrize(
    ("augmentation", "layout"),
    [("disabled", "CHW"), ("autoaugment", "CHW"), ("trivialaugment", "HWC"), ("randaugment", "HWC")],
)
def test_convnets(photos: Path, augmentation: str, layout: str) -> None:
    arguments = dict(
        STANDARD,
        data_dir=str(photos / "train"),
        image_size=SIDE,
        dali_device="cpu",
        output_layout=layout,
        automatic_augmentation=augmentation,
    )
    mixed = msda.with_mixing(convnets, "cutmix", num_classes=CLASSES, **DRAWN)
    assert_mixed(convnets(**arguments), mixed(**arguments), layout=layout, method="cutmix")


# -- RecordIO, a class -------------------------------------------------------------------------------------


class RecordPipe(Pipeline):
    def __init__(self, rec, idx, batch_size, num_threads, device_id, num_gpus, size):  # type: ignore[no-untyped-def]
        super(RecordPipe, self).__init__(batch_size, num_threads, device_id, seed=12)  # noqa: UP008
        self.input = ops.readers.MXNet(
            path=[rec], index_path=[idx], random_shuffle=True, shard_id=0, num_shards=num_gpus
        )
        self.decode = ops.decoders.Image(device="cpu", output_type=types.RGB)
        self.resize = ops.Resize(device="cpu", resize_x=size, resize_y=size)
        self.coin = ops.random.CoinFlip(probability=0.5)
        self.flip = ops.Flip(device="cpu")
        self.to_int = ops.Cast(dtype=types.INT32)

    def define_graph(self):  # type: ignore[no-untyped-def]
        jpegs, labels = self.input(name="Reader")
        images = self.flip(self.resize(self.decode(jpegs)), horizontal=self.coin())
        return [images, self.to_int(labels)]


class OutputsPipe(Pipeline):
    """A class that sets its outputs in its constructor."""

    def __init__(self, rec, idx, *args, **kwargs):  # type: ignore[no-untyped-def]
        size = kwargs.pop("size")
        kwargs.pop("num_gpus")
        super().__init__(*args, seed=12, **kwargs)
        with self:
            jpegs, labels = fn.readers.mxnet(path=[rec], index_path=[idx], name="Reader")
            images = fn.resize(fn.decoders.image(jpegs), size=[size, size])
        self.set_outputs(images, labels)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    images = [photo(30 + i, 40, i) for i in range(9)]
    rec, idx = write_records(tmp_path_factory.mktemp("records"), images, [i % CLASSES for i in range(9)])
    return str(rec), str(idx)


@pytest.mark.parametrize("kind", ["class", "class of the same name", "instance", "function"])
@pytest.mark.parametrize("pipe", [RecordPipe, OutputsPipe])
def test_records(records: tuple[str, str], pipe: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(kind: Any) -> Any:
        return kind(*records, BATCH, 2, None, num_gpus=1, size=SIDE)

    def mix(given: Any) -> Any:
        return msda.with_mixing(given, num_classes=CLASSES, **DRAWN)

    if kind == "instance":
        pipeline = mix(make(pipe))
    elif kind == "function":
        pipeline = mix(make)(pipe)
    else:
        mixed = mix(pipe)
        assert (mixed.__name__, mixed.__doc__) == (pipe.__name__, pipe.__doc__)
        if kind == "class of the same name":
            monkeypatch.setitem(globals(), pipe.__name__, mixed)
        pipeline = make(mixed)
        assert isinstance(pipeline, pipe)
    monkeypatch.undo()
    assert_mixed(make(pipe), pipeline)


def test_records_with_labels_that_are_no_class_ids(tmp_path: Path) -> None:
    paths = map(str, write_records(tmp_path, [photo(30, 40, i) for i in range(BATCH)], [0, 1, 1.5, 2]))
    mixed = msda.with_mixing(OutputsPipe, num_classes=CLASSES)
    pipeline = mixed(*paths, BATCH, 2, None, num_gpus=1, size=SIDE)
    with pytest.raises(RuntimeError) as caught:
        pipeline.run()
    assert msda.explain(caught.value) == "msda.with_mixing: labels must be whole numbers, the class ids"


# -- COCO: boxes, a class for each box, image ids ----------------------------------------------------------


@pipeline_def
def coco(file_root, annotations_file):  # type: ignore[no-untyped-def]
    images, boxes, labels, ids = fn.readers.coco(
        file_root=file_root,
        annotations_file=annotations_file,
        ratio=True,
        ltrb=True,
        image_ids=True,
        random_shuffle=True,
        name="Reader",
    )
    images = fn.decoders.image(images, output_type=types.RGB)
    images = fn.resize(images, size=[SIDE, SIDE])
    images = fn.brightness(images, brightness=fn.random.uniform(range=(0.7, 1.3)))
    first = fn.slice(labels, start=[0], shape=[1], axes=[0]) - 1
    noise = fn.random.uniform(range=(0, 1), shape=[2])
    return ids, boxes, labels, images, noise, first


def test_coco(tmp_path: Path) -> None:
    categories = [[1, 3], [2], [3, 2, 1], [2, 1], [1], [3]]
    path = write_coco(tmp_path, [photo(30, 40 + i, i) for i in range(6)], categories)
    arguments = dict(STANDARD, file_root=str(tmp_path), annotations_file=str(path))
    for images, labels in ((3, 5), (-3, -1)):
        mixed = msda.with_mixing(coco, num_classes=CLASSES, images=images, labels=labels, **DRAWN)
        assert_mixed(coco(**arguments), mixed(**arguments), images=3, labels=5)


# -- Data from Python --------------------------------------------------------------------------------------


class Batches:
    def __init__(self, images, labels, batch_size):  # type: ignore[no-untyped-def]
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __iter__(self) -> Batches:
        self.at = 0
        return self

    def __next__(self) -> tuple[list[Any], list[Any]]:
        chosen = [(self.at + i) % len(self.images) for i in range(self.batch_size)]
        self.at += self.batch_size
        return [self.images[i] for i in chosen], [self.labels[i] for i in chosen]


def external(source: Any) -> Any:
    pipe = Pipeline(batch_size=BATCH, num_threads=2, device_id=None, seed=3)
    with pipe:
        jpegs, labels = fn.external_source(source=source, num_outputs=2, dtype=[types.UINT8, types.INT64])
        images = fn.decoders.image(jpegs, device="cpu")
        images = fn.resize(images, resize_x=SIDE, resize_y=SIDE)
        pipe.set_outputs(images, labels)
    return pipe


def test_external_source(records: tuple[str, str]) -> None:
    images = [np.frombuffer(jpeg(photo(30, 30 + i, i)), np.uint8) for i in range(6)]
    labels = [np.array([i % CLASSES], np.int64) for i in range(6)]

    def source() -> Any:
        return Batches(images, labels, BATCH)  # type: ignore[no-untyped-call]

    mixed = msda.with_mixing(external, num_classes=CLASSES, **DRAWN)
    assert_mixed(external(source()), mixed(source()))


@pipeline_def
def parallel():  # type: ignore[no-untyped-def]
    images, labels = fn.external_source(
        source=sample,
        num_outputs=2,
        parallel=True,
        batch=False,
        dtype=[types.UINT8, types.INT32],
        ndim=[3, 1],
        layout=["HWC", None],
    )
    return fn.flip(images, horizontal=fn.random.coin_flip()), labels


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_parallel_external_source(method: str) -> None:
    arguments = dict(STANDARD, py_num_workers=1, py_start_method=method, prefetch_queue_depth=2)
    mixed = msda.with_mixing(parallel, num_classes=CLASSES, **DRAWN)
    assert_mixed(parallel(**arguments), mixed(**arguments))


# -- Video -------------------------------------------------------------------------------------------------


def clips() -> Any:
    """Clips and their classes, as a decoder in Python makes them."""
    while True:
        yield [clip(i) for i in range(BATCH)], [np.array([i % CLASSES], np.int64) for i in range(BATCH)]


@pipeline_def
def video(crop, dali_device="cpu", output_layout="FCHW"):  # type: ignore[no-untyped-def]
    frames, labels = fn.external_source(
        source=clips(), num_outputs=2, dtype=[types.UINT8, types.INT64], ndim=[4, 1], layout=["FHWC", None]
    )
    if dali_device == "gpu":
        frames = frames.gpu()
    frames = fn.resize(frames, resize_shorter=crop + 4)
    frames = fn.crop_mirror_normalize(
        frames,
        crop=(crop, crop),
        crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
        crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
        mirror=fn.random.coin_flip(),
        output_layout=output_layout,
        mean=MEAN,
        std=STD,
        dtype=types.FLOAT,
    )
    return frames, labels


@pytest.mark.parametrize("output_layout", ["FCHW", "FHWC"])
def test_video(output_layout: str) -> None:
    """All frames of a clip have one mask, and the partner's frames come at the same times."""
    plain, mixed = (
        run(define(SIDE, output_layout=output_layout, **STANDARD))
        for define in (video, msda.with_mixing(video, num_classes=CLASSES, **DRAWN))
    )
    mask = reference.mask("hmix", (SIDE, SIDE), LAM, center=CENTER, ratio=0.75)
    weight = mask if output_layout == "FCHW" else mask[..., None]
    for (frames, labels), (found, targets) in zip(plain, mixed, strict=True):
        exact = weight * frames + (1 - weight) * frames[PARTNER]
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
        hot = np.eye(CLASSES)[labels.reshape(-1)]
        share = mask.mean()
        np.testing.assert_allclose(targets, share * hot + (1 - share) * hot[PARTNER], rtol=0, atol=1e-6)
        assert np.abs(found - frames).max() > 1


# -- Conditionals and automatic augmentation ---------------------------------------------------------------


def loaded(data_dir: str, size: int = SIDE) -> Any:
    """Not a pipeline: called in one, it returns nodes."""
    jpegs, labels = fn.readers.file(file_root=data_dir, random_shuffle=True, name="Reader")
    images = fn.resize(fn.decoders.image(jpegs, device="cpu"), size=[size, size])
    if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
        images = fn.rotate(images, angle=90, size=[size, size])
    else:
        images = fn.flip(images)
    return images, labels


def loaded_by_name(data_dir: str) -> Any:
    images, labels = loaded(data_dir)
    return {"label": labels, "image": images, "mean": fn.reductions.mean(images)}


mixed_nodes = msda.with_mixing(loaded, num_classes=CLASSES, **DRAWN)
mixed_by_name = msda.with_mixing(loaded_by_name, num_classes=CLASSES, images="image", labels="label", **DRAWN)

CONDITIONALS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "a pipeline": (
        pipeline_def(enable_conditionals=True)(loaded),
        msda.with_mixing(pipeline_def(enable_conditionals=True)(loaded), num_classes=CLASSES, **DRAWN),
    ),
    "a pipeline of what is mixed": (
        pipeline_def(enable_conditionals=True)(loaded),
        pipeline_def(enable_conditionals=True)(mixed_nodes),
    ),
}


@pytest.mark.parametrize("case", CONDITIONALS)
def test_conditionals(case: str, photos: Path) -> None:
    plain, mixed = (define(data_dir=str(photos / "train"), **STANDARD) for define in CONDITIONALS[case])
    assert_mixed(plain, mixed)


def test_conditionals_switched_on_by_the_call(photos: Path) -> None:
    plain = pipeline_def(loaded)
    mixed = msda.with_mixing(plain, num_classes=CLASSES, **DRAWN)
    plain, mixed = (
        define(data_dir=str(photos / "train"), enable_conditionals=True, **STANDARD)
        for define in (plain, mixed)
    )
    assert_mixed(plain, mixed)


@pipeline_def(enable_conditionals=True)
def by_name(load, data_dir):  # type: ignore[no-untyped-def]
    found = load(data_dir)
    return found["image"], found["label"], found["mean"]


def test_a_dict_of_nodes(photos: Path) -> None:
    plain, mixed = (
        by_name(load=load, data_dir=str(photos / "train"), **STANDARD)
        for load in (loaded_by_name, mixed_by_name)
    )
    assert_mixed(plain, mixed)


@pipeline_def(enable_conditionals=True)
def augmented_afterwards(load, data_dir):  # type: ignore[no-untyped-def]
    images, labels = load(data_dir)
    images = trivial_augment.trivial_augment_wide(images, shape=[SIDE, SIDE], seed=5)
    return images, labels


def hand_written(data_dir: str) -> Any:
    images, labels = loaded(data_dir)
    return msda.hmix(images, labels, num_classes=CLASSES, seed=8, **DRAWN)


def test_augmentation_after_mixing(photos: Path) -> None:
    """The same as with the line in the pipeline."""
    ours, theirs = (
        run(augmented_afterwards(load=load, data_dir=str(photos / "train"), **STANDARD))
        for load in (mixed_nodes, hand_written)
    )
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


# -- On the GPU, without one -------------------------------------------------------------------------------

ON_GPU: dict[str, Callable[[str], Any]] = {
    "DALI's tutorial, whose labels are there too": lambda folder: msda.with_mixing(
        tutorial, num_classes=CLASSES
    )(folder, SIDE, SIDE, 0, 1, batch_size=BATCH, num_threads=2, device_id=0),
    "NVIDIA's ConvNets": lambda folder: msda.with_mixing(convnets, num_classes=CLASSES)(
        folder, SIDE, "gpu", "CHW", "disabled", batch_size=BATCH, num_threads=2, device_id=0
    ),
    "video": lambda folder: msda.with_mixing(video, num_classes=CLASSES)(
        SIDE, "gpu", batch_size=BATCH, num_threads=2, device_id=0
    ),
}


@pytest.mark.parametrize("pipeline", ON_GPU)
def test_the_graph_fits_a_gpu(pipeline: str, photos: Path) -> None:
    """Every operator, input and result is on a device where it may be."""
    outputs = outputs_of(ON_GPU[pipeline](str(photos / "train")))
    assert len(outputs) == 2
    assert problems(outputs) == []
