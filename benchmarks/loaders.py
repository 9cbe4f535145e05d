"""The training loaders that :mod:`.bench_loader` compares, each built as its documentation recommends."""

from __future__ import annotations

from benchmarks import loaders_dali, loaders_packed, loaders_torch
from benchmarks.loader_settings import Batches, Contender, Options, Settings
from dali_msda.methods import TABLE

__all__ = ["PEERS", "Batches", "Contender", "Options", "Settings", "contenders"]

PEERS = ("turboloader", "spdl-io", "litdata")
"""Peers whose versions only results of loaders need."""


_MIXES = [mix for mix in TABLE if mix != "none"]
_PEERS_MIXES = ("none", "mixup", "cutmix")


def contenders() -> dict[str, Contender]:
    """All contenders, by their names for ``--loaders``, whether they are installed or not."""
    ours, torch_ones, packed = loaders_dali, loaders_torch, loaders_packed
    found = [
        *(Contender("dali", mix, ours.dali(mix)) for mix in TABLE),
        *(Contender("dali-unscaled", mix, ours.dali(mix, "off")) for mix in TABLE),
        *(Contender("dali-then-msda", mix, ours.dali_then_msda(mix)) for mix in _MIXES),
        *(Contender("dali-dynamic", mix, ours.dali_dynamic(mix)) for mix in _MIXES),
        *(Contender("dali-then-torch", mix, ours.dali_then_torch(mix)) for mix in ("mixup", "cutmix")),
        *(Contender("torchvision", mix, torch_ones.torchvision(mix), "torchvision") for mix in _PEERS_MIXES),
        *(Contender("timm", mix, torch_ones.timm(mix), "timm") for mix in _PEERS_MIXES),
        *(Contender("ffcv", mix, packed.ffcv(mix), "ffcv") for mix in ("none", "mixup")),
        *(Contender("turboloader", mix, packed.turboloader(mix), "turboloader") for mix in _PEERS_MIXES),
        Contender("spdl", "none", torch_ones.spdl, "spdl"),
        Contender("litdata", "none", packed.litdata, "litdata"),
    ]
    alone = {
        "dali-plain": Contender("dali-plain", "none", ours.dali_plain),
        "dali-decoder": Contender("dali-decoder", "none", ours.dali_decoder),
    }
    return alone | {f"{each.loader}-{each.mix}": each for each in found}
