"""How trained networks stand noise, blur, occlusion, corruptions and attacks, and how calibrated they are.

python -m experiments.robustness CHECKPOINT [CHECKPOINT ...] --data DIR [--output FILE.json] [--images N]

CHECKPOINT is a network of the study, a checkpoint of the trainer (its averaged weights, if it has any), or a
folder of them. DIR has val/ or test/ with class folders, or CIFAR's binary files. One table compares the
mixing methods, with 95 % intervals: over the images (one network of a method), or over the networks
(several). FILE.json has every number, and differences to no mixing, paired by the seed; the picture of the
same name shows the accuracies.

All networks see the same N images and the same draws: the same command gives the same numbers. Attacks
change pixels in [0, 1]; the normalisation is part of the network. FGSM is one step, PGD --steps of
2.5 radius / steps from a random start. What is finished is kept in FILE.cells.jsonl: a stopped run resumes,
and a later one with more networks only measures those.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dali_msda.methods import TABLE
from dali_msda.processors import usable_processors
from experiments.figures import FOLDER, Options, compute_cells, save
from experiments.measuring import Measure, load_pixels
from experiments.networks import Network, find_networks, load_network
from experiments.perturbations import SMALLEST, Images
from experiments.robustness_figure import draw
from experiments.robustness_table import (
    PARTS,
    QUICK,
    RADII,
    Amount,
    compare_with_none,
    find_masking,
    format_table,
    summarize,
)
from pipelines.datasets import list_split
from pipelines.files import expand_home
from pipelines.folders import ImageFolder, list_images
from pipelines.sources import Source
from training.classes import map_classes
from training.machine import describe_code, describe_command, describe_machine

SEED = 0
PACKAGES = ("foolbox", "imagecorruptions-imaug", "scikit-image", "opencv-python-headless", "scipy")


def list_evaluation(data: Path) -> Source:
    """The images of val/ or test/, or CIFAR's test images from its binary files."""
    folders = [data / name for name in ("val", "test") if (data / name).is_dir()]
    return list_images(folders[0]) if folders else list_split(data, "val")


def sample(images: Source, count: int, seed: int) -> tuple[Source, list[int]]:
    """At most `count` images, drawn without replacement: the source to read, and the positions in it."""
    if count >= len(images):
        return images, list(range(len(images)))
    chosen = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False)).tolist()
    if not isinstance(images, ImageFolder):
        return images, chosen
    few = dataclasses.replace(
        images, files=[images.files[i] for i in chosen], labels=[images.labels[i] for i in chosen]
    )
    return few, list(range(count))


