"""The tables of :mod:`.bench_loader` over image sizes and of :mod:`.bench_memory`."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.common import Content, only, select
from benchmarks.tables import Rows, bold, is_ours, rate, title


def source_title(source_size: str) -> str:
    """The size of the JPEGs: "500 pixels", "4000 x 3000", "as they are"."""
    if source_size == "original":
        return "as they are"
    return source_size.replace("x", " x ") if "x" in source_size else f"{source_size} pixels"


def loader_sizes(*contents: Content) -> Rows:
    """Images/s of whole loaders: a row for each, two columns for each size of the JPEGs."""
    records = [record for content in contents for record in content["results"]]
    base = next(record for record in records if record["loader"] == "dali")
    sizes = dict.fromkeys(record["source_size"] for record in records)
    rows = [["loader"]]
    for size in sizes:
        rows[0] += [f"{source_title(size)}: images/s (quartiles)", f"of {title(base)}"]
    speeds = {(bold(record), record["source_size"]): record["images_per_s"] for record in records}
    for name in dict.fromkeys(bold(it) for it in sorted(records, key=lambda it: not is_ours(it))):
        rows.append([name])
        for size in sizes:
            found, ours = speeds.get((name, size)), speeds[bold(base), size]
            rows[-1] += [rate(found), f"{found['median'] / ours['median']:.2f}"] if found else ["", ""]
    return rows


def memory(content: Content) -> Rows:
    """Peak memory of the training pipeline: a row for each setting, a column for each way to decode."""
    records = select(content["results"], measure="peak")
    ways = dict.fromkeys(record["scaled_decoding"] for record in records)
    rows = [["threads", "batch", *(f"scaled decoding {way}: peak MiB" for way in ways)]]
    for workers, batch_size in dict.fromkeys((it["workers"], it["batch_size"]) for it in records):
        found = [only(records, workers=workers, batch_size=batch_size, scaled_decoding=way) for way in ways]
        rows.append([str(workers), str(batch_size), *(f"{it['peak_MiB']:.0f}" for it in found)])
    return rows


def memory_growth(*contents: Content) -> Rows:
    """Resident memory at the ends of epochs, and its slope."""
    rows = [
        ["JPEGs", "scaled decoding", "epochs", "MiB after the first and the last", "growth per epoch, MiB"]
    ]
    for content in contents:
        for record in select(content["results"], measure="growth"):
            ends = record["epochs_MiB"]
            row = [source_title(record["source_size"]), record["scaled_decoding"], str(len(ends))]
            row += [f"{ends[0]:.0f}, {ends[-1]:.0f}", f"{record['growth_MiB_per_epoch']:.1f}"]
            rows.append(row)
    return rows


TABLES: dict[str, Callable[..., Rows]] = {
    "loader_sizes": loader_sizes,
    "memory": memory,
    "memory_growth": memory_growth,
}
