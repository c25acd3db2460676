"""Figures of an evaluation as pictures: reliability, precision and recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtsmap.atomic import whole_file
from rtsmap.instances.calibration import ScoreBin
from rtsmap.instances.outcomes import Curve

_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#7d4f9e", "#c98a1b")
_GREY = "#888888"


def draw_reliability(
    path: Path,
    tables: Mapping[str, Sequence[ScoreBin]],
    *,
    title: str,
    threshold: float | None = None,
    overwrite: bool = False,
) -> None:
    """Draw one panel for each reliability table, and how many footprints each bin holds below it.

    `threshold` is marked in the last panel.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(tables), 6.6), layout="constrained")
    axes = figure.subplots(
        2, len(tables), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": (4, 1)}
    )
    for number, ((name, table), colour) in enumerate(zip(tables.items(), _COLOURS, strict=False)):
        upper, lower = axes[0][number], axes[1][number]
        _draw_bins(upper, table, colour)
        widths = [one.high - one.low for one in table]
        lower.bar(
            [one.low for one in table],
            [one.count for one in table],
            widths,
            align="edge",
            color=colour,
            alpha=0.6,
            edgecolor="white",
        )
        upper.set_title(name)
        lower.set_xlabel("score")
        if number == 0:
            upper.set_ylabel("share that are true slumps")
            lower.set_ylabel("footprints")
    if threshold is not None:
        for axis in axes[:, -1]:
            axis.axvline(
                threshold, color="black", linestyle=":", linewidth=1.2, label=f"threshold {threshold:g}"
            )
    handles, _ = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(title)
    _save(figure, path, overwrite=overwrite)


def _draw_bins(axis: Any, table: Sequence[ScoreBin], colour: str) -> None:
    scores = [one.mean_score for one in table]
    shares = [one.true_share for one in table]
    below = [max(0.0, one.true_share - one.interval[0]) for one in table]
    above = [max(0.0, one.interval[1] - one.true_share) for one in table]
    axis.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="perfect")
    axis.errorbar(
        scores,
        shares,
        yerr=[below, above],
        fmt="o-",
        color=colour,
        capsize=3,
        label="measured, 95 % interval",
    )
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)


def draw_precision_recall(
    path: Path, curves: Mapping[float, Curve], *, title: str, overwrite: bool = False
) -> None:
    """Draw precision over recall, one line for each IoU; the end of a line is the map as it stands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    axis = figure.subplots()
    for number, ((iou, curve), colour) in enumerate(zip(curves.items(), _COLOURS, strict=False)):
        if not len(curve.thresholds) or not curve.slumps:
            continue
        # curves of low IoU often lie on each other: wide lines show from under narrow ones
        width = 1.4 + 1.8 * (len(curves) - 1 - number)
        axis.step(
            curve.recall, curve.precision, where="post", color=colour, linewidth=width, label=f"IoU {iou:g}"
        )
        axis.plot(curve.recall[-1], curve.precision[-1], "o", color=colour)
        for step in (0.25, 0.5, 0.75):
            at = int(np.searchsorted(-curve.thresholds, -step, side="right")) - 1
            if 0 <= at < len(curve.thresholds) - 1:
                axis.plot(curve.recall[at], curve.precision[at], "|", color=colour, markersize=9)
                if number == 0:
                    place = curve.recall[at], curve.precision[at]
                    axis.annotate(f"{step:g}", place, (5, 5), textcoords="offset points", fontsize=8)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("recall")
    axis.set_ylabel("precision")
    axis.set_box_aspect(1)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower left", title="small numbers: score", framealpha=0.8)
    figure.suptitle(title)
    _save(figure, path, overwrite=overwrite)


def _save(figure: Any, path: Path, *, overwrite: bool) -> None:
    with whole_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=110)
