"""The two optimisations of PuzzleMix: the mask, by a minimum cut, and the transport, by an assignment.

Kim, Choo and Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020. Both
results are optimal; the authors' code approximates them (alpha-beta swaps, and a fixed number of rounds of
bids). SciPy's maximum flow takes about three times as long as PyMaxflow's, which is under the GPL.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

Floats = NDArray[np.floating]

# Costs become integers, which SciPy's flow needs. No sum of flows in a graph is above this.
_LARGEST = 2**29
# Blocks per graph: a few images together cost less than each alone, and all together more.
_BLOCKS_TOGETHER = 1024
# Keeps the prior of what cannot happen finite, as in the authors' code.
_TINY = 1e-8


def prior_costs(lam: Floats, levels: int) -> Floats:
    """Negative logarithm of the probability of each level: level k of m + 1 has Binomial(m, lam).

    Parameters
    ----------
    lam : ndarray
        [N].
    levels : int

    Returns
    -------
    ndarray
        [N, levels], from mask 0 to mask 1.
    """
    most = levels - 1
    lam = np.asarray(lam, np.float64)[:, None]
    k = np.arange(levels)
    ways = np.array([math.comb(most, each) for each in k])
    probability: Floats = ways * lam**k * (1.0 - lam) ** (most - k)
    costs: Floats = -np.log(probability + _TINY)
    return costs


def cut(unary: Floats, down: Floats, across: Floats) -> NDArray[np.int64]:
    """The labels z, from 0 to m, with the least sum of unary and pairwise costs, for every image of a batch.

    The cost of an image is the sum of ``unary[y, x, z[y, x]]`` over its blocks, and of the weight of each
    pair of neighbours times ``((z - z') / m)**2``. The pairwise cost is convex, so one minimum cut of a graph
    with m nodes per block has the optimum, for any number of labels (Ishikawa, 2003). Node k of a block says
    whether z >= k: with these, (z - z')**2 is a sum of |[z >= k] - [z' >= l]| over all k and l, plus a cost
    of each block alone.

    Parameters
    ----------
    unary : ndarray
        [N, rows, columns, m + 1].
    down, across : ndarray
        [N, rows - 1, columns] and [N, rows, columns - 1], at least 0: the weights between a block and
        the one below it or to the right of it.

    Returns
    -------
    ndarray
        int64 [N, rows, columns].

    Notes
    -----
    Costs are rounded to 2**-29 of their sum over a few images. Among equal optima the choice is fixed: the
    same input gives the same labels.
    """
    together = max(1, _BLOCKS_TOGETHER // (unary.shape[1] * unary.shape[2]))
    starts = range(0, len(unary), together)
    parts = [
        _cut_together(*(each[start : start + together] for each in (unary, down, across))) for start in starts
    ]
    return np.concatenate(parts) if parts else np.zeros(unary.shape[:3], np.int64)


def _cut_together(unary: Floats, down: Floats, across: Floats) -> NDArray[np.int64]:
    most = unary.shape[-1] - 1
    down, across = down / most**2, across / most**2
    weights = np.zeros(unary.shape[:3])  # of all neighbours
    weights[:, :-1] += down
    weights[:, 1:] += down
    weights[:, :, :-1] += across
    weights[:, :, 1:] += across
    # What each node costs if its block has z >= k.
    k = np.arange(1, most + 1)
    costs = (np.diff(unary, axis=-1) + weights[..., None] * (2 * k - 1 - most)).ravel()
    source, sink = costs.size, costs.size + 1
    nodes = np.arange(costs.size).reshape(*unary.shape[:3], most)

    # Nodes with z < k are on the source's side, those with z >= k on the sink's. An edge from the first to
    # the second is cut, at the cost of its capacity; neighbours have edges in both directions.
    pairs = [
        (one[..., i].ravel(), other[..., j].ravel(), weight.ravel())
        for one, other, weight in (
            (nodes[:, :-1], nodes[:, 1:], down),
            (nodes[:, :, :-1], nodes[:, :, 1:], across),
        )
        for i in range(most)
        for j in range(most)
    ]
    first, second, both = (np.concatenate(each) for each in zip(*pairs, strict=True))
    lower, higher = nodes[..., :-1].ravel(), nodes[..., 1:].ravel()
    if_true, if_false = np.flatnonzero(costs > 0), np.flatnonzero(costs < 0)
    # The flow cannot exceed the costs, so an edge that must not be cut needs no more than their sum.
    uncuttable = max(np.abs(costs).sum(), _TINY)
    capacities = np.concatenate(
        [both, both, costs[if_true], -costs[if_false], np.full(lower.size, uncuttable)]
    )
    graph = csr_matrix(
        (
            np.rint(np.minimum(capacities / uncuttable, 1.0) * _LARGEST).astype(np.int32),
            (
                np.concatenate([first, second, np.full(if_true.size, source), if_false, lower]),
                np.concatenate([second, first, if_true, np.full(if_false.size, sink), higher]),
            ),
        ),
        shape=(costs.size + 2, costs.size + 2),
    )
    left = graph - maximum_flow(graph, source, sink, method="dinic").flow
    left.data = (left.data > 0).astype(np.int32)
    left.eliminate_zeros()
    at_least = np.ones(costs.size + 2, bool)
    at_least[breadth_first_order(left, source, return_predecessors=False)] = False
    labels: NDArray[np.int64] = at_least[: costs.size].reshape(nodes.shape).sum(-1)
    return labels


@functools.cache
def _squared_distances(side: int) -> Floats:
    """Squared distances of the patches of a square, in units of its side; [side**2, side**2]."""
    rows, columns = np.divmod(np.arange(side**2), side)
    squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    relative: Floats = squared / (side - 1) ** 2
    return relative


def transport(saliency: Floats, seen: NDArray[np.bool_], cost: float) -> NDArray[np.int64]:
    """Which patch moves to each place, so that salient patches come to where the image is seen.

    Of all permutations it is the one with the most saliency in the places that are seen, less `cost` times
    the squared distances of the moves.

    Parameters
    ----------
    saliency : ndarray
        [side, side].
    seen : ndarray
        bool [side, side].
    cost : float
        For the distance of the side.

    Returns
    -------
    ndarray
        int64 [side**2]: the former place of the patch in each place.
    """
    side = len(seen)
    places = np.arange(side**2)
    if seen.all() or not seen.any():
        return places
    costs = cost * _squared_distances(side) - saliency.reshape(-1, 1) * seen.reshape(1, -1)
    before, now = linear_sum_assignment(costs)
    places[now] = before
    return places
