"""Write only the weights of a checkpoint, with their class names, as safetensors.

python -m training.export outputs/.../best.pt weights.safetensors

It takes the averaged weights if the checkpoint has them. The file also states the architecture and image
sizes; ``--init-weights`` of the trainer reads all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from pipelines.files import expand_home
from pipelines.names import shown
from pipelines.screen import keep_printing

from .checkpoints import SaveError, unpack, write_whole


def export(checkpoint: Path, output: Path, entry: str | None = None) -> str:
    """Write weights of a checkpoint of this trainer to a new file.

    Parameters
    ----------
    checkpoint, output : Path
    entry : "model", "ema" or None
        None: the average if there is one, otherwise the model.

    Returns
    -------
    str
        A line that says what was written.

    Raises
    ------
    ValueError
        `output` exists already, or `checkpoint` is not a checkpoint.
    OSError
        One of them cannot be read or written.
    """
    if output.exists():
        raise ValueError(f"the output must be a new file; {output} exists already")
    content = unpack(checkpoint.read_bytes(), checkpoint)
    entry = entry or ("ema" if content.get("ema") else "model")
    if not content.get(entry):
        raise ValueError(f"--entry must be an entry of {checkpoint} with weights in it; got {entry}")
    about = _about(content["run"])
    weights = {name: tensor.contiguous() for name, tensor in content[entry].items()}
    write_whole(output, safetensors.torch.save(weights, about))
    names = "with" if "classes" in about else "without"  # an earlier version wrote it
    return f"{output}: {entry} of {checkpoint}, {len(weights)} tensors, {names} class names"


def _about(run: dict[str, Any]) -> dict[str, str]:
    """What the file states about the weights, as text: safetensors allows nothing else."""
    about = {name: str(run["settings"][name]) for name in ("arch", "image_size", "val_image_size")}
    if run["classes"] is not None:
        about["classes"] = json.dumps([shown(name) for name in run["classes"]])
    return about


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status, 2 after an error, which is printed."""
    keep_printing()
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument(
        "checkpoint", type=expand_home, help="last.pt, best.pt or another checkpoint of the trainer"
    )
    parser.add_argument("output", type=expand_home, help="the new file")
    parser.add_argument("--entry", choices=["model", "ema"], help="default: ema, if there is one")
    given = parser.parse_args(arguments)
    try:
        print(export(given.checkpoint, given.output, given.entry))
    except (ValueError, OSError) as error:
        said = error.strerror if isinstance(error, SaveError) else error
        print(f"training.export: error: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
