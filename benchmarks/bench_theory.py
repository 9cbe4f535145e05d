"""How the coefficients of equation 9 grow with the image.

    python -m benchmarks.bench_theory

For every method and image size: the time to make them, one row of them (a map) and their averages by offset
(figure 4), and what is kept of them in memory. HMix is also summed mask by mask, as dense masks are, at sizes
where that is quick.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.common import Record, mixing, save, spread
from benchmarks.tables import show
from dali_msda.theory import Coefficients
from dali_msda.theory.coefficients import coefficients, from_all_masks
from dali_msda.theory.moments import Kronecker


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    sizes: tuple[int, ...] = (32, 64, 128, 224, 448)
    """Sides of the images in pixels."""

    mask_sizes: tuple[int, ...] = (16, 32, 64)
    """Sides at which HMix is summed mask by mask."""

    lam: float = 0.5
    """The weight of the own image."""

    convention: str = "reference"
    """Formulas of the paper, or of the authors' code."""

    rounds: int = 5
    """Repetitions, after one for warm-up."""


def _seconds(function: Callable[[], Any], rounds: int) -> dict[str, float]:
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return spread(found[1:])


def _measure(make: Callable[[], Coefficients], rounds: int) -> Record:
    made = make()
    middle = (made.size[0] // 2, made.size[1] // 2)
    terms = made.terms if isinstance(made, Kronecker) else ()
    return {
        "terms": len(terms),
        "kept_MiB": sum(part.nbytes for term in terms for part in term) / 2**20,
        "make_s": _seconds(make, rounds),
        "row_s": _seconds(lambda: made.row(middle), rounds),
        "by_offset_s": _seconds(made.by_offset, rounds),
    }


def main() -> None:
    """Measure, write the results, print a table."""
    settings = tyro.cli(Settings, description=__doc__)
    lam, convention = settings.lam, settings.convention
    records: list[Record] = []
    for form, make, mixes, sizes in (
        ("terms", coefficients, mixing(), settings.sizes),
        ("masks", from_all_masks, ["hmix"], settings.mask_sizes),
    ):
        for mix in mixes:
            for size in sizes:
                made = _measure(lambda: make(mix, (size, size), lam, convention=convention), settings.rounds)  # noqa: B023
                records.append({"mix": mix, "form": form, "image_size": size, **made})
    path = save("bench_theory", vars(settings), records)
    print(f"{show('theory', path)}\nwrote {path}")


if __name__ == "__main__":
    main()
