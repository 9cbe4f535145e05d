"""The tables of reports of the GPU day, as the documents show them: see :mod:`.documents`."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.common import Content, Record, select
from benchmarks.tables import Rows, mix_title, rate
from dali_msda.methods import TABLE

_PEERS = {"torch": "PyTorch", "torchvision": "torchvision", "timm": "timm"}
_MODES = {"batch": "one draw per batch", "elem": "one per image"}


def records_of(content: Content, stage: str) -> list[Record]:
    """The records of a stage that have figures."""
    found: list[Record] = next(
        (entry["records"] for entry in content["stages"] if entry["name"] == stage), []
    )
    return [record for record in found if "error" not in record]


def mixing(content: Content) -> Rows:
    """The first case: ms for a batch, and how long the GPU itself is at work."""
    records = records_of(content, "mixing")
    case = {key: records[0][key] for key in ("batch_size", "dtype", "layout", "size")}
    rows = [["mixing", "ms per batch (quartiles)", "GPU at work, ms", "images/s"]]
    for record in select(records, **case):
        name = _PEERS.get(record["library"], f"**{mix_title(record['mix'])}**")
        if record["library"] in _PEERS:
            name += f", {'copy' if record['mix'] == 'copy' else mix_title(record['mix'])}"
        if record["mode"]:
            name += f", {_MODES.get(record['mode'], record['mode'])}"
        seconds = record["seconds"]["median"]
        middle, low, high = (f"{1e3 * record['seconds'][key]:.2f}" for key in ("median", "q1", "q3"))
        busy = "" if record["gpu_ms"] is None else f"{record['gpu_ms']:.2f}"
        rows.append([name, f"{middle} ({low}-{high})", busy, f"{record['batch_size'] / seconds:.0f}"])
    return rows


def trainer(*contents: Content) -> Rows:
    """Images/s of training, one column for each report."""
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
    """Images/s over the share of the hardware decoder and the threads, of all reports together."""
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


def buffers(content: Content) -> Rows:
    """What buffers that are taken at the start cost and gain."""
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
    """How many values of the GPU's graph differ from the CPU's forms, and by how much at most."""
    rows = [["type", "method", "values", "unlike the graph on the CPU", "unlike the kernel", "at most"]]
    records = records_of(content, "rounding")
    for dtype in dict.fromkeys(record["dtype"] for record in records):
        for method in (name for name in TABLE if name != "none"):
            pair = [
                record
                for other in ("cpu graph", "kernel")
                for record in select(records, dtype=dtype, mix=method, one="gpu graph", other=other)
            ]
            if len(pair) == 2:
                most = max(record["max_difference"] for record in pair)
                counts = [str(record["different"]) for record in pair]
                rows.append([dtype, mix_title(method), str(pair[0]["values"]), *counts, f"{most:.2g}"])
    return rows


TABLES: dict[str, Callable[..., Rows]] = {
    "gpu_mixing": mixing,
    "gpu_trainer": trainer,
    "gpu_decoder": decoder,
    "gpu_buffers": buffers,
    "gpu_rounding": rounding,
}
