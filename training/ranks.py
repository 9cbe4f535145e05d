"""This process's rank in the run. Reads the environment and imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

# A note on an error that all processes raise, so only one of them needs to print it.
IN_ALL = "in all processes of the run"


@dataclass(frozen=True)
class Ranks:
    """The ranks that torchrun gives a process; by default those of a single process.

    Attributes
    ----------
    rank, size : int
        Number of this process, and the number of processes.
    local_rank, local_size : int
        The same on this machine; the local rank is the GPU number.
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
