"""The parts of a run that a checkpoint keeps, with ``state_dict`` and ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .checkpoints import VERSION
from .distributed import Processes


class Stateful(Protocol):
    """A part of a run that a checkpoint keeps, such as PyTorch's modules, optimisers and scalers."""

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue, in types that a checkpoint can hold."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Continue from what :meth:`state_dict` returned."""


P = TypeVar("P", bound=Stateful)


class RunState:
    """The registered parts of a run.

    Parameters
    ----------
    processes : Processes
    saved : dict or None
        The checkpoint that the run resumes from, None for a new run.

    Attributes
    ----------
    saved : dict or None
        Delete it once all parts are registered, to free its memory.
    """

    def __init__(self, processes: Processes, saved: dict[str, Any] | None) -> None:
        self._processes = processes
        self.saved = saved
        self._shared: dict[str, Stateful] = {}
        self._per_rank: dict[str, Stateful] = {}

    def register(self, name: str, part: P, *, per_rank: bool = False) -> P:
        """Save `part` from now on as `name`; in a resumed run, restore its state now.

        Parameters
        ----------
        name : str
        part : Stateful
        per_rank : bool
            Whether the state differs between processes; otherwise only the main process's is saved.

        Returns
        -------
        Stateful
            The part.
        """
        (self._per_rank if per_rank else self._shared)[name] = part
        if self.saved is not None:
            saved = self.saved["ranks"][self._processes.rank] if per_rank else self.saved
            part.load_state_dict(saved[name])
        return part

    def save(self, write: Callable[[dict[str, Any]], None]) -> None:
        """Pass a checkpoint's content to `write`, in the main process; its errors are raised in all."""
        ranks = self._processes.gather({name: part.state_dict() for name, part in self._per_rank.items()})

        def collect_and_write() -> None:
            shared = {name: part.state_dict() for name, part in self._shared.items()}
            write({"version": VERSION, **shared, "ranks": ranks})

        self._processes.from_main(collect_and_write)
