"""A GPU that is not there: PyTorch's fake tensors on "cuda", and a count of what waits for it.

Fake tensors have a shape, a type and a device and no content. An operation on tensors of two devices is an
error with them as it is on a GPU.
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
    """Counts operations for which the CPU would wait for the GPU, in a list that names them.

    They are: reading a number of a tensor (``item``, ``float``, ``bool``), copies to the CPU, copies to the
    GPU that are not ``non_blocking``. Results whose size depends on content are an error with fake tensors. A
    number that is read is a very high one for integers, which stands for "never", and 1 for floats.
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
            # Fake tensors look at lists of tensors less closely than a GPU does, and not at this optimizer.
            given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            if any(tensor.device != GPU and tensor.dim() > 0 for tensor in given):
                raise RuntimeError(f"{packet} has tensors on different devices")
            if packet is _aten._fused_sgd_:
                return None  # it works in place
        for tensor in tensors:
            if isinstance(tensor, FakeTensor):
                tensor.constant = None  # known numbers would be computed with, on the device
        result = func(*args, **kwargs)
        # In inference mode `to` comes as it is called, elsewhere as the copy that it makes.
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
    """Let PyTorch believe in one GPU; all tensors made inside are fake."""
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
        # What is said above of CUDA is not to be acted on.
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context"))
        # PyTorch's engine asks the driver for streams: gradients come without it, see `_backward`.
        stack.enter_context(mock.patch.object(Tensor, "backward", _backward))
        # A copy of a fake tensor is one of the same mode.
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
    """Give all parameters that the graph leads to a gradient of their shape and device."""
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
