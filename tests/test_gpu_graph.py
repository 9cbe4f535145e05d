"""The graphs for the GPU, checked without one: every operator and every input is on an allowed device."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline, backend, fn, types
from nvidia.dali.pipeline import DataNode
from nvidia.dali.plugin.numba.fn import experimental as numba_plugin

import dali_msda as msda
from dali_msda import Mixing
from dali_msda.methods import METHODS
from pipelines.imagenet import train_pipeline, val_pipeline
from pipelines.records import Execution, Output, Shard
from tests.graph_check import lost_copies, operators, problems

CONVENTIONS = ["reference", "paper"]
LAYOUTS = ["HWC", "CHW"]
OTHER_LAYOUTS = ["HW", "FHWC", "FCHW", "DHWC"]
GRANULARITIES = ["sample", "batch"]
BACKENDS: list[Any] = ["hybrid", "graph"]
METHODS_AND_PARAMS = list(itertools.product(METHODS, [False, True]))


def trace(define: Callable[[], Any], batch_size: int = 8) -> Any:
    """Call `define` in a pipeline for the GPU, without building it."""
    with Pipeline(batch_size, 2, 0):
        return define()


def values(device: str = "cpu", **known: Any) -> DataNode:
    return fn.external_source(source=lambda: None, device=device, **known)


def count(outputs: Any, name: str, device: str) -> int:
    """Number of operators with this schema on a device."""
    found = ((instance._op.schema.Name(), instance._op.device) for instance in operators(outputs))
    return sum(operator == (name, device) for operator in found)


def assert_fits_the_gpu(result: Any, *, params: bool) -> None:
    """No problems; images, targets and mask are on the GPU, lam and partner on the CPU."""
    assert len(result) == 2 + params
    on_gpu, on_cpu = list(result[:2]), []
    if params:
        on_gpu.append(result[2].mask)
        on_cpu = [result[2].lam, result[2].partner]
        assert problems(on_cpu, "cpu") == []
    assert problems(on_gpu) == []
    assert lost_copies(operators([*on_gpu, *on_cpu])) == []


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("method", "return_params"), METHODS_AND_PARAMS)
def test_methods(method: str, convention: str, layout: str, granularity: str, return_params: bool) -> None:
    def define() -> Any:
        return msda.mix(
            values("gpu", layout=layout, dtype=types.UINT8, ndim=3),
            values(),
            method=method,
            num_classes=10,
            convention=convention,
            layout=layout,
            granularity=granularity,
            return_params=return_params,
            label_smoothing=0.1,
            probability=0.5,
        )

    result = trace(define)
    assert_fits_the_gpu(result, params=return_params)
    # The images are mixed on the GPU, because partners are fetched there.
    assert count(result[:1], "PermuteBatch", "gpu") == (method != "none")
    # uint8 CutMix selects in uint8; everything else is rounded back from float32.
    assert count(result[:1], "CastLike", "gpu") == (method not in ("none", "cutmix"))


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize("dtype", [None, types.UINT8, types.INT16, types.FLOAT16, types.FLOAT], ids=str)
@pytest.mark.parametrize(("method", "return_params"), METHODS_AND_PARAMS)
def test_dtypes_and_own_draws(method: str, return_params: bool, dtype: Any, given: bool) -> None:
    """Any element type, shown by the graph or not, and all draws as the caller's nodes."""

    def define(backend: Any = "auto") -> Any:
        draws: dict[str, Any] = {}
        if given:
            names = ["lam", "center", "partner", "probability"]
            names += ["ratio"] if method == "hmix" else []
            names += ["switch_probability"] if method == "stochastic" else []
            draws = {name: values() for name in names}
        images = values("gpu", layout="HWC", **({} if dtype is None else {"dtype": dtype, "ndim": 3}))
        return msda.mix(
            images,
            values(),
            method=method,
            num_classes=10,
            return_params=return_params,
            backend=backend,
            **draws,
        )

    assert_fits_the_gpu(trace(define), params=return_params)
    assert_fits_the_gpu(trace(define, batch_size=1), params=return_params)
    if dtype is None:  # test_combinations.py has the types that the graph shows
        assert_fits_the_gpu(trace(lambda: define("graph")), params=return_params)


