"""Checks every method in every form on this machine against the NumPy reference, and times it.

    python -m dali_msda.doctor.selfcheck gpu THREADS    prints JSON; the doctor runs this for a GPU

The draws are fixed, so that the reference uses the same ones.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
import nvidia.dali
from nvidia.dali import Pipeline, fn, types

from .. import reference
from ..methods import METHODS
from ..mixing import Convention
from ..operators import mix
from . import gpu, jpeg, libraries

FORMS = ("CPU kernel", "CPU graph", "GPU graph")
# Largest errors allowed, as in the tests: float32 arithmetic against float64. If two integers are equally
# near, a pixel may be either.
MASK_BOUND, TARGET_BOUND, IMAGE_BOUND = 2e-7, 1e-6, 0.5 + 1e-4
_CLASSES, _SMOOTHING = 10, 0.1
_SIZE = (61, 84)
_LAMS = (0.0, 1e-6, 0.25, 0.36, 0.4999999, 0.5, 0.5, 0.65, 0.75, 0.999999, 1.0)
# Timings: images of this size, in batches of this size; the number of rounds and their approximate length.
SIDE, BATCH = 224, 64
_ROUNDS, _ROUND_SECONDS = 5, 0.05
# 512 x 384 pixels, about 100 kB: the average of ImageNet.
_JPEG_ROWS, _JPEG_COLUMNS = 24, 8


class Draws(NamedTuple):
    """The fixed draws of a batch, one entry per sample."""

    lam: np.ndarray
    ratio: np.ndarray
    center: np.ndarray
    partner: np.ndarray
    use_mixup: np.ndarray


class Errors(NamedTuple):
    """Largest differences from the reference."""

    image: float
    """Of a uint8 pixel from the exact value: 0.5 can be rounding."""
    mask: float
    targets: float
    levels: int
    """Of a pixel from the reference's, which rounds halves up."""
    halves: str
    """How halves were rounded: "up", "down", "to even", "mixed", or "" if there were none."""

    def within_bounds(self) -> bool:
        """Whether float32 explains all of them."""
        return (
            self.image <= IMAGE_BOUND
            and self.mask <= MASK_BOUND
            and self.targets <= TARGET_BOUND
            and self.levels <= 1
        )


def _make_draws(size: tuple[int, int]) -> Draws:
    rng = np.random.default_rng(2022)
    lam = np.concatenate([_LAMS, rng.uniform(size=13)])
    count = len(lam)
    return Draws(
        lam,
        rng.choice([0.0, 0.5, 0.75, 1.0], count),
        np.stack([rng.integers(0, side, count) for side in size], axis=1).astype(np.int32),
        rng.permutation(count).astype(np.int32),
        np.arange(count) % 2 == 0,
    )


def _source(values: Any, **arguments: Any) -> Any:
    return fn.external_source(source=lambda: list(values), **arguments)


def _build_pipeline(define: Callable[[], Any], batch_size: int, gpu: bool, threads: int) -> Pipeline:
    pipeline = Pipeline(batch_size, threads, 0 if gpu else None, seed=1)
    with pipeline:
        pipeline.set_outputs(*define())
    pipeline.build()
    return pipeline


def _backend(form: str) -> str:
    return "kernel" if form == "CPU kernel" else "graph"


