"""The tables of results, in the benchmarks' output and in the documents.

A function takes the content of one results file (or of several) and returns the cells. :data:`TABLES` has
their names; :mod:`.documents` writes them into the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import Content, Record, load, only, select, table
from dali_msda.methods import TABLE

Rows = list[list[str]]  # the first is the header

LIBRARIES = {
    "dali": "this project",
    "dali-msda": "this project",
    "dali-msda-torch": "this project on tensors",
    "dali-then-msda": "DALI, then this project on tensors",
    "dali-dynamic": "this project in dynamic mode",
    "dali-unscaled": "this project, JPEGs decoded at full size",
    "dali-plain": "DALI without this project",
    "dali-decoder": "DALI's decoder alone",
    "dali-then-torch": "DALI, then PyTorch",
    "ffcv": "FFCV",
    "litdata": "LitData",
    "spdl": "SPDL",
    "turboloader": "TurboLoader",
    "numpy": "NumPy",
    "torch": "PyTorch",
}
_OURS = ("dali", "dali-unscaled", "dali-msda", "dali-msda-torch")
_OPERATORS = {
    "read": "reading files",
    "decode": "decoding the crop",
    "resize": "resize and mirror",
    "normalise": "normalise (DALI's operator)",
    "mix_normalise": "*or* {mix} and normalise in one pass",
    "dali_resize_normalise": "*for comparison:* DALI's own resize and normalise",
}
_STARTS = {
    "help": "`train_imagenet.py --help`",
    "error_folder": "error: no such folder",
    "error_number": "error: not a number",
    "import_dali": "a process that imports DALI",
    "import_dali_msda": "`import dali_msda` after DALI",
    "build": "`train_pipeline` until it is built, {mix}",
    "first_batch": "then its first batch, {mix}",
}
_THEORY = ("make_s", "by_offset_s")
_MEASURES = {
    "loader": "training pipeline",
    "mix": "mixing, compiled",
    "mix_normalise": "mixing and normalising, compiled",
    "mix_graph": "mixing, DALI's operators",
}


def mix_title(name: str) -> str:
    """A method's title; other names (``copy``) stay."""
    return TABLE[name].title if name in TABLE else name


def title(record: Record) -> str:
    """The contender of a record: library, method, and the type of the images if it has one."""
    library: str = record["loader"] if "loader" in record else record["library"]
    parts: list[str] = [LIBRARIES.get(library, library), mix_title(record["mix"])]
    return ", ".join(parts + ([record["dtype"]] if "dtype" in record else []))


def is_ours(record: Record) -> bool:
    """Whether the contender is this project."""
    return record.get("loader", record.get("library")) in _OURS


def bold(record: Record) -> str:
    """The title, in bold if it is this project."""
    return f"**{title(record)}**" if is_ours(record) else title(record)


def rate(spread: Record, decimals: int = 0) -> str:
    """The median and the quartiles."""
    low, middle, high = (f"{spread[key]:.{decimals}f}" for key in ("q1", "median", "q3"))
    return f"{middle} ({low}-{high})"


