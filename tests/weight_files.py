"""Weight files as others write them, and files that are not weights."""

from __future__ import annotations

import argparse
import collections
import enum
import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.image_sets import VAL_COUNTS
from tests.trainer_process import plain_classifier

ANT, BEE, CAT = (100 * count / sum(VAL_COUNTS) for count in VAL_COUNTS)  # top-1 if this is the only answer


def ranking(*outputs: int) -> dict[str, Tensor]:
    """Weights that always rank the first of `outputs` highest, then the second, and so on."""
    weights = plain_classifier("", len(outputs)).state_dict()
    weights["4.weight"].zero_()
    for place, output in enumerate(outputs):
        weights["4.bias"][output] = -place
    return dict(weights)


def prefixed(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in weights.items()}


RAW, AVERAGE = ranking(0, 1, 2), ranking(1, 0, 2)
NAMES = ["ant", "bee", "cat"]


class Precision(enum.Enum):
    """A class unknown to the reader of the weights."""

    HALF = "fp16"


def averaged(weights: dict[str, Tensor]) -> dict[str, Any]:
    model = plain_classifier("", 3)
    model.load_state_dict(weights)
    return dict(AveragedModel(model).state_dict())


REFERENCE_ARGUMENTS = argparse.Namespace(model="resnet18", train_crop_size=20, val_crop_size=24, lr=0.1)
ODD = {
    "precision": Precision.HALF,
    "folder": Path("data"),
    "best": np.float64(71.5),
    "history": collections.defaultdict(list, {1: [2.0]}),
    "size": torch.Size([3, 4]),
}
# What is saved, the top-1 of the weights used, and words of the lines about them.
TAKEN: dict[str, tuple[Any, float, list[str]]] = {
    "state_dict": (RAW, ANT, ["Evaluating the weights of", "it names no classes"]),
    "DistributedDataParallel": (prefixed("module.", RAW), ANT, []),
    "compiled": (prefixed("_orig_mod.", RAW), ANT, []),
    "compiled, then parallel": (prefixed("module._orig_mod.", RAW), ANT, []),
    "a part compiled": ({name.replace(".", "._orig_mod."): it for name, it in RAW.items()}, ANT, []),
    "in an attribute": (prefixed("model.", RAW), ANT, []),
    "any attribute": (prefixed("backbone.encoder.", RAW), ANT, []),
    "stacked": ({"model": prefixed("module.model.", RAW), "epoch": 3}, ANT, ["not loaded: epoch"]),
    "AveragedModel": (averaged(AVERAGE), BEE, ["Evaluating the averaged weights", "not loaded: n_averaged"]),
    "timm": (
        {"arch": "resnet18", "state_dict": RAW, "state_dict_ema": AVERAGE, "args": REFERENCE_ARGUMENTS},
        BEE,
        ["averaged weights", "the file says --arch resnet18", "not loaded: arch, state_dict, args"],
    ),
    "torchvision's references": (
        {"model": RAW, "model_ema": averaged(AVERAGE), "optimizer": {}, "args": REFERENCE_ARGUMENTS},
        BEE,
        ["--image-size 20, --val-image-size 24; here:", "not loaded: model, optimizer, args"],
    ),
    "Lightning": (
        {
            "state_dict": prefixed("net.", RAW) | {"criterion.weight": torch.ones(3)},
            "hyper_parameters": {"arch": "resnet18"},
            "callbacks": {},
        },
        ANT,
        ["the file says --arch resnet18", "not loaded: hyper_parameters, callbacks, criterion.weight"],
    ),
    "Lightning with an average": (
        {"state_dict": prefixed("net.", RAW) | prefixed("ema_model.module.", AVERAGE)},
        BEE,
        ["averaged weights"],
    ),
    "objects of any class": ({"state_dict": RAW} | ODD, ANT, ["not loaded: precision, folder, best"]),
    "class_to_idx": (
        {"state_dict": RAW, "class_to_idx": {"cat": 0, "ant": 1, "bee": 2}},
        CAT,
        ["of 3 classes"],
    ),
    "float16": ({name: value.half() for name, value in RAW.items()}, ANT, []),
    "parameters": ({name: nn.Parameter(value) for name, value in RAW.items()}, ANT, []),
    "views of one memory": ({name: value.expand(2, *value.shape)[1] for name, value in RAW.items()}, ANT, []),
}


