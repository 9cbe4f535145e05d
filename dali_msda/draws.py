"""The random draws of a batch, packed into one small vector per sample.

Each DALI operator costs a wake-up of the thread pool per batch, about as much as mixing several images.
All that a mask depends on therefore travels in one float64 vector whose slots are named here, and random
numbers are drawn with as few operators as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from .arguments import MixArguments

# Slots of the vector.
LAM, RATIO, CENTER_ROW, CENTER_COLUMN, APPLY_COIN, SWITCH_COIN, LAM_MIXUP = range(7)
PROBABILITY, SWITCH_PROBABILITY, PI = range(7, 10)
METHOD, PAPER, CENTER_GIVEN, CHANNELS_FIRST, LABEL_SMOOTHING = range(10, 15)
SLOTS = 15

# One independent stream per purpose: a seed shared by several DALI operators would correlate them.
_LAM_STREAM, _LAM_MIXUP_STREAM, _UNIFORM_STREAM, _PARTNER_STREAM = range(4)


def float64_constant(values: Sequence[float]) -> DataNode:
    """A float64 vector, bit for bit: DALI's own constants are rounded to float32, bytes are not."""
    data = np.frombuffer(np.asarray(values, dtype="<f8").tobytes(), dtype=np.uint8)
    return fn.reinterpret(types.Constant(data, device="cpu"), dtype=types.FLOAT64)


def vector(node: DataNode, length: int = 1) -> DataNode:
    """A caller's node as a float64 vector of the given length (a wrong length is DALI's error)."""
    return fn.reshape(fn.cast(node, dtype=types.FLOAT64), shape=[length])


def _packed(parts: Sequence[float | DataNode]) -> DataNode:
    """Concatenate numbers and nodes; neighbouring numbers share one constant."""
    nodes: list[DataNode] = []
    numbers: list[float] = []
    for part in [*parts, None]:
        if part is not None and not isinstance(part, DataNode):
            numbers.append(float(part))
            continue
        if numbers:
            nodes.append(float64_constant(numbers))
            numbers = []
        if part is not None:
            nodes.append(part)
    return fn.cat(*nodes, axis=0) if len(nodes) > 1 else nodes[0]


def _seed(arguments: MixArguments, stream: int) -> dict[str, int]:
    """The seed argument of one random operator; empty leaves it to the pipeline's own seed."""
    if arguments.seed is None:
        return {}
    state = np.random.SeedSequence(arguments.seed).generate_state(4, dtype=np.uint64)
    return {"seed": int(state[stream] >> np.uint64(1))}


def _shared(draw: DataNode, arguments: MixArguments) -> DataNode:
    """The draw itself, or the first sample's draw for the whole batch."""
    if arguments.granularity == "sample":
        return draw
    return fn.permute_batch(draw, indices=types.Constant(0, dtype=types.INT32, device="cpu"))


def _beta(alpha: float | DataNode, arguments: MixArguments, stream: int) -> DataNode:
    draw = fn.random.beta(alpha=alpha, beta=alpha, shape=[1], dtype=types.FLOAT64, **_seed(arguments, stream))
    return _shared(draw, arguments)


def _given(value: Any, length: int = 1) -> Any:
    """A caller's value for a slot; None, which no method asks for, is 0."""
    if value is None:
        return 0.0
    return vector(value, length) if isinstance(value, DataNode) else value


def draw(arguments: MixArguments) -> DataNode:
    """Draw everything the masks of a batch depend on.

    Returns
    -------
    DataNode
        float64 [SLOTS] on the CPU, one vector per sample. What the caller gave is not drawn.
    """
    lam: Any = _given(arguments.lam)
    lam_mixup: Any = lam
    if arguments.lam is None:
        lam = 1.0 if arguments.lam_alpha is None else _beta(arguments.lam_alpha, arguments, _LAM_STREAM)
        lam_mixup = 0.0
        if arguments.mixup_alpha is not None:
            lam_mixup = _beta(arguments.mixup_alpha, arguments, _LAM_MIXUP_STREAM)
    # Centre row, centre column, the coin for `probability` and the one that switches the method.
    uniforms = _shared(
        fn.random.uniform(
            range=[0.0, 1.0], shape=[4], dtype=types.FLOAT64, **_seed(arguments, _UNIFORM_STREAM)
        ),
        arguments,
    )
    parts: list[Any] = [lam, _given(arguments.ratio)]
    if arguments.center is None:
        parts += [uniforms]
    else:
        center = arguments.center
        parts += [vector(center, 2)] if isinstance(center, DataNode) else list(center)
        parts += [fn.slice(uniforms, start=[2], shape=[2], axes=[0])]
    parts += [lam_mixup, _given(arguments.probability), _given(arguments.switch_probability), np.pi]
    parts += [
        arguments.method_code,
        arguments.convention == "paper",
        arguments.center is not None,
        arguments.layout == "CHW",
        arguments.label_smoothing,
    ]
    return _packed(parts)


def draw_partner(arguments: MixArguments) -> DataNode:
    """Index of every sample's partner, int32 scalar: the caller's, or a random permutation of the batch."""
    if arguments.partner is None:
        return fn.batch_permutation(**_seed(arguments, _PARTNER_STREAM))
    if isinstance(arguments.partner, DataNode):
        return fn.reshape(fn.cast(arguments.partner, dtype=types.INT32), shape=[])
    return types.Constant(arguments.partner, dtype=types.INT32, device="cpu")
