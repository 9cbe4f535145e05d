"""The pictures of a report: mixing.png and pipeline.png."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.common import Content, Record
from benchmarks.gpu_day.report import stage
from benchmarks.plot import bars
from pipelines.files import replace_whole


def draw(folder: Path, report: Content) -> None:
    """Draw the pictures that the report has figures for."""
    device = (report["device"] or {}).get("name", "without a GPU")
    mixing = [record for record in stage(report, "mixing") if "seconds" in record]
    if mixing:
        first = {key: mixing[0][key] for key in ("batch_size", "layout", "size")}
        shown = [record for record in mixing if all(record[key] == first[key] for key in first)]
        named = [record | {"dtype": record["dtype"] + _mode(record)} for record in shown]
        title = "Mixing {batch_size} images of {size} x {size}, {layout}".format(**first)
        _bars(
            folder / "mixing.png",
            named,
            "seconds",
            "ms per batch",
            f"{title}, {device}: lower is better",
            1e-3,
        )
    loaders = [record for record in stage(report, "pipeline") if "images_per_s" in record]
    if loaders:
        title = f"Training loaders, {device}: higher is better"
        _bars(folder / "pipeline.png", loaders, "images_per_s", "images/s", title)


def _mode(record: Record) -> str:
    return f", {record['mode']}" if record["mode"] else ""


def _bars(path: Path, records: list[Record], field: str, label: str, title: str, unit: float = 1.0) -> None:
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * len(records)), layout="constrained")
    bars(axes, records, field, label, unit=unit)
    figure.suptitle(title, fontsize=11)  # centred on the figure, which is wider than the axes
    replace_whole(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    plt.close(figure)
