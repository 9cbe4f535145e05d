"""The paper's figures.

python -m experiments                       list them
python -m experiments all [--quick]         make all, in outputs/figures
python -m experiments figure1 figure4       make some

python -m experiments.study --help          small networks with every method, compared
python -m experiments.robustness --help     networks under attacks, noise and corruptions
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .figures import FOLDER, ClaimError


class Figure(NamedTuple):
    """A row of the list: a module of this folder with ``main(arguments)``."""

    title: str
    seconds: int
    """About, on two cores."""
    quick: int
    needs_data: bool = False
    """Without --quick it needs --data."""


FIGURES = {
    "figure1": Figure("training with the loss of mixing and with its approximation", 20, 5),
    "figure2": Figure("masks with values outside [0, 1], by Theorem 2", 5, 4),
    "figure3": Figure("two images mixed by every method, and the masks", 3, 3),
    "figure4": Figure("the coefficients of every method, by offset and distance", 5, 4),
    "figure5": Figure("input gradients of trained networks (needs --data)", 500, 8, needs_data=True),
}


def list_figures() -> str:
    """The table of figures."""
    lines = [f"{'':10}{'time':>7}{'--quick':>10}"]
    for name, figure in FIGURES.items():
        lines.append(f"{name:10}{figure.seconds:5} s{figure.quick:8} s   {figure.title}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Make figures one after another; return the number of those that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"folder; default: {FOLDER}")
    parser.add_argument(
        "--data", type=Path, help="folder with train/ and val/, for figures that train networks"
    )
    parser.add_argument("--dpi", type=int, default=300, help="dots per inch; default: 300")
    options = parser.parse_args(arguments)
    if not options.figures:
        print(list_figures())
        return 0
    for name in options.figures:
        if name not in (*FIGURES, "all"):
            parser.error(f"FIGURE must be one of {', '.join(FIGURES)} or all; got {name}")
    failed = []
    for name in FIGURES if "all" in options.figures else options.figures:
        if FIGURES[name].needs_data and options.data is None and not options.quick:
            print(f"{name}: left out, it needs --data", file=sys.stderr)
            continue
        start = time.perf_counter()
        command = [str(options.output / f"{name}.png"), f"--dpi={options.dpi}"]
        command += [f"--data={options.data}"] if FIGURES[name].needs_data and options.data else []
        try:
            importlib.import_module(f"experiments.{name}").main(command + ["--quick"] * options.quick)
        except ClaimError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
