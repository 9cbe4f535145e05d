"""Masks at random, from a method's formula or from DALI's operator, and coefficients estimated from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..methods import Beta
from ..validation import ArgumentValueError, check_integer
from .coefficients import MaskDistribution, whole
from .moments import Floats, MonteCarlo
from .tracing import COLUMN, ROW

MaskSampler = Callable[[np.random.Generator, int], npt.ArrayLike]
"""``sampler(rng, count)`` returns that many independent masks, float [count, H, W]."""

_BATCH = 256


def monte_carlo(sampler: MaskSampler, count: int, seed: int = 0) -> MonteCarlo:
    """Estimate the coefficients a_jk (equation 9) from masks at random; keeps the masks in memory.

    Parameters
    ----------
    sampler : callable
        Any function of a ``numpy.random.Generator`` and a number that returns that many masks, [count, H, W].
        :func:`formula_sampler` and :func:`operator_sampler` make one for a method of the table.
    count : int
        Number of masks, at least 2. The error falls with its square root: see ``standard_error`` of the
        result.
    seed : int

    Returns
    -------
    MonteCarlo

    Raises
    ------
    TypeError, ValueError
        An argument is not valid, or the sampler returned something else.
    """
    check_integer("count", count, 2)
    masks = np.asarray(sampler(np.random.default_rng(seed), count), np.float64)
    if masks.ndim != 3 or len(masks) != count:
        raise ArgumentValueError("sampler", f"a function that returns [{count}, H, W]", masks.shape)
    return MonteCarlo(masks)


def formula_sampler(
    method: str,
    size: tuple[int, int],
    lam: float,
    *,
    convention: str = "reference",
    **arguments: float | Beta,
) -> MaskSampler:
    """A sampler of a method's masks, by its formula in NumPy; arguments as for `coefficients`."""
    masks = MaskDistribution(method, size, lam, convention, arguments)

    def sample(rng: np.random.Generator, count: int) -> Floats:
        draws = {name: rng.random((count, 1, 1)) for name in (ROW, COLUMN, *masks.uniforms)}
        draws |= {name: masks.quantiles(name, rng.random((count, 1, 1))) for name in masks.random}
        return np.broadcast_to(whole(masks.mask(draws)), (count, *masks.size))

    return sample


def operator_sampler(
    method: str,
    size: tuple[int, int],
    lam: float,
    *,
    convention: str = "reference",
    backend: str = "auto",
    **arguments: float | Beta,
) -> MaskSampler:
    """A sampler of a method's masks, by the real operator in a DALI pipeline on the CPU.

    It mixes images that are 1 everywhere with one that is 0: the result is the mask. Arguments as for
    `coefficients`; `backend` as for :func:`dali_msda.mix`. Imports DALI when it is called.
    """
    MaskDistribution(method, size, lam, convention, arguments)  # checks them

    def sample(rng: np.random.Generator, count: int) -> Floats:
        from nvidia.dali import Pipeline, fn

        from ..operators import mix

        # The partner of all is the first image of the batch, the black one.
        images = np.ones((min(count, _BATCH) + 1, *size, 1), np.float32)
        images[0] = 0.0
        labels = np.zeros((len(images), 1), np.int32)
        given: dict[str, Any] = dict(arguments)
        pipeline = Pipeline(len(images), 1, None, seed=int(rng.integers(2**31)))
        with pipeline:
            mixed, _ = mix(
                fn.external_source(source=lambda: images, layout="HWC"),
                fn.external_source(source=lambda: labels),
                2,
                method=method,
                lam=float(lam),
                partner=0,
                convention=convention,
                backend=backend,
                **given,
            )
            pipeline.set_outputs(mixed)
        pipeline.build()
        runs = range(0, count, len(images) - 1)
        found = [np.asarray(pipeline.run()[0].as_array(), np.float64)[1:, :, :, 0] for _ in runs]
        return np.concatenate(found)[:count]

    return sample
