"""A fake GPU: PyTorch's fake tensors on "cuda", and a count of operations that wait for it.

Fake tensors have a shape, a type and a device, but no content. As on a GPU, an operation on tensors of two
devices is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import training.config

GPU = torch.device("cuda", 0)
_aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Lists the operations for which the CPU would wait for the GPU.

    They are: reading a number from a tensor (``item``, ``float``, ``bool``), copies to the CPU, copies to the
    GPU that are not ``non_blocking``. Results whose size depends on content are an error with fake tensors.
    Integers read as a very high number, which means "never", floats as 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = [value for value in args if isinstance(value, Tensor)]
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
        if packet in (_aten._local_scalar_dense, _aten.item, _aten.is_nonzero):
            if on_gpu:
                self.found.append("a number is read")
            kind = tensors[0].dtype
            if packet is _aten.is_nonzero or kind == torch.bool:
                return True
            return 2**62 if kind == torch.int64 else 1.0
        if "_foreach_" in packet.__name__ or packet is _aten._fused_sgd_:
            # Fake tensors check lists of tensors less strictly than a GPU, and this optimizer not at all.
            given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            if any(tensor.device != GPU and tensor.dim() > 0 for tensor in given):
                raise RuntimeError(f"{packet} has tensors on different devices")
            if packet is _aten._fused_sgd_:
                return None  # it works in place
        for tensor in tensors:
            if isinstance(tensor, FakeTensor):
                tensor.constant = None  # or known numbers would be computed on the device
        result = func(*args, **kwargs)
        # In inference mode `to` arrives as the call, elsewhere as the copy that it makes.
        if packet in (_aten._to_copy, _aten.to, _aten.copy_) and tensors:
            source = tensors[-1]  # of copy_(to, from), and of the others, which take (from)
            goal = result.device.type
            if {source.device.type, goal} == {"cpu", "cuda"} and source.dim() + source.numel() > 0:
                blocking = not kwargs.get("non_blocking", packet is _aten.copy_ and len(args) > 2 and args[2])
                if goal == "cpu" or blocking:
                    self.found.append(f"a copy from {source.device.type} to {goal}")
        return result


@contextlib.contextmanager
def fake_gpu() -> Iterator[Waits]:
    """Make PyTorch see one GPU; all tensors made inside are fake."""
    with contextlib.ExitStack() as stack:
        for name, value in (
            ("is_available", True),
            ("device_count", 1),
            ("is_bf16_supported", True),
            ("is_current_stream_capturing", False),
            ("set_device", None),
            ("max_memory_reserved", 0),
            ("get_rng_state", torch.zeros(16, dtype=torch.uint8)),
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, mock.Mock(return_value=value)))
        stack.enter_context(mock.patch.object(training.config, "_has_driver", return_value=True))
        # PyTorch must not act on the faked answers about CUDA above.
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context"))
        # PyTorch's engine asks the driver for streams: `_backward` gives gradients without it.
        stack.enter_context(mock.patch.object(Tensor, "backward", _backward))
        # A copy of a fake tensor has the same mode.
        for kind, copy in ((FakeTensorMode, lambda mode, _: mode), (FakeTensor, _deep_copy)):
            stack.enter_context(mock.patch.object(kind, "__deepcopy__", copy, create=True))
        # Module.to swaps contents, which fake tensors refuse.
        stack.enter_context(mock.patch.object(nn.Module, "to", _to))
        stack.enter_context(FakeTensorMode())
        yield stack.enter_context(Waits())


def _deep_copy(self: Tensor, _: Any) -> Tensor:
    copied = self.detach().clone()
    return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied


def _to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_moved(parameter.detach(), *args, **kwargs))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _moved(buffer, *args, **kwargs)
    return self


def _backward(self: Tensor) -> None:
    """Give each parameter in the graph a gradient of its shape and device."""
    seen: set[Any] = set()
    nodes = [self.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        if (parameter := getattr(node, "variable", None)) is not None:
            gradient = torch.zeros_like(parameter)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if kwargs.get("memory_format") is torch.channels_last and tensor.dim() != 4:
        return tensor
    return tensor.to(*args, **kwargs)
