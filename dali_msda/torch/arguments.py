"""The arguments of mixing with PyTorch, checked once, when a transform is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..common_arguments import (
    check_given_together,
    check_same_length,
    check_scale_and_shift,
    per_channel,
)
from ..factors import fold_factors
from ..methods import TABLE, Argument, Beta, Method, check_method
from ..mixing import Convention, Granularity, check_argument, check_random, method_arguments
from ..signatures import PerChannel
from ..validation import (
    ArgumentTypeError,
    ArgumentValueError,
    check_choice,
    check_flag,
    check_fraction,
    check_type,
    is_number,
)

BackendName = Literal["auto", "kernel", "torch"]

# float32 holds all of their numbers.
IMAGE_DTYPES = (torch.uint8, torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.float32)
OUTPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _check_method_argument(argument: Argument, value: Any) -> None:
    if isinstance(value, Beta):
        check_random(argument, value)
    else:
        check_argument(argument, value)


@dataclass(frozen=True, kw_only=True)
class DrawArguments:
    """How masks and partners are drawn."""

    method: str
    values: Mapping[str, Any]
    """The method's own arguments by name; the record adds the defaults of those not given."""
    probability: float = 1.0
    convention: str = "reference"
    granularity: str = "sample"
    allow_self: bool = True
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        object.__setattr__(self, "values", method_arguments(self.entry, self.values, _check_method_argument))
        check_fraction("probability", self.probability)
        check_choice("convention", self.convention, get_args(Convention))
        check_choice("granularity", self.granularity, get_args(Granularity))
        check_flag("allow_self", self.allow_self)
        if self.generator is not None:
            check_type("generator", self.generator, torch.Generator)

    @property
    def entry(self) -> Method:
        """The method's entry in the table."""
        return TABLE[self.method]


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How mixed images are normalised: scale * (mixed - mean) / std + shift."""

    mean: PerChannel
    """As a float or a tuple; `std` too."""
    std: PerChannel
    scale: float
    shift: float
    dtype: torch.dtype
    factors: tuple[tuple[float, ...], tuple[float, ...]]
    """a and b of ``(mixed - a) * b``, which is the same: one number for all channels, or one for each."""

    @classmethod
    def from_call(
        cls,
        mean: PerChannel | None,
        std: PerChannel | None,
        scale: float,
        shift: float,
        dtype: torch.dtype | None,
    ) -> Normalization | None:
        """Check the arguments; None if nothing is normalised."""
        check_given_together(mean, std)
        check_scale_and_shift(scale, shift)
        if dtype is not None and dtype not in OUTPUT_DTYPES:
            raise ArgumentValueError("output_dtype", f"one of {', '.join(map(str, OUTPUT_DTYPES))}", dtype)
        if mean is None or std is None:
            left_out = (("scale", scale, 1.0), ("shift", shift, 0.0), ("output_dtype", dtype, None))
            for name, value, default in left_out:
                if value != default:
                    raise ArgumentValueError(name, "left out without mean= and std=", value)
            return None
        mean, std = per_channel("mean", mean), per_channel("std", std)
        check_same_length(mean, std)
        a, b = fold_factors(mean, std, scale, shift).tolist()
        return cls(
            mean=mean,
            std=std,
            scale=scale,
            shift=shift,
            dtype=dtype or torch.float32,
            factors=(tuple(a), tuple(b)),
        )

    @property
    def channels(self) -> int | None:
        """How many channels it is for; None if for any number."""
        lengths = [len(value) for value in (self.mean, self.std) if isinstance(value, tuple)]
        return lengths[0] if lengths else None


def check_images(name: str, images: object, *, maps: bool = False) -> Tensor:
    """Raise unless `images` can be mixed; return them as a plain tensor.

    `maps` are selected, not blended: of any type, and without channels if need be.
    """
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(name, "a tensor", type(images).__name__)
    if images.ndim < 3 or (images.ndim == 3 and not maps):
        expected = "[N, H, W] or [N, ..., H, W]" if maps else "[N, C, H, W]"
        raise ArgumentValueError(name, f"of shape {expected}", list(images.shape))
    if not maps and images.dtype not in IMAGE_DTYPES:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in IMAGE_DTYPES)
        raise ArgumentTypeError(name, f"one of {dtypes}", images.dtype)
    return images if type(images) is Tensor else images.as_subclass(Tensor)


def check_same(name: str, tensor: Tensor, images: Tensor) -> None:
    """Raise unless a second source has the shape, type and device of the images."""
    for what, got, expected in (
        ("shape", list(tensor.shape), list(images.shape)),
        ("dtype", tensor.dtype, images.dtype),
        ("device", tensor.device, images.device),
    ):
        if got != expected:
            raise ValueError(f"{name} must have the {what} of images, {expected}; got {got}")


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise unless a tensor is on the device of the images."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, like the images; got a tensor on {tensor.device}")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A few numbers of the host on another device, without waiting for it."""
    return tensor.to(device, non_blocking=True)