@pytest.mark.parametrize("output_layout", ["CHW", "HWC"])
@pytest.mark.parametrize("mix", METHODS)
def test_train_pipeline(mix: str, output_layout: Any, coded: Path) -> None:
    for batch_size, checkpointing in itertools.product([1, 32], [False, True]):
        pipeline = train_pipeline(
            coded,
            mix=mix,
            num_classes=3,
            batch_size=batch_size,
            num_threads=2,
            device="gpu",
            output=Output(layout=output_layout, dtype="float16"),
            enable_checkpointing=checkpointing,
        )
        outputs = pipeline._graph_out
        assert len(outputs) == 2
        assert problems(outputs) == []
        assert count(outputs, "decoders__ImageRandomCrop", "mixed") == 1
        for name in ("Resize", "CropMirrorNormalize"):
            assert count(outputs, name, "gpu") == 1
        assert pipeline.device_id == 0


@pytest.mark.parametrize("mix", METHODS)
def test_pipelines_as_the_trainer_builds_them(mix: str, coded: Path) -> None:
    """Stand-ins are reported on the CPU, where the reader knows them; everything else is on the GPU."""
    common: dict[str, Any] = {
        "batch_size": 8, "num_threads": 2, "device": "gpu", "report_stand_ins": True,
        "execution": Execution(device_id=1), "shard": Shard(index=1, count=2),
    }  # fmt: skip
    training = train_pipeline(
        coded, mix=Mixing(mix, convention="paper", probability=0.5, label_smoothing=0.1), num_classes=3,
        seed=5, output=Output(layout="HWC"), enable_checkpointing=True, **common,
    )  # fmt: skip
    validation = val_pipeline(coded, output=Output(layout="HWC", dtype="float16"), **common)
    for pipeline in (training, validation):
        *on_gpu, kept = pipeline._graph_out
        assert len(on_gpu) == 2
        assert problems(on_gpu) == []
        assert problems([kept], "cpu") == []


@pytest.mark.parametrize("output_layout", ["CHW", "HWC"])
def test_val_pipeline(output_layout: Any, coded: Path) -> None:
    pipeline = val_pipeline(
        coded,
        batch_size=32,
        num_threads=2,
        device="gpu",
        output=Output(layout=output_layout),
        execution=Execution(device_id=3),
    )
    outputs = pipeline._graph_out
    assert len(outputs) == 2
    assert problems(outputs) == []
    assert count(outputs, "decoders__Image", "mixed") == 1
    for name in ("Resize", "CropMirrorNormalize"):
        assert count(outputs, name, "gpu") == 1
    assert pipeline.device_id == 3


def test_cpu_pipelines_use_no_gpu(coded: Path) -> None:
    training = train_pipeline(coded, num_classes=3, batch_size=4, num_threads=1)
    validation = val_pipeline(coded, batch_size=4, num_threads=1)
    for pipeline in (training, validation):
        assert pipeline.device_id is None
        assert {instance._op.device for instance in operators(pipeline._graph_out)} == {"cpu"}
        assert problems(pipeline._graph_out, "cpu") == []
    # Headers (two), window, decoding at a smaller scale, resize, masks, partners, images, labels.
    assert count(training._graph_out, "NumbaFuncImpl", "cpu") == 9
    assert problems(validation._graph_out, "cpu") == []


# The check itself: each of these graphs is wrong in one way, which the check must find.


def numba_function() -> list[DataNode]:
    """DALI's own operator, which compiles when the pipeline is built, unlike ours."""
    node = numba_plugin.numba_function(
        values(),
        run_fn=lambda made, given: None,
        out_types=[types.UINT8],
        in_types=[types.UINT8],
        outs_ndim=[1],
        ins_ndim=[1],
    )
    return [node.gpu()]


def wrong_argument_device() -> list[DataNode]:
    """DALI refuses a GPU node as an argument, so the node is moved afterwards."""
    images, size = values("gpu"), values()
    with pytest.raises(ValueError, match="Named arguments must be on CPU"):
        fn.resize(images, size=values("gpu"))
    resized = fn.resize(images, size=size)
    size.device = "gpu"
    return [resized]


def wrong_input_device() -> list[DataNode]:
    """As with arguments: DALI refuses, so the node is moved afterwards."""
    images = values().gpu()
    with pytest.raises(RuntimeError, match="incompatible device"):
        fn.resize(values(), device="gpu", size=[8, 8])
    resized = fn.resize(images, size=[8, 8])
    images.device = "cpu"
    return [resized]


def wrong_decoder_input() -> list[DataNode]:
    encoded = values()
    images = fn.decoders.image(encoded, device="mixed")
    encoded.device = "gpu"
    return [images]


def missing_input() -> list[DataNode]:
    """DALI refuses it while adding inputs, so the operator gets a specification without any."""
    resized = fn.resize(values("gpu"), size=[8, 8])
    with pytest.raises(ValueError, match="from 1 to 1 inputs"):
        fn.resize(values("gpu"), values("gpu"), size=[8, 8])
    resized.source._spec = backend.OpSpec("Resize")
    return [resized]