def _digits(value: float) -> str:
    """Three digits: 1.88, 34.5, 116."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def loader(content: Content) -> Rows:
    """Whole loaders, one in each row."""
    records = content["results"]
    base = records[0]["images_per_s"]["median"]
    header = ["loader", "images/s (quartiles)", f"ratio to {title(records[0])}", "peak MiB", "first batch, s"]
    return [header] + [
        [
            bold(record),
            rate(record["images_per_s"]),
            f"{record['images_per_s']['median'] / base:.2f}",
            f"{record['peak_MiB']:.0f}",
            f"{record['first_batch_s']:.1f}",
        ]
        for record in sorted(records, key=lambda record: not is_ours(record))
    ]


def loader_short(content: Content) -> Rows:
    """Images/s of whole loaders: a row for each, a column for each method."""
    records = content["results"]
    loaders = dict.fromkeys(record["loader"] for record in sorted(records, key=lambda r: not is_ours(r)))
    mixes = [mix for mix in TABLE if select(records, mix=mix)]
    rows = [["images/s", *map(mix_title, mixes)]]
    for name in loaders:
        found = [select(records, loader=name, mix=mix) for mix in mixes]
        rates = [f"{one[0]['images_per_s']['median']:.0f}" if one else "" for one in found]
        rows.append([LIBRARIES.get(name, name), *rates])
    return rows


def operators(content: Content) -> Rows:
    """The training pipeline up to an operator, one more in each row."""
    return [["up to", "ms per batch", "processor ms per batch"]] + [
        [
            _OPERATORS[record["stage"]].format(mix=mix_title(record["mix"])),
            *(f"{1e3 * record[key]['median']:.1f}" for key in ("wall_s", "cpu_s")),
        ]
        for record in content["results"]
    ]


def mix(content: Content, places: Sequence[tuple[int, int | None]] | None = None) -> Rows:
    """Mixing one batch: ms and the ratio to a copy at each (batch size, cores), in the faster mode."""
    records = content["results"]
    every = list(dict.fromkeys((record["batch_size"], record["cores"]) for record in records))
    places = every if places is None else places
    header, copies = ["mixing"], []
    for batch_size, cores in places:
        where = "on the GPU" if cores is None else f"{cores} core" + "s" * (cores > 1)
        header += [f"{batch_size} images, {where}, ms", "times the copy"]
        copies.append(only(records, mix="copy", dtype="uint8", batch_size=batch_size, cores=cores))
    rows = [header]
    contenders = {bold(record): (record["library"], record["mix"], record["dtype"]) for record in records}
    for name, (library, method, dtype) in contenders.items():
        cells = [name]
        for (batch_size, cores), copy in zip(places, copies, strict=True):
            fields = {"library": library, "mix": method, "dtype": dtype}
            found = select(records, **fields, batch_size=batch_size, cores=cores)
            seconds = min(record["seconds"]["median"] for record in found)
            cells += [_digits(1e3 * seconds), _times(seconds / copy["seconds"]["median"])]
        rows.append(cells)
    return rows


def mix_tensors(content: Content) -> Rows:
    """Mixing float32 tensors: ms of every library at each number of cores, and how many times ours it is."""
    records = [
        record
        for record in select(content["results"], dtype="float32")
        if record["batch_size"] == content["results"][0]["batch_size"]
    ]
    cores = list(dict.fromkeys(record["cores"] for record in records))
    rows = [["mixing"]]
    for count in cores:
        rows[0] += [f"{count} core{'s' * (count > 1)}, ms", "times this project"]
    for library, method in dict.fromkeys((record["library"], record["mix"]) for record in records):
        cells = []
        for count in cores:
            here = {"mix": method, "cores": count}
            found = select(records, library=library, **here)
            seconds = min(record["seconds"]["median"] for record in found)
            ours = select(records, library="dali-msda-torch", **here)
            ratio = _times(seconds / ours[0]["seconds"]["median"]) if ours else ""
            cells += [_digits(1e3 * seconds), ratio]
        rows.append([bold(found[0]), *cells])
    return rows


def triton(content: Content) -> Rows:
    """Mixing on a GPU: the fused kernel, the same with PyTorch's operators, and other libraries."""
    header = ["mixing", "GPU, ms", "of a copy's bandwidth", "PyTorch's operators, ms", "call, ms"]
    rows = [header]
    for record in select(content["results"], layout="NCHW"):
        times = [
            f"{record[key]['median'] * 1e3:.3f}" if key in record else ""
            for key in ("gpu_s", "operators_gpu_s", "call_s")
        ]
        if "result" in record:
            name = f"**{mix_title(record['mix'])}, {record['images']} to {record['result']}**"
            share = f"{record['share_of_copy']:.0%}"
        else:
            name, share = f"{record['what']}, {record['images']}", ""
        rows.append([name, times[0], share, *times[1:]])
    return rows


def scale_loader(content: Content) -> Rows:
    """The whole loader with several numbers of cores and batch sizes."""
    records = [record for record in content["results"] if record["varied"] != "image_size"]
    return [["cores", "batch", "images/s (quartiles)"]] + [
        [str(record["cores"]), str(record["batch_size"]), rate(record["images_per_s"])] for record in records
    ]


