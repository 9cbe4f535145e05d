"""Tables for the documents from reports of the GPU day: see :mod:`.documents`."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.common import Content, Record, select
from benchmarks.gpu_day.report import stage
from benchmarks.tables import LIBRARIES, Rows, mix_title, rate
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
    """Images/s of training, one column per report; compiled models have rows of their own."""
    rows = [["batches from", *(f"images/s, {_short_name(content)}" for content in contents)]]
    for compiled in (False, True):
        for batches, mix in (("memory", "none"), ("loader", "none"), ("loader", "hmix")):
            cells = []
            for content in contents:
                found = select(
                    records_of(content, "trainer"), batches_from=batches, mix=mix, compile=compiled
                )
                cells.append(rate(found[0]["images_per_s"]) if found else "")
            name = "memory" if batches == "memory" else f"the loader, {mix_title(mix)}"
            if any(cells):
                rows.append([name + (", compiled" if compiled else ""), *cells])
    return rows


def _short_name(content: Content) -> str:
    """The GPU of a report: "H100" of "NVIDIA H100 80GB HBM3"."""
    words = str(content["device"]["name"]).split()
    return words[1] if words[0] == "NVIDIA" and len(words) > 1 else words[0]


def pipeline(content: Content) -> Rows:
    """Images/s of loaders, and their factor to the first of their group."""
    rows = [["loader", "images/s (quartiles)", "of no mixing"]]
    records = [record for record in records_of(content, "pipeline") if "images_per_s" in record]
    for record in records:
        first = next(other for other in records if other["group"] == record["group"])
        factor = record["images_per_s"]["median"] / first["images_per_s"]["median"]
        depth = record.get("prefetch_queue_depth")
        name = f"{LIBRARIES[record['loader']]}, {mix_title(record['mix'])}"
        name += "" if depth is None else f", prefetch_queue_depth={depth}"
        rows.append([name, rate(record["images_per_s"]), f"{factor:.2f}"])
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
    "gpu_pipeline": "pipeline",
    "gpu_decoder": "decoder",
    "gpu_buffers": "decoder",
    "gpu_rounding": "rounding",
}
# The others show one report.
OF_SEVERAL = ("gpu_trainer", "gpu_decoder")
TABLES: dict[str, Callable[..., Rows]] = {
    "gpu_mixing": mixing,
    "gpu_trainer": trainer,
    "gpu_pipeline": pipeline,
    "gpu_decoder": decoder,
    "gpu_buffers": buffers,
    "gpu_rounding": rounding,
}
