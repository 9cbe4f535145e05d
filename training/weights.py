"""Loads weights from files of any source into a model, by tensor names."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .architectures import TIMM, TORCHVISION, timm_names
from .classes import few
from .config import plain
from .inert_pickle import ELEMENTS, Storage, Stored, items_of
from .weight_files import WeightFile, WeightsError
from .weight_settings import About

# What wrappers insert into tensor names, wherever the wrapped module is.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
# Usual names of the entry, or the module attribute, that holds a model's weights.
_USUAL = {"model", "state_dict", "module", "net", "network", "weights", "model_state_dict", "params", "state"}
_USUAL |= {"model_state", "ema", "model_ema", "state_dict_ema", "ema_model", "ema_state_dict", "swa_model"}
# torchvision's published DenseNets have norm.1 where the model has norm1.
_OLD_DENSENET = re.compile(r"(?<=denselayer)(\d+\.(?:norm|conv))\.([12])(?=\.)")
_AVERAGE = {"ema", "swa", "averaged", "average"}
# Training-only heads of googlenet and inception_v3; a model or a file may lack them.
_AUXILIARY = re.compile(r"(aux\d?|AuxLogits)\..*")
# Tensors that are not part of a model: counts of operations.
_COUNTS = re.compile(r"(.*\.)?(total_ops|total_params|n_averaged)")


@dataclass(frozen=True)
class Copy:
    """The weights of a model in a file.

    Attributes
    ----------
    place, prefix : str
        The group of tensors, and the prefix of their names.
    names : dict
        Names in the group, by the model's names.
    extra : list of str
        Other names, which the model does not have.
    is_average : bool
    """

    place: str
    prefix: str
    names: dict[str, str]
    extra: list[str]
    is_average: bool

    @property
    def label(self) -> str:
        """The entry as ``--init-entry`` takes it."""
        return ".".join(part for part in (self.place, self.prefix) if part)

    @property
    def order(self) -> tuple[bool, int]:
        """Sort key: averages first, then usual names first."""
        return not self.is_average, sum(part not in _USUAL for part in self.label.split(".") if part)


class Taken(NamedTuple):
    """What was loaded, for people: kind of weights, part of the model without any, what was not used."""

    kind: str
    except_for: str
    left: str


def load_weights(
    model: nn.Module,
    file: WeightFile,
    arch: str,
    *,
    entry: str | None = None,
    new_classifier: bool = False,
    rows: Sequence[int] | None = None,
    remedy: str = "",
) -> Taken:
    """Load the weights of a file into a model.

    Parameters
    ----------
    model : Module
    file : WeightFile
        Its averaged weights are used if it has any.
    arch : str
        What errors call the model.
    entry : str, optional
        The entry to use instead.
    new_classifier : bool
        Keep the last layer of `model`.
    rows : sequence of int, optional
        For each class of the model, its row in the file's classifier: a permutation of all rows.
    remedy : str
        End of the error for a classifier of another size.

    Raises
    ------
    WeightsError
        The file does not hold the weights of this model.
    """
    own = model.state_dict()
    head, *others = _classifiers(model, list(own))
    heads = [name for name in own if name.rpartition(".")[0] in (head, *others)]
    needed = [name for name in own if not (new_classifier and name in heads)]
    copy = _choose(file, needed, arch, entry)
    stored = file.groups[copy.place]
    shapes = {name: stored[copy.names[name]].shape for name in needed if name in copy.names}
    ignored = f"{head}." if new_classifier else "."
    free = (_AUXILIARY, _COUNTS)
    extra = [name for name in copy.extra if not any(each.fullmatch(name) for each in free)]
    extra = [name for name in extra if not name.startswith(ignored)]
    other = [name for name in shapes if shapes[name] != tuple(own[name].shape)]
    if other and set(other) <= set(heads) and not extra:
        sizes = f"has a classifier {head} for {shapes[other[0]][0]} classes; here are {len(own[other[0]])}"
        raise WeightsError(file.path, f"{sizes}{remedy}")
    problems = [f"is missing {name}" for name in _missing(copy, needed)]
    problems += [f"has an unexpected {name}" for name in extra]
    problems += [
        f"has {name} of shape {list(shapes[name])}, not {list(own[name].shape)}" for name in sorted(other)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        reason = f"{'; it '.join(problems[:3])}{more}{_suggest_model(file, arch)}"
        raise WeightsError(file.path, reason, f"the weights of --arch {arch}")
    read = read_tensors(file, copy.place, [copy.names[name] for name in needed if name in copy.names])
    values = {name: read[copy.names[name]] for name in needed if name in copy.names}
    for name, value in values.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(file.path, f"holds values that are not finite, in {copy.names[name]}")
    if rows is not None and not new_classifier:
        values |= {name: values[name][torch.tensor(rows)] for name in heads if name in values}
    own.update(values)  # it also has layer versions, which some models need
    model.load_state_dict(own)
    except_for = f", except the classifier {head}, which is new" if new_classifier else ""
    kind = "averaged weights" if copy.is_average else "weights"
    return Taken(kind, except_for, _describe_rest(file, copy, needed, values))


# -- Which tensors -----------------------------------------------------------------------------------


def _clean(name: str) -> str:
    """The name without wrappers, with today's layer names."""
    return _OLD_DENSENET.sub(r"\1\2", ".".join(part for part in name.split(".") if part not in _WRAPPERS))


