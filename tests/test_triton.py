"""The Triton kernel: interpreted on the CPU or run on a GPU, bit by bit; and compiled for GPUs not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dali_msda.backends.numba.arrays import Masks, mix_batch, write_masks
from dali_msda.factors import fold_factors
from dali_msda.methods import TABLE
from dali_msda.reference import blend
from dali_msda.torch import triton_kernel
from dali_msda.torch.tiling import TILE_LINES, bytes_moved, cut
from tests.devices import on_each_device
from tests.triton_compiler import Compiled, compile_for
from tests.triton_interpreter import Interpreter

# More than one tile in both directions, with parts of tiles at the borders.
HEIGHT, WIDTH = 33, 40
PARTNER = torch.tensor([2, 0, 1])
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
IMAGES, META = torch.zeros(3, 3, 8, 16, dtype=torch.uint8), torch.zeros(3, 16, device="meta")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

in_each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


Mix = Callable[..., Tensor]


@pytest.fixture
def mix(device: str, request: pytest.FixtureRequest) -> Mix:
    """``mix_images`` on a device, from and to the CPU."""
    if device == "cpu":
        interpreted: Mix = request.getfixturevalue("interpreter").mix_images
        return interpreted

    def mix_images(*given: Tensor | None, **options: Any) -> Tensor:
        moved: list[Any] = [None if one is None else to_gpu(one) for one in given]
        return triton_kernel.mix_images(*moved, **options).cpu()

    return mix_images


def to_gpu(tensor: Tensor) -> Tensor:
    """The same view of the same memory."""
    memory = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0).cuda()
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def random_images(
    dtype: torch.dtype, layout: str = "NCHW", shape: tuple[int, ...] = (3, 3, HEIGHT, WIDTH)
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        images = torch.randn(shape, generator=generator).to(dtype)
    else:
        info = torch.iinfo(dtype)
        images = torch.randint(info.min, info.max + 1, shape, generator=generator).to(dtype)
    # Equal pixels mix to themselves.
    images[:2, :, 3:6] = images[2:3, :, 3:6]
    return images.contiguous(memory_format=LAYOUTS[layout])


def random_masks(method: str, height: int = HEIGHT, width: int = WIDTH) -> Masks:
    """Masks of three samples."""
    if method == "dense":
        values = np.random.default_rng(0).uniform(-0.5, 1.5, (3, height, width))
        return Masks(values.astype(np.float32), None)
    entry = TABLE[method]
    names = [*entry.values, "_row", "_column", "_coin", "_probability", "_paper", "_given"]
    # The second box covers whole tiles; the third sample is not mixed.
    drawn = [(0.55, 7, 9, 1), (0.01, 16, 20, 1), (0.3, 30, 3, 0)]
    ratio = [0.9] * (method == "hmix")
    numbers = np.array([[lam, *ratio, row, column, 0, mixed, 0, 1] for lam, row, column, mixed in drawn])
    slots = {name: place for place, name in enumerate(names)}
    return write_masks(entry, numbers.astype(np.float64), slots, (height, width))


def parts(masks: Masks) -> tuple[Tensor | None, ...]:
    """The same masks, as base, rows, columns and dense."""
    found = torch.from_numpy(np.asarray(masks.weights))
    if masks.lam is None:
        return None, None, None, found
    height = int(found[0, 1])
    if not found[:, 2:].any():
        return found[:, 0], None, None, None
    return found[:, 0], found[:, 2 : 2 + height], found[:, 2 + height :], None


def mix_on_the_cpu(images: Tensor, masks: Masks, source: Tensor | None = None) -> Tensor:
    """The result of the pipeline's kernel."""
    own, other = (one.contiguous().numpy() for one in (images, images if source is None else source))
    mixed = np.empty_like(own)
    mix_batch(own, PARTNER.numpy(), masks, mixed, source=other, channels_first=True)
    return torch.from_numpy(mixed)


def assert_same_bits(found: Tensor, expected: Tensor, device: str = "") -> None:
    assert found.dtype == expected.dtype
    if found.dtype == torch.bfloat16 and device == "cpu":
        # Triton's interpreter cuts the last bits off instead of rounding.
        torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=0)
    else:
        bits = (tensor.contiguous().view(torch.uint8) for tensor in (found, expected))
        assert torch.equal(*bits)


