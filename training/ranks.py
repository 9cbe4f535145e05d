"""Who this process is among those of a run. Reads the environment and imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

# A note on an error that all processes raise: one of them has to tell it.
IN_ALL = "in all processes of the run"


@dataclass(frozen=True)
class Ranks:
    """The numbers that torchrun gives to a process; those of a single process by default.

    Attributes
    ----------
    rank, size : int
        Number of this process and how many there are.
    local_rank, local_size : int
        The same on this machine; the local rank is the number of the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """Read what torchrun sets."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        return cls(
            rank=int(os.environ["RANK"]),
            size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0
