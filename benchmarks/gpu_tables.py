"""Tables for the documents from reports of the GPU day: see :mod:`.documents`."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.common import Content, Record, select
from benchmarks.gpu_day.report import stage
from benchmarks.tables import Rows, mix_title, rate
from dali_msda.methods import TABLE

_PEERS = {"torch": "PyTorch", "torchvision": "torchvision", "timm": "timm"}
_MODES = {"batch": "one draw per batch", "elem": "one per image"}


def records_of(content: Content, name: str) -> list[Record]:
    """The records of a stage that have figures."""
    return [record for record in stage(content, name) if "error" not in record]


def mixing(content: Content) -> Rows:
    """:func:`mixing_of` the first case."""
    records = records_of(content, "mixing")
    return mixing_of(select(records, **mixing_cases(records)[0]))


def mixing_cases(records: list[Record]) -> list[Record]:
    """The kinds of images that were mixed, in the order measured."""
    keys = ("batch_size", "dtype", "layout", "size")
    found = dict.fromkeys(tuple(record[key] for key in keys) for record in records)
    return [dict(zip(keys, case, strict=True)) for case in found]


def mixing_of(records: list[Record]) -> Rows:
    """One case: ms per batch, also as a multiple of a copy on the device; GPU work time; memory."""
    copy = next((record for record in records if record["mix"] == "copy"), None)
    peaks = any(record.get("peak_MiB") is not None for record in records)
    rows = [["mixing", "ms per batch (quartiles)", "copies", "GPU at work, ms", "images/s"]]
    rows[0] += ["memory at the peak, MiB"] if peaks else []
    for record in records:
        name = _PEERS.get(record["library"], f"**{mix_title(record['mix'])}**")
        if record["library"] in _PEERS:
            name += f", {'copy' if record['mix'] == 'copy' else mix_title(record['mix'])}"
        if record["mode"]:
            name += f", {_MODES.get(record['mode'], record['mode'])}"
        seconds = record["seconds"]["median"]
        middle, low, high = (f"{1e3 * record['seconds'][key]:.2f}" for key in ("median", "q1", "q3"))
        busy = "" if record["gpu_ms"] is None else f"{record['gpu_ms']:.2f}"
        copies = f"{seconds / copy['seconds']['median']:.1f}" if copy else ""
        images = f"{record['batch_size'] / seconds:.0f}"
        peak = record.get("peak_MiB")
        last = ["" if peak is None else str(peak)] if peaks else []
        rows.append([name, f"{middle} ({low}-{high})", copies, busy, images, *last])
    return rows


def trainer(*contents: Content) -> Rows:
    """Images/s of training, one column per report."""
    rows = [["batches from", *("images/s (quartiles)" for _ in contents)]]
    for batches, mix in (("memory", "none"), ("loader", "none"), ("loader", "hmix")):
        cells = []
        for content in contents:
            found = select(records_of(content, "trainer"), batches_from=batches, mix=mix, compile=False)
            cells += [rate(record["images_per_s"]) for record in found]
        name = "memory" if batches == "memory" else f"the loader, {mix_title(mix)}"
        rows.append([name, *cells])
    return rows


def decoder(*contents: Content) -> Rows:
    """Images/s by share of the hardware decoder and by threads, from all reports."""
    records = [
        record
        for content in contents
        for record in records_of(content, "decoder")
        if not record["repeated"] and record["preallocated"] and record["padded"]
    ]
    loads = sorted({record["load"] for record in records if record["device"] == "mixed"})
    rows = [["images/s", *(f"load {load:g}" for load in loads), "CPU decodes"]]
    for threads in sorted({record["threads"] for record in records}):
        cells = []
        for load in [*loads, None]:
            found = select(records, threads=threads, load=load)
            cells.append(", ".join(f"{record['images_per_s']['median']:.0f}" for record in found))
        rows.append([f"{threads} threads", *cells])
    return rows


def best_decoder(records: list[Record]) -> Record:
    """The decoder settings with the most images/s."""
    return max(records, key=lambda record: float(record["images_per_s"]["median"]))


def buffers(content: Content) -> Rows:
    """Cost and gain of buffers allocated at the start."""
    rows = [
        ["buffers taken at the start", "images/s (quartiles)", "first batch, s", "slowest batch, ms", "MiB"]
    ]
    for record in records_of(content, "decoder"):
        if record["repeated"] or (record["threads"], record["load"]) != (8, 0.8):
            continue
        rows.append(
            [
                "yes" if record["padded"] else "no",
                rate(record["images_per_s"]),
                f"{record['first_batch_s']:.1f}",
                f"{1e3 * record['slowest_batch_s']:.0f}",
                str(record["memory_MiB"]),
            ]
        )
    return rows


def rounding(content: Content) -> Rows:
    """How many values from the GPU differ from the CPU's forms, and the largest difference.

    The GPU's form is the hybrid one, which "auto" chooses there, or the graph in reports without it.
    """
    rows = [["type", "method", "values", "unlike the graph on the CPU", "unlike the kernel", "at most"]]
    records = records_of(content, "rounding")
    hybrid = any(record["one"] == "gpu hybrid" for record in records)
    one = "gpu hybrid" if hybrid else "gpu graph"
    for dtype in dict.fromkeys(record["dtype"] for record in records):
        for method in (name for name in TABLE if name != "none"):
            pair = [
                record
                for other in ("cpu graph", "kernel")
                for record in select(records, dtype=dtype, mix=method, one=one, other=other)
            ]
            if len(pair) == 2:
                most = max(record["max_difference"] for record in pair)
                counts = [str(record["different"]) for record in pair]
                rows.append([dtype, mix_title(method), str(pair[0]["values"]), *counts, f"{most:.2g}"])
    return rows


# The stage of each table.
STAGE_OF = {
    "gpu_mixing": "mixing",
    "gpu_trainer": "trainer",
    "gpu_decoder": "decoder",
    "gpu_buffers": "decoder",
    "gpu_rounding": "rounding",
}
TABLES: dict[str, Callable[..., Rows]] = {
    "gpu_mixing": mixing,
    "gpu_trainer": trainer,
    "gpu_decoder": decoder,
    "gpu_buffers": buffers,
    "gpu_rounding": rounding,
}