def _find_copies(place: str, tensors: Iterable[str], own: Sequence[str]) -> list[Copy]:
    """Find copies of a model in a group: tensors whose names end with the model's."""
    known = set(own)
    found: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    for name in tensors:
        parts = _clean(name).split(".")
        ends = [at for at in range(len(parts)) if ".".join(parts[at:]) in known]
        if not ends:
            strange.append(".".join(parts))
        for at in ends:
            found.setdefault(".".join(parts[:at]), {})[".".join(parts[at:])] = name
    # torch.optim.swa_utils.AveragedModel keeps its counter next to its module.
    averages = tuple(name.removesuffix("n_averaged") for name in strange if name.endswith("n_averaged"))
    copies = []
    for prefix, names in found.items():
        start = f"{prefix}." if prefix else ""
        extra = [name.removeprefix(start) for name in strange if name.startswith(start)]
        words = set(re.split(r"[._]", f"{place}.{prefix}"))
        is_average = bool(words & _AVERAGE) or start.startswith(averages)
        copies.append(Copy(place, prefix, names, extra, is_average))
    return copies


def _classifiers(model: nn.Module, names: list[str]) -> list[str]:
    """The layers with one output per class: the last, and the last of each auxiliary head."""
    if named := getattr(model, "default_cfg", {}).get("classifier"):  # of timm
        return [named] if isinstance(named, str) else list(named)
    layers = [name.rpartition(".")[0] for name in names]
    of_heads = {layer.partition(".")[0]: layer for layer in layers if _AUXILIARY.fullmatch(layer)}
    return [layers[-1], *of_heads.values()]


def _missing(copy: Copy, needed: Sequence[str]) -> list[str]:
    """Names the copy lacks, except batch counts, which old files lack and no result needs.

    An evaluation does not need auxiliary heads either; without them a training begins with random ones.
    """
    lacking = [name for name in needed if name not in copy.names]
    return [
        name for name in lacking if not (name.endswith("num_batches_tracked") or _AUXILIARY.fullmatch(name))
    ]


