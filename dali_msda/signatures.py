"""The types of the mixing functions, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict, Unpack, overload

import numpy as np

from .methods import Beta
from .mixing import Convention, Granularity

if TYPE_CHECKING:
    from nvidia.dali import types
    from nvidia.dali.pipeline import DataNode

# One number for all channels, or one for each.
PerChannel = float | Sequence[float] | np.ndarray[Any, Any]
TargetForm = Literal["dense", "pair"]
BackendName = Literal["auto", "kernel", "hybrid", "graph"]
Layout = Literal["HWC", "CHW", "HW", "FHWC", "FCHW", "DHWC"]


class MixParams(NamedTuple):
    """What was drawn for a batch; the last result of an operator with ``return_params=True``."""

    lam: DataNode
    """Label weight of the own image, the mean of its mask: float32 scalar, CPU."""
    partner: DataNode
    """Index of the partner within the batch: int32 scalar, CPU."""
    mask: DataNode
    """Weight of the own image: float32 HxWx1 (1xHxW for CHW and FCHW, HxW for HW), on the images' device."""


class Pair(NamedTuple):
    """Both labels and their weight, for ``lam * loss(own) + (1 - lam) * loss(partner)``."""

    own: DataNode
    """Class ids, int64 scalar; or vectors, float32 [K]."""
    partner: DataNode
    """Likewise, of the partner."""
    lam: DataNode
    """Weight of the own label: float32 scalar."""


class MixOptions(TypedDict, total=False):
    """Arguments of all mixing functions, except images, labels and those that decide the kind of results."""

    alpha: float | DataNode | None
    ratio: float | DataNode | Beta | None
    mixup_alpha: float | DataNode | None
    cutmix_alpha: float | DataNode | None
    switch_probability: float | DataNode | Beta | None
    probability: float | DataNode
    label_smoothing: float
    correct_lam: bool
    convention: Convention
    granularity: Granularity
    layout: Layout | None
    seed: int | None
    lam: float | DataNode | None
    center: Sequence[int] | DataNode | None
    partner: int | DataNode | None
    allow_self: bool
    partner_images: DataNode | Sequence[DataNode] | None
    partner_labels: DataNode | None
    mean: PerChannel | None
    std: PerChannel | None
    scale: float
    shift: float
    mirror: int | DataNode
    output_layout: Layout | None
    output_dtype: types.DALIDataType
    pad_output: bool
    backend: BackendName
    name: str | None


class MixFunction(Protocol):
    """The function of one method: :func:`mix` with a fixed method, and that method's own arguments."""

    __name__: str

    @overload
    def __call__(
        self,
        images: DataNode,
        labels: None,
        num_classes: int | None = None,
        *,
        return_params: Literal[False] = False,
        **options: Unpack[MixOptions],
    ) -> DataNode: ...

    @overload
    def __call__(
        self,
        images: DataNode,
        labels: None,
        num_classes: int | None = None,
        *,
        return_params: Literal[True],
        **options: Unpack[MixOptions],
    ) -> tuple[DataNode, MixParams]: ...

    @overload
    def __call__(
        self,
        images: DataNode,
        labels: DataNode,
        num_classes: int | None = None,
        *,
        output: Literal["dense"] = "dense",
        return_params: Literal[False] = False,
        **options: Unpack[MixOptions],
    ) -> tuple[DataNode, DataNode]: ...

    @overload
    def __call__(
        self,
        images: DataNode,
        labels: DataNode,
        num_classes: int | None = None,
        *,
        output: Literal["dense"] = "dense",
        return_params: Literal[True],
        **options: Unpack[MixOptions],
    ) -> tuple[DataNode, DataNode, MixParams]: ...

    @overload
    def __call__(
        self,
        images: DataNode,
        labels: DataNode,
        num_classes: int | None = None,
        *,
        output: Literal["pair"],
        return_params: Literal[False] = False,
        **options: Unpack[MixOptions],
    ) -> tuple[DataNode, Pair]: ...

    @overload
    def __call__(
        self,
        images: DataNode,
        labels: DataNode,
        num_classes: int | None = None,
        *,
        output: Literal["pair"],
        return_params: Literal[True],
        **options: Unpack[MixOptions],
    ) -> tuple[DataNode, Pair, MixParams]: ...

    @overload
    def __call__(
        self,
        images: DataNode | Sequence[DataNode],
        labels: DataNode | None,
        num_classes: int | None = None,
        *,
        output: TargetForm = "dense",
        return_params: bool = False,
        **options: Unpack[MixOptions],
    ) -> Any: ...