def scale_mix(content: Content) -> Rows:
    """ns per pixel of the kernel: a row for each method, a column for each size."""
    records = select(content["results"], varied="image_size")
    sizes = list(dict.fromkeys(record["image_size"] for record in records))
    rows = [["ns per pixel", *(f"{size} pixels" for size in sizes)]]
    for method in dict.fromkeys(record["mix"] for record in records):
        found = [only(records, mix=method, image_size=size)["ns_per_pixel"]["median"] for size in sizes]
        rows.append([mix_title(method), *(f"{value:.2f}" for value in found)])
    return rows


def train(*contents: Content) -> Rows:
    """Training on loaded batches compared with one in memory; two columns for each file."""
    header = ["batches from"]
    columns: list[dict[str, list[str]]] = []
    for content in contents:
        records = content["results"]
        size = records[0]["image_size"]
        header += [f"{size} pixels: images/s", "lost"]
        memory = only(records, batches_from="memory")["images_per_s"]["median"]
        columns.append({})
        for record in records:
            speed = record["images_per_s"]
            is_memory = record["batches_from"] == "memory"
            name = "memory" if is_memory else mix_title(record["mix"])
            columns[-1][name] = [
                rate(speed, 1),
                "" if is_memory else f"{100 * (1 - speed['median'] / memory):.1f} %",
            ]
    return [header] + [[name, *(cell for each in columns for cell in each[name])] for name in columns[0]]


def start(content: Content) -> Rows:
    """Start-up times in seconds, in this checkout and in another."""
    records = content["results"]
    checkouts = list(dict.fromkeys(record["checkout"] for record in records))
    rows = [["seconds", *({"here": "now", "against": "before"}[name] for name in checkouts)]]
    for stage, method in dict.fromkeys((record["stage"], record["mix"]) for record in records):
        found = [only(records, stage=stage, mix=method, checkout=name) for name in checkouts]
        name = _STARTS[stage].format(mix=mix_title(method) if method else "")
        rows.append([name, *(f"{record['seconds']['median']:.2f}" for record in found)])
    return rows


def pack(*contents: Content) -> Rows:
    """What packing gains and loses; a column for each data set."""
    rows = [
        [""],
        ["kB per image"],
        ["kB per image, packed"],
        ["images/s of the packer, with its start"],
        ["PSNR of crops, dB"],
        ["images/s in training: originals, usual decoder"],
        ["images/s in training: originals"],
        ["images/s in training: packed"],
    ]
    for content in contents:
        records, settings = content["results"], content["settings"]
        kilobytes = [
            only(records, figure="size", images=images)["kilobytes_per_image"]
            for images in ("original", "packed")
        ]
        psnr = only(records, figure="psnr")["db"]
        speeds = [
            only(records, figure="training", images=images, scaled_decoding=scaled)["images_per_s"]["median"]
            for images, scaled in (("original", "off"), ("original", "auto"), ("packed", "auto"))
        ]
        cells = [
            settings["data"],
            *(f"{each:.0f}" for each in kilobytes),
            f"{only(records, figure='packing')['images_per_s']:.0f}",
            f"{psnr['median']:.1f} ({psnr['q1']:.1f} to {psnr['q3']:.1f})",
            *(f"{each:.0f}" for each in speeds),
        ]
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    return rows


def soak(*contents: Content) -> Rows:
    """What happened to runs, how often, and what came of it; a column for each file."""
    columns = [_soaked(content) for content in contents]
    return [["", *(column.pop("") for column in columns)]] + [
        [name, *(column[name] for column in columns)] for name in columns[0]
    ]