def _choose(file: WeightFile, needed: Sequence[str], arch: str, entry: str | None) -> Copy:
    """Choose a complete copy; an average if there is one; then one with a usual name."""
    copies = [copy for place, tensors in file.groups.items() for copy in _find_copies(place, tensors, needed)]
    whole = sorted((copy for copy in copies if not _missing(copy, needed)), key=lambda copy: copy.order)
    if entry is not None:
        named = [copy for copy in copies if f"{copy.label}.".startswith(f"{entry}.")]
        if not named:
            labels = few(list(dict.fromkeys(copy.label or '""' for copy in whole or copies)))
            raise ValueError(f"--init-entry must be an entry of {file.path}: {labels}; got {entry}")
        copies, whole = named, [copy for copy in whole if copy in named]
    if len(whole) > 1 and whole[0].order == whole[1].order:
        labels = " and ".join(copy.label or '""' for copy in whole if copy.order == whole[0].order)
        raise WeightsError(
            file.path, f"holds several copies of the model ({labels}): choose one with --init-entry"
        )
    if whole:
        return whole[0]
    if not copies:
        names = few([name for tensors in file.groups.values() for name in tensors], 3)
        reason = f"has no tensor of --arch {arch}; it has {names}{_suggest_model(file, arch)}"
        raise WeightsError(file.path, reason)
    return max(copies, key=lambda copy: len(copy.names))


def _suggest_model(file: WeightFile, arch: str) -> str:
    """Suggest which other model the weights may belong to."""
    said = About.of_file(file)
    named = f" (it says it is {name})" if (name := said.other_arch or said.arch) else ""
    both = arch in TORCHVISION and arch in (timm_names() or ())
    return named + (f"; --arch {TIMM}{arch} is timm's model of that name" if both else "")


def _describe_rest(file: WeightFile, copy: Copy, needed: Sequence[str], values: Mapping[str, Tensor]) -> str:
    """Describe what was not loaded from the file, and what it lacks."""
    top = [str(name) for name in items_of(file.content)] if file.form != "safetensors" else []
    taken = copy.place.partition(".")[0]
    inside = set(copy.names[name] for name in values)
    tensors = [name for name in file.groups[copy.place] if name not in inside]
    left = [name for name in top if name != taken and name not in inside and name not in tensors] + tensors
    kept = [name for name in needed if name not in values]
    texts = [f"not loaded: {few(left)}"] * bool(left)
    texts += [f"missing and left as they were: {few(kept)}"] * bool(kept)
    return "; ".join(texts)


# -- Their values ------------------------------------------------------------------------------------


def read_tensors(file: WeightFile, place: str, names: Iterable[str]) -> dict[str, Tensor]:
    """Read tensors of a group, by name, and nothing else of the file.

    Raises
    ------
    WeightsError
        The file is damaged, or a tensor has a type that no weights have.
    """
    names = list(names)
    stored = [file.groups[place][name] for name in names]
    try:
        if file.form == "safetensors":
            with safe_open(file.path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in names}
        memory = _read_storages(file, {it.storage for it in stored if it.storage is not None})
        return {name: _view(memory[it.storage], it) for name, it in zip(names, stored, strict=True)}
    except (OSError, MemoryError, WeightsError):
        raise
    except Exception as error:  # of zipfile, safetensors and PyTorch, a dozen kinds
        raise WeightsError(file.path, f"is damaged: {plain(error)}") from error


def _read_storages(file: WeightFile, storages: set[Storage]) -> dict[Storage | None, Tensor]:
    """Read the elements of storages as vectors."""
    with contextlib.ExitStack() as stack:
        if file.form == "zip":
            archive = stack.enter_context(zipfile.ZipFile(file.path))  # it checks the CRC32
        else:
            stream = stack.enter_context(file.path.open("rb"))
        found: dict[Storage | None, Tensor] = {}
        for storage in storages:
            dtype, size = ELEMENTS[storage.kind]
            if file.form == "zip":
                data = archive.read(f"{file.folder}/data/{storage.key}")
            else:
                stream.seek(file.offsets[storage.key])
                data = stream.read(storage.count * size)
            if len(data) != storage.count * size:
                raise ValueError(f"storage {storage.key} has {len(data)} bytes for {storage.count * size}")
            found[storage] = (
                torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)) if data else torch.empty(0)
            )
    return found


def _view(memory: Tensor, stored: Stored) -> Tensor:
    """Copy a tensor out of its storage; PyTorch refuses places beyond its end."""
    return memory.as_strided(stored.shape, stored.strides, stored.offset).clone()
