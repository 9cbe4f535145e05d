"""Stops the run on a NaN or infinite loss, weight or statistic; reports when, and the last good state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .bad_files import BadFileError, GuardedLoader, PipelineError
from .checkpoints import Checkpoints, SaveError, pack, write_whole
from .distributed import Processes
from .ranks import IN_ALL
from .storage import StorageError

_NEVER = 2**62


class NotFiniteError(RuntimeError):
    """A value is NaN or infinite; raised in all processes. The message says where, and what to do."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.add_note(IN_ALL)


def require_finite(evaluation: dict[str, float], of: str, advice: str = "") -> None:
    """Raise NotFiniteError if a result of an evaluation is NaN or infinite.

    Parameters
    ----------
    evaluation : dict
    of : str
        What was evaluated, for the message.
    advice : str
        The end of the message.
    """
    for name, value in evaluation.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"The evaluation {of} was not finite: {name} {value}{advice}")


class FiniteWatch:
    """Finds the first step with a NaN or infinite loss, without waiting for the device at every step.

    Parameters
    ----------
    device : torch.device
        Where the losses are.
    loader : GuardedLoader
        The training images. Its state is kept after every good check, so that later batches can be
        recreated.
    passes : int
        Batches per step.
    checkpoints : Checkpoints
        Their folder holds the last good checkpoint; the batch is saved there too.
    processes : Processes
    step : int
        Steps completed.
    """

    def __init__(
        self,
        device: torch.device,
        loader: GuardedLoader,
        passes: int,
        checkpoints: Checkpoints,
        processes: Processes,
        step: int,
    ) -> None:
        self._first = torch.full((), _NEVER, device=device)
        self._never = self._first.clone()
        self._loader = loader
        self._passes = passes
        self._checkpoints = checkpoints
        self._processes = processes
        # The last good step and the one before, each with the loader's state: the earlier one can recreate
        # the batches of the last good step itself.
        self._last_good = self._previous_good = (step, loader.state_dict())

    def record(self, loss: Tensor, step: int) -> None:
        """Record the loss of a step, on the device."""
        self._first = torch.minimum(self._first, torch.where(torch.isfinite(loss), self._never, step))

    def check(self, step: int) -> None:
        """Raise NotFiniteError, in all processes, if a loss was NaN or infinite. Waits for the device."""
        mine = int(self._first.item())
        first = -self._processes.max_over_ranks(-mine)
        if first < _NEVER:
            raise self._error("The loss", first, mine=mine == first)
        if step > self._last_good[0]:
            self._previous_good, self._last_good = self._last_good, (step, self._loader.state_dict())

    def check_weights(self, models: Iterable[nn.Module], step: int) -> None:
        """Check the losses, and all parameters and statistics, before a checkpoint is written."""
        self.check(step)
        models = list(models)
        finite, good_statistics = (
            _all_finite([value.detach() for model in models for value in values(model)])
            for values in (nn.Module.parameters, _statistics)
        )
        if self._processes.max_over_ranks(not finite):
            raise self._error("A weight", step, mine=not finite)
        if self._processes.max_over_ranks(not good_statistics):
            # The training loss does not depend on them, so the first bad step is unknown.
            raise NotFiniteError(
                f"A running mean or variance of a normalisation layer was not finite after step {step};"
                f" {self._describe_last_good()}"
            )

    def check_evaluation(self, result: dict[str, float], models: Iterable[nn.Module], step: int) -> None:
        """Raise NotFiniteError, in all processes, if a result (the same in all) is NaN or infinite."""
        if not all(map(math.isfinite, result.values())):
            self.check_weights(models, step)
            require_finite(result, f"after step {step}", f"; {self._describe_last_good()}")

    def _error(self, what: str, step: int, *, mine: bool) -> NotFiniteError:
        if not mine:
            batch = "another process had the batch"
        elif step > self._previous_good[0]:
            batch = self._save(step)
        else:
            batch = "this process had no batch in it"  # the initial weights are bad
        # All processes get here; the one that prints the error says where the batch is.
        for of_another, where in self._processes.gather((mine, batch)):
            if of_another and not mine:
                batch = where
        return NotFiniteError(f"{what} was not finite in step {step}; {batch}; {self._describe_last_good()}")

    def _describe_last_good(self) -> str:
        newest = list(self._checkpoints.numbered().values())[-1:]
        good = f"the last good checkpoint is {newest[0]}" if newest else "there is no checkpoint yet"
        return f"{good} (try a lower --lr, --clip-grad-norm or more --warmup-epochs)"

    def _save(self, step: int) -> str:
        """Recreate the batches of a step and save them; return the part of the error about them."""
        good, state = self._last_good if self._last_good[0] < step else self._previous_good
        # Files found bad since then would otherwise be found and recorded again.
        stand_ins = {"stand_ins": sorted(self._loader.images.stand_ins)}
        first = (step - 1 - good) * self._passes
        batches = itertools.islice(self._loader.another({**state, **stand_ins}), first, None)
        rank = self._processes.rank
        path = self._checkpoints.folder / f"not-finite-step-{step:08d}-rank-{rank}.pt"
        return save_batches(path, itertools.islice(batches, self._passes), step=step, rank=rank)


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    """The running means and variances of normalisation layers."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            yield from (value for value in (module.running_mean, module.running_var) if value is not None)


def _all_finite(values: list[Tensor]) -> bool:
    norms = torch._foreach_norm(values, float("inf")) if values else ()
    return not norms or bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())


def save_batches(path: Path, batches: Iterable[tuple[Tensor, Tensor]], **about: int) -> str:
    """Save batches for inspection, as lists of tensors ``images`` and ``targets``; return a message."""
    content: dict[str, Any] = {**about, "images": [], "targets": []}
    try:
        for images, targets in batches:
            content["images"].append(images.cpu().contiguous().clone())
            content["targets"].append(targets.cpu().clone())
        write_whole(path, pack(content))
    except (SaveError, StorageError) as error:
        return f"its batch could not be saved ({error.strerror})"
    except (BadFileError, PipelineError) as error:
        return f"its batch could not be recreated ({error})"
    return f"its batch is in {path}"
