"""Everything that uses private names of DALI's plugin for Numba, which a new version may remove.

Checked with DALI 2.4. For those of Numba itself see :mod:`.intrinsics`.
"""

from __future__ import annotations

from typing import Any

from nvidia.dali.plugin.numba import NumbaFunction

for _hook in ("_get_run_fn_cpu", "_get_setup_fn_cpu"):
    if not hasattr(NumbaFunction, _hook):
        raise ImportError(f"DALI's plugin for Numba has no {_hook}: this DALI is newer than the tested one")

_SHOWN = "CompiledOperator (only backend='graph' can be serialized)"


class CompiledOperator(NumbaFunction):
    """The operator of DALI's Numba plugin, for compiled functions instead of Python ones."""

    def __init__(self, **arguments: Any) -> None:
        # The name in errors of DALI, such as that it cannot serialise the operator.
        super().__init__(_module="dali_msda", _display_name=_SHOWN, **arguments)

    def _get_run_fn_cpu(self, run_fn: Any, *types_and_dimensions: Any) -> int:
        return int(run_fn.address)

    def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
        return int(setup_fn.address)