def given_lam(lam: object, count: int, device: torch.device) -> Tensor:
    """The caller's lam: float64, [1] or [N]. Numbers must be in [0, 1]; values of a tensor are clipped."""
    if is_number(lam):
        check_fraction("lam", lam)
        return torch.full((1,), lam, dtype=torch.float64, device=device)  # type: ignore[call-overload, no-any-return]
    if isinstance(lam, Sequence) and not isinstance(lam, str) and lam:
        for one in lam:
            check_fraction("lam", one)
        lam = to_device(torch.tensor(lam, dtype=torch.float64), device)
    if not isinstance(lam, Tensor):
        raise ArgumentTypeError("lam", "a number in [0, 1], or one per sample", lam)
    check_device("lam", lam, device)
    if lam.ndim > 1 or lam.numel() not in (1, count):
        raise ArgumentValueError("lam", f"one number, or {count}", f"a tensor of shape {list(lam.shape)}")
    return lam.to(torch.float64).reshape(-1).clamp(0.0, 1.0)


def given_center(center: object, count: int, device: torch.device) -> Tensor:
    """The caller's centre in pixels: float64, [1, 2] or [N, 2]."""
    expected = "(row, column) in pixels, or a tensor of shape [2] or [N, 2]"
    if isinstance(center, Tensor):
        check_device("center", center, device)
        if center.shape not in ((2,), (1, 2), (count, 2)):
            raise ArgumentValueError("center", expected, f"a tensor of shape {list(center.shape)}")
        return center.to(torch.float64).reshape(-1, 2)
    if isinstance(center, str) or not isinstance(center, Sequence) or len(center) != 2:
        raise ArgumentTypeError("center", expected, center)
    for name, value in zip(("center row", "center column"), center, strict=True):
        if not is_number(value):
            raise ArgumentTypeError(name, "a pixel index of at least 0", value)
        if not 0 <= value < float("inf") or value != int(value):
            raise ArgumentValueError(name, "a pixel index of at least 0", value)
    return to_device(torch.tensor([center], dtype=torch.float64), device)


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds integers that can be indices."""
    return tensor.dtype in _INTEGERS


def given_partner(partner: object, count: int, device: torch.device) -> Tensor:
    """The caller's partners: int64 [N]; their range is checked by :func:`.checks.check_range`."""
    expected = f"an index in [0, {count}), or one per sample"
    if isinstance(partner, int | Sequence) and not isinstance(partner, str | bool):
        several = [partner] if isinstance(partner, int) else list(partner)
        if any(isinstance(one, bool) or not isinstance(one, int) for one in several):
            raise ArgumentTypeError("partner", expected, partner)
        if not all(0 <= one < count for one in several):
            raise ArgumentValueError("partner", expected, partner)
        partner = to_device(torch.tensor(several, dtype=torch.int64), device)
    if not isinstance(partner, Tensor) or not is_integer(partner):
        got = f"a tensor of {partner.dtype}" if isinstance(partner, Tensor) else partner
        raise ArgumentTypeError("partner", expected, got)
    check_device("partner", partner, device)
    if partner.ndim > 1 or partner.numel() not in (1, count):
        raise ArgumentValueError("partner", expected, f"a tensor of shape {list(partner.shape)}")
    return partner.to(torch.int64).reshape(-1).expand(count)