@on_each_device
@in_each_layout
@pytest.mark.parametrize(
    ("dtype", "method"),
    [
        (torch.uint8, "mixup"),
        (torch.uint8, "cutmix"),
        (torch.uint8, "hmix"),
        (torch.uint8, "dense"),
        (torch.int16, "gmix"),
        (torch.uint16, "hmix"),
        (torch.float32, "cutmix"),
        (torch.float32, "gmix"),
    ],
    ids=str,
)
def test_the_bits_of_the_pipelines_kernel(
    dtype: torch.dtype, method: str, layout: str, device: str, mix: Mix
) -> None:
    images, masks = random_images(dtype, layout), random_masks(method)
    mixed = mix(images, images, PARTNER, *parts(masks))
    assert (mixed.dtype, mixed.stride()) == (dtype, images.stride())
    assert_same_bits(mixed, mix_on_the_cpu(images, masks))


@on_each_device
def test_the_reference(device: str, mix: Mix) -> None:
    """The formulas in float64: half a unit away at most, and the rounding of float32 weights."""
    images, masks = random_images(torch.uint8), random_masks("gmix")
    base, rows, columns = (part.double().numpy() for part in parts(masks)[:3] if part is not None)
    mixed = mix(images, images, PARTNER, *parts(masks)).numpy()
    for i, j in enumerate(PARTNER.tolist()):
        mask = base[i] + rows[i][:, None] * columns[i]
        expected = blend(images[i].numpy(), images[j].numpy(), mask, "CHW")
        assert np.abs(mixed[i] - expected).max() <= 0.5 + 1e-4


@on_each_device
@in_each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8], ids=str)
def test_normalised_in_the_same_pass(dtype: torch.dtype, layout: str, device: str, mix: Mix) -> None:
    images, masks = random_images(torch.uint8, layout), random_masks("hmix")
    scale, shift = (64.0, 100.0) if dtype == torch.uint8 else (1.0, 0.5)
    own = images.permute(0, 2, 3, 1).contiguous().numpy()
    expected = np.empty((3, 3, HEIGHT, WIDTH), np.float32)
    factors = fold_factors(MEAN, STD, scale, shift)
    mix_batch(own, PARTNER.numpy(), masks, expected, channels_first=True, normalization=factors)
    if dtype == torch.uint8:
        assert (expected < 0).any()
        assert (expected > 255).any()
        expected = np.floor(np.float64(expected) + 0.5).clip(0, 255)
    options = {"mean": MEAN, "std": list(STD), "scale": scale, "shift": shift, "out_dtype": dtype}
    mixed = mix(images, images, PARTNER, *parts(masks), **options)
    assert mixed.stride() == images.stride()
    assert_same_bits(mixed, torch.from_numpy(expected).to(dtype), device)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.uint8, [0, 0, 255, 255, 3, 0, 255, 0]),
        (torch.int16, [0, -4, 256, 300, 3, -1, 32767, -32768]),
        (torch.uint16, [0, 0, 256, 300, 3, 0, 65535, 0]),
    ],
    ids=str,
)
def test_halves_go_away_from_zero(dtype: torch.dtype, expected: list[int], interpreter: Interpreter) -> None:
    """And integers saturate."""
    images = torch.tensor([0.0, -3.5, 255.5, 300.0, 2.5, -0.5, 1e9, -1e9]).reshape(1, 1, 2, 4)
    masks = (torch.ones(1), None, None, None)
    mixed = interpreter.mix_images(images, images, torch.zeros(1, dtype=torch.int32), *masks, out_dtype=dtype)
    assert mixed.dtype == dtype
    assert mixed.flatten().tolist() == expected


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_types_of_two_bytes(dtype: torch.dtype, device: str, mix: Mix) -> None:
    """Mixed in float32, and rounded to the type of the images before they are normalised."""
    images, masks = random_images(dtype), random_masks("hmix")
    mixed = mix(images, images, PARTNER, *parts(masks))
    assert_same_bits(mixed, mix_on_the_cpu(images.float(), masks).to(dtype), device)
    options = {"mean": 1.0, "std": 2.0, "out_dtype": torch.float32}
    normalized = mix(images, images, PARTNER, *parts(masks), **options)
    assert_same_bits(normalized, (mixed.float() - 1.0) * 0.5)


@on_each_device
@in_each_layout
def test_a_pixel_without_weight_has_no_influence(layout: str, device: str, mix: Mix) -> None:
    """Not even NaN, in tiles with both images and in those with one."""
    images, masks = random_images(torch.float32, layout), random_masks("cutmix")
    base, rows, columns = (part for part in parts(masks)[:3] if part is not None)
    mask = (base[:, None, None] + rows[:, :, None] * columns[:, None])[:, None]
    own, source = images.masked_fill(mask == 0, np.nan), images.clone()
    source[PARTNER] = source[PARTNER].masked_fill(mask == 1, np.nan)
    assert own.isnan().any()
    assert source.isnan().any()
    mixed = mix(own, source, PARTNER, *parts(masks))
    assert_same_bits(mixed, mix_on_the_cpu(images, masks))
    assert mix(own, source, PARTNER, torch.full((3,), 0.5), None, None, None).isnan().any()