FORMS: dict[str, Callable[[Path], Any]] = {
    "before PyTorch 1.6": lambda path: torch.save(RAW, path, _use_new_zipfile_serialization=False),
    "pickle protocol 4": lambda path: torch.save({"model": RAW} | ODD, path, pickle_protocol=4),
    "safetensors": lambda path: save_file(prefixed("model.", RAW), path),
}


class Attack:
    """Unpickling it would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def cut(path: Path, save: Callable[[Path], Any], share: float) -> None:
    save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def flipped(path: Path) -> None:
    torch.save(RAW, path)
    data = bytearray(path.read_bytes())
    data[data.index(RAW["0.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)


def torchscript(path: Path) -> None:
    """Write the members of such a file; torch.jit.save itself warns that it is deprecated."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("w/data.pkl", "w/code/__torch__.py", "w/constants.pkl"):
            archive.writestr(name, b"")


def memory_hog(path: Path) -> None:
    """Write a pickle of a few bytes that needs 32 GB to read."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b".")


def save_image(kind: str) -> Callable[[Path], Any]:
    return lambda path: Image.new("RGB", (8, 8)).save(path, kind)


def save(content: Any) -> Callable[[Path], Any]:
    return lambda path: torch.save(content, path)


class Net(nn.Module):
    """A model to save as a whole."""


SPOILED = RAW | {"4.bias": torch.tensor([0.0, torch.nan, 0.0])}
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is empty"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "is full of zeros"),
    "text": (lambda path: path.write_text("weights\n" * 1000), "is a text file"),
    "text in UTF-8": (lambda path: path.write_text("é" * 5001), "is a text file"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><p>404"), "is a web page"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "JPEG": (save_image("jpeg"), "is a JPEG picture"),
    "PNG": (save_image("png"), "is a PNG picture"),
    "WebP": (save_image("webp"), "is a WebP picture"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights")), "is compressed with gzip"),
    "NumPy": (lambda path: np.savez(path.open("wb"), np.ones(3)), "is an archive without weights"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a pickle that torch.save did not"),
    "TorchScript": (torchscript, "is a TorchScript program"),
    "cut": (lambda path: cut(path, save(RAW), 0.9), "is cut off"),
    "cut, old form": (lambda path: cut(path, FORMS["before PyTorch 1.6"], 0.9), "is cut off"),
    "cut early, old form": (lambda path: cut(path, FORMS["before PyTorch 1.6"], 0.1), "is cut off"),
    "cut, safetensors": (lambda path: cut(path, FORMS["safetensors"], 0.9), "is cut off"),
    "cut early, safetensors": (lambda path: cut(path, FORMS["safetensors"], 0.1), "is cut off"),
    "a bit": (flipped, "is damaged: Bad CRC-32"),
    "code": (save({"model": RAW, "more": Attack()}), "asks to call posix.system"),
    "code, old form": (
        lambda path: torch.save([Attack()], path, _use_new_zipfile_serialization=False),
        "asks to call posix.system",
    ),
    "whole model": (save(Net()), "it is a whole model, tests.weight_files.Net; save its state_dict()"),
    "no weights": (save({"epoch": 3}), "holds no named weights; it is a dict of epoch"),
    "a tensor": (save(torch.ones(3)), "holds no named weights"),
    "sparse": (save({"0.weight": torch.ones(3).to_sparse()}), "holds no named weights"),
    "two copies": (
        save(prefixed("student.", RAW) | prefixed("teacher.", RAW)),
        "holds several copies of the model (student and teacher): choose one with --init-entry",
    ),
    "NaN": (save(SPOILED), "holds values that are not finite, in 4.bias"),
    "another model": (save({"a.b": torch.ones(3)}), "has no tensor of --arch shufflenet_v2_x0_5; it has a.b"),
    "part of a model": (
        save({name: RAW[name] for name in RAW if name != "4.bias"} | {"args": REFERENCE_ARGUMENTS}),
        "w.pt is missing 4.bias (it says it is resnet18)",
    ),
    "more than the model": (save(RAW | {"5.x": torch.ones(1)}), "w.pt has an unexpected 5.x"),
    "names that colour": (save({"\x1b[31m4.bias": torch.ones(3)}), r"it has \x1b[31m4.bias"),
    "too much memory": (memory_hog, "is damaged: it remembers 2147483647 objects in"),
    "another layer": (save(RAW | {"0.bias": torch.ones(9)}), "w.pt has 0.bias of shape [9], not [8]"),
    "another head": (
        save(ranking(*range(1000))),
        "has a classifier 4 for 1000 classes; here are 3 folders in val/; --class-names says which they are",
    ),
}