def group_networks(networks: Mapping[str, Network], files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Names of the networks that differ in the seed alone, by group, in the order of the methods.

    Raises
    ------
    ValueError
        Two of a group have the same seed, so they are no sample of seeds.
    """
    order = list(TABLE)
    crops = {network.crop for network in networks.values()}
    archs = {network.arch for network in networks.values()}

    def title(network: Network) -> str:
        parts = [TABLE[network.method].title if network.method in TABLE else network.method]
        parts += [network.arch] if len(archs) > 1 else []
        parts += [f"{network.crop} crops"] if len(crops) > 1 and network.crop is not None else []
        return ", ".join(parts)

    def place(name: str) -> tuple[str, str, int, int]:
        network = networks[name]
        known = order.index(network.method) if network.method in order else len(order)
        return network.arch, network.crop or "", known, network.seed

    groups: dict[str, list[str]] = {}
    for name in sorted(networks, key=place):
        group = groups.setdefault(title(networks[name]), [])
        if group and networks[group[-1]].seed == networks[name].seed:
            raise ValueError(
                f"networks of one method must have different seeds; {files[group[-1]]} and {files[name]} are"
                f" both {title(networks[name])} with seed {networks[name].seed}"
            )
        group.append(name)
    return groups


def measure(
    options: Options, paths: Sequence[Path], data: Path, amount: Amount, *, workers: int, device: str
) -> dict[str, Any]:
    """Measure all networks: results, their groups, and what they were measured on.

    Raises
    ------
    ValueError, OSError
        A file, the images, or an option is not as it must be; before anything is measured.
    """
    files = {_name(path): path for path in paths}
    networks = {name: load_network(path) for name, path in files.items()}
    groups = group_networks(networks, files)
    images, chosen = sample(list_evaluation(data), amount.images, SEED)
    loaded: dict[tuple[int, int | None], tuple[Images, list[int]]] = {}
    labels: dict[str, list[int]] = {}
    for name, network in networks.items():
        if "corruptions" in amount.parts and network.image_size < SMALLEST:
            raise ValueError(
                f"--parts must leave out corruptions for images of less than {SMALLEST} pixels;"
                f" {files[name]} is for {network.image_size}"
            )
        classes = map_classes(images, network.classes, absent=None, split="--data", model=str(files[name]))
        size = (network.image_size, network.resize_size)
        if size not in loaded:
            loaded[size] = load_pixels(images, chosen, *size)
        labels[name] = [classes.positions[label] for label in loaded[size][1]]
    sizes = {name: (network.image_size, network.resize_size) for name, network in networks.items()}
    columns = list(dict.fromkeys(column for entry in amount.entries() for column in entry.columns))
    keys = [f"{name} {column}" for column in columns for name in networks]
    pixels = {size: values for size, (values, _) in loaded.items()}
    compute = Measure(files, sizes, pixels, labels, amount.steps, SEED, device)
    settings = {"images": images.digest(), "count": len(chosen), "steps": amount.steps, "seed": SEED}
    cells = compute_cells(options, keys, settings, compute, workers=workers)
    return {
        "images": len(chosen),
        "networks": {
            name: {
                "file": files[name].name,
                "method": it.method,
                "seed": it.seed,
                "arch": it.arch,
                "crop": it.crop,
            }
            for name, it in networks.items()
        },
        "groups": groups,
        "cells": {name: {column: cells[f"{name} {column}"] for column in columns} for name in networks},
    }


def _name(path: Path) -> str:
    """A name of the content, so that results are found again wherever the file is."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# -- Command line -------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the options."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = FOLDER / "robustness.json"
    radii = " ".join(f"{radius:g}" for radius in RADII)
    parser.add_argument(
        "checkpoints", nargs="+", type=expand_home, metavar="CHECKPOINT", help="file, or folder of *.pt files"
    )
    parser.add_argument(
        "--data", type=expand_home, required=True, help="folder with val/ or test/, or CIFAR's binary files"
    )
    parser.add_argument("--output", type=expand_home, default=default, help=f"default: {default}")
    parser.add_argument("--images", type=int, help=f"how many, drawn at random; default: {Amount.images}")
    parser.add_argument("--radii", type=float, nargs="+", help=f"of attacks, in 1/255; default: {radii}")
    parser.add_argument("--steps", type=int, help=f"of PGD; default: {Amount.steps}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what to measure; default: all")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--quick", action="store_true", help="few images, one radius, one severity")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".json":
        parser.error(f"--output must end in .json; got {options.output}")
    for name, least in {"images": 2, "steps": 1, "workers": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}; got {value}")
    for radius in options.radii or ():
        if not 0 < radius <= 255:
            parser.error(f"--radii must be in (0, 255]; got {radius:g}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device must be cpu: PyTorch finds no GPU; got cuda")
    return options


def choose_amount(options: argparse.Namespace) -> Amount:
    """What the options ask for."""
    base = QUICK if options.quick else Amount()
    return Amount(
        images=options.images or base.images,
        radii=tuple(sorted(set(options.radii))) if options.radii else base.radii,
        steps=options.steps or base.steps,
        severities=base.severities,
        parts=tuple(part for part in PARTS if part in options.parts) if options.parts else base.parts,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write JSON and picture; return 0, or 130 if interrupted."""
    given = parse(arguments)
    amount = choose_amount(given)
    device = "cuda" if given.device != "cpu" and torch.cuda.is_available() else "cpu"
    options = Options(given.output.with_suffix(".png"), quick=given.quick, dpi=200)
    try:
        paths = find_networks(given.checkpoints)
        found = measure(
            options, paths, given.data, amount, workers=given.workers or usable_processors(), device=device
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    records = summarize(found, amount)
    weaker = find_masking(found, amount)
    print(format_table(records))
    for each in weaker:
        file = found["networks"][each["network"]]["file"]
        print(f"warning: PGD is weaker than FGSM at {each['radius']:g}/255 on {file}: masked gradients?")
    data = {
        "benchmark": "robustness",
        "calculated": False,
        **describe_command("experiments.robustness", arguments=arguments),
        **describe_code(),
        "machine": describe_machine(PACKAGES),
        "images": found["images"],
        "seed": SEED,
        "pgd_steps": amount.steps,
        "networks": found["networks"],
        "groups": found["groups"],
        "pgd_weaker_than_fgsm": weaker,
        "results": records,
        "differences": compare_with_none(found, records),
    }
    save(draw(records, amount.radii), data, [], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
