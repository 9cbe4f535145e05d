"""The random draws of a batch: everything its masks and partners depend on.

Each DALI operator wakes the thread pool once per batch, which costs about as much as mixing several images.
So as few operators as possible draw the random numbers, and the compiled kernel takes them in parts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import DataNode

from .arguments import DrawArguments, PartnerArguments
from .checks import cast_partner
from .masks import chosen
from .methods import Beta, Uniform

# One independent stream per purpose: a seed shared by several DALI operators would correlate them. Further
# Beta draws of a method have the streams after these.
_FIRST_BETA, _SECOND_BETA, _UNIFORMS, _PARTNER, _MORE_BETAS = range(5)

# Uniform draws: two for the centre, the coin for `probability`, then the method's own. At least one of these
# is always drawn, so that methods without any have the same draws as methods with one.
_COIN, _OWN = 2, 3


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch or given by the caller: one vector per sample, in parts."""

    parts: list[DataNode | bytes]
    """Each a node, float64 [n] on the CPU, or the bytes of such numbers if all samples share them."""
    slots: dict[str, int]
    """Indices into the vector: what the method's formula takes, by name; "_row" and "_column", uniform draws
    for the centre, or the caller's centre; "_coin", a uniform draw to compare with "_probability"; "_paper"
    and "_given", each 0 or 1."""

    @functools.cached_property
    def numbers(self) -> DataNode:
        """The whole vector, float64 [n], CPU."""
        nodes = [_constant(part) if isinstance(part, bytes) else part for part in self.parts]
        return fn.cat(*nodes, axis=0) if len(nodes) > 1 else nodes[0]

    def with_center(self, center: DataNode) -> Draws:
        """The same numbers with another centre, float64 [2]."""
        row = self.slots["_row"]
        after, count = row + 2, 1 + max(self.slots.values())
        first = [fn.slice(self.numbers, start=[0], shape=[row], axes=[0])] if row else []
        last = fn.slice(self.numbers, start=[after], shape=[count - after], axes=[0])
        return Draws([*first, center, last], self.slots)

    def pick(self, name: str) -> DataNode:
        """One of the numbers, [1]."""
        return fn.slice(self.numbers, start=[self.slots[name]], shape=[1], axes=[0])


def float64_constant(values: Sequence[float]) -> DataNode:
    """Make an exact float64 vector: DALI rounds constants to float32, but not bytes."""
    return _constant(_bytes(values))


def _bytes(values: Sequence[float]) -> bytes:
    return np.asarray(values, dtype="<f8").tobytes()


def _constant(data: bytes) -> DataNode:
    return fn.reinterpret(byte_constant(data), dtype=types.FLOAT64)


def byte_constant(data: bytes) -> DataNode:
    """Make a constant uint8 [n] on the CPU."""
    return types.Constant(np.frombuffer(data, dtype=np.uint8), device="cpu")


def as_vector(node: DataNode, length: int = 1) -> DataNode:
    """A caller's node as a float64 vector of the given length (DALI raises if the length is wrong)."""
    return fn.reshape(fn.cast(node, dtype=types.FLOAT64), shape=[length])


def _merge_constants(parts: Sequence[float | DataNode]) -> list[DataNode | bytes]:
    """Merge neighbouring plain numbers into one part each."""
    found: list[DataNode | bytes] = []
    for is_node, group in itertools.groupby(parts, lambda part: isinstance(part, DataNode)):
        neighbours = list(group)
        found += neighbours if is_node else [_bytes([float(part) for part in neighbours])]
    return found


def _seed(seed: int | None, stream: int) -> dict[str, int]:
    """The seed argument of one random operator; without one, the pipeline's seed applies."""
    if seed is None:
        return {}
    state = np.random.SeedSequence(seed).generate_state(stream + 1, dtype=np.uint64)
    return {"seed": int(state[stream] >> np.uint64(1))}


def _share_in_batch(draw: DataNode, arguments: DrawArguments) -> DataNode:
    """The draw itself, or with granularity "batch" the first sample's draw for all samples."""
    if arguments.granularity == "sample":
        return draw
    return fn.permute_batch(draw, indices=types.Constant(0, dtype=types.INT32, device="cpu"))


