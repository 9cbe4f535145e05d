"""The CPU backend: one compiled operator mixes the images, another one the labels."""

from __future__ import annotations

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from ...arguments import MixArguments, MixParams
from ...checks import label_in_range, no_fault
from ...dtypes import static_dtype
from ...normalization import asked_for, normalized
from .entry_points import make_mask, mix_images, mix_targets
from .kernels import INFO_LAM


def mix(
    images: DataNode, labels: DataNode, draws: DataNode, partner: DataNode, arguments: MixArguments
) -> tuple[DataNode, DataNode, MixParams | None]:
    """Mix a batch on the CPU in compiled code.

    Parameters
    ----------
    images : DataNode
        uint8, float16 or float32, three-dimensional, CPU.
    labels : DataNode
        int32 [1], CPU.
    draws : DataNode
        float64 [SLOTS] of :mod:`dali_msda.draws`.
    partner : DataNode
        Index within the batch, int32 scalar, CPU.
    arguments : MixArguments
        Checked arguments.

    Returns
    -------
    images, targets, params
        As :func:`dali_msda.mix`; params is None unless they were asked for.
    """
    # float16 does not exist in Numba on the CPU, and a type that the graph does not show could be
    # anything: both are mixed as float32 and go back to what they were.
    exact = static_dtype(images) in (types.UINT8, types.FLOAT)
    own = images if exact else fn.cast(images, dtype=types.FLOAT)
    element = types.UINT8 if static_dtype(own) == types.UINT8 else types.FLOAT
    normalization = asked_for(arguments)
    fused = normalization if element == types.UINT8 and arguments.layout == "HWC" else None
    layout = fn.get_property(images, key="layout")
    mixed, info, fault = mix_images(element, own, draws, partner, layout, fused)
    # The plugin's operator drops the layout.
    mixed = fn.reshape(mixed, layout=arguments.layout if fused is None else fused.output_layout)
    if not exact:
        mixed = fn.cast_like(mixed, images)
    if normalization is not None and fused is None:
        mixed = normalized(mixed, normalization)
    targets = mix_targets(
        types.Constant(np.zeros(arguments.num_classes, np.float32), device="cpu"),
        labels,
        fn.permute_batch(labels, indices=partner),
        info,
        label_in_range(labels, arguments.num_classes),
        no_fault(fault),
    )
    if not arguments.return_params:
        return mixed, targets, None
    mask = fn.reshape(make_mask(element, own, draws, arguments.layout), layout=arguments.layout)
    lam = fn.reshape(fn.slice(info, start=[INFO_LAM], shape=[1], axes=[0]), shape=[])
    return mixed, targets, MixParams(lam, partner, mask)