def _soaked(content: Content) -> dict[str, str]:
    total, *others = content["results"]
    cells = {
        "": f"{total['minutes']:.0f} minutes",
        "runs": f"{total['runs']} of {total['steps']} steps in all",
    }
    cells["lives"] = str(total["lives"])
    disturbances = [record for record in others if "disturbance" in record]
    for when in dict.fromkeys(record["when"] for record in disturbances):
        happened = select(disturbances, when=when)
        cells[when] = ", ".join(f"{it['disturbance'].replace('_', ' ')} {it['times']}" for it in happened)
    statuses = [record for record in others if "status" in record]
    left = ", ".join(f"{record['status']} ({record['processes']})" for record in statuses)
    return cells | {"exit statuses (-N: signal N)": left, "faults found": str(total["faults"])}


def compare(content: Content) -> Rows:
    """Two checkouts: images/s of the training pipeline, ms of mixing a batch, and the ratio of the speeds."""

    def value(record: Record, name: str) -> str:
        speed: float = record[f"{name}_images_per_s"]["median"]
        return (
            f"{speed:.0f} /s"
            if record["measure"] == "loader"
            else f"{1e3 * record['batch_size'] / speed:.2f} ms"
        )

    return [["measure", "before", "after", "speed of after / before (quartiles)"]] + [
        [
            f"{_MEASURES[record['measure']]}, {mix_title(record['mix'])}",
            value(record, "before"),
            value(record, "after"),
            rate(record["ratio"], 3),
        ]
        for record in sorted(content["results"], key=lambda record: list(_MEASURES).index(record["measure"]))
    ]


def blend(content: Content) -> Rows:
    """A caller's own masks: time per batch, and its ratio to that of rows and columns."""
    records = content["results"]
    titles = {
        "gmix": "GMix",
        "rows and columns": "own mask, rows and columns",
        "every pixel": "own mask, every pixel",
    }
    header = [
        "mask",
        "mixing, ms",
        "processor ms",
        "ratio",
        "mixing and normalising, ms",
        "processor ms",
        "ratio",
    ]
    rows = [header]
    for mask, name in titles.items():
        cells = [name]
        for normalise in (False, True):
            found, base = (
                only(records, mask=each, normalise=normalise) for each in (mask, "rows and columns")
            )
            times = [1e3 * found[key]["median"] for key in ("wall_s", "cpu_s")]
            cells += [f"{value:.2f}" for value in times]
            cells.append(f"{found['cpu_s']['median'] / base['cpu_s']['median']:.2f}")
        rows.append(cells)
    return rows


def gpu_cost(content: Content) -> Rows:
    """Bytes and launches of the GPU graph, calculated."""
    bandwidths, step = content["settings"]["bandwidths"], content["settings"]["step_ms"]
    header = ["method", "launches", "MB", "times the floor"]
    header += [f"ms at {bandwidth:g} TB/s (share of a {step:g} ms step)" for bandwidth in bandwidths]
    rows = [header]
    for record in content["results"]:
        times = [record["bytes"] / (bandwidth * 1e12) * 1e3 for bandwidth in bandwidths]
        rows.append(
            [
                mix_title(record["mix"]),
                str(record["launches"]),
                f"{record['bytes'] / 1e6:.0f}",
                f"{record['bytes'] / record['floor_bytes']:.1f}",
                *(f"{time:.2f} ({100 * time / step:.2f} %)" for time in times),
            ]
        )
    return rows


def gpu_memory(content: Content) -> Rows:
    """GB of training on a GPU, calculated."""
    columns = {
        "weights, gradients, momentum": "model_bytes",
        "activations": "activations_bytes",
        "decoders' paddings": "paddings_bytes",
        "batches of a pipeline": "batches_bytes",
    }
    rows = [["batch per GPU", *columns, "sum"]]
    for record in content["results"]:
        sizes = [record[key] for key in columns.values()]
        cells = [f"{size / 1e9:.2f}" for size in sizes] + [f"{sum(sizes) / 1e9:.1f}"]
        rows.append([str(record["batch_size"]), *cells])
    return rows