def draw_numbers(arguments: DrawArguments) -> Draws:
    """Draw everything the masks of a batch depend on, except what the caller gave."""
    method = arguments.entry
    slots: dict[str, int] = {}
    parts: list[float | DataNode | Beta] = []
    length = 0

    def append(part: float | DataNode | Beta, *names: str, size: int = 1) -> None:
        nonlocal length
        parts.append(part)
        slots.update({name: length + offset for offset, name in enumerate(names)})
        length += size

    # With a pipeline seed the order decides the numbers: DALI assigns seeds to random operators in the order
    # of the graph.
    betas = {name: kind for name, kind in method.draws.items() if isinstance(kind, Beta)}
    # The first Beta draw comes before the uniform draws, the others after them.
    streams = itertools.chain((_FIRST_BETA, _SECOND_BETA), itertools.count(_MORE_BETAS))
    for name in list(betas)[:1]:
        append(_draw_beta(betas[name], arguments, next(streams)), name)
    for argument in method.arguments:
        value = arguments.values[argument.name]
        if argument.name in method.values:
            random = isinstance(value, Beta)
            append(value if random else _as_part(value, clip=argument.fraction), argument.name)
    own = [name for name, kind in method.draws.items() if isinstance(kind, Uniform)]
    count = max(1, len(own))
    uniforms = _share_in_batch(
        fn.random.uniform(
            range=[0.0, 1.0], shape=[_OWN + count], dtype=types.FLOAT64, **_seed(arguments.seed, _UNIFORMS)
        ),
        arguments,
    )
    center = arguments.center
    if center is None:
        append(uniforms, "_row", "_column", "_coin", *own, size=_OWN + count)
    else:
        if isinstance(center, DataNode):
            append(as_vector(center, 2), "_row", "_column", size=2)
        else:
            append(center[0], "_row")
            append(center[1], "_column")
        rest = fn.slice(uniforms, start=[_COIN], shape=[1 + count], axes=[0])
        append(rest, "_coin", *own, size=1 + count)
    for name in list(betas)[1:]:
        append(_draw_beta(betas[name], arguments, next(streams)), name)
    append(_probability(arguments), "_probability")
    append(arguments.convention == "paper", "_paper")
    append(center is not None, "_given")
    # Random arguments come last, so that lam and the centres are the same as without them.
    more = itertools.count(_MORE_BETAS + len(betas))
    drawn = [
        _draw_random(float(part.alpha), arguments, next(more)) if isinstance(part, Beta) else part
        for part in parts
    ]
    return Draws(_merge_constants(drawn), slots)


def _as_part(value: float | DataNode, *, clip: bool = False) -> float | DataNode:
    """A caller's number, or node as [1]; `clip` keeps a node, whose values are unknown yet, in [0, 1]."""
    if not isinstance(value, DataNode):
        return value
    return math.clamp(as_vector(value), 0.0, 1.0) if clip else as_vector(value)


def _draw_beta(kind: Beta, arguments: DrawArguments, stream: int) -> float | DataNode:
    """The caller's lam, or a draw from Beta(alpha, alpha)."""
    if arguments.lam is not None:
        return _as_part(arguments.lam, clip=True)
    alpha = arguments.values[str(kind.alpha)]
    if not isinstance(alpha, DataNode) and alpha == 0:
        return 1.0
    positive = alpha
    if isinstance(alpha, DataNode):
        # DALI refuses an alpha of 0. What is drawn with 1 in its place does not count.
        positive = fn.cast(alpha, dtype=types.FLOAT) + fn.cast(alpha == 0.0, dtype=types.FLOAT)
    drawn = _draw_random(positive, arguments, stream)
    return chosen(drawn, 1.0, 0.0, _is_positive(alpha)) if isinstance(alpha, DataNode) else drawn


def _draw_random(alpha: float | DataNode, arguments: DrawArguments, stream: int) -> DataNode:
    """A draw from Beta(alpha, alpha), float64 [1]."""
    drawn = fn.random.beta(
        alpha=alpha, beta=alpha, shape=[1], dtype=types.FLOAT64, **_seed(arguments.seed, stream)
    )
    return _share_in_batch(drawn, arguments)


def _is_positive(alpha: DataNode) -> DataNode:
    """1 where a node is above 0, else 0: float64 [1]."""
    return fn.cast(as_vector(alpha) > 0.0, dtype=types.FLOAT64)


def _probability(arguments: DrawArguments) -> float | DataNode:
    """Probability that a sample is mixed at all: 0 where the only alpha is 0.

    A lam of 1 would not do: GMix has a blob of one pixel then.
    """
    probability, alpha = _as_part(arguments.probability), arguments.only_alpha
    if alpha is None:
        return probability
    if isinstance(alpha, DataNode):
        return _is_positive(alpha) * (
            probability if isinstance(probability, DataNode) else float64_constant([probability])
        )
    return probability if alpha > 0 else 0.0


def draw_partner(arguments: PartnerArguments) -> DataNode:
    """Index of every sample's partner, int32 scalar: the caller's, or a random permutation of the batch."""
    if arguments.partner is None:
        others = {} if arguments.allow_self else {"no_fixed_points": True}
        return fn.batch_permutation(**others, **_seed(arguments.seed, _PARTNER))
    if isinstance(arguments.partner, DataNode):
        return fn.reshape(cast_partner(arguments.partner), shape=[])
    return types.Constant(arguments.partner, dtype=types.INT32, device="cpu")
