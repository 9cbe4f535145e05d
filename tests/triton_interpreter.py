"""A process in which Triton runs kernels in NumPy, on CPU tensors: it must know when it is imported."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from typing import IO, Any

import torch
from torch import Tensor

from tests.trainer_process import ROOT


class Interpreter:
    """Calls :func:`dali_msda.torch.triton_kernel.mix_images` in such a process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.triton_interpreter"],
            cwd=ROOT,
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def mix_images(self, *arguments: Any, compiled: bool = False, **options: Any) -> Tensor:
        """The result, or the error; with `compiled`, called in a function that torch.compile has compiled."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send((compiled, arguments, options), self._process.stdin)
        found = _receive(self._process.stdout)
        if isinstance(found, Exception):
            raise found
        result: Tensor = found
        return result

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _send(content: Any, stream: IO[bytes]) -> None:
    """Send tensors and the like as PyTorch saves them: pickle alone cannot read uint16."""
    memory = io.BytesIO()
    torch.save(content, memory)
    pickle.dump(memory.getvalue(), stream)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    return torch.load(io.BytesIO(pickle.load(stream)), weights_only=False)


def _serve() -> None:
    from dali_msda.torch.triton_kernel import mix_images

    requests, results = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            compiled, arguments, options = _receive(requests)
        except EOFError:
            return
        try:
            mix = torch.compile(mix_images, fullgraph=True, backend="aot_eager") if compiled else mix_images
            found: Any = mix(*arguments, **options)
        except Exception as error:
            found = type(error)(str(error)) if isinstance(error, ValueError) else RuntimeError(repr(error))
        _send(found, results)


if __name__ == "__main__":
    _serve()
