"""A loss, weight or statistic that is not finite ends the run: since when, and what is still good."""

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
    """The training went wrong, in all processes; the message says where, and how to go on."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.add_note(IN_ALL)


def require_finite(evaluation: dict[str, float], of: str, advice: str = "") -> None:
    """Raise NotFiniteError unless all results of an evaluation are numbers.

    Parameters
    ----------
    evaluation : dict
    of : str
        Whose it is, for the message.
    advice : str
        What the message ends with.
    """
    for name, value in evaluation.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"The evaluation {of} was not finite: {name} {value}{advice}")


class FiniteWatch:
    """Notices the first step whose loss was not finite, without waiting for the device at every step.

    Parameters
    ----------
    device : torch.device
        Where the losses are.
    loader : GuardedLoader
        The training images: its state is kept whenever all was well, so that the batches after it can be
        made once more.
    passes : int
        Batches per step.
    checkpoints : Checkpoints
        Where the last good checkpoint lies, and beside them the batch.
    processes : Processes
    step : int
        Steps that are done.
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
        # Steps at which all was well, with the loader's state: the last one, and the one before, from which
        # the batches of the last step itself can be made.
        self._last_good = self._good_before = (step, loader.state_dict())

    def record(self, loss: Tensor, step: int) -> None:
        """Note the loss of a step, on the device."""
        self._first = torch.minimum(self._first, torch.where(torch.isfinite(loss), self._never, step))

    def check(self, step: int) -> None:
        """Raise NotFiniteError, in all processes, if a loss was not finite. Waits for the device."""
        mine = int(self._first.item())
        first = -self._processes.max_over_ranks(-mine)
        if first < _NEVER:
            raise self._error("The loss", first, mine=mine == first)
        if step > self._last_good[0]:
            self._good_before, self._last_good = self._last_good, (step, self._loader.state_dict())

    def check_weights(self, models: Iterable[nn.Module], step: int) -> None:
        """The same, and for all parameters and statistics, before a checkpoint is called good."""
        self.check(step)
        models = list(models)
        finite, good_statistics = (
            _all_finite([value.detach() for model in models for value in values(model)])
            for values in (nn.Module.parameters, _statistics)
        )
        if self._processes.max_over_ranks(not finite):
            raise self._error("A weight", step, mine=not finite)
        if self._processes.max_over_ranks(not good_statistics):
            # The loss in training does not depend on them: since which step is not known.
            raise NotFiniteError(
                f"A running mean or variance of a normalisation layer was not finite after step {step};"
                f" {self._what_is_good()}"
            )

    def check_evaluation(self, result: dict[str, float], models: Iterable[nn.Module], step: int) -> None:
        """Raise NotFiniteError, in all processes, for a result, the same in all, that is not finite."""
        if not all(map(math.isfinite, result.values())):
            self.check_weights(models, step)
            require_finite(result, f"after step {step}", f"; {self._what_is_good()}")

    def _error(self, what: str, step: int, *, mine: bool) -> NotFiniteError:
        if not mine:
            batch = "another process had the batch"
        elif step > self._good_before[0]:
            batch = self._save(step)
        else:
            batch = "this process had no batch in it"  # the weights that the run began with
        # All processes are here: the one that tells it says where the batch is.
        for of_another, where in self._processes.gather((mine, batch)):
            if of_another and not mine:
                batch = where
        return NotFiniteError(f"{what} was not finite in step {step}; {batch}; {self._what_is_good()}")

    def _what_is_good(self) -> str:
        newest = list(self._checkpoints.numbered().values())[-1:]
        good = f"the last good checkpoint is {newest[0]}" if newest else "there is no checkpoint yet"
        return f"{good} (try a lower --lr, --clip-grad-norm or more --warmup-epochs)"

    def _save(self, step: int) -> str:
        """Make the batches of a step once more and write them; what to say about it."""
        good, state = self._last_good if self._last_good[0] < step else self._good_before
        # What was found to be bad since then would be found and written down again.
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
    """Write batches for inspection, lists ``images`` and ``targets`` of tensors; what to say about it."""
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