def busy(*contents: Content) -> Rows:
    """Milliseconds of a training step beside busy processes."""
    places = [(content, count) for content in contents for count in content["settings"]["neighbours"]]
    rows = [["ms per step: GOMP_SPINCOUNT"]]
    rows[0] += [f"{content['settings']['image_size']} pixels, {count} busy" for content, count in places]
    policies = dict.fromkeys((it["spin_count"], it["threads"]) for it in contents[0]["results"])
    for spin_count, threads in policies:
        name = "not set" if spin_count is None else str(spin_count)
        cells = [name if threads is None else f"{name}, OMP_NUM_THREADS={threads}"]
        for content, count in places:
            found = only(content["results"], neighbours=count, spin_count=spin_count, threads=threads)
            cells.append(f"{1e3 * found['step_s']['median']:.0f}")
        rows.append(cells)
    return rows


def theory(content: Content) -> Rows:
    """Milliseconds to make a method's coefficients and average them by offset, by image size."""
    records = content["results"]
    sizes = sorted({record["image_size"] for record in records})
    rows = [["ms, for images with a side of", *map(str, sizes), "terms"]]
    for mix_name, form in dict.fromkeys((record["mix"], record["form"]) for record in records):
        row = [mix_title(mix_name) + ("" if form == "terms" else ", mask by mask")]
        found = {it["image_size"]: it for it in select(records, mix=mix_name, form=form)}
        for size in sizes:
            one = found.get(size)
            row.append(_digits(1e3 * sum(one[key]["median"] for key in _THEORY)) if one else "")
        rows.append([*row, "" if form == "masks" else str(max(it["terms"] for it in found.values()))])
    return rows


_PUZZLEMIX = {
    "hmix": "HMix",
    "puzzlemix, nothing moved": "PuzzleMix, `--mix-transport-size 0`",
    "puzzlemix": "PuzzleMix",
}


def puzzlemix(*contents: Content) -> Rows:
    """Seconds of a training step with HMix and PuzzleMix, and the ratios; four columns for each file."""
    rows = [["mixing"], *([title] for title in _PUZZLEMIX.values())]
    for content in contents:
        first = content["results"][0]
        rows[0] += [
            f"{first['arch']}, {first['image_size']} pixels: s per step",
            "ratio",
            "s of cores per step",
            "ratio of cores",
        ]
        for row, name in zip(rows[1:], _PUZZLEMIX, strict=True):
            found = only(content["results"], contender=name)
            for seconds, ratio in (("step_s", "ratio"), ("cpu_s", "cpu_ratio")):
                row.append(f"{found[seconds]['median']:.3f}")
                spread = found[ratio]
                row.append(
                    "1"
                    if name == "hmix"
                    else f"{spread['median']:.2f} ({spread['q1']:.2f}-{spread['q3']:.2f})"
                )
    return rows


def scaled_decoding(*contents: Content) -> Rows:
    """PSNR of crops decoded at a smaller scale."""
    rows = [["images", "decoded at", "crops", "median", "5 % below", "worst", "bicubic instead"]]
    for record in (record for content in contents for record in content["results"]):
        figures = ("median_db", "percentile_5_db", "worst_db", "bicubic_median_db")
        rows.append(
            [
                record["images"],
                f"1/{record['scale']}",
                f"{record['crops']} ({record['share_of_crops']:.0%})",
                *(f"{record[name]:.1f} dB" for name in figures),
            ]
        )
    return rows


TABLES: dict[str, Callable[..., Rows]] = {
    "loader": loader,
    "loader_short": loader_short,
    "operators": operators,
    "mix": mix,
    "mix_tensors": mix_tensors,
    "triton": triton,
    "mix_short": partial(mix, places=((64, 1), (256, 2))),
    "scale_loader": scale_loader,
    "scale_mix": scale_mix,
    "train": train,
    "start": start,
    "pack": pack,
    "soak": soak,
    "compare": compare,
    "blend": blend,
    "busy": busy,
    "gpu_cost": gpu_cost,
    "gpu_memory": gpu_memory,
    "theory": theory,
    "puzzlemix": puzzlemix,
    "scaled_decoding": scaled_decoding,
}


def show(name: str, *paths: Path, tables: Mapping[str, Callable[..., Rows]] = TABLES) -> str:
    """The table `name` of these results files, in Markdown."""
    header, *rows = tables[name](*map(load, paths))
    return table(header, rows)