def unknown_argument() -> list[DataNode]:
    """DALI refuses unknown arguments in the call, so it is added afterwards."""
    resized = fn.resize(values("gpu"), size=[8, 8])
    with pytest.raises(KeyError, match="not defined"):
        fn.resize(values("gpu"), sizes=[8, 8])
    resized.source.spec.AddArg("sizes", 8)
    return [resized]


WRONG: dict[str, tuple[Callable[[], list[DataNode]], list[str]]] = {
    "CPU operator on the GPU": (
        lambda: [fn.random.beta(device="gpu", shape=[1])],
        [r"\(random__Beta\): is on 'gpu', made for \['cpu'\]"],
    ),
    "GPU operator as mixed": (
        lambda: [fn.resize(values(), device="mixed", size=[8, 8])],
        [r"\(Resize\): is on 'mixed', made for \['cpu', 'gpu'\]"],
    ),
    "decoder on the GPU": (
        lambda: [fn.decoders.image(values("gpu"), device="gpu")],
        [r"\(decoders__Image\): is on 'gpu', made for \['cpu', 'mixed'\]"],
    ),
    "Numba": (numba_function, [r"\(NumbaFuncImpl\): runs Python or Numba code"]),
    "Python": (
        lambda: [fn.python_function(values(), function=np.copy).gpu()],
        [r"\(DLTensorPythonFunctionImpl\): runs Python or Numba code"],
    ),
    "argument from the GPU": (wrong_argument_device, [r"\(Resize\): its argument .* is on the gpu"]),
    "input from the CPU": (wrong_input_device, [r"\(Resize\): its input .* is on the cpu, not on the gpu"]),
    "encoded images on the GPU": (
        wrong_decoder_input,
        [r"\(decoders__Image\): its input .* is on the gpu, not on the cpu"],
    ),
    "no way back": (
        lambda: [fn.cast(values("gpu").cpu(), dtype=types.FLOAT).gpu()],
        [r"\(Cast\): its input .* comes back from the GPU"],
    ),
    "argument made on the GPU": (
        lambda: [fn.resize(values("gpu"), size=fn.cast(values("gpu"), dtype=types.FLOAT).cpu())],
        [r"\(Resize\): its input .* comes back from the GPU"],
    ),
    "output on the CPU": (
        lambda: [values("gpu"), fn.cast(values(), dtype=types.FLOAT)],
        ["output 1 is on the cpu"],
    ),
    "output from the GPU on the CPU": (
        lambda: [values("gpu").cpu()],
        ["output 0 is on the cpu", "output 0 comes back from the GPU"],
    ),
    "decoded images on the CPU": (
        lambda: [fn.resize(fn.decoders.image(values(), device="mixed").cpu(), size=[8, 8]).gpu()],
        [r"\(Resize\): its input .* comes back from the GPU"],
    ),
    "argument missing": (
        lambda: [fn.cast(values("gpu"))],
        [r"\(Cast\): has wrong arguments: .*dtype"],
    ),
    "unknown argument": (unknown_argument, [r"\(Resize\): has wrong arguments: .*sizes"]),
    "input missing": (
        missing_input,
        [r"\(Resize\): has 0 inputs, takes 1 to 1", r"\(Resize\): its argument .* is on the gpu"],
    ),
    "only one of two equal operators on the GPU": (
        lambda: [
            fn.cast(fn.cast(labels := values(), dtype=types.FLOAT), dtype=types.INT32).gpu(),
            fn.expand_dims(fn.cast(labels, dtype=types.FLOAT).gpu(), axes=[0]),
        ],
        ["__Cast_[0-9]*, __Cast_[0-9]* are equal, and only some are copied to the GPU"],
    ),
    "behind correct operators": (
        lambda: [fn.resize(values("gpu"), size=[8, 8]) + fn.random.beta(device="gpu") * 2.0],
        [r"\(random__Beta\): is on 'gpu', made for \['cpu'\]"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_graphs_are_found(name: str) -> None:
    define, expected = WRONG[name]
    found = trace(lambda: problems(define()))
    assert len(found) == len(expected), found
    for problem, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, problem), problem


def test_right_graphs_pass() -> None:
    """These are allowed, although they look wrong: metadata of GPU nodes on the CPU, copies to the GPU."""

    def define() -> list[str]:
        images = values("gpu", layout="HWC")
        shape = images.shape()
        assert shape.device == "cpu"
        resized = fn.resize(images, size=fn.cast(shape[:2], dtype=types.FLOAT))
        return problems([resized, shape.gpu(), fn.slice(images, values(), values(), axes=[0])])

    assert trace(define) == []


# -- Planes, clips and volumes -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
@pytest.mark.parametrize("method", ["cutmix", "hmix", "gmix"])  # the forms of masks
def test_layouts(method: str, layout: str, backend: Any) -> None:
    """With the layout that the graph shows; the one that is given where it does not."""

    def define(dtype: Any = None, **given: Any) -> Any:
        told = {} if "layout" in given else {"layout": layout}
        known = {} if dtype is None else {"dtype": dtype, "ndim": len(layout)}
        return msda.mix(
            values("gpu", **told, **known), values(), 10, method=method, backend=backend, return_params=True,
            **given,
        )  # fmt: skip

    assert_fits_the_gpu(trace(lambda: define(types.UINT8)), params=True)
    assert_fits_the_gpu(trace(lambda: define(types.FLOAT16, mean=3.0, std=2.0)), params=True)
    assert_fits_the_gpu(trace(lambda: define(layout=layout)), params=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_layouts_with_masks_maps_and_a_second_source(layout: str, backend: Any) -> None:
    def define() -> Any:
        clips, others, ids = (
            values("gpu", layout=layout, dtype=dtype, ndim=len(layout))
            for dtype in (types.UINT8, types.UINT8, types.INT32)
        )
        drawn = msda.draw("cutmix", clips, center=values(), backend=backend)
        blended = [
            msda.blend(clips, values(), mask=mask, num_classes=10, backend=backend)[0]
            for mask in (values(), values("gpu"), (values(), values()))
        ]
        return (
            *blended,
            msda.apply(clips, drawn, partner_images=others),
            msda.apply(ids, drawn, nearest=True),
            msda.mix_labels(values(), drawn, 10),
        )

    assert problems(trace(define)) == []


# -- In steps -----------------------------------------------------------------------------------------------


def photos(dtype: Any = types.UINT8) -> DataNode:
    return values("gpu", layout="HWC", dtype=dtype, ndim=3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_views_and_a_second_source(method: str, backend: Any) -> None:
    def define() -> Any:
        (first, second), targets = msda.mix(
            [photos(), photos(types.FLOAT)],
            values(),
            10,
            method=method,
            partner_images=[photos(), photos()],
            partner_labels=values(),
            allow_self=False,
            backend=backend,
        )
        return first, second, targets

    assert problems(trace(define)) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", ["dense", "pair"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", [types.INT32, types.FLOAT], ids=["ids", "vectors"])
def test_labels(dtype: Any, device: str, output: Any, backend: Any) -> None:
    """On either device; what comes of them is where the images are."""

    def define() -> Any:
        images, targets = msda.hmix(
            photos(),
            values(device, dtype=dtype, ndim=1),
            10,
            output=output,
            correct_lam=False,
            backend=backend,
        )
        return [images, *(targets if output == "pair" else [targets])]

    found = problems(trace(define))
    if device == "gpu" and dtype == types.INT32:
        # Ids are compared with num_classes on the CPU: the one thing that is copied back.
        (copied,) = found
        assert re.fullmatch(
            r"\S+ \(Reshape\): its input __ExternalSource_\d+ comes back from the GPU", copied
        )
    else:
        assert found == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_maps(backend: Any) -> None:
    def define() -> Any:
        drawn = msda.draw("gmix", photos(), center=values(), backend=backend)
        ids, depth = (values("gpu", layout="HW", dtype=dtype, ndim=2) for dtype in (types.INT32, types.FLOAT))
        return (
            msda.apply(photos(), drawn),
            msda.apply(ids, drawn, layout="HW", nearest=True),
            msda.apply(depth, drawn, layout="HW", partner_images=depth),
            msda.mix_labels(values(), drawn, 10),
        )

    assert problems(trace(define)) == []


WAYS: list[Callable[[], dict[str, Any]]] = [
    lambda: {"mean": 127.5, "std": [1.0, 2.0, 3.0], "scale": 2.0, "shift": 0.5},
    lambda: {"mean": 0.0, "std": 1.0, "mirror": 1, "pad_output": True},
    lambda: {"mean": [1.0] * 3, "std": 60.0, "mirror": values(), "output_dtype": types.FLOAT16},
    lambda: {"mean": 0.0, "std": 1.0, "mirror": fn.random.coin_flip(), "output_layout": "CHW"},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["none", "cutmix", "hmix"])
def test_normalisation(method: str, way: Callable[[], dict[str, Any]], backend: Any) -> None:
    def define() -> Any:
        return msda.mix(photos(), values(), 10, method=method, backend=backend, return_params=True, **way())

    result = trace(define)
    assert_fits_the_gpu(result, params=True)
    assert count(result[:1], "CropMirrorNormalize", "gpu") == 1