@on_each_device
@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_channels(channels: int, device: str, mix: Mix) -> None:
    """One, and more than a program has planes."""
    images, masks = random_images(torch.uint8, shape=(3, channels, 8, 16)), random_masks("hmix", 8, 16)
    means = torch.arange(1.0, channels + 1)
    options = {"mean": means.tolist(), "std": 1.0, "out_dtype": torch.float32}
    expected = mix_on_the_cpu(images, masks).float() - means[:, None, None]
    for layout in LAYOUTS.values():
        own = images.contiguous(memory_format=layout)
        assert torch.equal(mix(own, own, PARTNER, *parts(masks), **options), expected)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "crop": lambda images: images[:3, :, 4 : 4 + HEIGHT, 2 : 2 + WIDTH],
    "channels": lambda images: images[:3, 1:4, :HEIGHT, :WIDTH],
    "every other": lambda images: images[1:7:2, :3, :HEIGHT, :WIDTH],
    "transposed": lambda images: images[:3, :, :WIDTH, :HEIGHT].transpose(2, 3),
}


@on_each_device
@pytest.mark.parametrize("view", VIEWS)
@in_each_layout
def test_views(view: str, layout: str, device: str, mix: Mix) -> None:
    """Their strides are followed, or a copy is made."""
    own = VIEWS[view](random_images(torch.uint8, layout, (8, 5, HEIGHT + 7, WIDTH + 9)))
    masks = random_masks("hmix")
    mixed = mix(own, own, PARTNER.to(torch.int32), *parts(masks))
    assert torch.equal(mixed, mix_on_the_cpu(own, masks))


@on_each_device
@pytest.mark.parametrize("layout", ["another", "the same, in parts"])
def test_a_source_of_another_form(layout: str, device: str, mix: Mix) -> None:
    images, masks = random_images(torch.uint8), random_masks("hmix")
    larger = random_images(torch.uint8, shape=(7, 5, HEIGHT + 1, WIDTH + 5)).flip(0)[2:, 1:4, 1:, 5:]
    source = larger.contiguous(memory_format=torch.channels_last) if layout == "another" else larger
    mixed = mix(images, source, PARTNER, *parts(masks))
    assert torch.equal(mixed, mix_on_the_cpu(images, masks, source))


def test_a_given_output(interpreter: Interpreter) -> None:
    images, partner = random_images(torch.uint8), torch.tensor([1, 1, 2])
    out = torch.empty((4, *images.shape[1:]), dtype=torch.uint8)[1:]
    mixed = interpreter.mix_images(images, images, partner, torch.zeros(3), None, None, None, out=out)
    assert mixed.storage_offset() == out.storage_offset()
    assert torch.equal(mixed, images[partner])


def test_an_empty_batch(interpreter: Interpreter) -> None:
    images, none = torch.zeros((0, 3, 4, 4), dtype=torch.uint8), torch.zeros(0)
    assert interpreter.mix_images(images, images, none.long(), none, None, None, None).shape == images.shape


