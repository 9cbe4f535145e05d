"""The processes of one run: one, or as many as torchrun started."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .config import plain
from .model import outputs_of
from .ranks import IN_ALL, Ranks

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


def store_of_this_start(store: Store, rank: int, size: int) -> Store:
    """A part of the store that no earlier start of the same processes has written to.

    torchrun keeps one store for all its restarts, although PyTorch expects a new one for each (2.10;
    pytorch/pytorch issue 135712): the processes would read the addresses of dead ones, and fail or wait for
    half an hour. The number of restarts does not help: every machine counts its own. So each process invents
    a name, and the first one answers each of those with its own: entries of an earlier start match neither.

    Raises
    ------
    TimeoutError
        In the first process, if another has not come within the store's timeout.
    torch.distributed.DistStoreError
        In the others, if the first one has not.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", own)
        name = store.get(f"answer/{own}").decode()
        store.set(f"{name}/{rank}", "")
        return PrefixStore(name, store)
    deadline = time.monotonic() + store.timeout.total_seconds()  # type: ignore[attr-defined]
    missing = set(range(1, size))
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the processes with these ranks have not started: {sorted(missing)}")
        for other in sorted(missing):
            if store.check([f"{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"hello/{other}"]):
                # Perhaps of an earlier start: then nobody reads the answer, and the right one will come.
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", own)
        time.sleep(0.02)
    return PrefixStore(own, store)


def _timeout(patience: float) -> timedelta | None:
    """How long collective operations wait: PyTorch's default, or longer if `patience` needs it."""
    needed = timedelta(seconds=2 * patience)
    return None if needed < default_pg_timeout / 2 else default_pg_timeout + needed


def _mark_shared(error: E) -> E:
    """Mark an error that all processes raise here, so that only one prints it (:func:`.config.complain`)."""
    error.add_note(IN_ALL)
    return error


def has_lost_another(error: RuntimeError, ranks: Ranks) -> bool:
    """Whether a collective operation failed because another process of the run has died."""
    return ranks.size > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error))


def lost(error: RuntimeError) -> RuntimeError:
    """The same error in plain words, for the main process to print: all processes raise it."""
    remedy = "--resume auto continues from the newest checkpoint"
    return _mark_shared(RuntimeError(f"another process of the run has died; {remedy} ({plain(error)})"))


class Processes(Ranks):
    """The processes of a run, which connect and agree; with one process every method is a no-op."""

    def start(self, device: torch.device, patience: float = 0.0) -> None:
        """Connect to the other processes: gloo for tensors on the CPU, NCCL for those on GPUs.

        Parameters
        ----------
        device : torch.device
        patience : float
            Seconds for which one process may keep the others waiting (`training.storage`): for its images,
            and again for its output.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.size > 1:
            store, _, _ = next(rendezvous("env://", self.rank, self.size))
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=store_of_this_start(store, self.rank, self.size),
                rank=self.rank,
                world_size=self.size,
                timeout=_timeout(patience),
            )

    def stop(self) -> None:
        """Disconnect from the others."""
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def say(self, text: str) -> None:
        """Print in the main process only."""
        if self.is_main:
            print(text, flush=True)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.max_over_ranks(0)

    def max_over_ranks(self, number: int) -> int:
        """The highest `number` of any process; over the CPU, so as not to wait for a GPU."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found.item())

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the main one; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.gather_object(value, values if self.is_main else None)
        return values if self.is_main else []

    def require_same(self, values: dict[str, Any]) -> None:
        """Raise ValueError in all processes, naming what differs, unless all have the same values."""
        if self.size == 1:
            return
        everywhere: list[Any] = [None] * self.size
        distributed.all_gather_object(everywhere, values)
        for rank, theirs in enumerate(everywhere):
            for name, value in everywhere[0].items():
                if theirs[name] != value:
                    raise _mark_shared(
                        ValueError(
                            f"{name} must be the same in all processes; got {value} in process 0 and"
                            f" {theirs[name]} in process {rank}"
                        )
                    )

    def together(self, action: Callable[[], T]) -> T:
        """The result of `action` if it succeeds in all processes; otherwise raise the error of one in all.

        So no process enters the next collective operation while another waits or fails here. They wait over
        the CPU, for as long as :meth:`start` allows.
        """
        if self.size == 1:
            return action()
        outcome: list[Any] = []
        error: Exception | None = None
        try:
            outcome.append(action())
        except (OSError, RuntimeError, ValueError) as mine:
            error = mine
        if self.max_over_ranks(error is not None):
            errors: list[Any] = [None] * self.size
            distributed.all_gather_object(errors, error)
            raise _mark_shared(next(each for each in errors if each is not None))
        result: T = outcome[0]
        return result

    def from_main(self, make: Callable[[], T]) -> T:
        """The result of `make` in the main process; its errors are raised in all processes.

        Raises
        ------
        ValueError, TypeError, OSError, RuntimeError
            What `make` raised.
        """
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except (ValueError, TypeError, OSError, RuntimeError) as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise _mark_shared(outcome[1])
        result: T = outcome[0]
        return result

    def wrap(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The model with its gradients averaged over the processes; with one process, the same model.

        Parameters
        ----------
        model : nn.Module
            In training mode; keeps its parameters and buffers.
        example : Tensor
            A small input on the model's device.

        Notes
        -----
        After its first backward pass DistributedDataParallel reassigns the gradients to buckets, in the order
        in which they came. This changes the order of sums over three or more processes, and so the last bits
        of the second step: a resumed run would use other buckets than an uninterrupted one. The pass over
        `example` is the first pass of both.
        """
        if self.size == 1:
            return model
        devices = [example.device] if example.device.type == "cuda" else None
        replica = DistributedDataParallel(model, device_ids=devices)
        buffers = [buffer.clone() for buffer in model.buffers()]
        torch.stack(outputs_of(replica(example))).sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        model.zero_grad(set_to_none=True)
        return replica

    @staticmethod
    def without_reduction(replica: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context for passes whose gradients stay in this process until a pass outside it."""
        if isinstance(replica, DistributedDataParallel):
            return replica.no_sync()
        return contextlib.nullcontext()

    def copy_buffers_of_main(self, model: nn.Module) -> None:
        """Give all processes the running statistics of the main one, which are the ones saved."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)
