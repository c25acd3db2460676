"""Curves of a training: losses, learning rate and scores on held-out chips, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rtsmap.mm.train import read_rows

Rows = Sequence[dict[str, float]]


def draw_curves(directory: Path, stages: Iterable[str], png: Path) -> None:
    """Draw what the stages of a run have logged so far, one column a stage."""
    from matplotlib.figure import Figure

    logged = {name: read_rows(directory / name / "log.jsonl") for name in stages}
    logged = {name: rows for name, rows in logged.items() if rows}
    if not logged:
        return
    figure = Figure(figsize=(5.4 * len(logged), 9.0), layout="constrained")
    axes = figure.subplots(3, len(logged), squeeze=False)
    for column, (name, rows) in enumerate(logged.items()):
        _losses(axes[0][column], rows)
        axes[0][column].set_title(f"{name}: loss")
        _rate(axes[1][column], rows)
        _scores(axes[2][column], read_rows(directory / name / "validation.jsonl"))
    temporary = png.with_name(png.name + ".part")
    figure.savefig(temporary, format="png", dpi=90)
    temporary.replace(png)


def _losses(axis: Any, rows: Rows) -> None:
    """The whole loss, and the parts that make up most of it."""
    parts = {key for row in rows for key in row if "loss" in key and key != "loss"}
    ends = {part: max(row.get(part, 0.0) for row in rows) for part in parts}
    largest = sorted(ends, key=lambda part: -ends[part])[:5]
    for part, width in [("loss", 1.8), *((part, 0.9) for part in sorted(largest))]:
        points = [(row["step"], row[part]) for row in rows if part in row]
        style = {"color": "black"} if part == "loss" else {}
        axis.plot(
            *zip(*points, strict=True), lw=width, marker="." if len(points) < 30 else "", label=part, **style
        )
    axis.set_xlabel("step")
    # the legend stands above the curves
    axis.set_ylim(0, 1.45 * max(row["loss"] for row in rows))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="upper center", ncols=3)


def _rate(axis: Any, rows: Rows) -> None:
    from matplotlib.ticker import LogFormatter

    steps = [row["step"] for row in rows]
    axis.plot(steps, [row["lr"] for row in rows], color="tab:blue", marker="." if len(rows) < 30 else "")
    axis.set_title("learning rate (blue), gradient (grey, log)")
    axis.set_xlabel("step")
    axis.set_ylim(bottom=0)
    other = axis.twinx()
    other.plot(steps, [row["norm"] for row in rows], color="grey", lw=0.8)
    other.set_yscale("log")
    # 4 and 0.05 are read at once, 4 x 10^0 is not
    other.yaxis.set_major_formatter("{x:g}")
    other.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def _scores(axis: Any, rows: Rows) -> None:
    axis.set_title("held-out chips")
    axis.set_xlabel("step")
    keys = sorted({key for row in rows for key in row if key.endswith(("_f1_30", "_ap50"))})
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*points, strict=True), marker=".", label=key, ls="--" if key.endswith("ap50") else "-")
    if keys:
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    else:
        axis.text(0.5, 0.5, "none looked at", ha="center", transform=axis.transAxes, color="grey")