def measure_errors(method: str, convention: str, form: str) -> Errors:
    """Mix a batch in one of :data:`FORMS` and compare it with the reference."""
    gpu, draws = form == "GPU graph", _make_draws(_SIZE)
    count = len(draws.lam)
    images = np.random.default_rng(7).integers(0, 256, (count, *_SIZE, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int32) % _CLASSES

    def define() -> Any:
        own = _source(images, layout="HWC", dtype=types.UINT8, ndim=3)
        given: dict[str, Any] = {"ratio": _source(draws.ratio)} if method == "hmix" else {}
        if method == "stochastic":
            given["switch_probability"] = _source(draws.use_mixup.astype(np.float64))
        mixed, targets, params = mix(
            own.gpu() if gpu else own,
            _source(labels.reshape(-1, 1)),
            method=method,
            num_classes=_CLASSES,
            label_smoothing=_SMOOTHING,
            convention=convention,
            lam=_source(draws.lam),
            center=_source(draws.center),
            partner=_source(draws.partner),
            backend=_backend(form),
            return_params=True,
            **given,
        )
        return mixed, targets, params.mask

    outputs = _build_pipeline(define, count, gpu, 2).run()
    mixed, targets, masks = (np.array(tensors.as_cpu().as_array()) for tensors in outputs)
    expected, expected_targets, expected_masks = reference.mix(
        images,
        labels,
        draws.partner,
        draws.lam,
        draws.center,
        draws.ratio,
        method,
        num_classes=_CLASSES,
        label_smoothing=_SMOOTHING,
        convention=convention,
        use_mixup=draws.use_mixup,
    )
    exact = np.stack(
        [
            reference.blend(image, images[j], mask)
            for image, j, mask in zip(images, draws.partner, expected_masks, strict=True)
        ]
    )
    return Errors(
        float(np.abs(mixed - exact).max()),
        float(np.abs(masks[..., 0] - expected_masks).max()),
        float(np.abs(targets - expected_targets).max()),
        int(np.abs(mixed.astype(int) - expected).max()),
        _find_rounding(mixed, exact, expected_masks),
    )


def _find_rounding(mixed: np.ndarray, exact: np.ndarray, masks: np.ndarray) -> str:
    """How values half-way between two integers were rounded, where float32 holds them exactly."""
    below = np.floor(exact)
    half = (exact == below + 0.5) & (masks * 1024 == np.floor(masks * 1024))[..., np.newaxis]
    if not half.any():
        return ""
    up = mixed[half] > below[half]
    if up.all():
        return "up"
    if not up.any():
        return "down"
    return "to even" if (mixed[half] % 2 == 0).all() else "mixed"


def time_mixing(method: str, form: str, threads: int) -> float:
    """Images mixed per second by a pipeline fed with uint8 images on its device; median of rounds."""
    gpu = form == "GPU graph"
    images = np.random.default_rng(7).integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(BATCH, dtype=np.int32).reshape(-1, 1)

    def define() -> Any:
        own = fn.external_source(
            source=lambda: images, layout="HWC", dtype=types.UINT8, ndim=3, no_copy=True, batch=True
        )
        own = own.gpu() if gpu else own
        return mix(own, _source(labels), method=method, num_classes=1000, backend=_backend(form))

    return _measure_rate(_build_pipeline(define, BATCH, gpu, threads))


def _measure_rate(pipeline: Pipeline) -> float:
    """Images per second of a pipeline; each round ends with the copy of its last batch to the CPU."""

    def seconds(batches: int) -> float:
        began = time.perf_counter()
        for _ in range(batches):
            outputs = pipeline.run()
        outputs[0].as_cpu()
        return time.perf_counter() - began

    seconds(2)
    batches = max(1, min(50, round(_ROUND_SECONDS / seconds(1))))
    size = int(pipeline.max_batch_size)
    return statistics.median(batches * size / seconds(batches) for _ in range(_ROUNDS))


def time_decoding(threads: int, hw_decoder_load: float | None = None) -> tuple[float, str]:
    """JPEGs decoded per second, and what is wrong with the images (empty if nothing).

    Parameters
    ----------
    threads : int
        Threads of the pipeline.
    hw_decoder_load : float, optional
        Decode on the GPU, this share on its hardware decoder; None decodes on the CPU.
    """
    gpu = hw_decoder_load is not None
    encoded = [np.frombuffer(jpeg.repeat_tile(_JPEG_ROWS, _JPEG_COLUMNS), np.uint8)] * BATCH

    def define() -> Any:
        device = {"device": "mixed", "hw_decoder_load": hw_decoder_load} if gpu else {"device": "cpu"}
        return (fn.decoders.image(_source(encoded), **device),)

    pipeline = _build_pipeline(define, BATCH, gpu, threads)
    image = np.array(pipeline.run()[0].as_cpu().at(BATCH - 1))
    shape = (_JPEG_ROWS, jpeg.TILE_HEIGHT, _JPEG_COLUMNS, jpeg.TILE_WIDTH, 3)
    if image.shape != (shape[0] * shape[1], shape[2] * shape[3], 3):
        return 0.0, f"a decoded image has the shape {image.shape}"
    off = float(np.abs(image.mean(axis=(0, 1)) - jpeg.TILE_MEAN).max())
    # Decoders interpolate colours across tile edges; inner tiles all have the same neighbours.
    tiles = image.reshape(shape)[1:-1, :, 1:-1].astype(int)
    differ = int(np.abs(tiles - tiles[:1, :, :1]).max())
    wrong = "" if off < 2 and differ <= 2 else f"colours off by {off:.1f}, tiles differ by {differ} levels"
    return _measure_rate(pipeline), wrong


def check_methods(forms: tuple[str, ...], threads: int, *, timed: bool = True) -> Iterator[dict[str, Any]]:
    """Check methods in forms, one result for each pair; a failure is a result too.

    Yields
    ------
    dict
        ``method``, ``form``, ``error`` (empty, or what is wrong), ``errors`` by convention (until something
        raised) and ``images_per_second`` (0 if not timed).
    """
    for form in forms:
        for method in METHODS:
            result: dict[str, Any] = {"method": method, "form": form, "error": "", "errors": {}}
            result["images_per_second"] = 0.0
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the doctor reports the same by itself
                    for convention in get_args(Convention):
                        found = measure_errors(method, convention, form)
                        result["errors"][convention] = found._asdict()
                        if not found.within_bounds():
                            result["error"] = f"{convention} convention: {_describe(found)}"
                    if timed and method != "none":
                        result["images_per_second"] = time_mixing(method, form, threads)
            except Exception as error:  # of any type: DALI passes on whatever its C++ code raises
                result["error"] = _one_line(error)
            yield result


def _describe(found: Errors) -> str:
    return (
        f"a pixel is off by {found.image:.3g} (0.5 is rounding), the mask by {found.mask:.2g},"
        f" a target by {found.targets:.2g}"
    )


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def check_decoders(gpu: bool, threads: int) -> Iterator[dict[str, Any]]:
    """Check and time the decoder: on the CPU, or on the GPU with several shares for the hardware decoder."""
    for load in (0.0, 0.65, 1.0) if gpu else (None,):
        result: dict[str, Any] = {"hw_decoder_load": load, "error": "", "images_per_second": 0.0}
        try:
            result["images_per_second"], result["error"] = time_decoding(threads, load)
        except Exception as error:  # as above
            result["error"] = _one_line(error)
        yield result


def find_hardware_decoder() -> dict[str, Any]:
    """Engines of the GPU's JPEG decoder and cores of each, 0 if it has none, from nvJPEG."""
    opened = libraries.opened_libraries(gpu.cuda_major(nvidia.dali))
    file, reason = libraries.open_library(next(library for library in opened if library.stem == "libnvjpeg"))
    return {"engines": None, "error": reason} if file is None else _ask_nvjpeg(ctypes.CDLL(file))


def _ask_nvjpeg(nvjpeg: Any) -> dict[str, Any]:
    # Through ctypes, because neither NVML nor a Python package of nvJPEG or nvImageCodec has this.
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    if status := nvjpeg.nvjpegCreateSimple(ctypes.byref(handle)):
        return {"engines": None, "error": f"nvjpegCreateSimple returned {status}"}
    status = nvjpeg.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
    nvjpeg.nvjpegDestroy(handle)
    if status:
        return {"engines": None, "error": f"nvjpegGetHardwareDecoderInfo returned {status}"}
    return {"engines": engines.value, "cores_per_engine": cores.value, "error": ""}


def check_gpu(threads: int, *, timed: bool = True) -> dict[str, Any]:
    """All checks that need a GPU, as one object."""
    return {
        "methods": list(check_methods(("GPU graph",), threads, timed=timed)),
        "decoders": list(check_decoders(True, threads)) if timed else [],
        "hardware_decoder": find_hardware_decoder(),
    }


def main() -> None:
    """``gpu THREADS [quick]``: print what :func:`check_gpu` returns."""
    device, threads, *rest = sys.argv[1:]
    if device != "gpu":
        raise SystemExit(f"device must be 'gpu'; got {device!r}")
    print(json.dumps(check_gpu(int(threads), timed="quick" not in rest)))


if __name__ == "__main__":
    main()
