"""The random draws of a batch: all that its masks and partners depend on.

Each DALI operator costs a wake-up of the thread pool per batch, about as much as mixing several images:
random numbers are drawn with as few operators as possible, and the compiled kernel takes them in parts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode

from .arguments import BlendArguments, MixArguments
from .checks import integer_partner
from .methods import Beta, Uniform

# One independent stream per purpose: a seed shared by several DALI operators would correlate them. The
# further Beta draws of a method come after these.
_FIRST_BETA, _SECOND_BETA, _UNIFORMS, _PARTNER, _MORE_BETAS = range(5)

# Uniform draws: two for the centre, the coin for `probability`, then the method's own. At least one of those
# is always drawn, so that methods with and without one draw alike.
_COIN, _OWN = 2, 3


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch or given by the caller, as one vector per sample, in parts."""

    parts: list[DataNode | bytes]
    """float64 [n] on the CPU each, or the bytes of such numbers, the same for all samples."""
    slots: dict[str, int]
    """Where in the vector a number stands: what the method's formula takes, by name; "_row" and "_column",
    uniform draws for the centre, or the caller's; "_coin", a uniform draw to compare with "_probability";
    "_paper" and "_given", which are 0 or 1."""

    @functools.cached_property
    def numbers(self) -> DataNode:
        """The vector in one piece, float64 [n], CPU."""
        nodes = [_constant(part) if isinstance(part, bytes) else part for part in self.parts]
        return fn.cat(*nodes, axis=0) if len(nodes) > 1 else nodes[0]

    def pick(self, name: str) -> DataNode:
        """One of the numbers, [1]."""
        return fn.slice(self.numbers, start=[self.slots[name]], shape=[1], axes=[0])


def float64_constant(values: Sequence[float]) -> DataNode:
    """A float64 vector, bit for bit: DALI's own constants are rounded to float32, bytes are not."""
    return _constant(_bytes(values))


def _bytes(values: Sequence[float]) -> bytes:
    return np.asarray(values, dtype="<f8").tobytes()


def _constant(data: bytes) -> DataNode:
    return fn.reinterpret(byte_constant(data), dtype=types.FLOAT64)


def byte_constant(data: bytes) -> DataNode:
    """Bytes as uint8 [n], CPU."""
    return types.Constant(np.frombuffer(data, dtype=np.uint8), device="cpu")


def vector(node: DataNode, length: int = 1) -> DataNode:
    """A caller's node as a float64 vector of the given length (a wrong length is DALI's error)."""
    return fn.reshape(fn.cast(node, dtype=types.FLOAT64), shape=[length])


def _joined(parts: Sequence[float | DataNode]) -> list[DataNode | bytes]:
    """The same numbers; those that are neighbours and no nodes are one part."""
    found: list[DataNode | bytes] = []
    for is_node, group in itertools.groupby(parts, lambda part: isinstance(part, DataNode)):
        neighbours = list(group)
        found += neighbours if is_node else [_bytes([float(part) for part in neighbours])]
    return found


def _seed(seed: int | None, stream: int) -> dict[str, int]:
    """The seed argument of one random operator; empty leaves it to the pipeline's own seed."""
    if seed is None:
        return {}
    state = np.random.SeedSequence(seed).generate_state(stream + 1, dtype=np.uint64)
    return {"seed": int(state[stream] >> np.uint64(1))}


def _shared(draw: DataNode, arguments: MixArguments) -> DataNode:
    """The draw itself, or the first sample's draw for the whole batch."""
    if arguments.granularity == "sample":
        return draw
    return fn.permute_batch(draw, indices=types.Constant(0, dtype=types.INT32, device="cpu"))


def draw(arguments: MixArguments) -> Draws:
    """Draw everything the masks of a batch depend on; what the caller gave is not drawn."""
    method = arguments.entry
    slots: dict[str, int] = {}
    parts: list[float | DataNode] = []
    length = 0

    def put(part: float | DataNode, *names: str, size: int = 1) -> None:
        nonlocal length
        parts.append(part)
        slots.update({name: length + place for place, name in enumerate(names)})
        length += size

    # The order is part of what a seed of the pipeline stands for: DALI hands seeds out in the order in which
    # random operators are reached.
    betas = {name: kind for name, kind in method.draws.items() if isinstance(kind, Beta)}
    # The first one comes before the uniform draws, the others after them.
    streams = itertools.chain((_FIRST_BETA, _SECOND_BETA), itertools.count(_MORE_BETAS))
    for name in list(betas)[:1]:
        put(_beta(betas[name], arguments, next(streams)), name)
    for argument in method.arguments:
        value = arguments.values[argument.name]
        if argument.name in method.values:
            put(_number(value, clip=argument.fraction), argument.name)
    own = [name for name, kind in method.draws.items() if isinstance(kind, Uniform)]
    count = max(1, len(own))
    uniforms = _shared(
        fn.random.uniform(
            range=[0.0, 1.0], shape=[_OWN + count], dtype=types.FLOAT64, **_seed(arguments.seed, _UNIFORMS)
        ),
        arguments,
    )
    center = arguments.center
    if center is None:
        put(uniforms, "_row", "_column", "_coin", *own, size=_OWN + count)
    else:
        if isinstance(center, DataNode):
            put(vector(center, 2), "_row", "_column", size=2)
        else:
            put(center[0], "_row")
            put(center[1], "_column")
        rest = fn.slice(uniforms, start=[_COIN], shape=[1 + count], axes=[0])
        put(rest, "_coin", *own, size=1 + count)
    for name in list(betas)[1:]:
        put(_beta(betas[name], arguments, next(streams)), name)
    put(_number(arguments.probability), "_probability")
    put(arguments.convention == "paper", "_paper")
    put(center is not None, "_given")
    return Draws(_joined(parts), slots)


def _number(value: float | DataNode, *, clip: bool = False) -> float | DataNode:
    """A caller's number, or a node as [1], clipped if its numbers, unknown yet, have to be in [0, 1]."""
    if not isinstance(value, DataNode):
        return value
    return math.clamp(vector(value), 0.0, 1.0) if clip else vector(value)


def _beta(kind: Beta, arguments: MixArguments, stream: int) -> float | DataNode:
    """The caller's lam, or a draw from Beta(alpha, alpha)."""
    if arguments.lam is not None:
        return _number(arguments.lam, clip=True)
    alpha = arguments.values[kind.alpha]
    drawn = fn.random.beta(
        alpha=alpha, beta=alpha, shape=[1], dtype=types.FLOAT64, **_seed(arguments.seed, stream)
    )
    return _shared(drawn, arguments)


def draw_partner(arguments: BlendArguments) -> DataNode:
    """Index of every sample's partner, int32 scalar: the caller's, or a random permutation of the batch."""
    if arguments.partner is None:
        return fn.batch_permutation(**_seed(arguments.seed, _PARTNER))
    if isinstance(arguments.partner, DataNode):
        return fn.reshape(integer_partner(arguments.partner), shape=[])
    return types.Constant(arguments.partner, dtype=types.INT32, device="cpu")