def test_in_a_compiled_function(interpreter: Interpreter) -> None:
    """torch.compile takes the kernel as one operator, and knows the layout of its result."""
    images, masks = random_images(torch.uint8, "channels_last"), parts(random_masks("hmix"))
    options: dict[str, Any] = {"mean": MEAN, "std": STD, "out_dtype": torch.float32}
    compiled = interpreter.mix_images(images, images, PARTNER, *masks, **options, compiled=True)
    expected = interpreter.mix_images(images, images, PARTNER, *masks, **options)
    assert compiled.stride() == expected.stride() == images.stride()
    assert_same_bits(compiled, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": torch.zeros(3, 3, 8, 16)}, "images and source must be [N, C, H, W], of one size"),
        ({"partner": torch.zeros(2)}, "partner must be [3] on cpu; got [2] on cpu"),
        ({"base": torch.zeros(4)}, "base must be [3] on cpu; got [4] on cpu"),
        ({"rows": torch.zeros(3, 9)}, "rows must be [3, 8] on cpu; got [3, 9] on cpu"),
        ({"columns": META}, "columns must be [3, 16] on cpu; got [3, 16] on meta"),
        ({"columns": None}, "a mask must be base, or base with rows and columns, or dense"),
        ({"mean": (1.0, 2.0), "std": 1.0}, "mean and std must be for 3 channels; got 5 numbers in all"),
        ({"out": torch.zeros(3, 3, 8, 16)}, "out must be contiguous, of torch.uint8, and share no memory"),
        ({"out": IMAGES}, "out must be contiguous, of torch.uint8, and share no memory with the images"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"images": IMAGES, "source": IMAGES, "partner": PARTNER, "base": torch.ones(3), "dense": None}
    given |= {"rows": torch.zeros(3, 8), "columns": torch.zeros(3, 16)}
    with pytest.raises(ValueError, match="must be") as caught:
        triton_kernel.mix_images(**{**given, **changes})
    assert str(caught.value).startswith(message)


U8, BF16, F32 = torch.uint8, torch.bfloat16, torch.float32
ALL_DTYPES = ((U8, U8), (U8, BF16), (U8, F32), (BF16, BF16), (F32, F32))


def compiled_kernel(
    capability: int, folder: Path, dtypes: tuple[torch.dtype, ...], layout: str, mask: str, width: int = 224
) -> Compiled:
    images = torch.zeros((2, 3, 224, width), dtype=dtypes[0]).contiguous(memory_format=LAYOUTS[layout])
    base, rows, columns = torch.ones(2), torch.zeros(2, 224), torch.zeros(2, width)
    masks: dict[str, tuple[Tensor | None, ...]] = {
        "constant": (base, None, None, None),
        "separable": (base, rows, columns, None),
        "dense": (None, None, None, torch.zeros(2, 224, width)),
    }
    options = {} if dtypes[0] == dtypes[1] else {"mean": MEAN, "std": STD, "out_dtype": dtypes[1]}
    return compile_for(capability, folder, images, images, PARTNER[1:], *masks[mask], **options)


@pytest.mark.parametrize(
    ("capability", "dtypes", "layout", "mask"),
    [
        *((90, dtypes, layout, "separable") for dtypes in ALL_DTYPES for layout in LAYOUTS),
        *((90, (U8, U8), layout, mask) for mask in ("constant", "dense") for layout in LAYOUTS),
        *((80, dtypes, "NCHW", "separable") for dtypes in ALL_DTYPES[::2]),
        *((100, dtypes, "NCHW", "separable") for dtypes in ALL_DTYPES[::2]),
    ],
)
def test_compiled(
    capability: int, dtypes: tuple[torch.dtype, ...], layout: str, mask: str, tmp_path: Path
) -> None:
    """Nothing is spilled, a multiprocessor's 65,536 registers suffice for 5 programs at least, no product is
    fused with a sum; every pixel is read once and written once, 16 bytes at a time."""
    kernel = compiled_kernel(capability, tmp_path, dtypes, layout, mask)
    target = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}[capability]
    assert f"\n.target {target}\n" in kernel.ptx
    assert kernel.stack == 0
    assert 5 * kernel.threads * kernel.registers <= 65536
    assert kernel.count("fma") == 0
    tiling = cut((2, 3, 224, 224), dtypes[0], layout == "channels_last")
    elements = TILE_LINES * tiling.tile_length // kernel.threads
    of_images = 2 * tiling.planes_at_once * elements * dtypes[0].itemsize // 16
    of_result = tiling.planes_at_once * elements * dtypes[1].itemsize // 16
    # In NCHW, weights of neighbours are read as vectors too.
    weights = {"constant": 0, "separable": 16 // dtypes[0].itemsize, "dense": elements}[mask]
    of_weights = weights // 4 if layout == "NCHW" else 0
    assert kernel.count(r"ld\.global\.v4\.b32") == of_images + of_weights
    assert kernel.count(r"ld\.global\.(v2|b8|b16)") == 0
    assert kernel.count(r"st\.global") == kernel.count(r"st\.global\.v4\.b32") == of_result


def test_compiled_for_lines_of_any_length(tmp_path: Path) -> None:
    """Byte by byte, and still without spills."""
    kernel = compiled_kernel(90, tmp_path, (U8, U8), "NCHW", "separable", 223)
    assert kernel.stack == 0
    tile = cut((2, 3, 224, 223), U8, False).tile_length
    assert kernel.count(r"st\.global\.b8") == 3 * TILE_LINES * tile // kernel.threads


@pytest.mark.parametrize("mask", ["constant", "separable", "dense"])
@in_each_layout
@pytest.mark.parametrize("size", [32, 160, 224, 288, 512])
def test_bytes_moved(size: int, layout: str, mask: str) -> None:
    """At most 1.1 times two images read and one written, and the weights of a dense mask."""
    pixels = 256 * size * size
    for dtype, out_dtype in ALL_DTYPES:
        least = pixels * (3 * (2 * dtype.itemsize + out_dtype.itemsize) + 4 * (mask == "dense"))
        last = layout == "channels_last"
        moved = bytes_moved((256, 3, size, size), dtype, out_dtype, mask=mask, channels_last=last)
        assert least < moved <= 1.1 * least
