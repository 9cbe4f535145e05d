"""Memory that training needs on a GPU, calculated without one, not measured.

    python -m benchmarks.gpu_memory [--model resnet50] [--image-size 224] [--batch-sizes 64 128 256]

The model runs forward under autocast on PyTorch's fake tensors, which have shapes and types but no data; each
storage kept for the backward pass counts once. The pipelines' share follows from the arguments they give
DALI's decoder and from the shapes of their batches. Not included: the memory of cuDNN, cuBLAS, NCCL and the
CUDA contexts, allocator overhead, and the hardware decoder's own buffers, whose size is not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torchvision
import tyro
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.common import Record, save
from benchmarks.tables import show
from pipelines.crops import decoder_arguments
from pipelines.records import Execution

_MB = 1e6
_MEAN_IMAGENET_BYTES = 500 * 375 * 3  # the average image, decoded


@dataclass(frozen=True)
class Settings:
    """What to count."""

    model: str = "resnet50"
    """A classification model of torchvision."""

    image_size: int = 224
    """Side of the images in pixels."""

    batch_sizes: tuple[int, ...] = (64, 128, 256)
    """Images per batch of one GPU."""

    num_threads: int = 8
    """Threads of each of the two pipelines."""

    prefetch_queue_depth: int = 3
    """Batches that DALI makes ahead."""


def model_bytes(name: str, size: int, batch_size: int) -> tuple[int, int]:
    """Bytes of the parameters, and of the tensors that a forward pass in bf16 keeps for the backward pass."""
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), storage)  # kept alive, so that no address is reused
        return tensor

    # On the CPU: its autocast casts the same operators, and needs no GPU.
    with FakeTensorMode():
        model = getattr(torchvision.models, name)()
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        images, targets = torch.empty(batch_size, 3, size, size), torch.empty(batch_size, 1000)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            torch.nn.functional.cross_entropy(model(images), targets)
        parameters = sum(parameter.nbytes for parameter in model.parameters())
    return parameters, sum(count for key, (count, _) in kept.items() if key not in weights)


def pipeline_bytes(settings: Settings, batch_size: int) -> dict[str, float]:
    """Bytes of one pipeline: the decoder's padding for each thread, and the batches."""
    arguments = decoder_arguments("gpu", Execution().hw_decoder_load)
    pixels = settings.image_size**2 * 3
    return {
        "paddings": settings.num_threads * arguments["device_memory_padding"],
        "pinned": 2 * settings.num_threads * arguments["host_memory_padding"],
        # Decoded uint8, resized uint8, the mask and both products in float32; outputs wait in a queue.
        "batches": batch_size * (_MEAN_IMAGENET_BYTES + pixels * (1 + 3 * 4))
        + settings.prefetch_queue_depth * batch_size * pixels * 4,
        "hints": arguments["preallocate_width_hint"] * arguments["preallocate_height_hint"] * 3,
    }


def main() -> None:
    """Count, write the results, print a table."""
    settings = tyro.cli(Settings, description=__doc__)
    records: list[Record] = []
    for batch_size in settings.batch_sizes:
        parameters, activations = model_bytes(settings.model, settings.image_size, batch_size)
        pipeline = pipeline_bytes(settings, batch_size)
        records.append(
            {
                "model": settings.model,
                "image_size": settings.image_size,
                "batch_size": batch_size,
                # Parameters, gradients and momentum; autocast's copies of parameters count as activations.
                "model_bytes": 3 * parameters,
                "activations_bytes": activations,
                # Of both pipelines.
                "paddings_bytes": 2 * pipeline["paddings"],
                "batches_bytes": pipeline["batches"],
                "pinned_bytes": 2 * pipeline["pinned"],
                "hinted_image_bytes": pipeline["hints"],
            }
        )
    path = save("gpu_memory", vars(settings), records, calculated=True)
    print(f"{settings.model}, {settings.image_size} pixels, bf16, GB; calculated\n")
    print(show("gpu_memory", path))
    pinned, hint = records[-1]["pinned_bytes"], records[-1]["hinted_image_bytes"]
    print(f"\nPinned memory of the CPU for both pipelines: {pinned / 1e9:.2f} GB")
    print(f"One image of the hardware decoder's size hint: {hint / _MB:.0f} MB")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
